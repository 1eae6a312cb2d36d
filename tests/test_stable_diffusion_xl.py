"""SDXL's Generator against diffusers' own pipeline and schedulers, on tiny weights of the real classes."""

import json
import shutil

import pytest
import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

import unet_families
from dragontune.encoders.latents import Latents
from dragontune.errors import InputError
from dragontune.generators.adapters import Lora
from dragontune.generators.checkpoint import Size
from dragontune.generators.pretrained import load
from dragontune.media.image import Images
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from dragontune.testing import check_generator
from tiny_stable_diffusion import BETAS
from tiny_stable_diffusion_xl import save_stable_diffusion_xl
from unet_families import PROMPTS, loaded, near, start


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_stable_diffusion_xl(tmp_path_factory.mktemp("models") / "sdxl")


@pytest.fixture(scope="module")
def generator(folder):
    return loaded(folder)


def theirs(folder, latents, steps, guidance, output="latent"):
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    height, width = (2 * side for side in latents.shape[2:])
    return pipeline(
        list(PROMPTS),
        height=height,
        width=width,
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=latents,
        output_type=output,
        return_dict=False,
    )[0]


def same_as_pipeline(folder, generator, steps, guidance, order=1):
    noise = start(generator)
    ours = Sampler(steps=steps, guidance=guidance, order=order).sample(generator, PROMPTS, Key(0), decode=False)
    assert (ours.latents - noise).abs().max() > 0.02
    near(ours.latents, theirs(folder, noise, steps, guidance))


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("steps", [1, 3, 20])
def test_sampling_is_the_pipelines(folder, generator, steps, guidance):
    same_as_pipeline(folder, generator, steps, guidance)


def test_ddim_and_the_second_order_are_the_pipelines(tmp_path):
    ddim = DDIMScheduler(**BETAS, clip_sample=False, steps_offset=0, prediction_type="v_prediction")
    folder = save_stable_diffusion_xl(tmp_path / "ddim", scheduler=ddim)
    same_as_pipeline(folder, loaded(folder), 10, 5.0)
    folder = save_stable_diffusion_xl(tmp_path / "dpm", scheduler=DPMSolverMultistepScheduler(**BETAS))
    same_as_pipeline(folder, loaded(folder), 10, 5.0, order=2)


def test_a_pipeline_without_zeros(tmp_path):
    folder = save_stable_diffusion_xl(tmp_path / "model", zeros=False)
    generator = loaded(folder)
    assert generator.encode_prompts([""]).pooled.abs().sum() > 0
    same_as_pipeline(folder, generator, 5, 5.0)


def test_pictures_are_the_pipelines(folder, generator):
    noise = start(generator)
    whole = Sampler(steps=4, guidance=5.0, order=1).sample(generator, PROMPTS, Key(0))
    assert isinstance(whole.media, Images)
    near(whole.media.pixels, theirs(folder, noise, 4, 5.0, "pt"))
    vae = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False).vae
    with torch.no_grad():
        expected = vae.encode(whole.media.pixels * 2 - 1).latent_dist.mode() * vae.config.scaling_factor
        near(generator.encode(whole.media), expected)
    assert Latents(str(folder)).dim == 4


def test_the_network_is_told_the_size(folder):
    generator = loaded(folder, size=Size(height=32, width=48))
    assert generator.latent_shape == (4, 16, 24)
    assert generator.sizes.tolist() == [32, 48, 0, 0, 32, 48]
    same_as_pipeline(folder, generator, 3, 5.0)
    smaller, noise = loaded(folder), start(generator)
    with torch.no_grad():
        told, t = generator.encode_prompts(PROMPTS), torch.full((2,), 0.5)
        assert not torch.allclose(generator.predict(noise, t, told), smaller.predict(noise, t, told), atol=1e-3)


def test_contract(folder):
    check_generator(load(str(folder), Lora(rank=2), device="cpu"), PROMPTS)


def test_prompts(generator):
    unet_families.rows_are_independent(generator)
    unet_families.prompts_and_times_matter(generator)
    nothing = generator.encode_prompts([""])
    assert nothing.tokens.eq(0).all()
    assert nothing.pooled.eq(0).all()


def test_bfloat16_is_near(folder):
    unet_families.bfloat16_is_near(folder)


def test_checkpointing_changes_no_gradient(folder):
    unet_families.checkpointing_changes_no_gradient(folder)


def test_offloading_changes_nothing(folder):
    unet_families.offloading_changes_nothing(folder)


def test_the_last_step_draws_nothing(generator):
    unet_families.noise_stays_out_of_the_last_step(generator)


@pytest.mark.parametrize("size", [Size(width=17), Size(seconds=3.0), Size(fps=5)])
def test_sizes_that_cannot_be(folder, size):
    with pytest.raises(InputError, match=r"expected .*; (change|leave)"):
        load(str(folder), device="cpu", size=size)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("scheduler/scheduler_config.json", {"_class_name": "EDMEulerScheduler"}, "in discrete time"),
        ("scheduler/scheduler_config.json", {"use_karras_sigmas": True}, "use_karras_sigmas"),
        ("vae/config.json", {"latents_mean": [0.1] * 4, "latents_std": [1.0] * 4}, "standardised"),
    ],
)
def test_other_models_are_refused(folder, tmp_path, file, values, message):
    other = shutil.copytree(folder, tmp_path / "other")
    content = json.loads((other / file).read_text())
    (other / file).write_text(json.dumps(content | values))
    with pytest.raises(InputError, match=message):
        load(str(other), device="cpu")
