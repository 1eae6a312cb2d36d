"""Fréchet distance between Gaussians (Dowson & Landau 1982; FID: Heusel et al. 2017; FAD: Kilgour et al. 2019).

|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)). The trace of the root is the sum of the square roots of the eigenvalues of
L' S1 L with S2 = L L': symmetric, positive, right for singular covariances, and differentiable. Eigenvalues that are
rounding noise count as 0. Float64 on the CPU whatever comes in. Left out: shrinkage, extrapolation to infinite samples.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dragontune.data import Rows


@dataclass(frozen=True, eq=False)
class Moments(Rows):
    """Sufficient statistics of groups of vectors, one group a row: merging groups is adding rows."""

    count: Float[Tensor, " n"]
    sum: Float[Tensor, " n dim"]
    outer: Float[Tensor, " n dim dim"]

    @classmethod
    def of(cls, frames: Float[Tensor, " n frames dim"], mask: Float[Tensor, " n frames 1"] | None = None) -> "Moments":
        """One row for each item's frames; frames whose mask is 0 do not count."""
        z = frames.to("cpu", torch.float64)
        weight = torch.ones_like(z[..., :1]) if mask is None else mask.to(z)
        return cls(weight.sum((1, 2)), (z * weight).sum(1), z.mT @ (z * weight))

    def merge(self) -> "Moments":
        """All rows in one group."""
        return Moments(self.count.sum(0, True), self.sum.sum(0, True), self.outer.sum(0, True))

    def mean(self) -> Float[Tensor, " n dim"]:
        """Mean vectors."""
        return self.sum / self.count[:, None]

    def covariance(self) -> Float[Tensor, " n dim dim"]:
        """Covariances with Bessel's correction; each row needs two vectors."""
        centre = self.mean()
        scatter = self.outer - self.count[:, None, None] * centre[:, :, None] * centre[:, None, :]
        return scatter / (self.count - 1)[:, None, None]


def factor(covariance: Float[Tensor, " *n dim dim"]) -> Float[Tensor, " *n dim dim"]:
    """L with L L' = covariance."""
    values, vectors = torch.linalg.eigh(_float64(covariance))
    return vectors * values.clamp(min=0).sqrt()[..., None, :]


def frechet(
    mean: Float[Tensor, " *n dim"],
    covariance: Float[Tensor, " *n dim dim"],
    other_mean: Float[Tensor, " dim"],
    other_covariance: Float[Tensor, " dim dim"],
) -> Float[Tensor, " *n"]:
    """The distance of one or many Gaussians to one other, 0 or more. Gradients flow to `mean` and `covariance`."""
    return frechet_to(mean, covariance, other_mean, factor(other_covariance))


def frechet_to(
    mean: Float[Tensor, " *n dim"],
    covariance: Float[Tensor, " *n dim dim"],
    other_mean: Float[Tensor, " dim"],
    other_factor: Float[Tensor, " dim dim"],
) -> Float[Tensor, " *n"]:
    """`frechet` where the other covariance's `factor` is at hand."""
    mean, covariance, other_mean, root = (_float64(x) for x in (mean, covariance, other_mean, other_factor))
    values = torch.linalg.eigvalsh(root.mT @ covariance @ root)
    noise = values[..., -1:].detach().clamp(min=1e-300) * values.shape[-1] * torch.finfo(torch.float64).eps
    cross = torch.where(values > noise, values.clamp(min=noise).sqrt(), 0.0).sum(-1)
    traces = covariance.diagonal(dim1=-2, dim2=-1).sum(-1) + root.square().sum()
    return ((mean - other_mean).square().sum(-1) + traces - 2 * cross).clamp(min=0)


def _float64(values: Tensor) -> Tensor:
    return values.to("cpu", torch.float64)
