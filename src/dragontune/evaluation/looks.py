"""What the guard of a run found, for the report: from the run's log to rows of a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Trial:
    """What was measured of the model after `round` rounds at a LoRA scale (0 and 0: the untuned model).

    Rewards by name, the target first; higher is better. `failed` names what makes it not sound.
    """

    round: int
    scale: float
    rewards: Mapping[str, float]
    diversity: float
    distance: float
    failed: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Looks:
    """Everything a run's guard found and did.

    `distances` says of each reward, the target first, whether it is a distance; `chosen` is what was handed over;
    `stopped` says why the run stopped early, if it did.
    """

    rule: str
    tolerance: float
    least_diversity: float
    distances: Mapping[str, bool]
    count: int
    trials: tuple[Trial, ...]
    chosen: Trial
    stopped: str | None

    @property
    def untuned(self) -> Trial:
        """The model that tuning started from."""
        return self.trials[0]

    def record(self) -> dict[str, Any]:
        """For metrics.json: how many looks there were, and what was handed over."""
        chosen = {"round": self.chosen.round, "scale": self.chosen.scale, "diversity": self.chosen.diversity}
        return {
            "looks": self.count,
            "handed_over": {**chosen, "rewards": dict(self.chosen.rewards)},
            "untuned": {"diversity": self.untuned.diversity, "rewards": dict(self.untuned.rewards)},
            "stopped": self.stopped,
        }

    @property
    def largest(self) -> tuple[Trial, ...]:
        """The untuned model, and each look at the first of its scales."""
        firsts: dict[int, Trial] = {}
        for trial in self.trials:
            firsts.setdefault(trial.round, trial)
        return tuple(firsts.values())


def of_history(history: Sequence[Mapping[str, Any]]) -> tuple[list[Trial], Trial, str | None] | None:
    """Trials (the untuned model first), the chosen one and why the run stopped, from the log; None without a look."""
    found = [(record["round"], record["look"]) for record in history if "look" in record]
    if not found:
        return None
    base = found[0][1]["untuned"]
    trials = [_trial(0, {**base, "scale": 0.0, "distance": 0.0, "failed": []})]
    trials += [_trial(number, one) for number, look in found for one in look["tried"]]
    best = found[-1][1]["best"]
    chosen = next(trial for trial in trials if (trial.round, trial.scale) == (best["round"], best["scale"]))
    return trials, chosen, history[-1].get("stopped")


def _trial(number: int, one: Mapping[str, Any]) -> Trial:
    rewards = {"target": one["target"], **one["rewards"]}
    return Trial(number, one["scale"], rewards, one["diversity"], one["distance"], tuple(one["failed"]))
