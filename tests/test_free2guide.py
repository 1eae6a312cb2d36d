"""Free2Guide: what it costs, what law its soft forms have, and how several rewards are put together."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from beds import MANY, Bell, Exact, Linear, Quadratic, error, run
from dragontune.data import Samples
from dragontune.errors import InputError
from dragontune.process import State
from dragontune.rewards.base import InstanceReward
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from dragontune.steering.ensemble import Combine, Ensemble
from dragontune.steering.free2guide import Free2Guide, Mode
from dragontune.testing import Toy
from dragontune.unmasking import Unmasking
from enumerable import Enumerable

PROMPTS = ["left", "right", "x"]
SHARP: tuple[tuple[float, Mode], ...] = ((1e-9, "average"), (0.0, "choose"))


def test_one_candidate_or_no_guided_step_is_the_plain_sampler():
    for process in (Sampler(6, order=1, eta=1), Sampler(6, guidance=2, order=1, eta=1), Sampler(6)):
        plain = process.sample(Toy(), PROMPTS, Key(2)).latents
        for steering in (Free2Guide(Linear(), 1), Free2Guide(Linear(), 4, 0)):
            assert torch.equal(process.sample(Toy(), PROMPTS, Key(2), steer=steering).latents, plain)


def test_the_cost_of_fifty_steps_with_ten_candidates_in_six():
    """10 noises, 1 step, 5 x 10 candidates whose evaluation is the next step's: 61 where the released code takes 65."""
    process = Sampler(50, order=1, eta=1)
    costs = Free2Guide(Linear()).budget(process, 1, Key(0))
    later = 50 - 7
    assert (costs.calls, costs.encodes, costs.decodes) == (10 + 1 + 5 * 10 + later, 60, 60 + 1)
    assert Free2Guide(Linear(), mode="average", alpha=1.0).budget(process, 1, Key(0)).calls == 61 + 5 + later
    assert Free2Guide(Linear()).budget(Sampler(50, 2.0, 1, 1), 3, Key(0)).calls == 6 * (61 + later)


def test_only_early_steps_are_guided():
    """After them the sampler goes its own way, with the noise that it always has."""
    process, seen = Sampler(8, order=1, eta=1), list[State]()
    process.sample(Toy(), PROMPTS, Key(1), steer=Free2Guide(Linear(), 5, 3), visit=seen.append)
    state = seen[3]
    for step in range(3, 8):
        state = process.advance(Toy(), state, Key(1))
        assert torch.equal(state.latents, seen[step + 1].latents)
    wrong = process.advance(Toy(), seen[2], Key(1))
    assert not torch.equal(wrong.latents, seen[3].latents)


def test_the_first_step_after_the_chosen_noise_is_plain():
    process, seen = Exact(6), list[State]()
    process.sample(Bell(), [""] * 50, Key(1), steer=Free2Guide(Linear(), 5, 3), visit=seen.append)
    torch.testing.assert_close(process.advance(Bell(), seen[0], Key(1)).latents, seen[1].latents)
    noises = [Key(1).fold("lane", lane) if lane else Key(1) for lane in range(5)]
    starts = torch.stack([process.start(Bell(), [""] * 50, key, range(50)).latents for key in noises], 1)
    assert (seen[0].latents[:, None] == starts).any(1).all()


def test_the_mean_reward_grows_with_the_candidates():
    process, prompts = Sampler(8, order=1, eta=1), ["left"] * 200
    means = [
        process.sample(Toy(), prompts, Key(0), steer=Free2Guide(Linear(), n, micro_batch=MANY)).latents[:, 0].mean()
        for n in (1, 2, 4, 8, 16)
    ]
    assert all(b > a + 0.02 for a, b in pairwise(means)), means


@pytest.mark.parametrize("mode", ["choose", "average"])
def test_soft_guidance_of_all_steps_reaches_the_tilted_law(mode: Mode):
    """N(m + s^2 w / alpha, s^2) for n large (systems.md 4.5)."""
    bell, count = Bell(0.5, 0.8), 3000
    steering = Free2Guide(Linear(1.5), 40, 100, 0.9, mode, micro_batch=MANY)
    x = run(steering, Exact(30), bell, count)[:, 0]
    assert x.mean().item() == pytest.approx(0.5 + 0.64 * 1.5 / 0.9, abs=3.5 * error(x) + 0.64 * 1.5 / 0.9 * 0.05)
    assert x.var().item() == pytest.approx(0.64, abs=0.64 * (3.5 * (2 / count) ** 0.5 + 0.03))


def test_an_average_keeps_the_spread_of_a_step_with_few_candidates():
    """Two candidates, all as good: their mean has half the variance, and fresh noise makes up for it."""
    steering = Free2Guide(Linear(1.0), 2, 100, 1e9, "average", micro_batch=MANY)
    x = run(steering, Exact(20), Bell(), 8000)[:, 0]
    assert x.mean().item() == pytest.approx(0, abs=3.5 * error(x))
    assert x.var().item() == pytest.approx(1, abs=0.06)


def test_a_sharp_average_is_the_best_one():
    first, second = (
        run(Free2Guide(Linear(), 6, 100, alpha, mode, micro_batch=MANY), Exact(8), Bell(), 200) for alpha, mode in SHARP
    )
    torch.testing.assert_close(first, second, rtol=0, atol=1e-9)


def test_tokens_are_chosen_and_not_averaged():
    generator = Enumerable()
    process = Unmasking(4)
    with pytest.raises(InputError, match="set mode to choose"):
        process.sample(generator, ["a"], Key(0), steer=Free2Guide(Linear(), 3, alpha=1.0, mode="average"))


@dataclass(frozen=True)
class Integer(InstanceReward[Tensor]):
    """As a judge that says 1 to 3: ties are the rule."""

    def encode(self, samples: Samples) -> Tensor:
        return (samples.latents[:, 0] > 100).double()

    def score(self, features: Tensor) -> Tensor:
        return features


def test_ties_are_broken_by_chance_but_seeded():
    """All values are the same: each of three noises is taken a third of the time, and again the same ones."""
    process, count, seen = Exact(4), 3000, list[State]()
    steering = Free2Guide(Integer(), 3, 1, micro_batch=MANY)
    process.sample(Bell(), [""] * count, Key(1), steer=steering, visit=seen.append)
    lanes = [Key(1).fold("lane", lane) if lane else Key(1) for lane in range(3)]
    starts = torch.stack([process.start(Bell(), [""] * count, key, range(count)).latents[:, 0] for key in lanes], 1)
    taken = (seen[0].latents == starts).double().mean(0)
    assert ((taken - 1 / 3).abs() < 0.035).all()
    again: list[State] = []
    process.sample(Bell(), [""] * count, Key(1), steer=steering, visit=again.append)
    assert torch.equal(seen[-1].latents, again[-1].latents)


@dataclass(frozen=True)
class Transformed(InstanceReward[Tensor]):
    """A reward of one axis, bent but never out of order."""

    axis: int = 0
    bend: str = "none"

    def encode(self, samples: Samples) -> Tensor:
        assert isinstance(samples.media, Tensor)
        return samples.media[:, self.axis].double()

    def score(self, features: Tensor) -> Tensor:
        return {"none": features, "cube": 1000 * features**3 + features - 7, "exp": features.exp()}[self.bend]


def made(bends: Sequence[str], combine: Combine, weights: dict[str, float] | None = None) -> Tensor:
    members: dict[str, InstanceReward] = {str(axis): Transformed(axis, bend) for axis, bend in enumerate(bends)}
    steering = Free2Guide(Ensemble(members, weights or {}, combine), 6, 4)
    return Sampler(6, order=1, eta=1).sample(Toy(), ["x"] * 20, Key(0), steer=steering).latents


def test_consensus_does_not_care_how_a_member_is_scaled_or_bent():
    plain = made(["none", "none"], "consensus")
    assert torch.equal(made(["cube", "none"], "consensus"), plain)
    assert torch.equal(made(["cube", "exp"], "consensus"), plain)
    assert not torch.equal(made(["cube", "none"], "normalised"), made(["none", "none"], "normalised"))
    assert not torch.equal(made(["cube", "none"], "sum"), made(["none", "none"], "sum"))


def test_consensus_adds_ranks_and_halves_ties():
    scores = torch.tensor([[[1.0, 5.0], [2.0, 5.0], [9.0, -1.0], [2.0, 7.0]]], dtype=torch.float64)
    members: dict[str, InstanceReward] = {"a": Transformed(0), "b": Transformed(1)}
    assert Ensemble(members, {}, "consensus").among(scores)[0].tolist() == [0 + 1.5, 1.5 + 1.5, 3 + 0, 1.5 + 3]
    assert Ensemble(members, {"b": 2.0}, "consensus").among(scores)[0].tolist() == [3, 4.5, 3, 7.5]
    assert Ensemble(members, {"b": 0.0}, "sum").among(scores)[0].tolist() == [1, 2, 9, 2]


def test_normalised_brings_each_member_to_one_scale_and_drops_those_that_do_not_tell():
    scores = torch.tensor([[[1.0, 500.0, 3.0], [2.0, 600.0, 3.0], [5.0, 300.0, 3.0]]], dtype=torch.float64)
    members: dict[str, InstanceReward] = {name: Transformed() for name in "abc"}
    values = Ensemble(members, {"a": 2.0}, "normalised").among(scores)[0]
    torch.testing.assert_close(values, torch.tensor([0 + 2 / 3, 0.5 + 1, 2.0], dtype=torch.float64))
    without = Ensemble({"a": Transformed(), "b": Transformed()}, {"a": 2.0}, "normalised").among(scores[..., :2])[0]
    assert torch.equal(values, without)


@pytest.mark.parametrize("combine", ["sum", "normalised", "consensus"])
def test_one_member_chooses_as_it_does_alone(combine: Combine):
    process = Sampler(6, order=1, eta=1)
    alone = process.sample(Toy(), PROMPTS, Key(0), steer=Free2Guide(Transformed(), 5)).latents
    member = Ensemble({"it": Transformed()}, {"it": 3.0}, combine)
    assert torch.equal(process.sample(Toy(), PROMPTS, Key(0), steer=Free2Guide(member, 5)).latents, alone)


@pytest.mark.parametrize("combine", ["normalised", "consensus"])
@pytest.mark.parametrize("mode", ["choose", "average"])
def test_an_ensemble_sees_all_candidates_whatever_the_micro_batch(combine: Combine, mode: Mode):
    members: dict[str, InstanceReward] = {"a": Transformed(0), "b": Transformed(1, "cube")}
    process = Sampler(5, order=1, eta=1)
    few, many = (
        process.sample(
            Toy(), ["x"], Key(3), steer=Free2Guide(Ensemble(members, {}, combine), 7, 4, 0.3, mode, micro_batch=rows)
        ).latents
        for rows in (2, 100)
    )
    torch.testing.assert_close(few, many, rtol=0, atol=1e-5)


def test_a_quadratic_reward_is_climbed():
    x = run(Free2Guide(Quadratic(), 10, 100, micro_batch=MANY), Exact(20), Bell(), 300)[:, 0]
    assert x.mean().item() == pytest.approx(2, abs=0.01)
