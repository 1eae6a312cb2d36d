"""Schedules in discrete time against those of diffusers' schedulers, and the sampler's steps against theirs."""

import json

import numpy as np
import pytest
import torch
from diffusers import schedulers
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from dragontune.errors import InputError
from dragontune.generators.checkpoint import Checkpoint
from dragontune.generators.discrete import KNOWN, OF_DPM, OF_EULER, discrete
from dragontune.schedule import Discrete

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
STEPS = [1, 2, 3, 5, 7, 10, 16, 20, 25, 28, 30, 40, 48, 50, 100, 150, 200, 333, 500]


def config(kind, **more):
    """What a scheduler of that kind writes into its folder."""
    scheduler = getattr(schedulers, kind)
    plain = {"clip_sample": False} if kind in ("DDIMScheduler", "DDPMScheduler") else {}
    plain |= {"skip_prk_steps": True} if kind == "PNDMScheduler" else {}
    return dict(scheduler(**BETAS | plain | more).config) | {"_class_name": kind}


def folder(path, content):
    (path / "scheduler").mkdir(parents=True, exist_ok=True)
    content = {key: value for key, value in content.items() if value != -np.inf}
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(content))
    return Checkpoint(path, "model", torch.device("cpu"))


def ours(path, kind, **more):
    return discrete(folder(path, config(kind, **more)))


def theirs(kind, steps, **more):
    scheduler = getattr(schedulers, kind).from_config(config(kind, **more))
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps.double()
    return scheduler, torch.unique(times).flip(0) if kind == "PNDMScheduler" else times


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("kind", KNOWN)
def test_times_are_those_of_diffusers(tmp_path, kind, spacing):
    """PNDM asks the network twice at one time. Evenly spaced, a single step is at the noisy end here."""
    schedule = ours(tmp_path, kind, timestep_spacing=spacing, steps_offset=1)
    for steps in STEPS:
        if steps == 1 and (spacing == "linspace" or kind == "PNDMScheduler") and kind not in OF_DPM:
            continue
        _, times = theirs(kind, steps, timestep_spacing=spacing, steps_offset=1)
        found = schedule.times(steps)
        assert len(found) == steps + 1
        torch.testing.assert_close(found[:-1] * 1000 - 1, times, atol=1e-4, rtol=0)
        torch.testing.assert_close(schedule.index(found[:-1].float()).double(), times, atol=1e-3, rtol=1e-6)
        assert (found.diff() <= 0).all()


@pytest.mark.parametrize("betas", ["scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("kind", [*OF_EULER, *OF_DPM])
def test_noise_levels_and_starts_are_those_of_diffusers(tmp_path, kind, spacing, betas):
    more = {"timestep_spacing": spacing, "steps_offset": 1, "beta_schedule": betas}
    schedule, (scheduler, _) = ours(tmp_path, kind, **more), theirs(kind, 20, **more)
    times = schedule.times(20)
    torch.testing.assert_close(schedule.ratio(times).float(), scheduler.sigmas, atol=1e-5, rtol=1e-4)
    first = scheduler.init_noise_sigma
    start = first / (1 + scheduler.sigmas[0] ** 2) ** 0.5 if kind in OF_EULER else first
    assert schedule.start() == pytest.approx(float(start), rel=1e-5)


@pytest.mark.parametrize(
    "betas",
    [
        BETAS,
        {"beta_schedule": "linear"},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": [0.01, 0.02, 0.05, 0.1]},
    ],
)
def test_products_are_those_of_diffusers(tmp_path, betas):
    scheduler = DDIMScheduler(clip_sample=False, **betas)
    schedule = discrete(folder(tmp_path, dict(scheduler.config) | {"_class_name": "DDIMScheduler"}))
    products = scheduler.alphas_cumprod
    t = torch.arange(1, len(products) + 1, dtype=torch.float64) / len(products)
    torch.testing.assert_close(schedule.alpha(t) ** 2, products.double(), atol=0, rtol=1e-4)
    torch.testing.assert_close(schedule.sigma(t) ** 2, 1 - products.double(), atol=1e-7, rtol=1e-4)
    torch.testing.assert_close(schedule.index(t.float()), torch.arange(len(products)).float(), atol=0, rtol=0)
    assert schedule.sigma(torch.zeros(1)).item() == 0
    assert schedule.alpha(torch.zeros(1)).item() == 1


@pytest.mark.parametrize(
    ("kind", "more", "clean"),
    [
        ("DDIMScheduler", {"set_alpha_to_one": False}, False),
        ("DDIMScheduler", {"set_alpha_to_one": True}, True),
        ("DDPMScheduler", {}, True),
        ("PNDMScheduler", {}, False),
        ("EulerDiscreteScheduler", {"final_sigmas_type": "sigma_min"}, False),
        ("EulerDiscreteScheduler", {}, True),
        ("EulerAncestralDiscreteScheduler", {}, True),
        ("LMSDiscreteScheduler", {}, True),
        ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}, False),
        ("DPMSolverMultistepScheduler", {}, True),
        ("UniPCMultistepScheduler", {}, True),
        ("DEISMultistepScheduler", {}, False),
    ],
)
def test_where_the_last_step_ends(tmp_path, kind, more, clean):
    schedule = ours(tmp_path, kind, **more)
    assert schedule.times(10)[-1].item() == (0 if clean else 1e-3)
    if not clean:
        end = schedule.alpha(schedule.times(10)[-1:]) ** 2
        torch.testing.assert_close(end, schedule.products[:1].double(), atol=1e-7, rtol=1e-6)


def test_what_the_network_says(tmp_path):
    assert ours(tmp_path, "DDIMScheduler").prediction == "epsilon"
    schedule = ours(tmp_path, "DDIMScheduler", prediction_type="v_prediction")
    assert schedule.prediction == "velocity"
    t = torch.tensor([0.2, 0.9])
    torch.testing.assert_close(schedule.weight(t), schedule.sigma(t) ** -2)
    torch.testing.assert_close(ours(tmp_path, "DDIMScheduler").weight(t), (schedule.alpha(t) / schedule.sigma(t)) ** 2)


def test_a_pipeline_can_insist(tmp_path):
    said = config("DDIMScheduler", clip_sample=True, steps_offset=0)
    schedule = discrete(folder(tmp_path, said), {"clip_sample": False, "steps_offset": 1})
    assert schedule.times(10)[-2].item() == pytest.approx(2e-3)


def test_nothing_but_noise_at_first(tmp_path):
    """Rescaled to no signal at t = 1 (Lin et al. 2024), with the velocity: finite everywhere, as Euler's."""
    more = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    schedule, (scheduler, _) = (
        ours(tmp_path, "EulerDiscreteScheduler", **more),
        theirs("EulerDiscreteScheduler", 10, **more),
    )
    torch.testing.assert_close(schedule.ratio(schedule.times(10)).float(), scheduler.sigmas, atol=1e-5, rtol=1e-4)
    same = ours(tmp_path, "DDIMScheduler", **more)
    assert same.alpha(torch.ones(1)).item() == pytest.approx(2**-12)
    assert same.log_snr(torch.ones(1)).isfinite().all()


def test_training_times_are_the_networks(tmp_path):
    schedule = ours(tmp_path, "DDIMScheduler")
    times = schedule.training_times(torch.tensor([0.0, 0.4999, 0.5, 0.99999]))
    assert schedule.index(times).tolist() == [0, 499, 500, 999]


def test_between_two_times_it_is_interpolated():
    schedule = Discrete(torch.tensor([0.9, 0.5, 0.1]))
    levels = schedule.ratio(torch.tensor([1 / 3, 0.5, 2 / 3]))
    assert levels[1].item() == pytest.approx((levels[0] + levels[2]).item() / 2)
    assert schedule.ratio(torch.tensor([1 / 6])).item() == pytest.approx(levels[0].item() / 2, rel=1e-5)


@pytest.mark.parametrize("steps", [1000, 1001, 5000])
def test_more_steps_than_times(tmp_path, steps):
    with pytest.raises(InputError, match=f"fewer sampler steps than {steps}"):
        ours(tmp_path, "DDIMScheduler", steps_offset=1).times(steps)


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, "use_karras_sigmas"),
        ("DDIMScheduler", {"clip_sample": True}, "clip_sample"),
        ("DDIMScheduler", {"prediction_type": "sample"}, "prediction_type"),
        ("DDIMScheduler", {"rescale_betas_zero_snr": True}, "v_prediction"),
        ("EulerDiscreteScheduler", {"interpolation_type": "log_linear"}, "linear"),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous", "prediction_type": "v_prediction"}, "discrete"),
        ("LCMScheduler", {}, "in discrete time"),
        ("DDPMScheduler", {"trained_betas": [0.1, 0.5, 1.0]}, "leave some of the data"),
        ("DDPMScheduler", {"trained_betas": [0.0, 0.0]}, "add noise"),
        ("DDIMScheduler", {"beta_schedule": "linear", "beta_end": 0.9}, "leave some of the data"),
        (
            "DPMSolverMultistepScheduler",
            {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1},
            "lambda_min_clipped -5.1",
        ),
        ("DPMSolverMultistepScheduler", {"lambda_min_clipped": 0.0}, "lambda_min_clipped 0.0"),
        ("DPMSolverMultistepScheduler", {"lambda_min_clipped": -2.6}, r"= -2\.\d+, got lambda_min_clipped -2.6"),
    ],
)
def test_what_samplers_do_not_do_is_refused(tmp_path, kind, more, message):
    with pytest.raises(InputError, match=message):
        ours(tmp_path, kind, **more)


def test_a_clip_below_all_noise_levels_changes_nothing(tmp_path):
    schedule = ours(tmp_path, "DPMSolverMultistepScheduler", lambda_min_clipped=-5.1)
    _, times = theirs("DPMSolverMultistepScheduler", 20, lambda_min_clipped=-5.1)
    torch.testing.assert_close(schedule.times(20)[:-1] * 1000 - 1, times, atol=1e-4, rtol=0)


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"_class_name": 3}'])
def test_a_torn_configuration_is_refused(tmp_path, content):
    checkpoint = folder(tmp_path, {})
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(content)
    with pytest.raises(InputError, match="expected"):
        discrete(checkpoint)
