"""Stable Audio 3's Generator against diffusers' own pipeline, on tiny weights of the real classes."""

import json
import shutil
from dataclasses import replace
from math import inf
from unittest.mock import patch

import pytest
import torch
from diffusers.pipelines.stable_audio_3.pipeline_stable_audio_3 import StableAudio3Pipeline, logsnr_sigma_schedule

from dragontune.encoders.latents import Latents
from dragontune.errors import InputError
from dragontune.generators.checkpoint import Size
from dragontune.generators.pretrained import load, load_codec
from dragontune.generators.stable_audio_3 import LogSnrFlow, StableAudio3
from dragontune.media.audio import Audio
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from family_checks import check_plans, check_rows, waveform
from tiny_stable_audio_3 import save_stable_audio_3

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm")  # torch, about what the autoencoder is made of

PROMPTS = ["a reel in G", "a jig for flute"]
RANDN = "diffusers.schedulers.scheduling_flow_match_euler_discrete.randn_tensor"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_stable_audio_3(tmp_path_factory.mktemp("models") / "ping-pong")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_stable_audio_3(tmp_path_factory.mktemp("models") / "base", stochastic=False)


@pytest.fixture(scope="module")
def generator(base):
    return load(str(base), device="cpu")


def theirs(folder, latents, steps, guidance=1.0, duration=10.0, output="latent"):
    pipeline = StableAudio3Pipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        list(PROMPTS),
        duration=duration,
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=latents,
        output_type=output,
        return_dict=False,
    )[0]


@pytest.mark.parametrize("steps", [1, 8, 100])
def test_the_times_are_the_pipelines(steps):
    times = LogSnrFlow().times(steps)
    torch.testing.assert_close(times[:-1].tolist(), logsnr_sigma_schedule(steps, -6.2, 2.0), atol=1e-6, rtol=1e-5)
    assert times[-1] == 0


def test_training_times_stay_where_the_sampler_goes():
    low, high = LogSnrFlow().training_times(torch.tensor([0.0, 1.0])).tolist()
    assert low == pytest.approx(torch.sigmoid(torch.tensor(-2.0)).item())
    assert high == pytest.approx(torch.sigmoid(torch.tensor(6.2)).item())


@pytest.mark.parametrize(("steps", "guidance"), [(1, 1.0), (6, 1.0), (6, 5.0), (25, 3.0)])
def test_sampling_a_base_model_is_the_pipelines(base, generator, steps, guidance):
    sampler = Sampler(steps=steps, guidance=guidance, order=1)
    start = sampler.noise(generator, Key(0), torch.arange(2))
    ours = sampler.sample(generator, PROMPTS, Key(0))
    assert (ours.latents - start).abs().max() > 0.5
    torch.testing.assert_close(ours.latents, theirs(base, start, steps, guidance), atol=1e-4, rtol=1e-4)
    expected = theirs(base, start, steps, guidance, output="pt")
    torch.testing.assert_close(waveform(ours), expected, atol=1e-4, rtol=1e-4)
    assert waveform(ours).abs().max() > 0.01
    assert waveform(ours).shape == (2, 2, 8000)


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_sampling_a_distilled_model_with_the_same_noise_is_the_pipelines(folder, steps):
    generator = load(str(folder), device="cpu")
    sampler = Sampler(steps=steps, order=1, eta=inf)
    start = sampler.noise(generator, Key(0), torch.arange(2))
    noises = [Key(0).fold("step", step).normal(range(2), generator.latent_shape) for step in range(steps)]
    with patch(RANDN, side_effect=noises) as drawn:
        expected = theirs(folder, start, steps)
    assert drawn.call_count == steps
    ours = sampler.sample(generator, PROMPTS, Key(0), decode=False).latents
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_other_lengths_are_the_pipelines(base):
    generator = load(str(base), device="cpu", size=Size(seconds=3.3))
    assert generator.latent_shape == (4, 6)
    sampler = Sampler(steps=3, order=1)
    start = sampler.noise(generator, Key(0), torch.arange(2))
    ours = waveform(sampler.sample(generator, PROMPTS, Key(0)))
    assert ours.shape == (2, 2, 2640)
    torch.testing.assert_close(ours, theirs(base, start, 3, duration=3.3, output="pt"), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("size", "message"),
    [({"seconds": 400.0}, "at most 384"), ({"height": 64}, "only seconds"), ({"seconds": -1.0}, "above 0")],
)
def test_what_the_model_cannot_make_is_refused(base, size, message):
    with pytest.raises(InputError, match=message):
        load(str(base), device="cpu", size=Size(**size))


def test_encode_and_decode_are_the_autoencoders(base, generator):
    vae = StableAudio3Pipeline.from_pretrained(base).vae
    clip = Audio(Key(0).normal([0], (2, 16 * 512)), 800)
    with torch.no_grad():
        latents = generator.encode(clip)
        torch.testing.assert_close(latents, vae.encode(clip.waveform).latents)
        torch.testing.assert_close(generator.codec.decode(latents).waveform, vae.decode(latents).sample)
        assert generator.encode(Audio(clip.waveform[:, :1, :500], 800)).shape == (1, 4, 16)
        assert load_codec(str(base), device="cpu").encode(clip[torch.tensor([0])]).shape == (1, 4, 16)
    assert Latents(str(base)).dim == 4


def test_tiles_give_what_the_whole_gives(generator):
    tiles, latents = replace(generator.codec, tile=3), Key(0).normal(range(2), (4, 16))
    clip = Audio(Key(1).normal(range(2), (2, 16 * 512)), 800)
    assert tiles.reach == 2
    with torch.no_grad():
        torch.testing.assert_close(tiles.decode(latents).waveform, generator.codec.decode(latents).waveform)
        torch.testing.assert_close(tiles.encode(clip), generator.codec.encode(clip))


def test_bfloat16_keeps_positions_and_durations_exact(base, generator):
    rough = load(str(base), device="cpu", precision="bf16")
    assert isinstance(rough, StableAudio3)
    exact, kept = (dict(each.network.named_buffers())["rotary_pos_emb.inv_freq"] for each in (generator, rough))
    assert torch.equal(exact, kept)
    exact, kept = (each.condition(PROMPTS).duration for each in (generator, rough))
    assert torch.equal(exact, kept)


def test_it_does_what_every_family_does(base, generator):
    check_rows(generator, [*PROMPTS, "", "a"])
    check_plans(base, PROMPTS, Size(seconds=4.0))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"shift": 3.0}, "shift 1"),
        ({"num_train_timesteps": 1000}, "1 training times"),
        ({"use_dynamic_shifting": True}, "constant shift"),
        ({"invert_sigmas": True}, "invert_sigmas"),
    ],
)
def test_another_scheduler_is_refused(base, tmp_path, changed, message):
    bad = shutil.copytree(base, tmp_path / "bad")
    file = bad / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    with pytest.raises(InputError, match=message):
        load(str(bad), device="cpu")
