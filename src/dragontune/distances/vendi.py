"""Vendi score: how many different items a set has in effect (Friedman & Dieng 2023; orders: Pasarkar & Dieng 2024).

exp of the Rényi entropy of order q of the eigenvalues of K / n, K a positive semi-definite similarity kernel with unit
diagonal. Between 1 (all alike) and n (all different). Float64. Left out: sparse and approximate kernels.
"""

from math import inf

import torch
from jaxtyping import Float
from torch import Tensor

from dragontune.distances.inputs import Array, finite, tensor, vectors
from dragontune.errors import InputError

NEAR_ONE = 0.01
"""Closer to order 1 than this, the logarithm of the sum of powers is taken from its difference to 1."""
SLACK = 1e-6
"""How far a kernel's diagonal may be from 1, and an entry from its mirror image."""
INDEFINITE = -1e-5
"""The smallest eigenvalue, as a share of the largest, that still counts as rounding of a float32 kernel."""


def vendi_score(x: Array | None = None, order: float = 1.0, *, kernel: Array | None = None) -> Float[Tensor, ""]:
    """The effective number of different items, from 1 to n (Friedman & Dieng 2023, definition 1).

    Give either `x`, n x dim embeddings compared by their cosine, or `kernel`, n x n similarities with unit diagonal.
    A higher `order`, from 0 (the rank) to infinity (1 / the largest eigenvalue), gives rare items less weight.
    Eigenvalues that are rounding noise count as 0. Differentiable; sets with repeated items included.

    >>> vendi_score(torch.eye(3))
    tensor(3., dtype=torch.float64)

    Raises:
        InputError: fewer than two items, NaN or infinity, another shape, a zero row, an order below 0 or NaN; a kernel
            that is not symmetric, has another diagonal than 1 or a negative eigenvalue.
    """
    valid_order(order)
    if x is not None and kernel is None:
        unit = unit_rows(x, "the set")
        # both products have the same non-zero eigenvalues: take the smaller one
        gram = unit @ unit.mT if len(unit) <= unit.shape[1] else unit.mT @ unit
        values = torch.linalg.eigvalsh(gram / len(unit))
        return effective_number(values, order, len(unit))
    if kernel is not None and x is None:
        similar = valid_kernel(kernel)
        values = torch.linalg.eigvalsh(similar / len(similar))
        semidefinite(values)
        return effective_number(values, order, len(similar))
    raise InputError("expected either embeddings or a kernel, got both or neither: give one of the two")


def effective_number(values: Float[Tensor, "*batch k"], order: float, items: int) -> Float[Tensor, "*batch"]:
    """The exponential of the Rényi entropy of ascending eigenvalues, rounding noise left out, the rest summing to 1."""
    keep = values > noise(values.detach())
    kept = torch.where(keep, values, 0)
    p = torch.where(keep, kept / kept.sum(-1, keepdim=True), 1)
    if order == 0:
        score = torch.where(keep, p.pow(0), 0).sum(-1)
    elif order == inf:
        score = 1 / p[..., -1]
    elif order == 1:
        score = torch.where(keep, -p * p.log(), 0).sum(-1).exp()
    elif abs(order - 1) < NEAR_ONE:
        score = (excess(torch.where(keep, p, 0), order).log1p() / (1 - order)).exp()
    else:
        powers = torch.where(keep, order * p.log(), -inf)
        score = (powers.logsumexp(-1) / (1 - order)).exp()
    return score.clamp(1, items)


def excess(p: Float[Tensor, "*batch k"], order: float) -> Float[Tensor, "*batch"]:
    """The sum of p^order less 1 for probabilities, some of them 0: accurate near order 1, where it vanishes."""
    safe = torch.where(p > 0, p, 1)
    return (p * torch.expm1((order - 1) * safe.log())).sum(-1)


def noise(values: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch 1"]:
    """Up to here, ascending eigenvalues of k x k matrices are rounding errors of the largest."""
    return values[..., -1:] * values.shape[-1] * torch.finfo(values.dtype).eps


def unit_rows(x: Array, name: str, least: int = 2, dim: int | None = None) -> Float[Tensor, " n dim"]:
    """Rows of any length as float64 rows of length 1; InputError for a row of zeros and all that `vectors` refuses."""
    rows = vectors(x, name, least, dim)
    largest = rows.detach().abs().amax(1, keepdim=True)
    if not largest.all():
        row = int((largest[:, 0] == 0).nonzero()[0])
        raise InputError(f"expected vectors that have a direction in {name}, got zeros in row {row}: leave it out")
    scaled = rows / largest  # squares of very short or long rows would leave the range of float64
    return scaled / scaled.norm(dim=1, keepdim=True)


def valid_order(order: float) -> float:
    """The same number; InputError unless it is 0 or more."""
    if not order >= 0:
        raise InputError(f"expected the order of a Vendi score as 0 or more, got {order}: 1 is the usual one")
    return float(order)


def valid_kernel(kernel: Array) -> Float[Tensor, " n n"]:
    """A float64 similarity kernel, made exactly symmetric; eigenvalues are not looked at (see `semidefinite`).

    Raises:
        InputError: not square, fewer than two items, NaN or infinity, not symmetric, another diagonal than 1.
    """
    k = tensor(kernel)
    if k.ndim != 2 or k.shape[0] != k.shape[1]:
        raise InputError(
            f"expected a kernel as a square matrix (n x n), got shape {tuple(k.shape)}: pass embeddings as x"
        )
    if len(k) < 2:
        raise InputError(f"expected a kernel of 2 items or more, got {len(k)}: add items")
    finite(k, "the kernel")
    diagonal = k.detach().diagonal()
    worst = int((diagonal - 1).abs().argmax())
    if abs(float(diagonal[worst]) - 1) > SLACK:
        raise InputError(
            f"expected a kernel with ones on its diagonal, got {float(diagonal[worst]):.6g} at item {worst}: "
            "divide each entry by the root of the two items' diagonal entries"
        )
    skew = float((k - k.mT).detach().abs().max())
    if skew > SLACK:
        raise InputError(
            f"expected a symmetric kernel, got entries that differ from their mirror image by {skew:.3g}: "
            "take the mean of the kernel and its transpose"
        )
    return (k + k.mT) / 2


def semidefinite(values: Float[Tensor, " n"]) -> None:
    """InputError if the first of ascending eigenvalues of a kernel is clearly below 0."""
    low, high = float(values[0].detach()), float(values[-1].detach())
    if low < INDEFINITE * high:
        raise InputError(
            f"expected a positive semi-definite kernel, got eigenvalues from {low / high:.3g} to 1 times the largest: "
            "use a similarity that is an inner product, such as the cosine"
        )
