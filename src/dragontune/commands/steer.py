"""A file of steering: the constructor arguments of a method, its sampler, and what it spends, said beforehand."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dragontune.costs import Costs
from dragontune.evaluation.arms import times_plain
from dragontune.evaluation.evaluate import Evaluation
from dragontune.evaluation.generations import Steered
from dragontune.process import ReverseProcess
from dragontune.rewards import source
from dragontune.rewards.base import DistributionReward
from dragontune.sampling import Sampler
from dragontune.steering.base import Steering
from dragontune.steering.best_of_n import BestOfN
from dragontune.steering.gradient import GradientGuidance

RANDOM = Sampler(steps=40, guidance=2.0, eta=1.0, order=1)
"""What is walked where nothing else is asked for: its steps lead to different places."""


@dataclass(frozen=True, eq=False)
class Steer:
    """How to steer.

    Without `sampler`, `BestOfN` and `GradientGuidance` walk the plain sampler (the run's, or the usual one), and all
    others one that draws at random: 40 steps, guidance 2, order 1, eta 1. With a reward of sets, items are made up to
    `batch` at a time. With `memory` (MiB beside the weights) the method's `micro_batch` is the largest that fits; it
    changes memory only. `evaluation` is for `dragontune evaluate --model`: what to compare on.

    >>> Steer(Svdd(KeyStrength(), candidates=8), Sampler(steps=12, guidance=2.0, order=1, eta=1))
    """

    steering: Steering
    sampler: Sampler | None = None
    batch: int = 40
    memory: float | None = None
    evaluation: Evaluation | None = None

    def walked(self, plain: Sampler) -> Sampler:
        """Its sampler, or else by default one that fits, where `plain` is the one without steering."""
        fits = isinstance(self.steering, BestOfN | GradientGuidance)
        return self.sampler or (plain if fits else RANDOM)

    def over(self, sampler: ReverseProcess) -> Steered:
        """The steering of a sampler.

        Raises:
            InputError: it cannot be steered so.
        """
        return Steered(self.steering, sampler, self.batch, self.memory)


def decisive(steer: Steer, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the settings of `steer` that, with a sampler, decides what is made."""
    steering = settings["steering"]
    kept = {name: value for name, value in steering.get("init_args", {}).items() if name != "micro_batch"}
    sets = isinstance(steer.steering.reward, DistributionReward)
    own = source.digests(settings)
    return {
        **steering,
        "init_args": kept,
        **({"batch": steer.batch} if sets else {}),
        **({"files": own} if own else {}),
    }


def plural(count: int, thing: str) -> str:
    """How many of a thing."""
    return f"{count:,} {thing}{'s' if count != 1 else ''}"


def budget(steered: Steered, spent: Costs, left: int, total: int) -> str:
    """What `left` of `total` clips will take, in one or two lines."""
    clips = plural(total, "clip")
    if left < total:
        clips = f"{left} of {clips}, which are not there yet,"
    if not left:
        return "Every clip is there already: no denoiser call is left."
    calls = [f"{spent.calls:,} denoiser calls"] if spent.calls else []
    if spent.gradient_calls:
        calls.append(f"{spent.gradient_calls:,} differentiated denoiser calls, each of which counts twice")
    once = steered.steering.preparation(steered.sampler)
    learning = (
        f"\nBefore that a value is learnt, once: {once.items} generations, {once.calls:,} denoiser calls and "
        f"{once.encodes:,} reward calls."
    )
    return (
        f"Steering {clips} with {type(steered.steering).__name__} towards {steered.steering.reward.label}: "
        f"{times_plain(replace(spent, items=left), steered.sampler):.3g} times a plain generation.\n"
        f"It takes {' and '.join(calls)}; {plural(spent.encodes, 'reward call')} and {plural(spent.decodes, 'decode')}."
        f"{learning if once.items else ''}"
    )
