"""What a round keeps of its updates: their means, quantiles of what was logged by row, and which ones were skipped.

An update whose loss or gradient is not finite is not made: the weights and Adam's memory stay as they were, on every
process, since all of them see the same sums. What the numbers mean for a run is in `dragontune/health.py`.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dragontune.algorithms.base import COUNTS
from dragontune.errors import NonFiniteError
from dragontune.health import SATURATED, Finding, Health, collapse, troubles
from dragontune.parallel import is_main
from dragontune.training.checkpoint import Record

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SATURATING = ("beta_a_positive", "beta_a_negative")
"""What an algorithm logs by row that goes through a sigmoid."""


@dataclass(frozen=True, eq=False)
class Update:
    """One update: numbers that are means over its batch, numbers by row of all of it, and what was not finite in it."""

    numbers: Mapping[str, float]
    rows: Mapping[str, Float[Tensor, " rows"]]
    found: str | None


@dataclass(eq=False)
class Tally:
    """The updates of one round, the first of which follows `skipped` others that were skipped in a row."""

    health: Health
    round: int
    skipped: int = 0
    updates: list[Update] = field(default_factory=list)

    def add(self, update: Update) -> None:
        """Keep one.

        Raises:
            NonFiniteError: it is one skipped update in a row too many.
        """
        self.updates.append(update)
        self.skipped = self.skipped + 1 if update.found else 0
        if self.skipped >= self.health.skips:
            count = f"{self.skipped} updates in a row were" if self.skipped > 1 else "an update was"
            raise NonFiniteError(
                f"{count} skipped, the last one in round {self.round} since {update.found}, so the run stopped; the "
                "state before that round is saved: try a smaller loop.lr, a smaller beta or a smaller loop.max_norm"
            )

    @property
    def skips(self) -> list[dict[str, Any]]:
        """Which updates were skipped, from 0, and why."""
        return [{"update": i, "found": one.found} for i, one in enumerate(self.updates) if one.found]

    def metrics(self) -> dict[str, float]:
        """Sums of `COUNTS`, and means of all else over the updates that were made.

        Where none was, over what is finite of those that were skipped; a number that none has is left out.
        """
        made = [one.numbers for one in self.updates if not one.found]
        kept = made or [
            {name: value for name, value in one.numbers.items() if math.isfinite(value)} for one in self.updates
        ]
        found: dict[str, float] = {}
        for name in self.updates[0].numbers:
            if name in COUNTS:
                found[name] = sum(one.numbers[name] for one in self.updates)
            elif values := [numbers[name] for numbers in kept if name in numbers]:
                found[name] = sum(values) / len(values)
        return {**found, **self._by_row(), "updates": float(len(self.updates)), "skipped": float(len(self.skips))}

    def _by_row(self) -> dict[str, float]:
        """Quantiles over all rows of the updates that were made, and the share of those that are saturated."""
        made = [one.rows for one in self.updates if not one.found]
        columns = {name: torch.cat([rows[name] for rows in made]).double() for name in (made[0] if made else ())}
        logged = {
            f"{name}_q{round(100 * share):02d}": value
            for name, column in columns.items()
            for share, value in zip(QUANTILES, column.quantile(column.new_tensor(QUANTILES)).tolist(), strict=True)
        }
        through = [columns[name] for name in SATURATING if name in columns]
        if through:
            logged["saturated"] = (torch.cat(through).abs() > SATURATED).double().mean().item()
        return logged


def unsound(loss: float, norm: float) -> str | None:
    """What of an update is not finite, in words; None if all is."""
    for name, value in (("loss", loss), ("gradient norm", norm)):
        if not math.isfinite(value):
            return f"the {name} was {value}"
    return None


def watch_over(history: list[dict[str, Any]], health: Health, told: set[str]) -> None:
    """Warn of what the last round made bad and `told` does not hold, and end the run on a collapse if it shall.

    The end is written on the last record, which is replaced.
    """
    found = troubles(history, health)
    for finding in found:
        if finding.key not in told and is_main():
            now = history[-1]["round"]
            warnings.warn(f"health, after round {now}: {finding.sentence()} (docs/health.md)", stacklevel=1)
        told.add(finding.key)
    fallen = collapse(found) if health.stop_on_collapse else []
    if fallen and "stopped" not in history[-1]:
        history[-1] = {**history[-1], "stopped": _reason(found, fallen), "collapsed": fallen}


def released(history: Sequence[Record], health: Health) -> list[Record]:
    """The history to go on from: a run that a collapse ended goes on where `health` no longer asks for that."""
    if history and "collapsed" in history[-1] and not health.stop_on_collapse:
        kept = {name: value for name, value in history[-1].items() if name not in ("stopped", "collapsed")}
        return [*history[:-1], kept]
    return list(history)


def _reason(found: Sequence[Finding], fallen: Sequence[str]) -> str:
    first = next(finding for finding in found if finding.key == fallen[0])
    return f"a collapse: {first.sentence()}"
