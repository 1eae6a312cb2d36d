"""LTX-Video's Generator against diffusers' own pipeline and scheduler, on tiny weights of the real classes."""

import pytest
import torch
from diffusers.pipelines.ltx.pipeline_ltx import LTXPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from dragontune.encoders.latents import Latents
from dragontune.errors import InputError
from dragontune.generators.adapters import Lora
from dragontune.generators.checkpoint import Plan, Size
from dragontune.generators.ltx import USUAL
from dragontune.generators.video_codec import VideoSize
from dragontune.media.video import Video
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from dragontune.testing import check_generator
from flow_families import (
    PROMPTS,
    changed,
    check_bfloat16,
    check_gradients,
    check_no_waiting,
    check_offload,
    check_prompts,
    check_scheduler,
    opened,
)
from tiny_ltx import SIZE, save_ltx

pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype")  # torch, about bfloat16 in a slower way


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_ltx(tmp_path_factory.mktemp("models") / "ltx")


@pytest.fixture(scope="module")
def generator(folder):
    return opened(folder)


def theirs(folder, latents, steps, guidance, images=False, fps=8):
    """The pipeline run by itself, its tokens laid out as latents; or its frames, which it only clamps."""
    pipeline = LTXPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    found = pipeline(
        list(PROMPTS),
        height=SIZE["height"],
        width=SIZE["width"],
        num_frames=SIZE["frames"],
        frame_rate=fps,
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=pipeline._pack_latents(latents),
        output_type="np" if images else "latent",
        return_dict=False,
    )[0]
    if images:
        return torch.from_numpy(found).permute(0, 1, 4, 2, 3)
    return pipeline._unpack_latents(found, 3, 4, 8)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("steps", [2, 6, 11])
def test_sampling_is_the_pipelines(folder, generator, steps, guidance):
    sampler = Sampler(steps=steps, guidance=guidance, order=1)
    start = sampler.start(generator, PROMPTS, Key(0), range(2)).latents
    ours = sampler.sample(generator, PROMPTS, Key(0))
    assert (ours.latents - start).abs().max() > 0.5
    torch.testing.assert_close(ours.latents, theirs(folder, start, steps, guidance), atol=1e-4, rtol=1e-4)
    assert isinstance(ours.media, Video)
    expected = theirs(folder, start, steps, guidance, images=True)
    torch.testing.assert_close(ours.media.frames, expected, atol=1e-4, rtol=1e-4)
    assert (ours.media.fps, generator.sample_rate) == (8.0, 8)


def test_a_constant_shift_and_another_frame_rate(tmp_path):
    folder = save_ltx(tmp_path / "ltx", scheduler=FlowMatchEulerDiscreteScheduler(shift=2.0))
    sampler, found = Sampler(steps=4, guidance=2.0, order=1), []
    for fps in (8, 24):
        generator = opened(folder, Size(fps=float(fps)))
        start = sampler.start(generator, PROMPTS, Key(1), range(2)).latents
        found.append(sampler.sample(generator, PROMPTS, Key(1), decode=False).latents)
        torch.testing.assert_close(found[-1], theirs(folder, start, 4, 2.0, fps=fps), atol=1e-4, rtol=1e-4)
    assert (found[0] - found[1]).abs().max() > 1e-3


@pytest.mark.parametrize("tiling", [False, True])
def test_decoders_that_take_a_last_step(tmp_path, tiling):
    """The pipeline draws noise for them, and by default mixes none of it in."""
    folder = save_ltx(tmp_path / "ltx", timestep_conditioning=True)
    generator, sampler = opened(folder, plan=Plan(tiling=tiling)), Sampler(steps=3, guidance=2.0, order=1)
    start = sampler.start(generator, PROMPTS, Key(1), range(2)).latents
    media = sampler.sample(generator, PROMPTS, Key(1)).media
    assert isinstance(media, Video)
    with torch.random.fork_rng(devices=[]):
        expected = theirs(folder, start, 3, 2.0, images=True)
    torch.testing.assert_close(media.frames, expected, atol=1e-4, rtol=1e-4)
    check_gradients(folder)


def test_tiles_are_near_and_pass_gradients(folder, generator):
    tiled = opened(folder, plan=Plan(tiling=True))
    vae = tiled.codec.network
    vae.enable_tiling(48, 48, tile_sample_stride_height=32, tile_sample_stride_width=32)
    draws = torch.Generator().manual_seed(0)
    latents, along = torch.randn(2, 2, *generator.latent_shape, generator=draws)
    weights = torch.randn(2, 5, 3, 32, 64, generator=draws)
    with torch.no_grad():
        parts, whole = tiled.decode(latents).frames, generator.decode(latents).frames
        higher, lower = ((tiled.decode(latents + s * along).frames * weights).sum() for s in (1e-3, -1e-3))
    assert 1e-3 < (whole - parts).abs().mean() < 0.05
    score = (tiled.decode(latents.requires_grad_()).frames * weights).sum()
    slope = (torch.autograd.grad(score, latents)[0] * along).sum()
    torch.testing.assert_close(slope, (higher - lower) / 2e-3, atol=0.1, rtol=0.02)


def test_encode_is_the_autoencoders(folder, generator):
    vae = LTXPipeline.from_pretrained(folder).vae
    clip = Video(torch.rand(2, 5, 3, 32, 64, generator=torch.Generator().manual_seed(0)), 8.0)
    with torch.no_grad():
        latents = generator.encode(clip)
        plain = vae.encode(clip.frames.transpose(1, 2) * 2 - 1).latent_dist.mean
        expected = LTXPipeline._normalize_latents(plain, vae.latents_mean, vae.latents_std, 1.2)
        torch.testing.assert_close(latents, expected)
        assert latents.shape == (2, *generator.latent_shape) == (2, 4, 3, 4, 8)
        assert generator.encode(Video(torch.rand(1, 3, 3, 20, 20), 30.0)).shape == (1, 4, 3, 4, 8)
    assert Latents(str(folder)).dim == 4


def test_gradients_pass_back_in(generator):
    clip = torch.rand(1, 5, 3, 32, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    generator.encode(Video(clip, 8.0)).square().mean().backward()
    assert clip.grad is not None
    assert clip.grad.abs().sum() > 0


def test_contract(folder):
    check_generator(opened(folder, lora=Lora(rank=2)), PROMPTS)


def test_prompts(generator):
    check_prompts(generator)
    condition = generator.encode_prompts(["a reel"])
    real = condition.tokens[0, :3].mean(0, keepdim=True)
    torch.testing.assert_close(generator.prompt_vectors(condition), real)


def test_bfloat16_is_near(folder):
    check_bfloat16(folder)


def test_a_step_does_not_wait(generator):
    check_no_waiting(generator)


def test_gradients_with_and_without_checkpointing(folder):
    check_gradients(folder)


def test_offload_changes_nothing(folder):
    check_offload(folder)


def test_sizes(folder, tmp_path):
    assert VideoSize(161, 512, 704, 25.0) == USUAL
    generator = opened(folder, Size(frames=9, height=16, fps=24.0))
    assert generator.latent_shape == (4, 5, 2, 8)
    assert generator.sample_rate == 24
    other = save_ltx(tmp_path / "ltx", scheduler=FlowMatchEulerDiscreteScheduler())
    (other / "video.json").unlink()
    assert opened(other).latent_shape == (4, 81, 64, 88)


def test_a_size_whose_shift_leaves_no_times_is_refused(folder):
    with pytest.raises(InputError, match=r"got .* for 456192 tokens; .* lower size"):
        opened(folder, Size(frames=161, height=512, width=704))


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (Size(frames=6), "a multiple of 2 frames, .* got 6, 32 and 64"),
        (Size(width=60), "a width in steps of 8, got 5, 32 and 60"),
        (Size(seconds=3.0), "only frames, height, width, fps in size for a model of videos, got seconds"),
    ],
)
def test_sizes_that_cannot_be(folder, size, message):
    with pytest.raises(InputError, match=message):
        opened(folder, size)


@pytest.mark.parametrize("wrong", [{"_class_name": "UniPCMultistepScheduler"}, {"invert_sigmas": True}])
def test_another_scheduler_is_refused(folder, tmp_path, wrong):
    check_scheduler(folder, tmp_path, wrong)


def test_a_network_with_patches_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match="without patches, got patches of 1 x 2"):
        opened(changed(folder, tmp_path, "transformer/config.json", patch_size=2))


def test_a_decoder_that_adds_noise_is_refused(tmp_path):
    folder = save_ltx(tmp_path / "ltx", decoder_inject_noise=(True, False, False))
    with pytest.raises(InputError, match="a decoder that adds no noise"):
        opened(folder)
