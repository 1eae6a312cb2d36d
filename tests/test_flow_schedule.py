"""The times of flow models against diffusers' scheduler, asked as its pipelines ask."""

import json

import numpy as np
import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from dragontune.errors import InputError
from dragontune.generators.checkpoint import Checkpoint
from dragontune.generators.flow_schedule import flow_schedule
from dragontune.schedule import ShiftedFlow

FLUX = {"use_dynamic_shifting": True, "shift": 3.0}
LTX = FLUX | {"base_shift": 0.95, "max_shift": 2.05, "base_image_seq_len": 1024, "shift_terminal": 0.1}


def checkpoint(folder, **values):
    scheduler = FlowMatchEulerDiscreteScheduler(**values)
    scheduler.save_pretrained(folder / "scheduler")
    return Checkpoint(folder, "flow", torch.device("cpu")), scheduler


@pytest.mark.parametrize("steps", [2, 7, 50])
@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("values", [{}, {"shift": 3.0}, {"shift": 8.0, "shift_terminal": 0.1}])
def test_constant_shifts(tmp_path, values, closed, steps):
    opened, scheduler = checkpoint(tmp_path, **values)
    scheduler.set_timesteps(steps, sigmas=None if closed else np.linspace(1.0, 1 / steps, steps), mu=1.0)
    times = flow_schedule(opened, 1000, closed).times(steps)
    torch.testing.assert_close(times.float(), scheduler.sigmas, atol=1e-6, rtol=1e-5)
    if values.get("shift_terminal"):
        assert times[-2].item() == pytest.approx(0.1)


@pytest.mark.parametrize("steps", [2, 28])
@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("tokens", [64, 1024, 4096, 10_000])
@pytest.mark.parametrize("values", [FLUX, LTX, FLUX | {"time_shift_type": "linear"}])
def test_shifts_by_the_number_of_tokens(tmp_path, values, tokens, closed, steps):
    opened, scheduler = checkpoint(tmp_path, **values)
    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    mu = calculate_shift(tokens, *(scheduler.config[name] for name in names))
    scheduler.set_timesteps(steps, sigmas=None if closed else np.linspace(1.0, 1 / steps, steps), mu=mu)
    schedule = flow_schedule(opened, tokens, closed)
    torch.testing.assert_close(schedule.times(steps).float(), scheduler.sigmas, atol=1e-6, rtol=1e-5)
    shift = mu if "time_shift_type" in values else np.exp(mu)
    assert schedule.training_times(torch.tensor([0.5])).item() == pytest.approx(shift / (1 + shift))


def test_one_step_goes_all_the_way(tmp_path):
    """With a terminal time diffusers' scheduler divides by 0."""
    opened, _ = checkpoint(tmp_path, **LTX)
    assert flow_schedule(opened, 64, closed=False).times(1).tolist() == [1.0, 0.0]


def test_settings_that_are_not_said_are_diffusers_own(tmp_path):
    opened, _ = checkpoint(tmp_path)
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler"}))
    assert flow_schedule(opened) == ShiftedFlow(1.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"_class_name": "DDIMScheduler"},
        {"num_train_timesteps": 10},
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"use_beta_sigmas": True},
        {"invert_sigmas": True},
        {"stochastic_sampling": True},
        {"shift": 0},
        {"shift": -1.0},
        {"shift_terminal": 1.0},
        {"use_dynamic_shifting": True, "max_image_seq_len": 256},
        {"use_dynamic_shifting": True, "time_shift_type": "cubic"},
        {"use_dynamic_shifting": True, "time_shift_type": "linear", "base_shift": -9.0},
    ],
)
def test_what_is_refused(tmp_path, wrong):
    opened, _ = checkpoint(tmp_path)
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | wrong))
    with pytest.raises(InputError, match=r"expected .*, got .*; restore"):
        flow_schedule(opened, 256)


def test_a_dynamic_shift_needs_a_pipeline_that_has_one(tmp_path):
    opened, _ = checkpoint(tmp_path, **FLUX)
    with pytest.raises(InputError, match="constant shift"):
        flow_schedule(opened)
