"""Regression on embeddings with a Gaussian kernel: ridge (Saunders et al. 1998), and Nadaraya (1964) and Watson (1964).

Both are smooth, so gradients pass from the prediction to the query. Left out: other kernels, a bandwidth a dimension,
and approximations for many points (fitting a ridge solves a system of as many equations as there are points).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dragontune.errors import InputError


@dataclass(frozen=True, eq=False)
class Regression(ABC):
    """Points with a value each, in float64 on the CPU; `bandwidth` is the Gaussian's standard deviation."""

    points: Float[Tensor, " n dim"]
    values: Float[Tensor, " n"]
    bandwidth: float

    @abstractmethod
    def predict(self, queries: Float[Tensor, " k dim"]) -> Float[Tensor, " k"]:
        """One number a query."""


@dataclass(frozen=True, eq=False)
class KernelRidge(Regression):
    """y(z) = k(z, points) values + offset; far from all points it is the offset.

    >>> KernelRidge.fit(points, labels, bandwidth=0.5, ridge=0.1).predict(queries)
    """

    offset: float

    @classmethod
    def fit(
        cls, points: Float[Tensor, " n dim"], labels: Float[Tensor, " n"], bandwidth: float, ridge: float
    ) -> "KernelRidge":
        """Solve (K + ridge I) values = labels - offset, their mean. A small ridge follows the labels closely."""
        _check("bandwidth", bandwidth)
        _check("ridge", ridge)
        offset = labels.mean()
        system = gaussian_kernel(points, points, bandwidth) + ridge * torch.eye(len(points)).to(points)
        return cls(points, torch.linalg.solve(system, labels - offset), bandwidth, float(offset))

    def predict(self, queries: Float[Tensor, " k dim"]) -> Float[Tensor, " k"]:
        """A weighted sum of kernels."""
        return gaussian_kernel(queries, self.points, self.bandwidth) @ self.values + self.offset


@dataclass(frozen=True, eq=False)
class NadarayaWatson(Regression):
    """The mean of the labels (`values`), weighted by the kernel; far from all points it is the nearest one's label."""

    @classmethod
    def fit(cls, points: Float[Tensor, " n dim"], labels: Float[Tensor, " n"], bandwidth: float) -> "NadarayaWatson":
        """Nothing is solved."""
        _check("bandwidth", bandwidth)
        return cls(points, labels, bandwidth)

    def predict(self, queries: Float[Tensor, " k dim"]) -> Float[Tensor, " k"]:
        """Between the lowest and the highest label."""
        return (-_squares(queries, self.points) / (2 * self.bandwidth**2)).softmax(1) @ self.values


def gaussian_kernel(a: Float[Tensor, " n dim"], b: Float[Tensor, " m dim"], bandwidth: float) -> Float[Tensor, " n m"]:
    """exp(-|a - b|^2 / (2 bandwidth^2)), between 0 and 1."""
    return (-_squares(a, b) / (2 * bandwidth**2)).exp()


def _squares(a: Float[Tensor, " n dim"], b: Float[Tensor, " m dim"]) -> Float[Tensor, " n m"]:
    """Squared distances; not by `cdist`, whose root has no slope where two points meet."""
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.mT).clamp(min=0)


def _check(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise InputError(f"expected a {name} above 0, got {value}; choose a positive number")
