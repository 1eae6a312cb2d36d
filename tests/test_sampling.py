"""The sampler against diffusers, against the exact solution for Gaussian data, and against itself."""

from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import inf, sqrt

import pytest
import torch
from diffusers.schedulers.scheduling_edm_dpmsolver_multistep import EDMDPMSolverMultistepScheduler
from torch import Tensor

from dragontune.data import Rows
from dragontune.errors import InputError
from dragontune.process import State
from dragontune.sampling import Sampler
from dragontune.schedule import Cosine, Edm, Flow, Schedule, expand
from dragontune.seeding import Key
from dragontune.testing import Toy

SCHEDULES = [Edm(), Cosine(), Flow()]


def nonlinear() -> Toy:
    """A toy whose network does something."""
    toy = Toy()
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in toy.parameters():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=draws))
    return toy


def guided(toy: Toy, x: Tensor, t: Tensor, prompts: list[str], scale: float) -> tuple[Tensor, Tensor, Tensor]:
    conditional = toy.denoise(x, t, toy.encode_prompts(prompts))
    free = toy.denoise(x, t, toy.encode_prompts([""] * len(prompts)))
    return free + scale * (conditional - free), conditional, free


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 2, 3, 12, 40])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_second_order_agrees_with_diffusers(steps: int, guidance: float):
    toy, prompts = nonlinear(), ["left", "right", "x", "left"]
    theirs = EDMDPMSolverMultistepScheduler(
        sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, rho=7.0, sigma_schedule="karras", prediction_type="epsilon",
        solver_order=2, algorithm_type="dpmsolver++", solver_type="midpoint", lower_order_final=True,
        euler_at_final=False, final_sigmas_type="zero",
    )  # fmt: skip
    theirs.set_timesteps(steps)
    x = 80 * Key(1).fold("start").normal(range(4), (2,))
    for timestep, sigma in zip(theirs.timesteps, theirs.sigmas, strict=False):
        clean, _, _ = guided(toy, x, Edm().time(sigma).expand(4), prompts, guidance)
        skip = 0.25 / (sigma**2 + 0.25)
        scale = 0.5 * sigma / (sigma**2 + 0.25).sqrt()
        (x,) = theirs.step((clean - skip * x) / scale, timestep, x, return_dict=False)
    ours = Sampler(steps=steps, guidance=guidance).sample(toy, prompts, Key(1)).latents
    torch.testing.assert_close(ours, x, atol=1e-4, rtol=1e-4)


def ode_error(schedule: Schedule, steps: int, order: int) -> float:
    """Distance to the exact end of the probability-flow ODE of N((-1, 0), 0.7), from the same noise."""
    spread, m = sqrt(0.7), torch.tensor([-1.0, 0.0])
    toy = Toy(schedule=schedule, spread=spread)
    end = Sampler(steps=steps, order=order).sample(toy, ["left"] * 64, Key(0)).latents
    one = torch.ones((), dtype=torch.float64)
    alpha, sigma = schedule.alpha(one).item(), schedule.sigma(one).item()
    start = sigma * Key(0).fold("start").normal(range(64), (2,))
    truth = m + (start - alpha * m) * spread / sqrt(alpha**2 * 0.7 + sigma**2)
    return (end - truth).double().square().mean().sqrt().item()


def test_dpm_solver_converges_at_second_order():
    errors = [ode_error(Edm(), steps, 2) for steps in (20, 40, 80, 160)]
    ratios = [coarse / fine for coarse, fine in pairwise(errors)]
    assert all(3.6 < ratio < 5.2 for ratio in ratios), ratios


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_euler_converges_at_first_order(schedule: Schedule):
    errors = [ode_error(schedule, steps, 1) for steps in (40, 80, 160)]
    ratios = [coarse / fine for coarse, fine in pairwise(errors)]
    assert all(1.7 < ratio < 2.3 for ratio in ratios), ratios


@pytest.mark.parametrize("schedule", [Cosine(), Flow()], ids=lambda s: type(s).__name__)
def test_second_order_is_better_on_every_schedule(schedule: Schedule):
    assert ode_error(schedule, 40, 2) < 0.4 * ode_error(schedule, 40, 1)
    assert ode_error(schedule, 80, 2) < 0.5 * ode_error(schedule, 40, 2)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_every_eta_reaches_the_distribution(schedule: Schedule, eta: float):
    sampler = Sampler(steps=60, eta=eta, order=1)
    points = sampler.sample(Toy(schedule=schedule), ["right"] * 400, Key(0)).latents
    torch.testing.assert_close(points.mean(0), torch.tensor([1.0, 0.0]), atol=0.05, rtol=0)
    torch.testing.assert_close(points.std(0), torch.tensor([0.3, 0.3]), atol=0.04, rtol=0)


def test_infinite_eta_is_ping_pong():
    """All noise is fresh: x' = (1 - t') x_0 + t' eps for a flow."""
    toy, sampler = Toy(schedule=Flow()), Sampler(steps=10, eta=inf, order=1)
    move = sampler.transition(toy, sampler.start(toy, ["left", "right"], Key(0), range(2)))
    torch.testing.assert_close(move.mean, 0.1 * move.clean)
    torch.testing.assert_close(move.std, torch.tensor([0.9, 0.9]))


@pytest.mark.parametrize(
    "sampler", [Sampler(steps=8, guidance=2.0, plus_steps=(2, 3)), Sampler(steps=8, eta=1, order=1)]
)
def test_noise_and_result_do_not_depend_on_the_batch(sampler: Sampler):
    toy, key, prompts = Toy(), Key(5), ["left", "right", "x", "y", "left"]
    with toy.reference():
        whole = sampler.sample(toy, prompts, key).latents
        split = [sampler.sample(toy, [prompts[i]], key, items=[i]).latents for i in (4, 2, 0, 1, 3)]
    assert torch.equal(torch.cat(split)[[2, 3, 1, 4, 0]], whole)


def test_rows_may_be_at_different_steps():
    toy, sampler, key = nonlinear(), Sampler(steps=6, guidance=2.0, plus_steps=(1, 4)), Key(0)
    states: list[State] = []
    with torch.no_grad():
        sampler.sample(toy, ["left", "right"], key, visit=states.append)
        mixed = State.join([states[2][torch.tensor([0])], states[4][torch.tensor([1])], states[5][torch.tensor([0])]])
        after = sampler.advance(toy, mixed, key)
    expected = torch.stack([states[3].latents[0], states[5].latents[1], states[6].latents[0]])
    torch.testing.assert_close(after.latents, expected)
    assert after.step.tolist() == [3, 5, 6]


@dataclass(frozen=True, eq=False)
class Counting(Toy):
    calls: list[int] = field(default_factory=list)

    def denoise(self, noisy: Tensor, t: Tensor, condition: Rows) -> Tensor:
        self.calls.append(len(noisy))
        return super().denoise(noisy, t, condition)


@pytest.mark.parametrize(
    ("sampler", "rows"),
    [(Sampler(steps=5), 3), (Sampler(steps=5, guidance=2.0), 6), (Sampler(steps=5, plus_steps=(0,)), 6)],
)
def test_calls_are_counted_and_batched(sampler: Sampler, rows: int):
    toy = Counting()
    sampler.sample(toy, ["a", "b", "c"], Key(0))
    assert toy.calls == [rows] * 5
    assert sampler.calls(3) == sum(toy.calls)


@torch.no_grad()
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_first_order_plus_step_is_the_papers(schedule: Schedule):
    """Clean part from the guided estimate, noise from the unconditional one (CFG++, algorithm 2)."""
    toy, sampler = Toy(schedule=schedule), Sampler(steps=6, order=1, guidance=3.0, plus=0.6, plus_steps=(3,))
    states: list[State] = []
    sampler.sample(toy, ["left", "right"], Key(0), visit=states.append)
    x, t = states[3].latents, schedule.times(6)[[3, 4]].float()
    _, conditional, free = guided(toy, x, t[:1].expand(2), ["left", "right"], 1.0)
    clean = free + 0.6 * (conditional - free)
    noise = (x - schedule.alpha(t[0]) * free) / schedule.sigma(t[0])
    expected = schedule.alpha(t[1]) * clean + schedule.sigma(t[1]) * noise
    torch.testing.assert_close(states[4].latents, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_second_order_plus_step_extrapolates_the_unconditional_estimate():
    """In EDM form: (s'/s) x + (1 - e^-h) D'_free + (D_guided - D_free), D' from the free estimates of two steps."""
    toy, sampler = Toy(), Sampler(steps=8, guidance=2.0, plus=0.7, plus_steps=(2, 4, 5))
    states: list[State] = []
    sampler.sample(toy, ["left", "right"], Key(0), visit=states.append)
    sigma = Edm().sigma(Edm().times(8)).float()
    for i in (4, 5):
        _, conditional, free = guided(toy, states[i].latents, Edm().time(sigma[i]).expand(2), ["left", "right"], 1.0)
        _, _, before = guided(toy, states[i - 1].latents, Edm().time(sigma[i - 1]).expand(2), ["left", "right"], 1.0)
        ratio = (sigma[i - 1] / sigma[i]).log() / (sigma[i] / sigma[i + 1]).log()
        ahead = (1 + 1 / (2 * ratio)) * free - before / (2 * ratio)
        shrink = sigma[i + 1] / sigma[i]
        expected = shrink * states[i].latents + (1 - shrink) * ahead + 0.7 * (conditional - free)
        torch.testing.assert_close(states[i + 1].latents, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_guided_step_after_a_plus_step_extrapolates_from_guided_estimates():
    """Each kind of step extrapolates from its own estimate of the step before, whichever kind that was."""
    toy, sampler = Toy(), Sampler(steps=8, guidance=2.0, plus=0.7, plus_steps=(3,))
    states: list[State] = []
    sampler.sample(toy, ["left", "right"], Key(0), visit=states.append)
    sigma = Edm().sigma(Edm().times(8)).float()
    now, before = (
        guided(toy, states[i].latents, Edm().time(sigma[i]).expand(2), ["left", "right"], 2.0)[0] for i in (4, 3)
    )
    ratio = (sigma[3] / sigma[4]).log() / (sigma[4] / sigma[5]).log()
    ahead = (1 + 1 / (2 * ratio)) * now - before / (2 * ratio)
    expected = sigma[5] / sigma[4] * states[4].latents + (1 - sigma[5] / sigma[4]) * ahead
    torch.testing.assert_close(states[5].latents, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_eta_multiplies_the_ancestral_noise(schedule: Schedule):
    """Half of sigma' sqrt(1 - (alpha sigma' / (alpha' sigma))^2) for eta one half (DDIM, Song et al. 2021, eq. 16)."""
    toy, sampler = Toy(schedule=schedule), Sampler(steps=10, eta=0.5, order=1)
    state = replace(sampler.start(toy, ["left"], Key(0), [0]), step=torch.tensor([4]))
    t = schedule.times(10)[4:6]
    (a, a_next), (s, s_next) = schedule.alpha(t), schedule.sigma(t)
    expected = 0.5 * s_next * (1 - (a * s_next / (a_next * s)) ** 2).sqrt()
    torch.testing.assert_close(sampler.transition(toy, state).std, expected[None].float())


def test_limits_of_guidance():
    toy, all_steps = Toy(), tuple(range(10))
    unconditional = Sampler(steps=10).sample(toy, ["", ""], Key(0)).latents
    for sampler in (Sampler(steps=10, guidance=0.0), Sampler(steps=10, plus=0.0, plus_steps=all_steps)):
        torch.testing.assert_close(sampler.sample(toy, ["left", "right"], Key(0)).latents, unconditional)
    last = Sampler(steps=1, plus=1.0, plus_steps=(0,)).sample(toy, ["left"], Key(0)).latents
    torch.testing.assert_close(last, Sampler(steps=1).sample(toy, ["left"], Key(0)).latents)


def test_log_prob_is_the_density_of_a_draw():
    toy, sampler = Toy(), Sampler(steps=10, eta=1.0, order=1)
    state = sampler.start(toy, ["left", "right"], Key(0), range(2))
    move = sampler.transition(toy, state)
    latents = move.draw(Key(0))
    normal = torch.distributions.Normal(move.mean, expand(move.std, move.mean))
    torch.testing.assert_close(move.log_prob(latents), normal.log_prob(latents).sum(1))
    assert torch.equal(move.draw(Key(0)), latents)
    assert not torch.equal(move.draw(Key(0).fold("candidate", 1)), latents)


def test_only_the_last_steps_carry_gradients():
    toy = nonlinear()
    weights = list(toy.parameters())
    plain = Sampler(steps=5).sample(toy, ["left"], Key(0))
    assert not plain.latents.requires_grad
    slopes = []
    for last in (1, 5):
        samples = Sampler(steps=5).sample(toy, ["left"], Key(0), differentiate_last=last)
        assert torch.equal(samples.latents.detach(), plain.latents)
        assert samples.media is not None
        slopes.append(torch.autograd.grad(samples.media.sum(), weights)[-1])  # pyright: ignore
    assert all(slope.abs().sum() > 0 for slope in slopes)
    assert not torch.allclose(*slopes)
    assert torch.is_grad_enabled()


def test_steering_visiting_and_not_decoding():
    toy, seen = Toy(), []

    def steer(process, generator, prompts, key, items, visit=seen.append) -> State:
        state = process.start(generator, prompts, key, items)
        for _ in range(process.steps):
            visit(state)
            state = process.advance(generator, state, key)
        visit(state)
        return state

    steered = Sampler(steps=4).sample(toy, ["left"], Key(0), steer=steer, visit=seen.append, decode=False)
    assert steered.media is None
    assert torch.equal(steered.latents, Sampler(steps=4).sample(toy, ["left"], Key(0)).latents)
    assert [state.step.item() for state in seen] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 0},
        {"order": 3},
        {"eta": -1.0, "order": 1},
        {"eta": 1.0},
        {"guidance": -1.0},
        {"guidance": inf},
        {"guidance": float("nan")},
        {"plus": 1.5},
        {"steps": 4, "plus_steps": (4,)},
    ],
    ids=str,
)
def test_impossible_settings(settings: dict):
    with pytest.raises(InputError):
        Sampler(**settings)
