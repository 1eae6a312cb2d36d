"""What comes in: arrays of any kind, checked, as rows of floating-point numbers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dragontune.errors import InputError

Array = Tensor | np.ndarray | Sequence[Any]
"""Numbers: a tensor, a NumPy array, or lists of numbers."""

LARGEST = 1e60
"""Numbers beyond this have squares of squares that overflow."""


def tensor(values: Array, dtype: torch.dtype = torch.float64) -> Tensor:
    """A real tensor on its own device; on the CPU if that device has no float64 (Apple's). NumPy arrays are copied.

    Raises InputError for what is no array of real numbers.
    """
    try:
        if isinstance(values, Tensor):
            found = values.to_dense() if values.is_sparse else values
        else:
            array = np.asarray(values)
            if array.dtype.kind not in "fiubc":
                raise TypeError(f"an array of {array.dtype}")
            found = torch.from_numpy(array.astype(np.complex128 if array.dtype.kind == "c" else np.float64, order="C"))
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise InputError(
            f"expected numbers in a tensor or a NumPy array, got {type(values).__name__} ({error}): convert it"
        ) from error
    if found.is_complex():
        raise InputError(f"expected real numbers, got {found.dtype}: take the real part if the rest is rounding noise")
    if found.device.type == "mps":
        found = found.cpu()
    return found.to(dtype)


def vectors(
    values: Array, name: str, least: int = 2, dim: int | None = None, dtype: torch.dtype = torch.float64
) -> Float[Tensor, " n dim"]:
    """Rows of finite vectors, at least `least` of them, of length `dim` if that is given.

    Raises:
        InputError: another number of axes, too few rows, no columns, NaN or infinity.
    """
    found = tensor(values, dtype)
    if found.ndim != 2:
        raise InputError(f"expected {name} as rows of vectors (n x dim), got shape {tuple(found.shape)}: reshape it")
    if found.shape[1] == 0:
        raise InputError(f"expected vectors of 1 number or more in {name}, got shape {tuple(found.shape)}: embed them")
    if len(found) < least:
        some = f"{least} vectors" if least > 1 else "1 vector"
        raise InputError(f"expected {some} or more in {name}, got shape {tuple(found.shape)}: add items")
    if dim is not None and found.shape[1] != dim:
        raise InputError(
            f"expected vectors of dimension {dim} in {name}, got {found.shape[1]}: embed both with the same encoder"
        )
    return finite(found, name)


def finite(values: Tensor, name: str) -> Tensor:
    """The same tensor; InputError names the first row that holds NaN or infinity."""
    bad = ~values.detach().isfinite()
    if bad.any():
        where = tuple(bad.nonzero()[0].tolist())
        raise InputError(
            f"expected finite numbers in {name}, got {values.detach()[where].item()} at {list(where)}: "
            "look for a broken item"
        )
    return values


def usual(values: Tensor, name: str) -> Tensor:
    """The same tensor; InputError where squares of its squares overflow."""
    largest = values.detach().abs().max().item() if values.numel() else 0.0
    if largest > LARGEST:
        raise InputError(
            f"expected numbers up to {LARGEST:g} in {name}, got {largest:.3g}: bring them to a usual scale"
        )
    return values


def positive(value: float, name: str) -> float:
    """The same number; InputError unless it is finite and above 0."""
    if not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise InputError(f"expected a finite {name} above 0, got {value}: leave it out for the default")
    return value


def whole(value: int, name: str, least: int, remedy: str) -> int:
    """The same whole number; InputError below `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InputError(f"expected a whole number of {least} or more as {name}, got {value!r}: {remedy}")
    return int(value)
