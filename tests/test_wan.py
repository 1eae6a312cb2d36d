"""Wan's Generator against diffusers' own pipeline and schedulers, on tiny weights of the real classes."""

import json
import shutil

import pytest
import torch
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from dragontune.encoders.latents import Latents
from dragontune.errors import InputError
from dragontune.generators.adapters import Lora
from dragontune.generators.checkpoint import Plan, Size
from dragontune.generators.pretrained import load, load_codec
from dragontune.generators.video_codec import VideoSize
from dragontune.generators.wan import USUAL
from dragontune.media.video import Video
from dragontune.rewards.function import Function
from dragontune.sampling import Sampler
from dragontune.schedule import ShiftedFlow
from dragontune.seeding import Key
from dragontune.testing import check_generator
from flow_families import (
    PROMPTS,
    check_bfloat16,
    check_gradients,
    check_no_waiting,
    check_offload,
    check_prompts,
    check_scheduler,
    opened,
)
from tiny_wan import SIZE, UNIPC, save_wan

pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype")  # torch, about bfloat16 in a slower way


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_wan(tmp_path_factory.mktemp("models") / "wan", heard=True)


@pytest.fixture(scope="module")
def generator(folder):
    return load(str(folder), device="cpu")


def theirs(folder, latents, steps, guidance, output="latent"):
    pipeline = WanPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        list(PROMPTS),
        height=SIZE["height"],
        width=SIZE["width"],
        num_frames=SIZE["frames"],
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=latents,
        output_type=output,
        return_dict=False,
    )[0]


@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0])
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_the_schedules_are_diffusers(tmp_path, shift, steps):
    euler = FlowMatchEulerDiscreteScheduler(shift=shift)
    euler.set_timesteps(steps)
    unipc = UniPCMultistepScheduler(**UNIPC | {"flow_shift": shift})
    unipc.set_timesteps(steps)
    low = shift * 0.001 / (1 + (shift - 1) * 0.001)
    torch.testing.assert_close(ShiftedFlow(shift, low).times(steps).float(), euler.sigmas, atol=1e-6, rtol=1e-5)
    ours = ShiftedFlow(shift, closed=False).times(steps).float()
    torch.testing.assert_close(ours, unipc.sigmas, atol=2e-6, rtol=1e-5)


def test_training_times_are_shifted():
    assert ShiftedFlow(3.0).training_times(torch.tensor([0.5])).item() == pytest.approx(0.75)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_sampling_is_the_pipelines(folder, generator, guidance):
    sampler = Sampler(steps=6, guidance=guidance, order=1)
    start = sampler.start(generator, PROMPTS, Key(0), range(2)).latents
    ours = sampler.sample(generator, PROMPTS, Key(0))
    expected = theirs(folder, start, 6, guidance)
    assert (ours.latents - start).abs().max() > 0.5
    torch.testing.assert_close(ours.latents, expected, atol=1e-4, rtol=1e-4)
    pixels = torch.from_numpy(theirs(folder, start, 6, guidance, "np")).permute(0, 1, 4, 2, 3)
    assert isinstance(ours.media, Video)
    torch.testing.assert_close(ours.media.frames, pixels, atol=1e-4, rtol=1e-4)
    assert (ours.media.fps, ours.media.seconds, generator.sample_rate) == (8.0, 5 / 8, 8)


def test_sampling_is_that_of_wans_with_a_time_for_every_token(tmp_path):
    folder = save_wan(tmp_path / "wan", expand_timesteps=True)
    generator, sampler = load(str(folder), device="cpu"), Sampler(steps=3, guidance=5.0, order=1)
    start = sampler.start(generator, PROMPTS, Key(1), range(2)).latents
    ours = sampler.sample(generator, PROMPTS, Key(1), decode=False).latents
    torch.testing.assert_close(ours, theirs(folder, start, 3, 5.0), atol=1e-4, rtol=1e-4)


def test_the_scheduler_of_the_hub_goes_where_ours_goes(tmp_path):
    """UniPC is another solver, of second order, and tells the network whole times; as steps grow they agree."""
    folder = save_wan(tmp_path / "wan", scheduler=UniPCMultistepScheduler(**UNIPC))
    generator, gaps = opened(folder), []
    assert generator.schedule == ShiftedFlow(3.0, closed=False)
    for steps in (10, 40, 160):
        sampler = Sampler(steps=steps, guidance=3.0)
        start = sampler.start(generator, PROMPTS, Key(0), range(2)).latents
        ours = sampler.sample(generator, PROMPTS, Key(0), decode=False).latents
        gaps.append((ours - theirs(folder, start, steps, 3.0)).square().mean().sqrt().item() / ours.std().item())
    assert gaps[0] > 5 * gaps[2]
    assert gaps[2] < 0.005


def test_contract(folder):
    check_generator(load(str(folder), Lora(rank=2), device="cpu"), PROMPTS)


def test_decode_and_encode_are_the_autoencoders(folder, generator):
    vae = WanPipeline.from_pretrained(folder).vae
    clip = Video(torch.rand(2, 5, 3, 16, 32, generator=torch.Generator().manual_seed(0)), 8.0)
    mean, std = (torch.tensor(vae.config[name]).view(4, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    with torch.no_grad():
        latents = generator.encode(clip)
        plain = vae.encode(clip.frames.transpose(1, 2) * 2 - 1).latent_dist.mean
        torch.testing.assert_close(latents * std + mean, plain)
        decoded = generator.decode(latents).frames
        torch.testing.assert_close(decoded.transpose(1, 2) * 2 - 1, vae.decode(plain).sample, atol=1e-5, rtol=1e-5)
        assert decoded.min() >= 0
        assert decoded.max() <= 1


def test_other_videos_are_brought_to_the_models_size_and_rate(generator):
    frames = torch.linspace(0, 1, 9).view(1, 9, 1, 1, 1).expand(1, 9, 3, 16, 32)
    with torch.no_grad():
        at_once = generator.encode(Video(frames[:, [0, 2, 4, 6, 8]], 8.0))
        assert torch.equal(generator.encode(Video(frames, 16.0)), at_once)
        held = generator.encode(Video(frames[:, [0, 1]], 8.0))
        assert torch.equal(generator.encode(Video(frames[:, [0, 1, 1, 1, 1, 7]], 8.0)), held)
        assert generator.encode(Video(torch.rand(2, 3, 3, 20, 20), 30.0)).shape == (2, 4, 2, 2, 4)
    with pytest.raises(InputError, match=r"expected video .*, got Tensor"):
        generator.encode(torch.zeros(1, 3))


def test_gradients_pass_from_the_frames_to_the_adapter_and_back_in(folder):
    generator = load(str(folder), Lora(rank=2), device="cpu")
    with torch.no_grad():
        for weight in generator.parameters():
            weight.add_(0.01)
    samples = Sampler(steps=3, guidance=2.0, order=1).sample(generator, PROMPTS, Key(0), differentiate_last=1)
    assert isinstance(samples.media, Video)
    slopes = torch.autograd.grad(samples.media.frames.mean(), list(generator.parameters()))
    assert all(slope.isfinite().all() for slope in slopes)
    assert any(slope.abs().sum() > 0 for slope in slopes)
    clip = torch.rand(1, 5, 3, 16, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    generator.encode(Video(clip, 8.0)).square().mean().backward()
    assert clip.grad is not None
    assert clip.grad.abs().sum() > 0


def test_ancestral_sampling_and_a_plain_function(generator):
    sampler = Sampler(steps=4, guidance=3.0, eta=1.0, order=1)
    samples = sampler.sample(generator, PROMPTS, Key(0))
    assert samples.latents.isfinite().all()
    again = sampler.sample(generator, PROMPTS[1:], Key(0), items=[1])
    torch.testing.assert_close(again.latents[0], samples.latents[1], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(sampler.sample(generator, PROMPTS, Key(1)).latents, samples.latents, atol=0.1)
    scores = Function(lambda media, prompts: media.frames.mean((1, 2, 3, 4)))(samples)
    assert scores.shape == (2,)
    assert len(set(scores.tolist())) == 2
    second = Sampler(steps=4, guidance=3.0).sample(generator, PROMPTS, Key(0))
    assert second.latents.isfinite().all()


def test_prompt_vectors_are_means_of_real_tokens(generator):
    condition = generator.encode_prompts(["a reel", "a reel in G major", ""])
    vectors = generator.prompt_vectors(condition)
    assert vectors.shape == (3, 16)
    torch.testing.assert_close(vectors[0], condition.tokens[0, :3].mean(0))
    torch.testing.assert_close(vectors[2], condition.tokens[2, 0])


def test_prompts(generator):
    check_prompts(generator)


def test_bfloat16_is_near(folder):
    check_bfloat16(folder)


def test_a_step_does_not_wait(generator):
    check_no_waiting(generator)


def test_gradients_with_and_without_checkpointing(folder):
    check_gradients(folder)


def test_offload_changes_nothing(folder):
    check_offload(folder)


def test_tiles_are_used_when_asked_for(folder, generator):
    tiled = opened(folder, plan=Plan(tiling=True))
    vae = tiled.codec.network
    assert vae.use_tiling
    assert vae.use_slicing
    latents = torch.randn(2, 4, 2, 2, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(tiled.decode(latents).frames, generator.decode(latents).frames)


def test_what_is_asked_for_is_what_it_makes(folder):
    generator = opened(folder, Size(frames=9, height=32, fps=16.0))
    assert generator.latent_shape == (4, 3, 4, 4)
    assert generator.sample_rate == 16
    with pytest.raises(InputError, match="only frames, height, width, fps in size for a model of videos, got seconds"):
        opened(folder, Size(seconds=2.0))


def change(folder, tmp_path, file, **values):
    other = shutil.copytree(folder, tmp_path / "other")
    path = other / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | values))
    return str(other)


def test_without_a_file_the_size_is_wans(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "video.json").unlink()
    generator = load(str(other), device="cpu")
    assert generator.latent_shape == (4, 21, 60, 104)
    assert generator.sample_rate == 16
    assert VideoSize(81, 480, 832, 16.0) == USUAL


@pytest.mark.parametrize(
    "wrong",
    [
        {"frames": 6},
        {"height": 24},
        {"width": 8.5},
        {"width": 0},
        {"fps": 0},
        {"fps": "fast"},
        {"depth": 3},
        {"frames": True},
    ],
)
def test_sizes_that_cannot_be(folder, tmp_path, wrong):
    with pytest.raises(InputError, match=r"expected .*, got .*; correct"):
        load(change(folder, tmp_path, "video.json", **wrong), device="cpu")


@pytest.mark.parametrize("content", ["", "[]", "[1]", "7", "{", '"frames"'])
def test_a_size_that_is_no_object(folder, tmp_path, content):
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "video.json").write_text(content)
    with pytest.raises(InputError, match=r"video\.json"):
        load(str(other), device="cpu")


@pytest.mark.parametrize(
    "wrong",
    [
        {"_class_name": "DDIMScheduler"},
        {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": False},
        {"use_dynamic_shifting": True},
        {"num_train_timesteps": 10},
        {"use_karras_sigmas": True},
    ],
)
def test_another_scheduler_is_refused(folder, tmp_path, wrong):
    check_scheduler(folder, tmp_path, wrong)


def test_two_networks_are_refused(tmp_path):
    folder = save_wan(tmp_path / "wan")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"transformer_2": index["transformer"], "boundary_ratio": 0.9}
    (folder / "model_index.json").write_text(json.dumps(index))
    shutil.copytree(folder / "transformer", folder / "transformer_2")
    with pytest.raises(InputError, match="one network"):
        load(str(folder), device="cpu")


def test_the_codec_alone(folder, generator):
    codec, clip = load_codec(str(folder), "cpu"), Video(torch.rand(1, 5, 3, 16, 32), 8.0)
    with torch.no_grad():
        assert torch.equal(codec.encode(clip), generator.encode(clip))
    assert Latents(str(folder)).dim == codec.latent_channels == 4
