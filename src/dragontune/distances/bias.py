"""How large a distance is for no reason but the size of the set.

The Fréchet distance of a finite set to the distribution it came from is far from 0 (Chong & Forsyth 2020): compare at
equal sizes, and beside the value that real items of the same number have.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dragontune.distances.frechet import Fit, frechet_distance
from dragontune.distances.frechet import reference as as_reference
from dragontune.distances.inputs import Array, tensor, vectors, whole
from dragontune.errors import InputError
from dragontune.seeding import Key

INFINITY = 5000
"""Below this many samples the extrapolation to infinity adds more noise than it takes away bias."""


@dataclass(frozen=True)
class Null:
    """A distance between sets of one distribution: its mean and the interval that holds 95 % of the draws."""

    mean: float
    low: float
    high: float
    draws: int


def null_distance(
    real: Array | Sequence[Array],
    reference: Fit,
    size: int,
    *,
    draws: int = 100,
    seed: int = 0,
    distance: Callable[[Tensor, Any], Tensor] = frechet_distance,
) -> Null:
    """What `distance` to the reference `size` real items have, drawn without replacement, `draws` times.

    `real` are items that are not part of the reference: vectors (n x dim), or items of frames (n x frames x dim or a
    list), which are drawn whole and pooled. A generated set of the same size whose distance is within the interval
    can't be told from real ones by this distance.

    Raises InputError where `real` has fewer than `size` items.
    """
    items = [tensor(item) for item in (real if isinstance(real, list | tuple) else list(real))]
    kinds = {(item.ndim, item.shape[-1]) for item in items if item.ndim in (1, 2)}
    if len(kinds) != 1 or any(item.ndim not in (1, 2) for item in items):
        raise InputError("expected real items as vectors or as frames, all of one dimension: embed all the same way")
    if whole(size, "size", 2, "a distance of a set needs two items") > len(items):
        raise InputError(f"expected a size from 2 to the {len(items)} real items there are, got {size}: lower it")
    whole(draws, "draws", 2, "100 is a start")
    fit = as_reference(reference) if distance is frechet_distance else reference
    values = list[float]()
    for draw in range(draws):
        chosen = Key(seed).fold("null", draw).permutation(len(items))[:size].tolist()
        rows = [items[row] for row in chosen]
        pooled = torch.stack(rows) if rows[0].ndim == 1 else torch.cat(rows)
        values.append(float(distance(pooled, fit)))
    spread = torch.tensor(values, dtype=torch.float64)
    low, high = spread.quantile(spread.new_tensor([0.025, 0.975])).tolist()
    return Null(spread.mean().item(), low, high, draws)


def frechet_infinity(x: Array, y: Fit, *, sizes: int = 15, seed: int = 0) -> Float[Tensor, ""]:
    """The distance extrapolated to infinitely many samples (Chong & Forsyth 2020); it may be below 0.

    A line through the distances of random subsets against 1 / size, at 1 / size = 0. The subsets
    are drawn without replacement, from an eighth of the samples to all of them.

    Raises InputError below 5,000 samples, where the plain distance at equal sizes is the better comparison
    (docs/distances.md).
    """
    rows = vectors(x, "x")
    if len(rows) < INFINITY:
        raise InputError(
            f"expected {INFINITY} samples or more to extrapolate from, got {len(rows)}: compare plain distances of "
            "sets of equal size, beside null_distance"
        )
    whole(sizes, "sizes", 2, "15 is a start")
    fit = as_reference(y)
    inverse, values = list[float](), list[float]()
    for number, share in enumerate(torch.linspace(1 / 8, 1, sizes).tolist()):
        size = round(share * len(rows))
        some = Key(seed).fold("infinity", number).permutation(len(rows))[:size].to(rows.device)
        inverse.append(1 / size)
        values.append(float(frechet_distance(rows[some], fit)))
    at = torch.tensor(inverse, dtype=torch.float64)
    line = torch.linalg.lstsq(
        torch.stack([torch.ones_like(at), at], 1), torch.tensor(values, dtype=torch.float64)[:, None]
    )
    return line.solution[0, 0]
