"""Stable Diffusion's Generator against diffusers' own pipeline and schedulers, on tiny weights of the real classes."""

import json
import shutil
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

import unet_families
from dragontune.encoders.latents import Latents
from dragontune.errors import InputError
from dragontune.generators.adapters import Lora
from dragontune.generators.checkpoint import Plan, Size
from dragontune.generators.pretrained import load
from dragontune.media.audio import Audio
from dragontune.media.image import Images
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from dragontune.testing import check_generator
from tiny_stable_diffusion import BETAS, save_stable_diffusion
from unet_families import PROMPTS, loaded, near, start

DDIM: dict[str, Any] = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_stable_diffusion(tmp_path_factory.mktemp("models") / "stable-diffusion")


@pytest.fixture(scope="module")
def generator(folder):
    return loaded(folder)


def theirs(folder, latents, steps, guidance):
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        list(PROMPTS),
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=latents,
        output_type="latent",
        return_dict=False,
    )[0]


def with_scheduler(tmp_path, scheduler):
    folder = save_stable_diffusion(tmp_path / "model", scheduler=scheduler)
    return folder, loaded(folder)


def same_as_pipeline(folder, generator, steps, guidance, order=1):
    """Both start from the same noise of standard deviation 1; the pipeline scales it as its scheduler says."""
    noise = start(generator) / generator.schedule.start()
    ours = Sampler(steps=steps, guidance=guidance, order=order).sample(generator, PROMPTS, Key(0), decode=False)
    expected = theirs(folder, noise, steps, guidance)
    assert (ours.latents - noise).abs().max() > 0.005
    near(ours.latents, expected)


@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize("steps", [1, 2, 7, 25])
def test_ddim_is_the_pipelines(tmp_path, steps, guidance):
    same_as_pipeline(*with_scheduler(tmp_path, DDIMScheduler(**BETAS, **DDIM)), steps, guidance)


@pytest.mark.parametrize("scheduler", [{"spacing": "trailing"}, {"one": True}, {"velocity": True}])
def test_other_ddims_are_the_pipelines(tmp_path, scheduler):
    changes: dict[str, Any] = {"timestep_spacing": "trailing"} if "spacing" in scheduler else {}
    changes |= {"set_alpha_to_one": True} if "one" in scheduler else {}
    changes |= {"prediction_type": "v_prediction"} if "velocity" in scheduler else {}
    same_as_pipeline(*with_scheduler(tmp_path, DDIMScheduler(**BETAS | DDIM | changes)), 10, 7.5)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_euler_is_the_pipelines(tmp_path, prediction, spacing):
    scheduler = EulerDiscreteScheduler(**BETAS, timestep_spacing=spacing, prediction_type=prediction, steps_offset=1)
    same_as_pipeline(*with_scheduler(tmp_path, scheduler), 9, 5.0)


def test_without_a_signal_at_first_it_is_the_pipelines(tmp_path):
    more = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    same_as_pipeline(*with_scheduler(tmp_path, EulerDiscreteScheduler(**BETAS, **more, steps_offset=1)), 9, 5.0)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [6, 20])
def test_second_order_is_the_pipelines(tmp_path, steps, spacing):
    scheduler = DPMSolverMultistepScheduler(**BETAS, timestep_spacing=spacing, steps_offset=1)
    same_as_pipeline(*with_scheduler(tmp_path, scheduler), steps, 7.5, order=2)


def test_pndm_ends_where_we_do(folder, generator):
    """The scheduler of the checkpoint is a method of fourth order: the more steps, the nearer both."""
    noise = start(generator)
    gaps = []
    for steps in (12, 50, 200):
        ours = Sampler(steps=steps, guidance=3.0, order=2).sample(generator, PROMPTS, Key(0), decode=False).latents
        gaps.append((ours - theirs(folder, noise, steps, 3.0)).norm() / ours.norm())
    assert gaps[2] < gaps[1] < gaps[0]
    assert gaps[2] < 0.02


def test_pictures_are_the_pipelines(folder, generator):
    """The pipeline gives pixels as NumPy arrays; it does no more than scale them to [0, 1]."""
    latents = start(generator)
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    with torch.no_grad():
        decoded = pipeline.vae.decode(latents / 0.18215).sample
        pixels = pipeline.image_processor.postprocess(decoded, "pt")
        ours = generator.decode(latents)
    assert isinstance(ours, Images)
    near(ours.pixels, pixels)
    whole = Sampler(steps=3, guidance=2.0, order=1).sample(generator, PROMPTS, Key(0))
    assert isinstance(whole.media, Images)
    assert whole.media.pixels.shape == (2, 3, 16, 16)
    assert whole.media.pixels.max() <= 1
    assert generator.sample_rate == 1


def test_encode_is_the_autoencoders(folder, generator):
    vae = StableDiffusionPipeline.from_pretrained(folder).vae
    pictures = Images(torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        expected = vae.encode(pictures.pixels * 2 - 1).latent_dist.mode() * 0.18215
        near(generator.encode(pictures), expected)
        assert generator.encode(Images(torch.rand(1, 3, 40, 30))).shape == (1, 4, 8, 8)
    with pytest.raises(InputError, match=r"expected images .*, got audio"):
        generator.encode(Audio(torch.zeros(1, 1, 800), 800))
    assert Latents(str(folder)).dim == 4


def test_contract(folder):
    check_generator(load(str(folder), Lora(rank=2), device="cpu"), PROMPTS)


def test_prompts(generator):
    unet_families.rows_are_independent(generator)
    unet_families.prompts_and_times_matter(generator)
    expected = generator.pipeline.encode_prompt([""], "cpu", 1, False)[0]
    torch.testing.assert_close(generator.encode_prompts([""]).tokens, expected)


def test_bfloat16_is_near(folder):
    unet_families.bfloat16_is_near(folder)


def test_checkpointing_changes_no_gradient(folder):
    unet_families.checkpointing_changes_no_gradient(folder)


def test_offloading_changes_nothing(folder):
    unet_families.offloading_changes_nothing(folder)


def test_the_last_step_draws_nothing(generator):
    unet_families.noise_stays_out_of_the_last_step(generator)


def test_sizes(folder):
    generator = loaded(folder, size=Size(height=24, width=32), plan=Plan(tiling=True))
    assert generator.latent_shape == (4, 12, 16)
    media = Sampler(steps=2, order=1).sample(generator, PROMPTS, Key(0)).media
    assert isinstance(media, Images)
    assert media.size == (24, 32)
    assert loaded(folder).latent_shape == (4, 8, 8)


@pytest.mark.parametrize("size", [Size(height=17), Size(seconds=3.0), Size(frames=5)])
def test_sizes_that_cannot_be(folder, size):
    with pytest.raises(InputError, match=r"expected .*; (change|leave)"):
        load(str(folder), device="cpu", size=size)


def changed(folder, tmp_path, file, **values):
    other = shutil.copytree(folder, tmp_path / "other")
    content = json.loads((other / file).read_text())
    (other / file).write_text(json.dumps(content | values))
    return str(other)


def test_an_old_configuration_is_corrected_as_by_the_pipeline(folder, tmp_path):
    other = changed(folder, tmp_path, "scheduler/scheduler_config.json", steps_offset=0)
    assert loaded(other).schedule.offset == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [({"_class_name": "LCMScheduler"}, "in discrete time"), ({"prediction_type": "sample"}, "prediction_type")],
)
def test_another_scheduler_is_refused(folder, tmp_path, values, message):
    with pytest.raises(InputError, match=message):
        load(changed(folder, tmp_path, "scheduler/scheduler_config.json", **values), device="cpu")


@pytest.mark.parametrize("unet", [{"in_channels": 9}, {"time_cond_proj_dim": 8}])
def test_networks_that_want_more_are_refused(tmp_path, unet):
    folder = save_stable_diffusion(tmp_path / "model", **unet)
    with pytest.raises(InputError, match="of text alone"):
        load(str(folder), device="cpu")


def test_the_safety_checker_is_not_opened(folder, tmp_path):
    """Most checkpoints have one."""
    other = changed(
        folder, tmp_path, "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"]
    )
    assert loaded(other).pipeline.components["safety_checker"] is None
