"""Schedules against closed forms and diffusers' Karras sigmas."""

import pytest
import torch
from diffusers.schedulers.scheduling_edm_dpmsolver_multistep import EDMDPMSolverMultistepScheduler

from dragontune.schedule import Cosine, Edm, Flow, Schedule, expand

SCHEDULES = [Edm(), Cosine(), Flow()]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_ends_and_direction(schedule: Schedule):
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)
    assert schedule.sigma(t)[0] == 0
    assert schedule.alpha(t)[0] == 1
    assert (schedule.sigma(t).diff() > 0).all()
    assert (schedule.log_snr(t[1:-1]).diff() < 0).all()
    times = schedule.times(7)
    assert len(times) == 8
    assert times[0] == 1
    assert times[-1] == 0
    assert (times.diff() < 0).all()
    assert schedule.times(1).tolist() == [1, 0]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_diffusing_has_the_right_moments(schedule: Schedule):
    noise = torch.randn(20000, 3, generator=torch.Generator().manual_seed(0))
    t = torch.full((20000,), 0.4)
    noisy = schedule.diffuse(torch.full_like(noise, 2.0), noise, t)
    torch.testing.assert_close(noisy.mean(0), 2 * schedule.alpha(t[:3]), atol=0.05, rtol=0)
    torch.testing.assert_close(noisy.std(0), schedule.sigma(t[:3]), atol=0, rtol=0.02)


@pytest.mark.parametrize("steps", [2, 5, 40])
def test_edm_times_are_karras_sigmas(steps: int):
    theirs = EDMDPMSolverMultistepScheduler(sigma_schedule="karras")
    theirs.set_timesteps(steps)
    ours = Edm().sigma(Edm().times(steps)).float()
    torch.testing.assert_close(ours, theirs.sigmas, rtol=1e-5, atol=0)


def test_edm_time_is_the_inverse_of_sigma():
    sigma = torch.tensor([0.0, 0.001, 0.002, 0.0021, 0.1, 1.0, 79.0, 80.0], dtype=torch.float64)
    torch.testing.assert_close(Edm().sigma(Edm().time(sigma)), sigma, rtol=1e-12, atol=0)


def test_edm_trains_on_a_lognormal():
    uniforms = torch.rand(50000, generator=torch.Generator().manual_seed(0))
    log_sigma = Edm(p_mean=-0.4, p_std=1.0).sigma(Edm().training_times(uniforms)).log()
    assert log_sigma.mean().item() == pytest.approx(-0.4, abs=0.02)
    assert log_sigma.std().item() == pytest.approx(1.0, abs=0.02)
    extremes = Edm().sigma(Edm().training_times(torch.tensor([0.0, 1 - 2**-24])))
    assert extremes[0].item() == pytest.approx(0.002, rel=1e-4)
    assert extremes.isfinite().all()


def test_edm_weight_cancels_the_output_scale():
    """lambda(sigma) c_out(sigma)^2 = 1 (systems of EDM preconditioning)."""
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64)
    sigma, data = Edm().sigma(t), 0.5
    c_out = sigma * data / (sigma**2 + data**2).sqrt()
    torch.testing.assert_close(Edm().weight(t) * c_out**2, torch.ones_like(t))


@pytest.mark.parametrize("schedule", [Cosine(), Flow()], ids=lambda s: type(s).__name__)
def test_weight_turns_a_clean_error_into_a_velocity_error(schedule: Schedule):
    """v = alpha eps - sigma x_0 (cosine), eps - x_0 (flow), with eps from x_t and x_0."""
    t = torch.tensor([0.3, 0.7], dtype=torch.float64)
    noisy, clean, other = 1.3, 0.2, 0.5
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)

    def velocity(estimate: float) -> torch.Tensor:
        noise = (noisy - alpha * estimate) / sigma
        return noise - estimate if isinstance(schedule, Flow) else alpha * noise - sigma * estimate

    expected = (velocity(clean) - velocity(other)) ** 2
    torch.testing.assert_close(schedule.weight(t) * (clean - other) ** 2, expected)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_training_times_grow_with_the_uniform(schedule: Schedule):
    times = schedule.training_times(torch.linspace(0, 0.999, 100))
    assert (times.diff() >= 0).all()
    assert ((times >= 0) & (times <= 1)).all()


def test_expand():
    assert expand(torch.ones(3), torch.ones(3, 2, 4)).shape == (3, 1, 1)
