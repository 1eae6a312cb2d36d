"""Stable Diffusion 3's Generator against diffusers' own pipeline and scheduler, on tiny weights of the real classes."""

import pytest
import torch
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from dragontune.encoders.latents import Latents
from dragontune.errors import InputError
from dragontune.generators.adapters import Lora
from dragontune.generators.checkpoint import Plan, Size
from dragontune.generators.pretrained import load_codec
from dragontune.media.image import Images
from dragontune.sampling import Sampler
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
from tiny_stable_diffusion_3 import save_stable_diffusion_3

pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype")  # torch, about bfloat16 in a slower way


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_stable_diffusion_3(tmp_path_factory.mktemp("models") / "sd3")


@pytest.fixture(scope="module")
def generator(folder):
    return opened(folder)


def theirs(folder, latents, steps, guidance, output: str = "latent", **more):
    """The pipeline run by itself; as `np` its images, which it only clamps."""
    t5 = {} if (folder / "text_encoder_3").exists() else {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, **t5)
    pipeline.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": steps, "guidance_scale": guidance, "latents": latents, "output_type": output}
    return pipeline(list(PROMPTS), return_dict=False, **call, **more)[0]  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("guidance", [1.0, 7.0])
@pytest.mark.parametrize("steps", [1, 6, 11])
def test_sampling_is_the_pipelines(folder, generator, steps, guidance):
    sampler = Sampler(steps=steps, guidance=guidance, order=1)
    start = sampler.start(generator, PROMPTS, Key(0), range(2)).latents
    ours = sampler.sample(generator, PROMPTS, Key(0))
    assert (ours.latents - start).abs().max() > 0.5
    torch.testing.assert_close(ours.latents, theirs(folder, start, steps, guidance), atol=1e-4, rtol=1e-4)
    pixels = torch.from_numpy(theirs(folder, start, steps, guidance, "np")).permute(0, 3, 1, 2)
    assert isinstance(ours.media, Images)
    torch.testing.assert_close(ours.media.pixels, pixels, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [Size(), Size(height=24, width=12)])
def test_a_shift_by_the_number_of_tokens(tmp_path, size):
    values = {"use_dynamic_shifting": True, "base_image_seq_len": 8, "max_image_seq_len": 64}
    folder = save_stable_diffusion_3(tmp_path / "sd3", scheduler=FlowMatchEulerDiscreteScheduler(**values))
    generator, sampler = opened(folder, size), Sampler(steps=5, guidance=3.0, order=1)
    start = sampler.start(generator, PROMPTS, Key(1), range(2)).latents
    ours = sampler.sample(generator, PROMPTS, Key(1), decode=False).latents
    sides = {name: int(value) for name, value in size.given().items()}
    torch.testing.assert_close(ours, theirs(folder, start, 5, 3.0, "latent", **sides), atol=1e-4, rtol=1e-4)


def test_without_t5(tmp_path):
    folder = save_stable_diffusion_3(tmp_path / "sd3", t5=False)
    generator, sampler = opened(folder), Sampler(steps=4, guidance=3.0, order=1)
    condition = generator.encode_prompts(PROMPTS)
    assert condition.tokens.shape == (2, 8 + 256, 40)
    assert not condition.tokens[:, 8:].any()
    start = sampler.start(generator, PROMPTS, Key(1), range(2)).latents
    ours = sampler.sample(generator, PROMPTS, Key(1), decode=False).latents
    torch.testing.assert_close(ours, theirs(folder, start, 4, 3.0), atol=1e-4, rtol=1e-4)
    check_offload(folder)
    check_bfloat16(folder)


def test_encode_and_decode_are_the_autoencoders(folder, generator):
    vae = StableDiffusion3Pipeline.from_pretrained(folder).vae
    images = Images(torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        latents = generator.encode(images)
        plain = vae.encode(images.pixels * 2 - 1).latent_dist.mean
        torch.testing.assert_close(latents, (plain - 0.1) * 1.5)
        torch.testing.assert_close(
            generator.decode(latents).pixels, (vae.decode(plain).sample / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=1e-5
        )
    assert latents.shape == (2, *generator.latent_shape) == (2, 4, 8, 8)
    assert generator.encode(Images(torch.rand(1, 3, 40, 20))).shape == (1, 4, 8, 8)
    assert Latents(str(folder)).dim == load_codec(str(folder), "cpu").latent_channels == 4


def test_contract(folder):
    check_generator(opened(folder, lora=Lora(rank=2)), PROMPTS)


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
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(tiled.decode(latents).pixels, generator.decode(latents).pixels)


def test_sizes(folder):
    assert opened(folder, Size(height=48, width=8)).latent_shape == (4, 24, 4)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (Size(height=18), "in steps of 4 pixels, got 18 and 16"),
        (Size(height=52), "at most 48 pixels .* got 52 and 16"),
        (Size(seconds=3.0), "only height, width in size for a model of images, got seconds"),
    ],
)
def test_sizes_that_cannot_be(folder, size, message):
    with pytest.raises(InputError, match=message):
        opened(folder, size)


@pytest.mark.parametrize("wrong", [{"_class_name": "DDIMScheduler"}, {"use_karras_sigmas": True}])
def test_another_scheduler_is_refused(folder, tmp_path, wrong):
    check_scheduler(folder, tmp_path, wrong)
