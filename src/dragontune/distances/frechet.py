"""Fréchet distance between Gaussians (Dowson & Landau 1982; FID: Heusel et al. 2017; FAD: Kilgour et al. 2019).

|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)). With S1 = A A' and S2 = B B' the trace of the root is the sum of the
singular values of A'B: no matrix root, no product of covariances, and a set of n vectors costs a matrix of n columns,
however many dimensions they have. docs/distances.md derives it and says why the usual ways lose digits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dragontune.distances.inputs import Array, finite, tensor, usual, vectors
from dragontune.distances.moments import Shrinkage, check_shrinkage, oas_share
from dragontune.errors import InputError

NEGATIVE = 1e-6
"""An eigenvalue below minus this share of the largest is not rounding noise."""


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A mean and a root of a covariance: covariance = root root'.

    >>> Gaussian.of(torch.tensor([[0.0, 0.0], [2.0, 0.0]])).covariance.tolist()
    [[2.0, 0.0], [0.0, 0.0]]
    """

    mean: Float[Tensor, " dim"]
    root: Float[Tensor, " dim rank"]

    @classmethod
    def of(cls, samples: Array, shrinkage: Shrinkage = "none", name: str = "samples") -> "Gaussian":
        """Fitted to the rows of `samples` (n x dim, n of 2 or more); gradients pass."""
        rows = usual(vectors(samples, name), name)
        mean, centred = centre(rows)
        degrees = len(rows) - 1
        if len(rows) > 2 * rows.shape[1] and not rows.requires_grad:
            centred = torch.linalg.qr(centred, mode="r").R
        root = centred.mT / degrees**0.5
        if check_shrinkage(shrinkage) == "oas":
            share = oas_share((root @ root.mT)[None], root.new_tensor([degrees]))
            level = (share * root.square().sum() / len(root)).sqrt()
            root = torch.cat([(1 - share).sqrt() * root, level * torch.eye(len(root)).to(root)], 1)
        return cls(mean, root)

    @classmethod
    def of_moments(cls, mean: Array, covariance: Array) -> "Gaussian":
        """From a mean (dim) and a covariance (dim x dim), symmetric and without negative eigenvalues.

        Where the samples are at hand, `of` keeps more digits of a covariance that is not of full rank. Both are taken
        as numbers: gradients flow through samples only.
        """
        centre, spread = (
            usual(finite(tensor(x), name), name).detach().clone()
            for x, name in ((mean, "the mean"), (covariance, "the covariance"))
        )
        if centre.ndim != 1 or spread.shape != (len(centre), len(centre)) or not len(centre):
            raise InputError(
                f"expected a mean of dim numbers and a covariance of dim x dim, got shapes {tuple(centre.shape)} and "
                f"{tuple(spread.shape)}: give one Gaussian"
            )
        if (spread - spread.mT).abs().max() > NEGATIVE * spread.abs().max():
            raise InputError("expected a symmetric covariance, got one that is not: compute it from centred samples")
        values, directions = torch.linalg.eigh((spread + spread.mT) / 2)
        if values[0] < -NEGATIVE * values[-1].abs().clamp(min=1e-300):
            raise InputError(
                f"expected a covariance without negative eigenvalues, got {values[0]:.3g} (largest {values[-1]:.3g}): "
                "it is damaged or no covariance; compute it again in float64"
            )
        kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
        kept[-1] = True
        values = values.clamp(min=0)
        return cls(centre, directions[:, kept] * values[kept].sqrt())

    @property
    def covariance(self) -> Float[Tensor, " dim dim"]:
        """The product root root'."""
        return self.root @ self.root.mT

    @property
    def trace(self) -> Float[Tensor, ""]:
        """Of the covariance."""
        return self.root.square().sum()

    @property
    def dim(self) -> int:
        """Of the space."""
        return len(self.mean)

    def to(self, device: torch.device) -> "Gaussian":
        """On another device."""
        return Gaussian(self.mean.to(device), self.root.to(device))


Fit = Array | Gaussian | tuple[Array, Array]
"""Samples (n x dim), a `Gaussian`, or a mean and a covariance."""


def frechet_distance(x: Fit, y: Fit, *, dtype: torch.dtype = torch.float64) -> Float[Tensor, ""]:
    """The distance, 0 or more, as a float64 scalar on the device of `x`.

    Samples need 2 rows or more. Gradients flow to samples; where the derivative does not exist (duplicate rows, fewer
    rows than dimensions) it is the one of smallest norm. `dtype=torch.float32` does the matrix product and the singular
    values in single precision, for GPUs (error in docs/results.md); means and traces stay in double.

    Raises:
        InputError: fewer than two samples, NaN or infinity, other dimensions, no covariance, a reference `y` whose
            samples are all the same.

    >>> frechet_distance(torch.eye(3), torch.eye(3) + 1).item()
    3.0
    """
    first, second = gaussian(x, "x"), reference(y)
    if first.dim != second.dim:
        raise InputError(
            f"expected x and y of the same dimension, got {first.dim} and {second.dim}: use the same encoder for both"
        )
    second = second.to(first.mean.device)
    scale = (first.trace * second.trace).sqrt().item()
    cross = nuclear_norm(first.root.mT.to(tensor_dtype(dtype)) @ second.root.to(dtype), scale)
    return ((first.mean - second.mean).square().sum() + first.trace + second.trace - 2 * cross).clamp(min=0)


def frechet_distance_per_item(
    frames: Array | Sequence[Array], y: Fit, *, dtype: torch.dtype = torch.float64
) -> Float[Tensor, " n"]:
    """The distance of each item's own frames to `y`: n items x frames x dim, or a list of items of any length.

    Each item needs 2 frames or more. Gradients and errors as in `frechet_distance`, which this equals item by item.
    """
    items = _items(frames)
    other = reference(y)
    if items and items[0].shape[1] != other.dim:
        raise InputError(
            f"expected frames and y of the same dimension, got {items[0].shape[1]} and {other.dim}: use one encoder"
        )
    lengths = torch.tensor([len(item) for item in items])
    order, parts = list[Tensor](), list[Tensor]()
    for length in lengths.unique():
        rows = (lengths == length).nonzero()[:, 0]
        for some in rows.split(max(1, 2**22 // int(length * other.dim))):
            parts.append(_equally_long(torch.stack([items[row] for row in some.tolist()]), other, dtype))
            order.append(some)
    if not parts:
        return torch.zeros(0, dtype=torch.float64)
    return torch.cat(parts)[torch.cat(order).argsort().to(parts[0].device)]


def gaussian(fit: Fit, name: str) -> Gaussian:
    """What stands for a Gaussian as one: samples or moments."""
    match fit:
        case Gaussian():
            return fit
        case tuple() if len(fit) != 2:
            raise InputError(f"expected {name} as samples or as (mean, covariance), got a tuple of {len(fit)}")
        case tuple():
            return Gaussian.of_moments(*fit)
        case _:
            return Gaussian.of(fit, name=name)


def reference(fit: Fit) -> Gaussian:
    """`gaussian` of what is compared with; samples that are all the same are refused: the encoder must be broken."""
    found = gaussian(fit, "y")
    if not isinstance(fit, Gaussian | tuple) and bool((tensor(fit) == tensor(fit)[:1]).all()):
        raise InputError(
            f"expected a reference whose vectors differ, got {len(fit)} times the same one: look at the files and the "
            "encoder, or give a mean and a covariance"
        )
    return found


def centre(rows: Float[Tensor, " *n frames dim"]) -> tuple[Float[Tensor, " *n dim"], Float[Tensor, " *n frames dim"]]:
    """The mean and the rows about it; a second pass takes out what rounding left."""
    mean = rows.mean(-2)
    centred = rows - mean[..., None, :]
    rest = centred.mean(-2)
    return mean + rest, centred - rest[..., None, :]


def nuclear_norm(matrix: Float[Tensor, " *n rows columns"], scale: float) -> Float[Tensor, " *n"]:
    """The sum of the singular values, in float64; gradients leave out directions that are rounding noise.

    `scale` is the size of what was multiplied to get the matrix: its rounding is a share of that.
    """
    if matrix.requires_grad:
        return _NuclearNorm.apply(matrix, scale)  # pyright: ignore[reportReturnType]
    return torch.linalg.svdvals(matrix).double().sum(-1)


class _NuclearNorm(torch.autograd.Function):
    """With d |Z|_* = <U V', dZ> over the singular vectors that are not noise: the subgradient of smallest norm.

    Differentiating through the singular values would use the null vectors, which are arbitrary.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, scale: float) -> Tensor:  # noqa: ANN401 - torch's context
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        epsilon = torch.finfo(matrix.dtype).eps
        noise = (values[..., :1] * max(matrix.shape[-2:]) * epsilon).clamp(min=scale * epsilon)
        ctx.save_for_backward((left * (values > noise)[..., None, :]) @ right)
        return values.double().sum(-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        if torch.is_grad_enabled():
            raise RuntimeError("a Fréchet distance has no second derivatives here: leave out create_graph")
        (direction,) = ctx.saved_tensors
        return (gradients[0][..., None, None] * direction).to(direction.dtype), None


def _equally_long(items: Float[Tensor, " n frames dim"], other: Gaussian, dtype: torch.dtype) -> Float[Tensor, " n"]:
    other = other.to(items.device)
    mean, centred = centre(items)
    scale = (items.shape[1] - 1) ** 0.5
    cross = centred.to(tensor_dtype(dtype)) @ other.root.to(dtype)
    if cross.requires_grad:
        total = nuclear_norm(cross, (centred.detach().square().sum((1, 2)).max() * other.trace).sqrt().item())
    else:
        total = _nuclear_norms(cross)
    traces = centred.square().sum((1, 2)) / scale**2 + other.trace
    return ((mean - other.mean).square().sum(1) + traces - 2 * total / scale).clamp(min=0)


def _nuclear_norms(centred: Float[Tensor, " n frames rank"]) -> Float[Tensor, " n"]:
    """Of centred frames, by eigenvalues of the smaller Gram matrix if they are well above rounding noise (error 1e-13).

    Else by singular values.
    """
    frames, rank = centred.shape[1:]
    if centred.dtype != torch.float64:
        return nuclear_norm(centred, 0.0)
    if frames - 1 <= rank:
        values = torch.linalg.eigvalsh(centred @ centred.mT)[:, 1:]  # centring makes one exact zero
    else:
        values = torch.linalg.eigvalsh(centred.mT @ centred)
    total = values.clamp(min=0).sqrt().sum(1)
    poor = values[:, 0] <= 1e-4 * values[:, -1]
    if poor.any():
        total[poor] = nuclear_norm(centred[poor], 0.0)
    return total


def tensor_dtype(dtype: torch.dtype) -> torch.dtype:
    """The same type of number; InputError unless it is single or double precision."""
    if dtype not in (torch.float32, torch.float64):
        raise InputError(f"expected torch.float64 or torch.float32 as dtype, got {dtype}: leave it out for the default")
    return dtype


def _items(frames: Array | Sequence[Array]) -> list[Tensor]:
    """Each item's frames (frames x dim), checked."""
    if isinstance(frames, Tensor | np.ndarray):
        together = tensor(frames)
        if together.ndim != 3:
            raise InputError(
                f"expected items x frames x dim, or a list of items, got shape {tuple(together.shape)}: reshape it"
            )
        frames = list(together)
    elif not isinstance(frames, list | tuple):
        raise InputError(f"expected items x frames x dim, or a list of items, got {type(frames).__name__}: convert it")
    items = [usual(vectors(item, f"item {number}"), f"item {number}") for number, item in enumerate(frames)]
    for number, item in enumerate(items):
        if item.shape[1] != items[0].shape[1]:
            raise InputError(
                f"expected frames of one dimension, got {items[0].shape[1]} in item 0 and {item.shape[1]} in item "
                f"{number}: embed all with the same encoder"
            )
    return items
