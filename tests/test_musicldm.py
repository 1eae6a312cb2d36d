"""MusicLDM's Generator against diffusers' own pipeline and schedulers, on tiny weights of the real classes."""

import json
import shutil

import pytest
import torch
from diffusers.pipelines.deprecated.musicldm.pipeline_musicldm import MusicLDMPipeline
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

import unet_families
from dragontune.encoders.latents import Latents
from dragontune.errors import InputError
from dragontune.generators.adapters import Lora
from dragontune.generators.checkpoint import Plan, Size
from dragontune.generators.pretrained import load
from dragontune.media.audio import Audio
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from dragontune.testing import check_generator
from tiny_audioldm2 import BETAS
from tiny_musicldm import save_musicldm
from unet_families import PROMPTS, loaded, near, start


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_musicldm(tmp_path_factory.mktemp("models") / "musicldm")


@pytest.fixture(scope="module")
def generator(folder):
    return loaded(folder)


def theirs(folder, latents, steps, guidance, output="latent", **more):
    """Diffusers no longer keeps this pipeline up: what CLAP says has to be unpacked for it."""
    pipeline = MusicLDMPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    features = pipeline.text_encoder.get_text_features
    pipeline.text_encoder.get_text_features = lambda *args, **kwargs: features(*args, **kwargs).pooler_output
    return pipeline(
        list(PROMPTS),
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=latents,
        output_type=output,
        return_dict=output == "latent",
        **more,
    )[0]


def same_as_pipeline(folder, generator, steps, guidance, order=1):
    noise = start(generator)
    ours = Sampler(steps=steps, guidance=guidance, order=order).sample(generator, PROMPTS, Key(0), decode=False)
    assert (ours.latents - noise).abs().max() > 0.01
    near(ours.latents, theirs(folder, noise, steps, guidance))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("steps", [1, 3, 20])
def test_sampling_is_the_pipelines(folder, generator, steps, guidance):
    same_as_pipeline(folder, generator, steps, guidance)


def test_the_second_order_is_the_pipelines(tmp_path):
    folder = save_musicldm(tmp_path / "dpm", scheduler=DPMSolverMultistepScheduler(**BETAS))
    same_as_pipeline(folder, loaded(folder), 10, 2.0, order=2)


def test_sound_is_the_pipelines(folder, generator):
    ours = Sampler(steps=4, guidance=2.0, order=1).sample(generator, PROMPTS, Key(0)).media
    assert isinstance(ours, Audio)
    near(ours.waveform[:, 0], theirs(folder, start(generator), 4, 2.0, "pt"))
    assert generator.encode(ours).shape == (2, 4, 8, 16)
    assert Latents(str(folder)).dim == 4


def test_contract(folder):
    check_generator(load(str(folder), Lora(rank=2), device="cpu"), PROMPTS)


def test_prompts(generator):
    unet_families.rows_are_independent(generator)
    unet_families.prompts_and_times_matter(generator)
    norms = generator.encode_prompts([*PROMPTS, ""]).embedding.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(3))


def test_bfloat16_is_near(folder):
    unet_families.bfloat16_is_near(folder)


def test_checkpointing_changes_no_gradient(folder):
    unet_families.checkpointing_changes_no_gradient(folder)


def test_offloading_changes_nothing(folder):
    unet_families.offloading_changes_nothing(folder)


def test_the_last_step_draws_nothing(generator):
    unet_families.noise_stays_out_of_the_last_step(generator)


def test_lengths(folder):
    other = loaded(folder, size=Size(seconds=0.45), plan=Plan(tiling=True))
    assert other.latent_shape == (4, 12, 16)
    media = Sampler(steps=2, order=1).sample(other, PROMPTS, Key(0)).media
    assert isinstance(media, Audio)
    expected = theirs(folder, start(other), 2, 1.0, "pt", audio_length_in_s=0.45)
    near(media.waveform[:, 0], expected)


@pytest.mark.parametrize("size", [Size(seconds=0.03), Size(width=16), Size(fps=5)])
def test_sizes_that_cannot_be(folder, size):
    with pytest.raises(InputError, match=r"expected .*; (raise|leave)"):
        load(str(folder), device="cpu", size=size)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "prediction_type"),
        ("vocoder/config.json", {"sampling_rate": 48000}, "AudioLDM's vocoder"),
    ],
)
def test_other_models_are_refused(folder, tmp_path, file, values, message):
    other = shutil.copytree(folder, tmp_path / "other")
    content = json.loads((other / file).read_text())
    (other / file).write_text(json.dumps(content | values))
    with pytest.raises(InputError, match=message):
        load(str(other), device="cpu")
