"""What comes in: arrays of any kind, checked, as rows of floating-point numbers."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dragontune.errors import InputError

Array = Tensor | np.ndarray


def tensor(values: Array, dtype: torch.dtype = torch.float64) -> Tensor:
    """A real tensor on its own device; on the CPU if that device has no float64 (Apple's)."""
    found = torch.as_tensor(values)
    if found.is_complex():
        raise InputError(f"expected real numbers, got {found.dtype}: take the real part if the rest is rounding noise")
    if dtype == torch.float64 and found.device.type == "mps":
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
    if found.shape[1] == 0 or len(found) < least:
        raise InputError(f"expected {least} vectors or more in {name}, got shape {tuple(found.shape)}: add items")
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


def positive(value: float, name: str) -> float:
    """The same number; InputError unless it is finite and above 0."""
    if not 0 < value < float("inf"):
        raise InputError(f"expected a finite {name} above 0, got {value}: leave it out for the default")
    return value
