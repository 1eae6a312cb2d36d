"""What all steering methods promise: repeatable, apart, within a budget of rows and calls; and steered sets."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from chains import Together
from dragontune.costs import Costs
from dragontune.data import Rows, Samples
from dragontune.process import ReverseProcess, State
from dragontune.rewards.base import DifferentiableReward, DistributionReward, InstanceReward, Reward
from dragontune.rewards.diversity import Vendi
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from dragontune.steering.base import Steering
from dragontune.steering.best_of_n import BestOfN
from dragontune.steering.choice import Company
from dragontune.steering.dsearch import DSearch
from dragontune.steering.ensemble import Ensemble
from dragontune.steering.foresight import Foresight, Lookahead
from dragontune.steering.free2guide import Free2Guide
from dragontune.steering.gradient import GradientGuidance
from dragontune.steering.smc import Smc
from dragontune.steering.svdd import Svdd
from dragontune.testing import Toy, ToyEncoder, check_steering
from dragontune.unmasking import Unmasking
from enumerable import Enumerable

PROMPTS = ("left", "right", "left")


@dataclass(frozen=True)
class Sight(InstanceReward[Tensor], DifferentiableReward[Tensor]):
    """Neither linear nor of one axis; of media, or of latents alone; of tokens, too."""

    needs: bool = True

    @property
    def needs_media(self) -> bool:
        return self.needs

    def encode(self, samples: Samples) -> Tensor:
        assert (samples.media is not None) == self.needs
        points = samples.media if self.needs else samples.latents
        assert isinstance(points, Tensor)
        return points.float() + 0.0

    def score(self, features: Tensor) -> Tensor:
        return features[:, 0] - (features[:, 1] - 0.3).square() + (3 * features[:, 0]).sin()


@dataclass(frozen=True)
class Varied(DistributionReward[Tensor]):
    """The mean distance between items; for tokens, too."""

    @property
    def minimum(self) -> int:
        return 2

    def encode(self, samples: Samples) -> Tensor:
        assert isinstance(samples.media, Tensor)
        return samples.media.double()

    def score(self, features: Tensor) -> Tensor:
        return torch.cdist(features, features).mean()


METHODS: dict[str, Callable[[Sight], Steering]] = {
    "best of n": lambda r: BestOfN(r, 6, 4),
    "best of one": lambda r: BestOfN(r, 1),
    "svdd": lambda r: Svdd(r, 7, micro_batch=4),
    "svdd, soft, lookahead": lambda r: Svdd(r, 5, 0.3, Lookahead(2, 2), 8),
    "svdd, one": lambda r: Svdd(r, 1),
    "dsearch": lambda r: DSearch(r, 4, 3, 2.5, micro_batch=5),
    "dsearch, all, sigmoid, lookahead": lambda r: DSearch(r, 5, 2, 1.5, "all", "sigmoid", value=Lookahead(1)),
    "dsearch, linear": lambda r: DSearch(r, 3, 1, 2.0, "linear", "linear"),
    "dsearch, uniform, replace": lambda r: DSearch(r, 4, 2, 2.0, "uniform", "quadratic", 0.5, micro_batch=3),
    "dsearch, only narrowing": lambda r: DSearch(r, 5, 1, 1.0, "all"),
    "smc": lambda r: Smc(r, 0.3, 9, micro_batch=7),
    "smc, always, lookahead": lambda r: Smc(r, 0.3, 4, 1.0, Lookahead(3)),
    "free2guide": lambda r: Free2Guide(r, 6, 3, micro_batch=4),
    "free2guide, average": lambda r: Free2Guide(r, 6, 4, 0.3, "average", micro_batch=4),
    "free2guide, noise": lambda r: Free2Guide(r, 3, 1, 0.3),
    "free2guide, consensus": lambda r: Free2Guide(
        Ensemble({"a": r, "b": r}, {}, "consensus"), 5, 3, value=Lookahead(1)
    ),
    "gradient": lambda r: GradientGuidance(r, 0.3, micro_batch=4),
}
SETS: dict[str, Callable[[DistributionReward], Steering]] = {
    "best of n": lambda r: BestOfN(r, 4, 3),
    "svdd": lambda r: Svdd(r, 5, micro_batch=3),
    "svdd, soft": lambda r: Svdd(r, 7, 0.05, Lookahead(1), 6),
    "free2guide": lambda r: Free2Guide(r, 7, 3, micro_batch=6),
}
SHORT = Sampler(3, order=1, eta=0.5, guidance=2.0)


@pytest.mark.parametrize("method", METHODS)
def test_conformance(method: str):
    check_steering(METHODS[method](Sight()), SHORT, Toy(), PROMPTS)


@pytest.mark.parametrize("method", ["best of n", "best of one", "svdd, one", "free2guide, noise", "gradient"])
@pytest.mark.parametrize("process", [Sampler(1), Sampler(4, guidance=1.5)], ids=["1", "4, guided"])
def test_conformance_under_deterministic_samplers(method: str, process: Sampler):
    check_steering(METHODS[method](Sight()), process, Toy(), PROMPTS)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "gradient" and "average" not in m])
def test_conformance_of_tokens(method: str):
    check_steering(METHODS[method](Sight()), Unmasking(3, guidance=1.5), Enumerable(), ("a", "b", ""))


@pytest.mark.parametrize("method", ["best of n", "svdd", "dsearch", "smc", "free2guide"])
def test_conformance_of_tokens_in_one_step(method: str):
    check_steering(METHODS[method](Sight()), Unmasking(1), Enumerable(), ("a", "b"))


@pytest.mark.parametrize("reward", [Vendi(ToyEncoder()), Together(), Varied()], ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("method", SETS)
def test_conformance_of_rewards_of_sets(method: str, reward: DistributionReward):
    check_steering(SETS[method](reward), SHORT, Toy(), PROMPTS)


@pytest.mark.parametrize("method", SETS)
def test_conformance_of_rewards_of_sets_of_tokens(method: str):
    check_steering(SETS[method](Varied()), Unmasking(4), Enumerable(), ("a", "b", ""))


def test_conformance_of_the_gradient_of_a_set():
    check_steering(GradientGuidance(Together(), 0.3, micro_batch=2), Sampler(3, guidance=2.0), Toy(), PROMPTS)


@dataclass(frozen=True, eq=False)
class Watched(Toy):
    """Remembers how many rows it was given, in all and at most, by what it was asked."""

    total: dict[str, int] = field(default_factory=dict)
    most: dict[str, int] = field(default_factory=dict)

    def note(self, what: str, rows: int) -> None:
        self.total[what] = rows + self.total.get(what, 0)
        self.most[what] = max(rows, self.most.get(what, 0))

    def denoise(self, noisy: Float[Tensor, " n 2"], t: Float[Tensor, " n"], condition: Rows) -> Tensor:
        self.note("gradients" if noisy.requires_grad else "denoise", len(noisy))
        return super().denoise(noisy, t, condition)

    def decode(self, latents: Tensor) -> Tensor:
        self.note("decode", len(latents))
        return super().decode(latents)


@dataclass(frozen=True)
class Noting(Sight):
    toy: Watched = field(default_factory=Watched)

    def encode(self, samples: Samples) -> Tensor:
        self.toy.note("encode", len(samples))
        return super().encode(samples)


@pytest.mark.parametrize(
    "process",
    [
        Sampler(2, order=1, eta=1),
        Sampler(3, order=1, eta=1, guidance=2),
        Sampler(7, order=1, eta=0.3, plus_steps=(1, 2)),
    ],
    ids=["2 steps", "3, guided", "7, plus"],
)
@pytest.mark.parametrize("method", [m for m in METHODS if "consensus" not in m])
def test_what_is_spent_is_the_budget(method: str, process: Sampler):
    """The toy's decoder is not computed again for a gradient: nothing of it is kept."""
    toy = Watched()
    steering = METHODS[method](Noting(process.steps > 2 or method == "gradient", toy))
    for seed in (0, 1) if "dsearch" in method else (0,):  # another key searches other steps
        toy.total.clear()
        process.sample(toy, ["left", "x"], Key(seed), steer=steering)
        spent = [toy.total.get(what, 0) for what in ("denoise", "decode", "encode", "gradients")]
        assert Costs(2, *spent) == steering.budget(process, 2, Key(seed))


@pytest.mark.parametrize(("micro_batch", "count", "guidance"), [(3, 5, 2.0), (8, 2, 1.0)])
@pytest.mark.parametrize(
    "build",
    [
        lambda r, b: BestOfN(r, 64, b),
        lambda r, b: Svdd(r, 64, 0.1, micro_batch=b),
        lambda r, b: DSearch(r, 8, 8, 1.0, "all", micro_batch=b),
        lambda r, b: Smc(r, 0.1, 64, micro_batch=b),
        lambda r, b: Free2Guide(r, 64, 3, micro_batch=b),
        lambda r, b: Free2Guide(r, 64, 3, 0.1, "average", micro_batch=b),
        lambda r, b: Svdd(r, 64, 0.1, Lookahead(2, 2), micro_batch=b),
    ],
    ids=["best of n", "svdd", "dsearch", "smc", "free2guide", "average", "lookahead"],
)
def test_no_call_is_wider_than_the_micro_batch_or_the_prompts(build, micro_batch: int, count: int, guidance: float):
    toy, rows = Watched(), max(micro_batch, count)
    Sampler(3, guidance, 1, 1).sample(toy, ["x"] * count, Key(0), steer=build(Noting(True, toy), micro_batch))
    assert toy.most == {"denoise": rows * (2 if guidance != 1 else 1), "decode": rows, "encode": rows}


def test_a_breach_of_each_promise_is_found():
    process, toy, honest = Sampler(3, order=1, eta=1), Toy(), Svdd(Sight(), 4, micro_batch=4)

    @dataclass(frozen=True, eq=False)
    class Cheats(Steering):
        how: str
        reward: Reward = honest.reward
        micro_batch: int = 4

        def check(self, process: ReverseProcess) -> None:
            pass

        def item_costs(self, process: ReverseProcess, key: Key):
            return honest.item_costs(process, key) * (2 if self.how == "budget" else 1)

        def run(self, walk, prompts, items, visit, made) -> State:
            whole = replace(walk, rows=1000) if self.how == "wide" else walk
            state = honest.run(whole, prompts, items, visit, made)
            shift = {
                "rng": lambda: torch.rand(1)[0] * 0,
                "mixes": lambda: state.latents.mean(),
                "rows": lambda: torch.tensor(float(walk.rows)) / 100,
            }.get(self.how, lambda: torch.zeros(()))()
            if self.how == "drops":
                return state[torch.arange(len(state) - 1)]
            return replace(state, latents=state.latents + shift)

    check_steering(Cheats("none"), process, toy, PROMPTS)
    for how, says in (
        ("rng", "global random state"),
        ("budget", "budget says"),
        ("wide", "rows at once"),
        ("mixes", "depends on"),
        ("rows", "micro-batch"),
    ):
        with pytest.raises(AssertionError, match=says):
            check_steering(Cheats(how), process, toy, PROMPTS)
    with pytest.raises((AssertionError, TypeError), match=r"results|Type-check"):
        check_steering(Cheats("drops"), process, toy, PROMPTS)


@pytest.mark.parametrize("reward", [Vendi(ToyEncoder()), Varied()], ids=["Vendi", "distances"])
@pytest.mark.parametrize("method", SETS)
def test_steered_sets_are_more_spread_than_plain_ones(method: str, reward: DistributionReward):
    process, prompts, gains = Sampler(5, order=1, eta=1), ["x"] * 6, list[float]()
    for seed in range(4):
        steered, plain = (
            reward(process.sample(Toy(), prompts, Key(seed), steer=steer)) for steer in (SETS[method](reward), None)
        )
        gains.append((steered - plain).item())
    assert sum(gains) > 0.2
    assert sum(gain > 0 for gain in gains) >= 3


def test_what_was_made_is_kept_away_from():
    """Both modes are as likely; what was made lies on the right, so that the left one is new."""
    process, reward, prompts = Sampler(5, order=1, eta=1), Varied(), ["x"] * 2
    points = torch.tensor([[1.0, 0.0]]) + 0.05 * torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
    samples = Samples(("",) * 12, points, points)
    for steering in (Svdd(reward, 8), BestOfN(reward, 8), Free2Guide(reward, 8)):
        left = {True: 0, False: 0}
        for with_made in left:
            for seed in range(6):
                made = steering.remember(None, samples) if with_made else None
                state = steering(process, Toy(), prompts, Key(seed), range(2), made=made)
                left[with_made] += int((state.latents[:, 0] < 0).sum())
        assert left[True] >= left[False] + 2
        assert left[True] >= 9


@pytest.mark.parametrize("alpha", [0.0, 0.3])
@pytest.mark.parametrize("with_made", [False, True])
@pytest.mark.parametrize("reward", [Varied(), Vendi(ToyEncoder())], ids=["distances", "Vendi"])
def test_a_set_in_the_making_is_what_brute_force_makes_of_it(reward: DistributionReward, with_made: bool, alpha: float):
    """Three places, one after another, in steps of two and one: each takes the candidate that suits all others best."""
    draws = torch.Generator().manual_seed(2)
    points = torch.randn(20, 2, generator=draws, dtype=torch.float64)
    features = reward.encode(Samples(("",) * 20, points, points))
    assert isinstance(features, Tensor)
    made, chosen, candidates = features[:5], features[5:8], features[8:]
    luck = torch.randn(3, 4, generator=draws, dtype=torch.float64)
    company = Company.of(reward, made if with_made else None, chosen)
    first, company = company.choose(torch.tensor([0, 1]), candidates[:8], alpha, luck[:2])
    worth = company.worth(2, candidates[8:])
    second, company = company.choose(torch.tensor([2]), candidates[8:], alpha, luck[2:])
    members = torch.cat([made, chosen]) if with_made else chosen.clone()
    for place, found in enumerate([*first.tolist(), *second.tolist()]):
        tried = members.repeat(4, 1, 1)
        tried[:, place - 3] = candidates[4 * place : 4 * place + 4]
        values = torch.stack([reward.score(each) for each in tried])
        if place == 2:
            torch.testing.assert_close(worth, values, rtol=1e-6, atol=1e-8)
        assert found == int((values / alpha + luck[place] if alpha else values).argmax())
        members[place - 3] = candidates[4 * place + found]
    torch.testing.assert_close(company.members, members)


def test_memory_grows_by_what_is_given_and_only_for_sets():
    points = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    samples, steering = Samples(("a", "b", "c"), points, points), Svdd(Varied(), 4)
    once = steering.remember(None, samples)
    twice = steering.remember(once, samples)
    assert isinstance(once, Tensor)
    assert isinstance(twice, Tensor)
    assert (len(once), len(twice)) == (3, 6)
    assert Svdd(Sight(), 4).remember(None, samples) is None


def test_a_single_item_joins_what_was_made():
    """One item is too few for Vendi alone, but not beside two others."""
    reward = Vendi(ToyEncoder())
    points = torch.tensor([[1.0, 0.0], [0.9, 0.1]])
    made = reward.encode(Samples(("", ""), points, points))
    for steering in (Svdd(reward, 6), BestOfN(reward, 6), Free2Guide(reward, 6)):
        state = steering(Sampler(4, order=1, eta=1), Toy(), ["x"], Key(0), [0], made=made)
        assert len(state) == 1


def test_a_batch_of_sets_has_an_order_and_reruns_are_the_same():
    process, steering = Sampler(6, order=1, eta=1), Svdd(Varied(), 6)
    prompts, items = ["left", "x", "x", "right"], [0, 1, 2, 3]
    first = process.sample(Toy(), prompts, Key(1), items=items, steer=steering).latents
    assert torch.equal(process.sample(Toy(), prompts, Key(1), items=items, steer=steering).latents, first)
    back = process.sample(Toy(), prompts[::-1], Key(1), items=items[::-1], steer=steering).latents
    assert not torch.equal(back.flip(0), first)


@pytest.mark.parametrize("value", [Lookahead(1), Lookahead(2, 3)])
def test_lookahead_randomness_is_not_that_of_the_walk(value: Foresight):
    """A lookahead that drew the noise of the walk itself would know the future."""
    process, seen = Sampler(4, order=1, eta=1), list[Tensor]()

    class Watching(Toy):
        def decode(self, latents: Tensor) -> Tensor:
            seen.append(latents)
            return super().decode(latents)

    visited: list[State] = []
    process.sample(Watching(), ["x"] * 8, Key(0), steer=Svdd(Sight(), 2, value=value), visit=visited.append)
    looked = torch.cat(seen[:-1])
    own = torch.cat([process.transition(Toy(), state).clean for state in visited[1:-2]])  # the last step is known
    assert not any((row == looked).all(1).any() for row in own)


def test_nothing_is_asked_for_and_nothing_comes():
    process = Sampler(3, order=1, eta=1)
    for steering in (Svdd(Sight(), 3), BestOfN(Sight(), 3)):
        assert len(process.sample(Toy(), [], Key(0), steer=steering).latents) == 0
