"""Steering beside tuning, at what each costs: ways to make items, compared on the same prompts and the same noise.

Best of n is the baseline that steering must beat, so it is given what the steering spends on the denoiser. Costs count
calls, not seconds: what a reward call or a decode is worth in denoiser calls depends on model and machine. Left out:
sweeps over budgets.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from math import floor

from jaxtyping import Float
from torch import Tensor

from dragontune.costs import Costs
from dragontune.data import Samples
from dragontune.distances.vendi import vendi_score
from dragontune.evaluation.comparison import Comparison, Verdict
from dragontune.evaluation.generations import Generations, Making, Steered
from dragontune.evaluation.pictures import Kept
from dragontune.process import ReverseProcess
from dragontune.rewards.base import DistributionReward
from dragontune.seeding import Key
from dragontune.steering.best_of_n import BestOfN

UNTUNED, TUNED, STEERED = "untuned", "tuned", "steered"
STEERING_REWARD = "steering reward"
"""What the steering's reward is called where it is not one of those that judge anyway."""
GRADIENT_CALL = 2
"""Denoiser calls that one differentiated call counts for: it goes through the network forth and back."""


@dataclass(frozen=True)
class LatentDiversity(DistributionReward[Tensor]):
    """The guard's diversity as a reward: it needs no encoder, so every model has one."""

    @property
    def needs_media(self) -> bool:
        """Latents are enough."""
        return False

    @property
    def minimum(self) -> int:
        """One item has no diversity."""
        return 2

    def encode(self, samples: Samples) -> Float[Tensor, " n width"]:
        """Averages of the latents over all axes but the first."""
        latents = samples.latents.detach().cpu().double()
        return latents if latents.ndim == 2 else latents.flatten(2).mean(2)

    def score(self, features: Float[Tensor, " n width"]) -> Float[Tensor, ""]:
        """The Vendi score, the effective number of items."""
        return vendi_score(features)


@dataclass(frozen=True, eq=False)
class Arm:
    """One way to make items: with the adapter or without, steered or plainly by the sampler."""

    name: str
    tuned: bool
    steered: Steered | None = None

    def make(self, making: Making, players: Sequence[int]) -> Generations:
        """An item for every prompt."""
        how, phase = replace(making, steered=self.steered), self.name if self.steered else f"{self.name} model"
        with nullcontext() if self.tuned else making.generator.reference():
            return how.make(phase, range(len(making.prompts)), players)

    def costs(self, sampler: ReverseProcess, key: Key) -> Costs:
        """Of one item; plain ones are made by `sampler`."""
        return Costs(1, sampler.calls(1), 1) if self.steered is None else self.steered.costs(1, key)


def lineup(sampler: ReverseProcess, key: Key, tuned: bool, steer: Steered | None) -> list[Arm]:
    """The untuned model first; then tuned, steered, and best of as many as the steering's denoiser calls pay for."""
    arms = [Arm(UNTUNED, False), *([Arm(TUNED, True)] if tuned else [])]
    if steer is None:
        return arms
    n = max(2, floor(times_plain(steer.costs(1, key), sampler) + 0.5))
    rival = BestOfN(steer.steering.reward, n, steer.steering.micro_batch)
    best = Steered(rival, sampler, steer.batch)
    arms.append(Arm(STEERED, False, steer))
    if not (isinstance(steer.steering, BestOfN) and steer.steering.n == n and steer.sampler == sampler):
        arms.append(Arm(f"best of {n}", False, best))
    return [*arms, Arm(f"{TUNED}, best of {n}", True, best)] if tuned else arms


def times_plain(costs: Costs, sampler: ReverseProcess) -> float:
    """What is spent on the denoiser, in plain generations by `sampler`."""
    return (costs.calls + GRADIENT_CALL * costs.gradient_calls) / sampler.calls(costs.items)


@dataclass(frozen=True, eq=False)
class Result:
    """What became of an arm: the verdicts of all rewards against the untuned model, and what one item costs."""

    arm: Arm
    costs: Costs
    times_plain: float
    verdicts: tuple[Verdict, ...]
    clips: Mapping[int, Kept]

    def record(self) -> dict:
        """The arm's entry in metrics.json."""
        counts = {name: value for name, value in asdict(self.costs).items() if name != "items"}
        rewards = {
            verdict.name: {"value": verdict.before} if self.arm.name == UNTUNED else _record(verdict)
            for verdict in self.verdicts
        }
        return {
            "tuned": self.arm.tuned,
            "times_plain": round(self.times_plain, 3),
            "costs_per_item": counts,
            "rewards": rewards,
        }


@dataclass(frozen=True, eq=False)
class Steering:
    """All arms, and the steered one against best of n of the same model (None: that is what steers).

    `shown` are the arms whose clips are heard in the section on steering.
    """

    method: str
    reward: str
    results: tuple[Result, ...]
    rival: str | None
    duel: tuple[Verdict, ...]
    shown: tuple[Result, ...]

    def record(self) -> dict:
        """The section of metrics.json."""
        found = {
            "method": self.method,
            "reward": self.reward,
            "arms": {result.arm.name: result.record() for result in self.results},
        }
        if self.rival is None:
            return found
        return {**found, f"{STEERED}_against": {self.rival: {each.name: _record(each) for each in self.duel}}}


Judge = Callable[[Comparison, str], Verdict]
"""The verdict of a reward, by name, on two arms."""


def compare(
    first: Comparison, verdicts: Sequence[Verdict], arms: Sequence[Arm], made: Sequence[Generations], judge: Judge
) -> Steering:
    """Judge every arm that was `made` by every reward; the `verdicts` on the first two are known."""
    steered = next(number for number, arm in enumerate(arms) if arm.name == STEERED)
    steer, making = arms[steered].steered, first.making
    if steer is None:
        raise ValueError("the steered arm has no steering")
    results = []
    for number, (arm, side) in enumerate(zip(arms, made, strict=True)):
        if number == 0:
            found = tuple(replace(verdict, after=verdict.before) for verdict in verdicts)
        elif number == 1:
            found = tuple(verdicts)
        else:
            found = tuple(judge(replace(first, tuned=side), name) for name in making.rewards)
        costs = arm.costs(making.sampler, making.key)
        results.append(Result(arm, costs, times_plain(costs, making.sampler), found, side.clips))
    rivals = [number for number, arm in enumerate(arms) if arm.steered and not arm.tuned and number != steered]
    duel = [Comparison(making, made[number], made[steered]) for number in rivals]
    heard_above = {UNTUNED, TUNED} if TUNED in {arm.name for arm in arms} else {UNTUNED, STEERED}
    return Steering(
        method=type(steer.steering).__name__,
        reward=steer.steering.reward.label,
        results=tuple(results),
        rival=arms[rivals[0]].name if rivals else None,
        duel=tuple(judge(comparison, name) for comparison in duel for name in making.rewards),
        shown=tuple(result for result in results if result.arm.name not in heard_above and result.clips),
    )


def same(one: object, other: object) -> bool:
    """Whether two rewards, encoders or other objects are of one class with the same fields."""
    if one is other or type(one) is not type(other):
        return one is other
    if is_dataclass(one):
        return all(same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return isinstance(one, str | int | float | bool) and one == other


def _record(verdict: Verdict) -> dict:
    """A verdict on an arm."""
    wins = verdict.wins
    return {"value": verdict.after, "win_rate": wins.rate, "win_rate_ci95": [wins.low, wins.high]}
