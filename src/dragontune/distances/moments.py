"""Means and covariances that are gathered in pieces (Chan, Golub & LeVeque 1983): any order, any grouping, float64.

What is kept is the scatter about each group's own mean, never sums of raw products, and the mean to twice the digits of
a double, so that a large offset costs no digits: the order in which groups are merged changes the result by a few units
in the last place of the spread, however far from zero the vectors lie.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from dragontune.data import Rows
from dragontune.distances.inputs import Array, finite, tensor, vectors
from dragontune.errors import InputError

Shrinkage = Literal["none", "oas"]

BLOCK = 1024
"""Vectors of a stream that are taken together."""


@dataclass(frozen=True, eq=False)
class Moments(Rows):
    """Count, mean and scatter (sum of outer products about the mean) of groups of vectors, one group a row."""

    count: Float[Tensor, " n"]
    mean: Float[Tensor, " n dim"]
    scatter: Float[Tensor, " n dim dim"]
    tail: Float[Tensor, " n dim"]
    """What the mean has beyond the digits of `mean`: the two add up to it."""

    @classmethod
    def of(cls, frames: Array, mask: Float[Tensor, " n frames 1"] | None = None) -> "Moments":
        """One row for each item's frames (n x frames x dim); frames whose mask is 0 do not count. Gradients pass."""
        values = finite(tensor(frames), "frames") if mask is None else tensor(frames)
        if values.ndim != 3:
            raise InputError(f"expected items x frames x dim, got shape {tuple(values.shape)}: reshape it")
        weight = torch.ones_like(values[..., :1]) if mask is None else mask.to(values)
        count = weight.sum((1, 2))
        values = torch.where(weight > 0, values, 0.0)
        mean = values.sum(1) / count.clamp(min=1)[:, None]
        centred = (values - mean[:, None]) * weight
        correction = centred.sum(1) / count.clamp(min=1)[:, None]  # what rounding left of the mean
        centred = centred - correction[:, None] * weight
        mean, tail = _two_sum(mean, correction)
        return cls(count, mean, centred.mT @ centred, tail)

    @classmethod
    def stream(cls, chunks: Iterable[Array]) -> "Moments":
        """One group of all vectors of a stream of chunks (n x dim each), held as `RunningMoments` holds them.

        Raises InputError for an empty stream or vectors that are not finite.
        """
        running = RunningMoments()
        for chunk in chunks:
            running.add(vectors(chunk, "a chunk", 1))
        return running.total()

    def merge(self) -> "Moments":
        """All rows in one group."""
        count = self.count.sum(0, True)
        origin = self.mean[:1]
        apart = (self.mean - origin) + self.tail
        shift = (apart * self.count[:, None]).sum(0, True) / count.clamp(min=1)
        mean, tail = _two_sum(origin, shift)
        apart = (apart - shift) * self.count.sqrt()[:, None]
        return Moments(count, mean, self.scatter.sum(0, True) + apart.mT @ apart, tail)

    def covariance(self, shrinkage: Shrinkage = "none") -> Float[Tensor, " n dim dim"]:
        """Covariances with Bessel's correction; each row needs two vectors.

        `oas` shrinks towards a multiple of the identity (Chen, Wiesel, Eldar & Hero 2010, eq. 23, with count - 1 for
        their n, since the mean is estimated too), for sets with fewer vectors than dimensions; the distance to another
        set is then no longer that of the plain covariances.
        """
        if (self.count < 2).any():
            raise InputError(f"expected 2 vectors or more for a covariance, got {int(self.count.min())}: add items")
        covariance = self.scatter / (self.count - 1)[:, None, None]
        if check_shrinkage(shrinkage) == "none":
            return covariance
        share = oas_share(covariance, self.count - 1)[:, None, None]
        identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
        level = covariance.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        return (1 - share) * covariance + share * level * identity


class RunningMoments:
    """The moments of vectors that come in chunks; holds a block of `BLOCK` and two covariances at a time.

    Chunks are cut into blocks of one size, so how they were cut makes no difference to a single bit; the order of the
    vectors makes one of rounding.

    >>> running = RunningMoments()
    >>> running.add(torch.eye(2))
    >>> running.total().mean.tolist()
    [[0.5, 0.5]]
    """

    def __init__(self) -> None:
        self._waiting: list[Tensor] = []
        self._count = 0
        self._merged: Moments | None = None

    def add(self, rows: Float[Tensor, " n dim"]) -> None:
        """More vectors, which are finite."""
        self._waiting.append(tensor(rows))
        self._count += len(rows)
        if self._count >= BLOCK:
            *blocks, rest = torch.cat(self._waiting).split(BLOCK)
            if len(rest) == BLOCK:
                blocks, rest = [*blocks, rest], rest[:0]
            for block in blocks:
                self._merged = self._with(block)
            self._waiting, self._count = [rest.clone()], len(rest)

    def total(self) -> Moments:
        """Of all vectors so far; InputError where there are none."""
        if self._merged is None and not self._count:
            raise InputError("expected at least one chunk of vectors, got an empty stream: give it some data")
        return self._with(torch.cat(self._waiting)) if self._count or self._merged is None else self._merged

    def _with(self, block: Float[Tensor, " n dim"]) -> Moments:
        part = Moments.of(block[None])
        return part if self._merged is None else Moments.join([self._merged, part]).merge()


def check_shrinkage(name: str) -> str:
    """The same name; InputError if there is none such."""
    if name not in get_args(Shrinkage):
        raise InputError(f"expected a shrinkage of {', '.join(get_args(Shrinkage))}, got {name!r}: choose one of them")
    return name


def oas_share(covariance: Float[Tensor, " n dim dim"], count: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The share rho of (1 - rho) S + rho tr(S) / dim I; `count` are degrees of freedom."""
    dim = covariance.shape[-1]
    square = covariance.square().sum((1, 2))
    trace = covariance.diagonal(dim1=1, dim2=2).sum(1)
    above = (1 - 2 / dim) * square + trace.square()
    below = (count + 1 - 2 / dim) * (square - trace.square() / dim)
    return torch.where(below > 0, above / below.clamp(min=1e-300), 1.0).clamp(max=1.0)


def _two_sum(a: Float[Tensor, " n dim"], b: Float[Tensor, " n dim"]) -> tuple[Tensor, Tensor]:
    """The sum, and what rounding left out of it (Knuth 1969, theorem B of 4.2.2)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)
