"""Gradient guidance: the tilted Gaussian, its limits, one graph's gradient, and what leaves it out of a step."""

from dataclasses import dataclass
from math import inf
from typing import Literal

import pytest
import torch
from torch import Tensor

from beds import MANY, Bell, Linear, Quadratic, error
from chains import Chain, Near, Together
from dragontune.data import Samples
from dragontune.process import State
from dragontune.rewards.base import DifferentiableReward, InstanceReward
from dragontune.rewards.diversity import Vendi
from dragontune.sampling import Sampler
from dragontune.schedule import Cosine, Edm, Flow, Schedule
from dragontune.seeding import Key
from dragontune.steering.gradient import GradientGuidance
from dragontune.testing import Toy, ToyEncoder

SCHEDULES = [Edm(), Cosine(), Flow()]
KEPT = 1 - 1 / (1 + Edm().sigma_max ** 2) ** 0.5


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("kind", ["deterministic", "second order", "ancestral"])
def test_a_linear_reward_moves_a_gaussian_as_it_ought_to(
    schedule: Schedule, kind: Literal["deterministic", "second order", "ancestral"]
):
    """N(m + s^2 w / alpha, s^2), exactly as the steps grow; deterministic: each point by the same amount."""
    bell, count = Bell(-0.4, 0.8, schedule), 300 if kind == "ancestral" else 1500
    process = {
        "deterministic": Sampler(60, order=1),
        "second order": Sampler(30),
        "ancestral": Sampler(40, order=1, eta=1),
    }[kind]
    steering = GradientGuidance(Linear(1.2), 0.7, inf, MANY)
    x = process.sample(bell, [""] * count, Key(0), steer=steering).latents[:, 0].double()
    plain = process.sample(bell, [""] * count, Key(0)).latents[:, 0].double()
    shift = 0.64 * 1.2 / 0.7
    assert x.mean().item() == pytest.approx(-0.4 + shift, abs=0.05 * shift + 3.5 * error(x))
    assert x.std().item() == pytest.approx(plain.std().item(), rel=0.02)
    torch.testing.assert_close(x - plain, torch.full_like(x, shift), rtol=0.06, atol=0)


def test_the_shift_is_nearer_with_more_steps():
    """To all but 1 / 80 of it: the noise at sigma_max = 80 itself is not moved, and an ODE keeps that share."""
    bell, off = Bell(0.0, 1.0, Edm()), []
    for steps in (10, 40, 160):
        process = Sampler(steps, order=1)
        moved = process.sample(bell, [""] * 5, Key(0), steer=GradientGuidance(Linear(), 1.0, inf)).latents
        off.append((moved - process.sample(bell, [""] * 5, Key(0)).latents - KEPT).abs().max().item())
    assert off[0] > 2.5 * off[1] > 5 * off[2]


def test_an_estimate_of_exactly_nothing_is_no_reason_for_nan():
    """At t = 1 of Flow the estimate of a centred Gaussian is 0, and the limit times its norm 0 or undefined."""
    for limit in (inf, 0.5):
        x = Sampler(8).sample(Bell(schedule=Flow()), [""] * 4, Key(0), steer=GradientGuidance(Linear(), 1.0, limit))
        assert x.latents.isfinite().all()


@pytest.mark.parametrize("process", [Sampler(7), Sampler(7, order=1, eta=1), Sampler(7, guidance=2.0)])
def test_a_hot_temperature_is_the_plain_sampler(process: Sampler):
    steering = GradientGuidance(Quadratic(), 1e12)
    steered = process.sample(Toy(), ["left", "right", "x"], Key(4), steer=steering).latents
    torch.testing.assert_close(
        steered, process.sample(Toy(), ["left", "right", "x"], Key(4)).latents, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("limit", [0.1, 0.5])
def test_a_shift_is_at_most_its_share_of_the_estimate(limit: float):
    """One step ends on the clean estimate, so the shift is what differs."""
    toy, process, prompts = Toy(), Sampler(1), ["left", "right", "x", "x"]
    plain = process.sample(toy, prompts, Key(1)).latents
    hard, soft = (
        process.sample(toy, prompts, Key(1), steer=GradientGuidance(Linear(), alpha, limit)).latents - plain
        for alpha in (1e-9, 1e9)
    )
    torch.testing.assert_close(hard.norm(dim=1), limit * plain.norm(dim=1), rtol=1e-4, atol=1e-5)
    assert (hard[:, 0] > 0).all()
    assert (soft.norm(dim=1) < 1e-6).all()


@dataclass(frozen=True)
class Bent(InstanceReward[Tensor], DifferentiableReward[Tensor]):
    """Neither linear nor of one axis."""

    def encode(self, samples: Samples) -> Tensor:
        assert isinstance(samples.media, Tensor)
        return samples.media.tanh()

    def score(self, features: Tensor) -> Tensor:
        return (features * torch.tensor([1.0, -2.0]).to(features)).sum(1) + features.prod(1)


@pytest.mark.parametrize("micro_batch", [1, 3, 40])
@pytest.mark.parametrize("reward", [Bent(), Together(), Vendi(ToyEncoder())], ids=lambda r: type(r).__name__)
def test_the_shift_is_the_gradient_of_one_graph(reward, micro_batch: int):
    """(sigma^2 / alpha_t) / temperature times d reward(decode(denoise(x))) / dx, of the whole set at once."""
    toy, process, prompts, alpha = Toy(Edm(sigma_max=1.0), 0.8), Sampler(1), ["left", "right", "x", "x", "left"], 50.0
    state = process.start(toy, prompts, Key(2), range(5))
    x = state.latents.detach().requires_grad_()
    clean = toy.denoise(x, torch.ones(5), state.condition)
    (slope,) = torch.autograd.grad(reward(Samples(tuple(prompts), clean, toy.decode(clean))).sum(), x)
    expected = clean.detach() + slope / alpha
    steering = GradientGuidance(reward, alpha, inf, micro_batch)
    found = process.sample(toy, prompts, Key(2), steer=steering).latents
    assert (slope / alpha).abs().max() > 1e-4
    torch.testing.assert_close(found - clean.detach(), expected - clean.detach(), rtol=1e-3, atol=1e-6)


def test_every_step_is_the_formula_s():
    """A linear denoiser with weights of its own for every step: the whole walk by hand, in double precision."""
    chain, steps, alpha, count = Chain(4, schedule=Edm(sigma_max=2.0)), 4, 3.0, 3
    process, reward = Sampler(steps, order=1), Near()
    found = process.sample(chain, ["a"] * count, Key(0), steer=GradientGuidance(reward, alpha, inf)).latents.double()
    times = chain.schedule.times(steps)
    a, s = chain.schedule.alpha(times), chain.schedule.sigma(times)
    x = process.noise(chain, Key(0), torch.arange(count)).double()
    for k in range(steps):
        matrix, shift = chain.matrices[k].detach(), chain.shifts[k].detach()
        clean = x @ matrix.T + shift
        slope = (torch.tensor(reward.goal, dtype=torch.float64) - clean) @ matrix
        clean = clean + s[k] ** 2 / a[k] / alpha * slope
        keep = s[k + 1] / s[k]
        x = keep * x + (a[k + 1] - a[k] * keep) * clean
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "process",
    [
        Sampler(10, guidance=3.0),
        Sampler(10, guidance=3.0, order=1, eta=1),
        Sampler(10, plus_steps=(0, 1, 2), order=1),
        Sampler(10, guidance=1.5, plus_steps=(3, 4, 5, 9)),
    ],
)
@pytest.mark.parametrize("reward", [Quadratic(1.0, 3.0), Together()], ids=["items", "set"])
def test_guidance_of_other_kinds_goes_with_it(process: Sampler, reward):
    """The reward rises, nothing breaks, and the micro-batch does not matter."""
    prompts = ["left", "right", "x"] * 4
    plain = process.sample(Toy(), prompts, Key(0))
    few, many = (
        process.sample(Toy(), prompts, Key(0), steer=GradientGuidance(reward, 0.05, 0.5, rows)) for rows in (1, 100)
    )
    assert reward(many).mean() > reward(plain).mean()
    torch.testing.assert_close(few.latents, many.latents, rtol=0, atol=1e-4)


def test_weights_gather_no_gradients_and_every_state_is_seen():
    toy, seen = Toy(), list[State]()
    Sampler(5).sample(toy, ["x"] * 3, Key(0), steer=GradientGuidance(Linear(), 0.1), visit=seen.append)
    assert [int(state.step[0]) for state in seen] == list(range(6))
    assert all(weight.grad is None for weight in toy.parameters())
    assert not any(state.latents.requires_grad for state in seen)
