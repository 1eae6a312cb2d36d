"""Whether a run is well: what each of its rounds logged, against thresholds. Pure functions of the log.

A finding is made from what is in log.jsonl and from nothing else, so that a resumed run, the report and the model card
say the same. Rounds that did not log a number (older runs, algorithms that have none) have no finding on it. What is
measured is in `training/health.py` and `algorithms/spread.py`; docs/health.md explains every row. Left out: trends
within the thresholds, and anything that needs generations of its own (that is the guard's: `evaluation/guard.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from statistics import median
from typing import Any, Literal

from dragontune.errors import InputError

Verdict = Literal["fine", "warning", "stopped"]
SATURATED = 5.0
"""|beta A| from which an implicit reward counts as saturated: the sigmoid's slope there is 0.0066, under 1 %."""


@dataclass(frozen=True)
class Health:
    """What is no longer well. Only `skips` and `stop_on_collapse` change the course of a run.

    After `skips` updates in a row without a finite loss and gradient the run stops with exit code 5. The thresholds
    `most_...` are shares of a round's rows or updates, or a multiple of the first round's; the thresholds `least_...`
    are shares of the start, the median of the first `baseline` rounds. A number that is beyond its threshold in
    `patience` rounds in a row is a warning; with `stop_on_collapse`, a diversity or variance that is ends the run.

    All but `skips` are our choice (docs/health.md says why).

    >>> Health().skips
    5
    """

    skips: int = 5
    most_saturated: float = 0.5
    most_clipped: float = 0.95
    most_growth: float = 3.0
    least_diversity: float = 0.5
    least_variance: float = 0.5
    baseline: int = 3
    patience: int = 3
    stop_on_collapse: bool = False

    def __post_init__(self) -> None:
        """InputError for numbers that make no sense."""
        for name, low, high in (
            ("skips", 1, 10**6),
            ("most_saturated", 0, 1),
            ("most_clipped", 0, 1),
            ("most_growth", 1, 10**6),
            ("least_diversity", 0, 1),
            ("least_variance", 0, 1),
            ("baseline", 1, 10**6),
            ("patience", 1, 10**6),
        ):
            if not low <= (value := getattr(self, name)) <= high:
                raise InputError(
                    f"expected health.{name} between {low} and {high}, got {value}; change it in the recipe"
                )


@dataclass(frozen=True)
class Finding:
    """One number over the rounds of a run, against its threshold.

    `worst` was in round `round`; `rounds` and `values` are those of which the number is known. It is bad `above` the
    threshold or below it. `share` says that it is read in per cent. `cause` says more of the worst round, if the log
    does.
    """

    key: str
    name: str
    meaning: str
    threshold: float
    above: bool
    share: bool
    patience: int
    worst: float
    round: int
    verdict: Verdict
    rounds: tuple[int, ...]
    values: tuple[float, ...]
    cause: str = ""

    @property
    def rule(self) -> str:
        """When it is a warning, in words."""
        limit = f"{'above' if self.above else 'below'} {self.shown(self.threshold)}"
        return limit if self.patience == 1 else f"{limit} for {self.patience} rounds in a row"

    def shown(self, value: float) -> str:
        """A value as people read it."""
        if self.share:
            return f"{100 * value:.3g} %"
        return f"{value:.3g}"

    def sentence(self) -> str:
        """What is the matter, of one that is not fine."""
        more = f" ({self.cause})" if self.cause else ""
        return f"{self.name}: {self.shown(self.worst)} in round {self.round}{more}, {self.rule}"

    def record(self) -> dict[str, Any]:
        """For metrics.json: without the numbers of every round."""
        kept = ("name", "meaning", "threshold", "worst", "round", "verdict")
        return {**{name: value for name, value in vars(self).items() if name in kept}, "warns": self.rule}


@dataclass(frozen=True)
class _Measure:
    """How a finding is read off the log. `read` of a record and of the start gives the number, or None."""

    key: str
    name: str
    meaning: str
    read: Callable[[Mapping[str, Any], float], float | None]
    threshold: Callable[[Health], float]
    above: bool = True
    share: bool = True
    lasting: bool = True
    """Whether one round alone is no warning."""
    start: str = ""
    """The metric whose median over the first rounds is the start."""
    cause: Callable[[Mapping[str, Any]], str] = lambda record: ""
    collapse: bool = False


def _metric(name: str) -> Callable[[Mapping[str, Any], float], float | None]:
    return lambda record, start: record.get("metrics", {}).get(name)


def _of_start(name: str) -> Callable[[Mapping[str, Any], float], float | None]:
    def read(record: Mapping[str, Any], start: float) -> float | None:
        value = record.get("metrics", {}).get(name)
        return None if value is None or not start > 0 else value / start

    return read


MEASURES = (
    _Measure(
        "skipped",
        "Skipped updates",
        "The share of a round's updates whose loss or gradient was not finite, so that they were not made.",
        lambda record, start: _share(record, "skipped", "updates"),
        lambda health: 0.0,
        lasting=False,
        cause=lambda record: "; ".join(dict.fromkeys(skip["found"] for skip in record.get("skips", ()))),
    ),
    _Measure(
        "dropped",
        "Items left out",
        "The share of a round's items without a finite reward, which were left out together with their partners.",
        _metric("dropped_share"),
        lambda health: 0.0,
        lasting=False,
        cause=lambda record: _listed(record.get("dropped", ())),
    ),
    _Measure(
        "saturated",
        "Saturated implicit rewards",
        f"The share of rows whose implicit reward beta A is beyond {SATURATED:g} in size, where the loss's sigmoid is "
        "flat and an item teaches next to nothing.",
        _metric("saturated"),
        lambda health: health.most_saturated,
    ),
    _Measure(
        "clipped",
        "Clipped updates",
        "The share of a round's updates whose gradient was longer than loop.max_norm and was shortened to it.",
        _metric("clipped_updates"),
        lambda health: health.most_clipped,
    ),
    _Measure(
        "growth",
        "Growth of the adapter",
        "The norm of the trained weights, as a multiple of the first rounds'.",
        _of_start("adapter_norm"),
        lambda health: health.most_growth,
        share=False,
        start="adapter_norm",
    ),
    _Measure(
        "diversity",
        "Diversity of the generations",
        "The effective number of different items among a round's own generations (Vendi score of their latents), as a "
        "share of the first rounds'.",
        _of_start("diversity"),
        lambda health: health.least_diversity,
        above=False,
        start="diversity",
        collapse=True,
    ),
    _Measure(
        "variance",
        "Variance of the generations",
        "The variance of the latents over a round's own generations, as a share of the first rounds'.",
        _of_start("latent_variance"),
        lambda health: health.least_variance,
        above=False,
        start="latent_variance",
        collapse=True,
    ),
)


def findings(history: Sequence[Mapping[str, Any]], health: Health) -> list[Finding]:
    """What the log says of each number that it knows, the worst of all rounds; those with no number are left out."""
    found = (_finding(measure, history, health) for measure in MEASURES)
    return [finding for finding in found if finding is not None]


def troubles(history: Sequence[Mapping[str, Any]], health: Health) -> list[Finding]:
    """What is bad after the last round: only the first rounds and the last few are looked at."""
    cut = [*history[: health.baseline], *history[max(health.baseline, len(history) - health.patience) :]]
    now = cut[-1]["round"]
    return [one for one in findings(cut, health) if one.rounds[-1] == now and _lasting(one, len(one.rounds) - 1)]


def collapse(found: Sequence[Finding]) -> list[str]:
    """The keys of those findings that tell of a collapse."""
    return [finding.key for finding in found if finding.key in {one.key for one in MEASURES if one.collapse}]


def in_a_row(history: Sequence[Mapping[str, Any]]) -> int:
    """How many updates were skipped without one that was made, up to the end of the last round."""
    count = 0
    for record in reversed(history):
        skipped = {skip["update"] for skip in record.get("skips", ())}
        updates = int(record.get("metrics", {}).get("updates", 0))
        for update in reversed(range(updates)):
            if update not in skipped:
                return count
            count += 1
        if not skipped:
            return count
    return count


def summary(found: Sequence[Finding]) -> str:
    """One line for the model card, without its full stop; empty where nothing is known."""
    if not found:
        return ""
    bad = [finding for finding in found if finding.verdict != "fine"]
    if not bad:
        return f"Health: all of {len(found)} checks were fine"
    return "Health: " + "; ".join(f"{finding.verdict}, {finding.sentence()}" for finding in bad)


def _finding(measure: _Measure, history: Sequence[Mapping[str, Any]], health: Health) -> Finding | None:
    start = _start(measure.start, history, health.baseline) if measure.start else 1.0
    read = ((record, measure.read(record, start)) for record in history)
    known = [(record, float(value)) for record, value in read if value is not None and isfinite(value)]
    if not known:
        return None
    record, worst = (max if measure.above else min)(known, key=lambda pair: pair[1])
    finding = Finding(
        measure.key,
        measure.name,
        measure.meaning,
        measure.threshold(health),
        measure.above,
        measure.share,
        health.patience if measure.lasting else 1,
        worst,
        record["round"],
        "fine",
        tuple(record["round"] for record, _ in known),
        tuple(value for _, value in known),
        measure.cause(record),
    )
    if measure.key in history[-1].get("collapsed", ()):
        verdict: Verdict = "stopped"
    else:
        verdict = "warning" if any(_lasting(finding, last) for last in range(len(known))) else "fine"
    return replace(finding, verdict=verdict)


def _lasting(finding: Finding, last: int) -> bool:
    """Whether the values up to the `last` one were beyond the threshold in enough rounds in a row."""
    first = last + 1 - finding.patience
    if first < 0 or finding.rounds[last] - finding.rounds[first] != finding.patience - 1:
        return False
    window = finding.values[first : last + 1]
    return all(value > finding.threshold if finding.above else value < finding.threshold for value in window)


def _start(name: str, history: Sequence[Mapping[str, Any]], baseline: int) -> float:
    first = [record.get("metrics", {}).get(name) for record in history[:baseline]]
    known = [value for value in first if value is not None and isfinite(value)]
    return median(known) if known else 0.0


def _share(record: Mapping[str, Any], part: str, whole: str) -> float | None:
    metrics = record.get("metrics", {})
    return metrics[part] / metrics[whole] if part in metrics and metrics.get(whole) else None


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
