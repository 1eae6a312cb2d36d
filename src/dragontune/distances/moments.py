"""Means and covariances that are gathered in pieces (Chan, Golub & LeVeque 1983): any order, any grouping, float64.

What is kept is the scatter about each group's own mean, never sums of raw products, so that a large offset costs no
digits and merging is exact to rounding.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from dragontune.data import Rows
from dragontune.distances.inputs import Array, finite, tensor
from dragontune.errors import InputError

Shrinkage = Literal["none", "oas"]


@dataclass(frozen=True, eq=False)
class Moments(Rows):
    """Count, mean and scatter (sum of outer products about the mean) of groups of vectors, one group a row."""

    count: Float[Tensor, " n"]
    mean: Float[Tensor, " n dim"]
    scatter: Float[Tensor, " n dim dim"]

    @classmethod
    def of(cls, frames: Array, mask: Float[Tensor, " n frames 1"] | None = None) -> "Moments":
        """One row for each item's frames (n x frames x dim); frames whose mask is 0 do not count. Gradients pass."""
        values = tensor(frames)
        weight = torch.ones_like(values[..., :1]) if mask is None else mask.to(values)
        count = weight.sum((1, 2))
        mean = (values * weight).sum(1) / count.clamp(min=1)[:, None]
        centred = (values - mean[:, None]) * weight
        correction = centred.sum(1) / count.clamp(min=1)[:, None]  # what rounding left of the mean
        centred = centred - correction[:, None] * weight
        return cls(count, mean + correction, centred.mT @ centred)

    @classmethod
    def stream(cls, chunks: Iterable[Array]) -> "Moments":
        """One group of all vectors of a stream of chunks (n x dim each); holds one chunk and one covariance at a time.

        Raises InputError for an empty stream or vectors that are not finite.
        """
        total: Moments | None = None
        for chunk in chunks:
            part = Moments.of(finite(tensor(chunk), "a chunk")[None])
            total = part if total is None else Moments.join([total, part]).merge()
        if total is None:
            raise InputError("expected at least one chunk of vectors, got an empty stream: give it some data")
        return total

    def merge(self) -> "Moments":
        """All rows in one group."""
        count = self.count.sum(0, True)
        origin = self.mean[:1]
        mean = origin + ((self.mean - origin) * self.count[:, None]).sum(0, True) / count.clamp(min=1)
        apart = (self.mean - mean) * self.count.sqrt()[:, None]
        return Moments(count, mean, self.scatter.sum(0, True) + apart.mT @ apart)

    def covariance(self, shrinkage: Shrinkage = "none") -> Float[Tensor, " n dim dim"]:
        """Covariances with Bessel's correction; each row needs two vectors.

        `oas` shrinks towards a multiple of the identity (Chen, Wiesel, Eldar & Hero 2010, eq. 23), for sets with fewer
        vectors than dimensions; the distance to another set is then no longer that of the plain covariances.
        """
        if (self.count < 2).any():
            raise InputError(f"a covariance needs 2 vectors or more, got {int(self.count.min())}: add items")
        covariance = self.scatter / (self.count - 1)[:, None, None]
        return covariance if shrinkage == "none" else _oas(covariance, self.count)


def _oas(covariance: Float[Tensor, " n dim dim"], count: Float[Tensor, " n"]) -> Float[Tensor, " n dim dim"]:
    """Oracle approximating shrinkage: (1 - rho) S + rho tr(S) / dim I."""
    dim = covariance.shape[-1]
    square = covariance.square().sum((1, 2))
    trace = covariance.diagonal(dim1=1, dim2=2).sum(1)
    above = (1 - 2 / dim) * square + trace.square()
    below = (count + 1 - 2 / dim) * (square - trace.square() / dim)
    rho = torch.where(below > 0, above / below.clamp(min=1e-300), 1.0).clamp(max=1.0)[:, None, None]
    identity = torch.eye(dim, dtype=covariance.dtype, device=covariance.device)
    return (1 - rho) * covariance + rho * (trace / dim)[:, None, None] * identity
