"""LongCat-AudioDiT's Generator against diffusers' own pipeline, on tiny weights of the real classes.

In the pipeline prompts hear the tokens that fill shorter ones up, so they are compared one at a time.
"""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from diffusers.pipelines.longcat_audio_dit.pipeline_longcat_audio_dit import LongCatAudioDiTPipeline

from dragontune.encoders.latents import Latents
from dragontune.errors import InputError
from dragontune.generators.checkpoint import Size
from dragontune.generators.pretrained import load, load_codec
from dragontune.media.audio import Audio
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from family_checks import check_plans, check_rows
from tiny_longcat_audio import save_longcat_audio

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm")  # torch, about what the autoencoder is made of

PROMPTS = ['A "reel" in  g', "a jig for flute in major", "organ"]
AS_LONG_AS_NOTHING = ["reel jig " * 15 + "a", "flute violin " * 15 + "for"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_longcat_audio(tmp_path_factory.mktemp("models") / "longcat")


@pytest.fixture(scope="module")
def generator(folder):
    return load(str(folder), device="cpu")


def theirs(folder, latents, steps, guidance=1.0, prompts=PROMPTS, output="latent"):
    """One prompt after the other; latents channels first."""
    pipeline = LongCatAudioDiTPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    made = [
        pipeline(
            prompt,
            latents=start.T[None],
            num_inference_steps=steps,
            guidance_scale=guidance,
            output_type=output,
            return_dict=False,
        )[0][0]
        for prompt, start in zip(prompts, latents, strict=True)
    ]
    return torch.stack(made).mT if output == "latent" else torch.stack(made)


@pytest.mark.parametrize("steps", [1, 7, 16])
def test_sampling_is_the_pipelines(folder, generator, steps):
    sampler = Sampler(steps=steps, order=1)
    start = sampler.noise(generator, Key(0), torch.arange(3))
    ours = sampler.sample(generator, PROMPTS, Key(0))
    assert (ours.latents - start).abs().max() > 0.5
    torch.testing.assert_close(ours.latents, theirs(folder, start, steps), atol=1e-4, rtol=1e-4)
    assert isinstance(ours.media, Audio)
    expected = theirs(folder, start, steps, output="pt")
    torch.testing.assert_close(ours.media.waveform, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"adaln_type": "local"}, {"text_conv": False, "cross_attn_norm": True}])
def test_guidance_is_the_pipelines(tmp_path, options):
    folder = save_longcat_audio(tmp_path / "model", **options)
    generator, sampler = load(str(folder), device="cpu"), Sampler(steps=5, order=1, guidance=4.0)
    start = sampler.noise(generator, Key(0), torch.arange(3))
    ours = sampler.sample(generator, PROMPTS, Key(0), decode=False).latents
    torch.testing.assert_close(ours, theirs(folder, start, 5, 4.0), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("seconds", "frames"), [(None, 15), (30.0, 46), (0.1, 1)])
def test_the_size_is_in_seconds(folder, seconds, frames):
    assert load(str(folder), device="cpu", size=Size(seconds=seconds)).latent_shape == (4, frames)


@pytest.mark.parametrize(("size", "message"), [({"seconds": 31.0}, "at most 30"), ({"width": 8}, "only seconds")])
def test_what_the_model_cannot_make_is_refused(folder, size, message):
    with pytest.raises(InputError, match=message):
        load(str(folder), device="cpu", size=Size(**size))


def test_encode_and_decode_are_the_autoencoders(folder, generator):
    clip = Audio(Key(0).normal([0], (1, 15 * 512)), 800)
    vae = LongCatAudioDiTPipeline.from_pretrained(folder).vae
    with torch.no_grad():
        latents = generator.encode(clip)
        torch.testing.assert_close(latents, vae.encode(clip.waveform, sample_posterior=False).latents)
        torch.testing.assert_close(generator.decode(latents).waveform, vae.decode(latents).sample)
        assert generator.encode(Audio(clip.waveform[..., :500].expand(-1, 2, -1), 800)).shape == (1, 4, 15)
        assert load_codec(str(folder), device="cpu").encode(clip).shape == (1, 4, 15)
    assert Latents(str(folder)).dim == 4


def test_tiles_give_what_the_whole_gives(generator):
    tiles, latents = replace(generator.codec, tile=3), Key(0).normal(range(2), (4, 40))
    clip = Audio(Key(1).normal(range(2), (1, 40 * 512)), 800)
    assert tiles.reach == 6
    with torch.no_grad():
        torch.testing.assert_close(tiles.decode(latents).waveform, generator.codec.decode(latents).waveform)
        torch.testing.assert_close(tiles.encode(clip), generator.codec.encode(clip))


def test_it_does_what_every_family_does(folder, generator):
    check_rows(generator, [*PROMPTS, ""])
    check_plans(folder, PROMPTS, Size(seconds=6.0))


def test_an_autoencoder_that_contradicts_itself_is_refused(folder, tmp_path):
    bad = shutil.copytree(folder, tmp_path / "bad")
    file = bad / "vae" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"downsampling_ratio": 256}))
    with pytest.raises(InputError, match=r"\[32, 16\] make its downsampling_ratio, got 256"):
        load(str(bad), device="cpu")
