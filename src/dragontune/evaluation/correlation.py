"""How well predictions agree with ratings: Pearson's (PLCC) and Spearman's (1904, SRCC) correlation, with intervals.

Items of one prompt resemble each other, so intervals come from resampling prompts, not items (a cluster bootstrap,
after Efron 1979); with few prompts they are too narrow. Left out: Kendall's tau, and a logistic fit before Pearson.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dragontune.seeding import Key

LEVEL = 0.95
FEWEST = 3
"""Items a prompt must have to be ranked."""


@dataclass(frozen=True)
class Correlation:
    """A coefficient from -1 to 1 (None: undefined, because something is constant) and its 95 % interval.

    From a single prompt nothing can be resampled: the interval is then -1 to 1.
    """

    value: float | None
    low: float
    high: float


def plcc(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> float | None:
    """Pearson's linear correlation; None where either is constant or there are fewer than two items."""
    one, other = (_direction(values.double()) for values in (a, b))
    return None if one is None or other is None else float((one @ other).clamp(-1, 1))


def srcc(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> float | None:
    """Spearman's rank correlation: Pearson's of the ranks, equal values sharing their mean rank."""
    return plcc(ranks(a), ranks(b))


def ranks(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """From 1 for the lowest to n; equal values share their mean rank."""
    below = (values[:, None] > values).sum(1)
    same = (values[:, None] == values).sum(1)
    return below + (same + 1) / 2


def groups(prompts: Sequence[str]) -> list[Int[Tensor, " k"]]:
    """The rows of each prompt, prompts in the order in which they first appear."""
    rows = dict[str, list[int]]()
    for row, prompt in enumerate(prompts):
        rows.setdefault(prompt, []).append(row)
    return [torch.tensor(some) for some in rows.values()]


def overall(
    a: Float[Tensor, " n"], b: Float[Tensor, " n"], prompts: Sequence[str], key: Key, times: int = 1000
) -> Correlation:
    """Pearson's correlation of all items; the interval resamples the prompts, one drawn twice counting as two."""
    rows, value = groups(prompts), plcc(a, b)
    if value is None or len(rows) < 2:
        return Correlation(value, -1.0, 1.0)
    drawn = torch.randint(len(rows), (times, len(rows)), generator=key.generator()).tolist()
    resamples = [torch.cat([rows[chosen] for chosen in draw]) for draw in drawn]
    return _interval(value, [plcc(a[some], b[some]) for some in resamples])


def mean_srcc(a: Float[Tensor, " n"], b: Float[Tensor, " n"], prompts: Sequence[str]) -> float | None:
    """The mean over prompts of Spearman's correlation within each, of predictions `a` with ratings `b`.

    Prompts with fewer than three items or with constant ratings do not count (None where all are so); constant
    predictions count as 0.
    """
    found = _each(a, b, prompts)
    return float(found.mean()) if len(found) else None


def within_prompts(
    a: Float[Tensor, " n"], b: Float[Tensor, " n"], prompts: Sequence[str], key: Key, times: int = 1000
) -> Correlation:
    """`mean_srcc`; the interval resamples the prompts that count."""
    value, found = mean_srcc(a, b, prompts), _each(a, b, prompts)
    if value is None or len(found) < 2:
        return Correlation(value, -1.0, 1.0)
    drawn = torch.randint(len(found), (times, len(found)), generator=key.generator())
    return _interval(value, found[drawn].mean(1).tolist())


def _direction(values: Float[Tensor, " n"]) -> Float[Tensor, " n"] | None:
    """Less the mean, at unit length; None where nothing is left but rounding."""
    off = values - values.mean()
    return off / off.norm() if len(off) > 1 and off.norm() > 1e-12 * values.norm() else None


def _each(a: Float[Tensor, " n"], b: Float[Tensor, " n"], prompts: Sequence[str]) -> Float[Tensor, " prompts"]:
    some = [rows for rows in groups(prompts) if len(rows) >= FEWEST and len(b[rows].unique()) > 1]
    return torch.tensor([srcc(a[rows], b[rows]) or 0.0 for rows in some], dtype=torch.float64)


def _interval(value: float, resampled: Sequence[float | None]) -> Correlation:
    found = torch.tensor([one for one in resampled if one is not None], dtype=torch.float64)
    if not len(found):
        return Correlation(value, -1.0, 1.0)
    tail = (1 - LEVEL) / 2
    return Correlation(value, float(found.quantile(tail)), float(found.quantile(1 - tail)))
