"""AudioLDM 2's Generator against diffusers' own pipeline and schedulers, on tiny weights of the real classes."""

import json
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.audioldm2.pipeline_audioldm2 import AudioLDM2Pipeline
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from transformers.audio_utils import mel_filter_bank, spectrogram

import unet_families
from dragontune.encoders.latents import Latents
from dragontune.errors import InputError
from dragontune.generators.adapters import Lora
from dragontune.generators.checkpoint import Plan, Size
from dragontune.generators.pretrained import load, load_codec
from dragontune.media.audio import Audio
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from dragontune.testing import check_generator
from tiny_audioldm2 import BETAS, save_audioldm2
from unet_families import loaded, near, start

PROMPTS = ["a reel in G", "jig for two"]
"""Of as many tokens, so that the pipeline pads neither."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_audioldm2(tmp_path_factory.mktemp("models") / "audioldm2")


@pytest.fixture(scope="module")
def generator(folder):
    return loaded(folder)


def pipeline_of(folder):
    pipeline: Any = AudioLDM2Pipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def theirs(folder, latents, steps, guidance, output="latent", **more):
    """With guidance the unconditional prompt is encoded without the padding of the others, as in the authors' code."""
    pipeline = pipeline_of(folder)
    if guidance == 1:
        said = {"prompt": list(PROMPTS)}
    else:
        tokens, mask, generated = pipeline.encode_prompt(list(PROMPTS), "cpu", 1, False)
        free, _, nothing = pipeline.encode_prompt(["", ""], "cpu", 1, False)
        longer = torch.cat([free, torch.zeros_like(tokens)[:, free.shape[1] :]], 1)
        real = torch.cat([torch.ones(2, free.shape[1]), torch.zeros_like(mask)[:, free.shape[1] :]], 1).to(mask)
        said = {"prompt_embeds": tokens, "attention_mask": mask, "generated_prompt_embeds": generated}
        said |= {"negative_prompt_embeds": longer, "negative_attention_mask": real}
        said |= {"negative_generated_prompt_embeds": nothing}
    return pipeline(
        **said,
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=latents,
        output_type=output,
        return_dict=output == "latent",
        **more,
    )[0]


def same_as_pipeline(folder, generator, steps, guidance, order=1):
    noise = start(generator) / generator.schedule.start()
    ours = Sampler(steps=steps, guidance=guidance, order=order).sample(generator, PROMPTS, Key(0), decode=False)
    assert (ours.latents - noise).abs().max() > 0.01
    near(ours.latents, theirs(folder, noise, steps, guidance))


@pytest.mark.parametrize("guidance", [1.0, 3.5])
@pytest.mark.parametrize("steps", [1, 3, 20])
def test_sampling_is_the_pipelines(folder, generator, steps, guidance):
    same_as_pipeline(folder, generator, steps, guidance)


def test_other_schedulers_are_the_pipelines(tmp_path):
    folder = save_audioldm2(tmp_path / "euler", scheduler=EulerDiscreteScheduler(**BETAS))
    same_as_pipeline(folder, loaded(folder), 10, 3.5)
    folder = save_audioldm2(tmp_path / "dpm", scheduler=DPMSolverMultistepScheduler(**BETAS))
    same_as_pipeline(folder, loaded(folder), 10, 3.5, order=2)


@pytest.mark.parametrize("prompt", ["a", "a reel in G major for the flute", "", "organ"])
def test_a_prompt_is_what_the_pipeline_makes_of_it_alone(folder, generator, prompt):
    tokens, mask, generated = pipeline_of(folder).encode_prompt([prompt], "cpu", 1, False)
    ours = generator.encode_prompts([prompt])
    near(ours.generated, generated)
    near(ours.tokens[:, : mask.sum()], tokens)
    assert ours.mask.sum() == mask.sum()
    assert ours.tokens.shape[1] == 128


def test_sound_is_the_pipelines(folder, generator):
    noise = start(generator)
    ours = Sampler(steps=4, guidance=1.0, order=1).sample(generator, PROMPTS, Key(0)).media
    expected = theirs(folder, noise, 4, 1.0, "pt")
    assert isinstance(ours, Audio)
    assert ours.waveform.shape == (2, 1, 5120)
    near(ours.waveform[:, 0], expected)


def test_spectrograms_are_those_of_transformers(generator):
    """Of noise and of a tone, whose band is the loudest."""
    t = torch.arange(5120) / 16000
    tone, noise = (
        0.5 * torch.sin(2 * torch.pi * 1000 * t),
        0.1 * torch.randn(5120, generator=torch.Generator().manual_seed(0)),
    )
    bank = mel_filter_bank(513, 64, 0, 8000, 16000, norm="slaney", mel_scale="slaney")
    with torch.no_grad():
        found = generator.codec.spectrogram(torch.stack([tone, noise])[:, None])
    assert found.shape == (2, 1, 32, 64)
    for wave, one in zip((tone, noise), found, strict=True):
        expected = spectrogram(
            wave.numpy(),
            np.hanning(1025)[:-1],
            1024,
            160,
            power=1.0,
            mel_filters=bank,
            mel_floor=1e-5,
            log_mel="log",
        )
        torch.testing.assert_close(one[0].T, torch.from_numpy(expected)[:, :32].float(), atol=1e-3, rtol=1e-3)
    assert bank[64, found[0, 0, 16].argmax()] > 0


def test_encode_is_the_autoencoders(folder, generator):
    clip = Audio(0.1 * torch.randn(2, 1, 5120, generator=torch.Generator().manual_seed(0)), 16000)
    vae = pipeline_of(folder).vae
    with torch.no_grad():
        mel = generator.codec.spectrogram(clip.waveform)
        expected = vae.encode(mel).latent_dist.mode() * vae.config.scaling_factor
        near(generator.encode(clip), expected)
        assert generator.encode(Audio(torch.randn(1, 2, 3000), 8000)).shape == (1, 4, 8, 16)
        assert generator.codec.encode(Audio(torch.zeros(1, 1, 700), 16000)).shape == (1, 4, 2, 16)
    assert Latents(str(folder)).dim == 4
    assert load_codec(str(folder), "cpu").sample_rate == 16000
    assert generator.codec.settings()["hop"] == 160


def test_gradients_of_silence_are_finite(generator):
    silence = torch.zeros(1, 1, 5120, requires_grad=True)
    generator.encode(Audio(silence, 16000)).square().sum().backward()
    assert silence.grad is not None
    assert silence.grad.isfinite().all()
    sound = torch.randn(1, 1, 5120, generator=torch.Generator().manual_seed(0)).requires_grad_()
    generator.encode(Audio(sound, 16000)).square().sum().backward()
    assert sound.grad is not None
    assert sound.grad.abs().sum() > 0


def test_contract(folder):
    check_generator(load(str(folder), Lora(rank=2), device="cpu"), PROMPTS)


def test_prompts(generator):
    unet_families.rows_are_independent(generator)
    unet_families.prompts_and_times_matter(generator)
    condition = generator.encode_prompts(["a", "a reel"])
    vectors = generator.prompt_vectors(condition)
    assert vectors.shape == (2, 16 + 24)
    torch.testing.assert_close(vectors[0, 16:], condition.tokens[0, : condition.mask[0].sum()].mean(0))


def test_bfloat16_is_near(folder):
    unet_families.bfloat16_is_near(folder)


def test_checkpointing_changes_no_gradient(folder):
    unet_families.checkpointing_changes_no_gradient(folder)


def test_offloading_changes_nothing(folder):
    unet_families.offloading_changes_nothing(folder)


def test_the_last_step_draws_nothing(generator):
    unet_families.noise_stays_out_of_the_last_step(generator)


def test_lengths(folder, generator):
    assert generator.seconds == pytest.approx(0.32)
    other = loaded(folder, size=Size(seconds=0.45), plan=Plan(tiling=True))
    assert other.latent_shape == (4, 12, 16)
    media = Sampler(steps=2, order=1).sample(other, PROMPTS, Key(0)).media
    assert isinstance(media, Audio)
    assert media.waveform.shape == (2, 1, 7200)
    noise = start(other)
    plain = loaded(folder, size=Size(seconds=0.45))
    with torch.no_grad():
        near(other.decode(noise).waveform, plain.decode(noise).waveform)
    near(
        Sampler(steps=2, order=1).sample(plain, PROMPTS, Key(0)).latents,
        theirs(folder, noise, 2, 1.0, audio_length_in_s=0.45),
    )


@pytest.mark.parametrize("size", [Size(seconds=0.03), Size(height=16), Size(frames=5)])
def test_sizes_that_cannot_be(folder, size):
    with pytest.raises(InputError, match=r"expected .*; (raise|leave)"):
        load(str(folder), device="cpu", size=size)


def changed(folder, tmp_path, file, **values):
    other = shutil.copytree(folder, tmp_path / "other")
    content = json.loads((other / file).read_text())
    (other / file).write_text(json.dumps(content | values))
    return str(other)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("scheduler/scheduler_config.json", {"clip_sample": True}, "clip_sample"),
        ("scheduler/scheduler_config.json", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "discrete time"),
        ("vocoder/config.json", {"sampling_rate": 48000}, "AudioLDM's vocoder"),
        ("model_index.json", {"text_encoder_2": ["transformers", "VitsModel"]}, "speech is left out"),
    ],
)
def test_other_models_are_refused(folder, tmp_path, file, values, message):
    with pytest.raises(InputError, match=message):
        load(changed(folder, tmp_path, file, **values), device="cpu")


def test_a_language_model_without_a_head(folder, tmp_path):
    """Older checkpoints name the class without one."""
    other = changed(folder, tmp_path, "model_index.json", language_model=["transformers", "GPT2Model"])
    ours, plain = (loaded(place).encode_prompts(PROMPTS).generated for place in (other, folder))
    near(ours, plain)
