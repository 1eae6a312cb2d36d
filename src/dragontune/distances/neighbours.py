"""Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020), by nearest neighbours.

The ball of an item reaches to its k-th nearest neighbour in its own set, itself not counted but its copies are, and is
closed: an item exactly that far away is inside, so that a set covers itself. Ties are exact: products of centred
vectors decide only where their rounding error cannot, and differences of the vectors decide the rest. Float64.
Left out: approximate neighbours.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dragontune.distances import inputs
from dragontune.distances.inputs import Array
from dragontune.distances.kernel import BLOCK, centred_squares, middle
from dragontune.errors import InputError


def precision(x: Array, y: Array, k: int = 3) -> Float[Tensor, ""]:
    """The share of `x` that lies in a ball of the reference `y`, from 0 to 1: how many items look real.

    Args:
        x: Vectors (n x dim), one or more.
        y: The reference (m x dim), more than k.
        k: Which neighbour gives a ball its radius.

    Raises:
        InputError: k below 1 or too large, too few vectors, another dimension, NaN or infinity.
    """
    return _share(inside.any(1) for inside in _membership(x, y, k, "x", "the reference"))


def recall(x: Array, y: Array, k: int = 3) -> Float[Tensor, ""]:
    """The share of the reference `y` that lies in a ball of `x`: `precision` with the sets' parts exchanged."""
    return _share(inside.any(1) for inside in _membership(y, x, k, "the reference", "x"))


def density(x: Array, y: Array, k: int = 5) -> Float[Tensor, ""]:
    """In how many balls of the reference an item of `x` lies, on average, divided by k.

    About 1 for sets of one distribution, 0 far away, above 1 where `x` crowds into dense places. Arguments and errors
    are those of `precision`.
    """
    return _share(inside.double().sum(1) / k for inside in _membership(x, y, k, "x", "the reference"))


def coverage(x: Array, y: Array, k: int = 5) -> Float[Tensor, ""]:
    """The share of the reference's balls that hold an item of `x`, from 0 to 1.

    For two large sets of one distribution and one size it is about 1 - 2^-k. Arguments and errors are those of
    `precision`.
    """
    reached = torch.stack([inside.any(0) for inside in _membership(x, y, k, "x", "the reference")])
    return reached.any(0).double().mean()


def _share(parts: Iterator[Tensor]) -> Float[Tensor, ""]:
    return torch.cat(list(parts)).double().mean()


def _membership(points: Array, centres: Array, k: int, name: str, other: str) -> Iterator[Bool[Tensor, " rows m"]]:
    """Which points lie in the balls around which centres, some points at a time."""
    if k < 1:
        raise InputError(f"expected k of 1 or more neighbours, got {k}: 5 is usual")
    b = inputs.vectors(centres, other).detach()
    if k >= len(b):
        raise InputError(f"expected k below the number of vectors in {other}, {len(b)}, got {k}: lower k or add items")
    a = inputs.vectors(points, name, least=1, dim=b.shape[1]).detach().to(b.device)
    radii = _squared_radii(b, k)
    return (_within(part, b, radii) for part in _parts(a, b))


def _parts(a: Float[Tensor, " n dim"], b: Float[Tensor, " m dim"]) -> tuple[Tensor, ...]:
    return a.split(max(1, BLOCK // len(b)))


def _within(a: Float[Tensor, " n dim"], b: Float[Tensor, " m dim"], radii: Float[Tensor, " m"]) -> Bool[Tensor, " n m"]:
    squares, slack = _bounded_squares(a, b)
    _decide(squares, (squares - radii).abs() <= slack, a, b)
    return squares <= radii


def _squared_radii(b: Float[Tensor, " m dim"], k: int) -> Float[Tensor, " m"]:
    """The exact squared distance of every row to its k-th nearest other row."""
    found, start = [], 0
    for part in _parts(b, b):
        squares, slack = _bounded_squares(part, b)
        rows = torch.arange(len(part))
        squares[rows, start + rows] = torch.inf
        low, high = squares - slack, squares + slack
        # the k-th distance lies between the k-th lower and the k-th upper bound: what can be it is computed anew
        least, most = (bound.kthvalue(k, dim=1, keepdim=True).values for bound in (low, high))
        _decide(squares, (low <= most) & (high >= least), part, b)
        found.append(squares.kthvalue(k, dim=1).values)
        start += len(part)
    return torch.cat(found)


def _bounded_squares(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances from products, and a bound of their rounding error."""
    origin = middle(b)
    a, b = a - origin, b - origin
    error = 4 * (a.shape[1] + 8) * torch.finfo(a.dtype).eps
    return centred_squares(a, b), error * (a.square().sum(1)[:, None] + b.square().sum(1))


def _decide(squares: Tensor, doubtful: Tensor, a: Tensor, b: Tensor) -> None:
    """Put squared distances from differences where the products do not suffice."""
    i, j = doubtful.nonzero(as_tuple=True)
    step = max(1, BLOCK // a.shape[1])
    for rows, columns in zip(i.split(step), j.split(step), strict=True):
        squares[rows, columns] = (a[rows] - b[columns]).square().sum(1)
