"""Win rates and honest intervals.

The score interval of Wilson (1927, "Probable inference"), the exact one of Clopper and Pearson (1934, "The use of
confidence or fiducial limits") and the bootstrap of Efron (1979). Left out: corrections for many rewards looked at
together; a page with ten intervals at 95 % has one miss in every second page.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor, isclose

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dragontune.seeding import Key

LEVEL = 0.95
RESAMPLES = 2000
"""Of the paired bootstrap over items."""
REPLICATES, DRAWS = 40, 5
"""The fewest bootstrap resamples of the items, and subsets of each, however few subsets are asked for."""


@dataclass(frozen=True)
class WinRate:
    """The share of comparisons that the tuned model won (a tie is half a win) and its 95 % interval."""

    rate: float
    low: float
    high: float


@dataclass(frozen=True)
class Change:
    """The 95 % interval of the mean of after - before, by the paired bootstrap over items."""

    low: float
    high: float


def wilson(wins: float, count: int, level: float = LEVEL) -> tuple[float, float]:
    """The score interval of a proportion; covers about as often as it says.

    Half wins (ties) enter as they are; with many of them it is wider than it need be.
    """
    from scipy.stats import norm

    z = float(norm.isf((1 - level) / 2))
    share, spread = wins / count, z**2 / count
    centre = (share + spread / 2) / (1 + spread)
    reach = (share * (1 - share) * spread + spread**2 / 4) ** 0.5 / (1 + spread)
    return max(0.0, centre - reach), min(1.0, centre + reach)


def clopper_pearson(wins: float, count: int, level: float = LEVEL) -> tuple[float, float]:
    """The exact two-sided interval of a proportion; it covers at least as often as it says.

    Half wins (ties) widen it: the lower end takes the wins rounded down, the upper end the wins rounded up.
    """
    tail = (1 - level) / 2
    return _lower(floor(wins), count, tail), 1 - _lower(count - ceil(wins), count, tail)


def lower_bound(wins: float, count: int, level: float = LEVEL) -> float:
    """The exact one-sided lower bound: the proportion is above it with confidence `level`."""
    return _lower(floor(wins), count, 1 - level)


def p_value(wins: float, count: int) -> float:
    """The chance of at least so many wins if both models were equally good (one-sided exact binomial test)."""
    from scipy.stats import binom

    return float(binom.sf(floor(wins) - 1, count, 0.5))


def probability_better(wins: float, count: int) -> float:
    """The posterior probability that the win rate is above one half, from a uniform prior."""
    from scipy.stats import beta

    return float(beta.sf(0.5, wins + 1, count - wins + 1))


def _lower(wins: int, count: int, tail: float) -> float:
    from scipy.stats import beta

    return float(beta.ppf(tail, wins, count - wins + 1)) if wins else 0.0


def outcome(before: float, after: float) -> float:
    """1 if `after` is the higher, 0 if it is the lower, one half for a tie (equal to float32 precision)."""
    if isclose(before, after, rel_tol=1e-6, abs_tol=1e-12):
        return 0.5
    return float(after > before)


def item_wins(before: Float[Tensor, " n"], after: Float[Tensor, " n"], key: Key) -> tuple[WinRate, Change]:
    """Prompt by prompt, ties one half, with Wilson's interval; and the interval of the mean change."""
    wins = sum(map(outcome, before.tolist(), after.tolist()))
    gains = (after - before).double()
    draws = key.fold("resamples").generator()
    means = [gains[torch.randint(len(gains), (len(gains),), generator=draws)].mean() for _ in range(RESAMPLES)]
    return WinRate(wins / len(before), *wilson(wins, len(before))), Change(*_percentiles(torch.stack(means).tolist()))


def subset_wins(
    compare: Callable[[Int[Tensor, " size"]], tuple[float, float]],
    count: int,
    size: int,
    subsets: int,
    key: Key,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[WinRate, Change]:
    """The share of random subsets of `size` out of `count` items that are won, and the interval of the mean change.

    `compare` gives the scores of a subset before and after. Subsets of the same items overlap, so they are not
    independent trials. The interval is the wider one of two, at each end: the 95 % range over bootstrap resamples of
    the items (half as many as `subsets`, each with a tenth as many subsets of its own, whose scatter is taken out of
    the spread), and the binomial interval of the `subsets` draws. The second matters when every subset is won, where
    the bootstrap alone would claim certainty. Resamples hold items twice, which shifts rewards that see it; the
    intervals are moved to the estimates. Fewer than about 40 subsets, or less than twice `size` items, say little.
    """
    replicates, draws = max(subsets // 2, REPLICATES), max(subsets // 10, DRAWS)
    total = subsets + replicates * draws

    def draw(items: Int[Tensor, " count"], stream: Key, times: int, done: int) -> Float[Tensor, " times 2"]:
        """Outcome and gain of `times` subsets."""
        found = []
        for i in range(times):
            before, after = compare(items[stream.fold("subset", i).permutation(count)[:size]])
            found.append((outcome(before, after), after - before))
            progress(done + i + 1, total)
        return torch.tensor(found, dtype=torch.float64)

    drawn = draw(torch.arange(count), key, subsets, 0)
    resampled = []
    for replicate in range(replicates):
        stream = key.fold("replicate", replicate)
        items = torch.randint(count, (count,), generator=stream.generator())
        resampled.append(draw(items, stream, draws, subsets + replicate * draws))
    (low, high), change = (_range(torch.stack(resampled)[..., k], float(drawn[:, k].mean())) for k in (0, 1))
    wins = float(drawn[:, 0].sum())
    exact_low, exact_high = clopper_pearson(wins, subsets)
    rate = WinRate(wins / subsets, max(0.0, min(low, exact_low)), min(1.0, max(high, exact_high)))
    return rate, Change(*change)


def _range(values: Float[Tensor, " replicates draws"], estimate: float) -> tuple[float, float]:
    """The 95 % range of the replicates' means about the estimate, without the scatter of the draws within them."""
    means = values.mean(1)
    scatter = values.var(1).mean() / values.shape[1]
    share = (1 - scatter / means.var().clamp(min=1e-300)).clamp(min=0).sqrt()
    return _percentiles((estimate + share * (means - means.mean())).tolist())


def _percentiles(values: Sequence[float]) -> tuple[float, float]:
    tail = (1 - LEVEL) / 2
    found = torch.tensor(values, dtype=torch.float64)
    return float(found.quantile(tail)), float(found.quantile(1 - tail))
