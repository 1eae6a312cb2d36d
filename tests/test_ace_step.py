"""ACE-Step's Generator against diffusers' own pipeline, on tiny weights of the real classes.

The pipeline fills prompts of different lengths up with tokens that its network attends to; ours does not attend to
them. So prompts are compared one at a time.
"""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from diffusers.pipelines.ace_step.pipeline_ace_step import AceStepPipeline

from dragontune.encoders.latents import Latents
from dragontune.errors import InputError
from dragontune.generators.ace_step import parse
from dragontune.generators.checkpoint import Size
from dragontune.generators.pretrained import load, load_codec
from dragontune.media.audio import Audio
from dragontune.sampling import Sampler
from dragontune.schedule import ShiftedFlow
from dragontune.seeding import Key
from family_checks import check_plans, check_rows
from tiny_ace_step import save_ace_step

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm")  # torch, about what the autoencoder is made of

SHORT = Size(seconds=11.0)
PROMPTS = ["a slow reel in G", "a jig\n[lyrics de]\n[verse]\nIm Frühtau zu Berge", "a hymn for organ and horns"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_ace_step(tmp_path_factory.mktemp("models") / "ace-step")


@pytest.fixture(scope="module")
def generator(folder):
    return load(str(folder), device="cpu", size=SHORT)


def theirs(folder, latents, steps, guidance=1.0, duration=11.0, output="latent"):
    """One prompt after the other; latents channels first."""
    pipeline = AceStepPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    made = []
    for prompt, start in zip(PROMPTS, latents, strict=True):
        caption, lyrics, language = parse(prompt)
        made += pipeline(
            caption,
            lyrics,
            duration,
            language,
            num_inference_steps=steps,
            guidance_scale=guidance,
            latents=start.T[None],
            output_type=output,
            return_dict=False,
        )[0]
    return torch.stack(made).mT if output == "latent" else torch.stack(made)


def test_lyrics_follow_a_line_that_says_so():
    assert parse("slow [lyrics] pop") == ("slow [lyrics] pop", "", "en")
    assert parse("slow pop\n[lyrics]\n[verse]\nla la") == ("slow pop", "[verse]\nla la", "en")
    assert parse(PROMPTS[1]) == ("a jig", "[verse]\nIm Frühtau zu Berge", "de")
    assert parse("[lyrics]\nla") == ("", "la", "en")
    assert parse(r"slow pop\n[lyrics de]\nla\nlo") == ("slow pop", "la\nlo", "de")


@pytest.mark.parametrize("steps", [1, 8, 30])
def test_the_times_are_the_pipelines(folder, generator, steps):
    expected = AceStepPipeline.from_pretrained(folder)._get_timestep_schedule(steps)
    assert generator.schedule == ShiftedFlow(3.0, 0.0, closed=False)
    torch.testing.assert_close(generator.schedule.times(steps)[:-1].float(), expected)


@pytest.mark.parametrize("steps", [1, 8, 20])
def test_sampling_is_the_pipelines(folder, generator, steps):
    """The pipeline then brings each clip to one peak."""
    sampler = Sampler(steps=steps, order=1)
    start = sampler.noise(generator, Key(0), torch.arange(3))
    ours = sampler.sample(generator, PROMPTS, Key(0))
    assert (ours.latents - start).abs().max() > 0.5
    torch.testing.assert_close(ours.latents, theirs(folder, start, steps), atol=1e-4, rtol=1e-4)
    expected = theirs(folder, start, steps, output="pt")
    assert isinstance(ours.media, Audio)
    loud = ours.media.waveform / ours.media.waveform.abs().amax((1, 2), keepdim=True)
    torch.testing.assert_close(loud * 10 ** (-1 / 20), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 6, 15])
def test_guidance_by_projection_is_the_pipelines(folder, generator, steps):
    sampler = Sampler(steps=steps, order=1, guidance=7.0)
    start = sampler.noise(generator, Key(0), torch.arange(3))
    ours = sampler.sample(generator, PROMPTS, Key(0), decode=False).latents
    torch.testing.assert_close(ours, theirs(folder, start, steps, 7.0), atol=1e-4, rtol=1e-4)
    plain = replace(sampler, guidance=1.0).sample(generator, PROMPTS, Key(0), decode=False).latents
    assert (plain - ours).norm() > 0.1 * ours.norm()


def test_a_walk_guided_by_projection_goes_on_after_a_pause(generator):
    sampler = Sampler(steps=4, order=1, guidance=7.0)
    state = sampler.start(generator, PROMPTS, Key(0), range(3))
    for _ in range(2):
        state = sampler.advance(generator, state, Key(0))
    state = sampler.resume(generator, sampler.pause(state, PROMPTS))
    for _ in range(2):
        state = sampler.advance(generator, state, Key(0))
    assert torch.equal(state.latents, sampler.sample(generator, PROMPTS, Key(0), decode=False).latents)


def test_a_distilled_models_sampling_is_the_pipelines(tmp_path):
    turbo = save_ace_step(tmp_path / "turbo", turbo=True)
    generator = load(str(turbo), device="cpu", size=SHORT)
    sampler = Sampler(steps=8, order=1)
    start = sampler.noise(generator, Key(0), torch.arange(3))
    ours = sampler.sample(generator, PROMPTS, Key(0), decode=False).latents
    torch.testing.assert_close(ours, theirs(turbo, start, 8, guidance=7.0), atol=1e-4, rtol=1e-4)


def test_nothing_said_is_the_learned_vector_however_often_it_is_repeated(generator):
    noise, t = Key(0).normal([0], generator.latent_shape), torch.tensor([0.7])
    pipeline = generator.pipeline
    null = pipeline.condition_encoder.null_condition_emb.expand(1, 77, -1)
    with torch.no_grad():
        ours = generator.predict(noise, t, generator.encode_prompts([""]))
        plain = AceStepPipeline.from_pretrained(generator.checkpoint.folder).transformer
        theirs = plain(noise.mT, t, t, null, generator.context, return_dict=False)[0].mT
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("seconds", "frames"), [(None, 94), (11.0, 18), (600.0, 938)])
def test_the_size_is_in_seconds(folder, seconds, frames):
    assert load(str(folder), device="cpu", size=Size(seconds=seconds)).latent_shape == (4, frames)


@pytest.mark.parametrize(("size", "message"), [({"seconds": 601.0}, "at most 600"), ({"fps": 8}, "only seconds")])
def test_what_the_model_cannot_make_is_refused(folder, size, message):
    with pytest.raises(InputError, match=message):
        load(str(folder), device="cpu", size=Size(**size))


def test_encode_and_decode_are_the_autoencoders(folder, generator):
    clip = Audio(Key(0).normal([0], (2, 18 * 512)), 800)
    vae = AceStepPipeline.from_pretrained(folder).vae
    with torch.no_grad():
        latents = generator.encode(clip)
        torch.testing.assert_close(latents, vae.encode(clip.waveform).latent_dist.mean)
        torch.testing.assert_close(generator.decode(latents).waveform, vae.decode(latents).sample)
        assert generator.encode(Audio(clip.waveform[:, :1, :500], 800)).shape == (1, 4, 18)
        assert load_codec(str(folder), device="cpu").encode(clip).shape == (1, 4, 18)
    assert Latents(str(folder)).dim == 4


def test_it_does_what_every_family_does(folder, generator):
    check_rows(generator, [*PROMPTS, ""])
    check_plans(folder, PROMPTS, SHORT)


@pytest.mark.parametrize(
    ("changed", "message"), [({"shift": 3.0}, "shift 1"), ({"num_train_timesteps": 1000}, "1 training times")]
)
def test_another_scheduler_is_refused(folder, tmp_path, changed, message):
    bad = shutil.copytree(folder, tmp_path / "bad")
    file = bad / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    with pytest.raises(InputError, match=message):
        load(str(bad), device="cpu")
