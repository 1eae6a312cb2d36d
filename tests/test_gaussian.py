"""The Gaussian test bed: the toy generator, with one mode, against closed forms."""

import pytest
import torch
from torch import Tensor

from dragontune.process import State
from dragontune.sampling import Sampler
from dragontune.schedule import Cosine, Edm, Flow, Schedule, expand
from dragontune.seeding import Key
from dragontune.testing import Toy

SCHEDULES = [Edm(), Cosine(), Flow()]
M = torch.tensor([1.0, 0.0])
S2 = 0.09


def noisy(toy: Toy, t: float, count: int = 5) -> tuple[Tensor, Tensor]:
    return 2 * Key(0).normal(range(count), (2,)), torch.full((count,), t)


@torch.no_grad()
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("t", [0.1, 0.5, 0.95])
def test_the_denoiser_is_the_posterior_mean(schedule: Schedule, t: float):
    """m + a s^2 / (a^2 s^2 + sigma^2) (x_t - a m)."""
    toy = Toy(schedule=schedule)
    x, times = noisy(toy, t)
    a, sigma = expand(schedule.alpha(times), x), expand(schedule.sigma(times), x)
    expected = M + a * S2 / (a**2 * S2 + sigma**2) * (x - a * M)
    torch.testing.assert_close(toy.denoise(x, times, toy.encode_prompts(["right"] * 5)), expected)


@torch.no_grad()
def test_the_mixture_denoiser_is_the_mean_over_modes():
    """Against a Monte-Carlo estimate of E[x_0 | x_t] from samples of the mixture."""
    toy, t = Toy(minor=0.2), torch.tensor([0.4])
    draws = torch.Generator().manual_seed(0)
    sign = torch.where(torch.rand(200000, generator=draws) < 0.2, 1.0, -1.0)
    clean = torch.stack([sign, torch.zeros_like(sign)], 1) + 0.3 * torch.randn(200000, 2, generator=draws)
    x = torch.tensor([[0.1, 0.3]])
    log_weight = -(x - clean).square().sum(1) / (2 * Edm().sigma(t) ** 2)
    expected = (log_weight.softmax(0)[:, None] * clean).sum(0)
    torch.testing.assert_close(toy.denoise(x, t, toy.encode_prompts(["any"]))[0], expected, atol=0.02, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("schedule", [Cosine(), Flow(), Edm()], ids=lambda s: type(s).__name__)
def test_a_small_ancestral_step_is_the_exact_reverse_kernel(schedule: Schedule):
    """Mean a' m + V a / (a^2 V + q) (x - a a' m), variance V - V^2 a^2 / (a^2 V + q)."""
    toy, sampler = Toy(schedule=schedule), Sampler(steps=400, eta=1.0, order=1)
    state = sampler.start(toy, ["right"] * 4, Key(0), range(4))
    t = schedule.times(400)[200:202]
    state = State(noisy(toy, 0.5, 4)[0], state.condition, None, torch.full((4,), 200), state.item, state.history)
    move = sampler.transition(toy, state)
    a_now, a_next = schedule.alpha(t)
    s_now, s_next = schedule.sigma(t)
    a, spread = a_now / a_next, a_next**2 * S2 + s_next**2
    q = s_now**2 - a**2 * s_next**2
    gain = spread * a / (a**2 * spread + q)
    mean = a_next * M + gain * (state.latents - a * a_next * M)
    variance = spread - spread**2 * a**2 / (a**2 * spread + q)
    torch.testing.assert_close(move.mean, mean.float(), atol=2e-4, rtol=0)
    torch.testing.assert_close(move.std**2, variance.float().expand(4), rtol=0.02, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_the_mixture_is_sampled_in_its_proportions(schedule: Schedule):
    points = Sampler(steps=30).sample(Toy(schedule=schedule, minor=0.2), ["any"] * 2000, Key(0)).latents
    right = points[points[:, 0] > 0]
    assert len(right) / 2000 == pytest.approx(0.2, abs=0.03)
    torch.testing.assert_close(right.mean(0), M, atol=0.05, rtol=0)
    torch.testing.assert_close(right.std(0), torch.tensor([0.3, 0.3]), atol=0.04, rtol=0)
