"""What a user's function returned, read as numbers, or refused in one sentence."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dragontune.errors import InputError, NonFiniteError


def numbers(scores: Any, count: int, name: str) -> Float[Tensor, " n"]:  # noqa: ANN401 - whatever came back
    """One number an item, float64 on the CPU.

    Raises:
        InputError: something else came back; the message says what.
    """
    wrong = InputError(
        f"expected {count} numbers from {name}, one an item, got {shown(scores)}; return a list, tuple, NumPy array "
        f"or tensor of {count} numbers"
    )
    match scores:
        case list() | tuple():
            values = [number(value) for value in scores]
            if len(values) != count or None in values:
                raise wrong
            return torch.tensor(values, dtype=torch.float64)
        case Tensor() if scores.shape == (count,) and not scores.is_complex():
            return scores.detach().to("cpu", torch.float64)
        case np.ndarray() if scores.shape == (count,) and scores.dtype.kind in "biuf":
            return torch.from_numpy(np.array(scores, dtype=np.float64))
        case _:
            raise wrong


def number(value: Any) -> float | None:  # noqa: ANN401 - whatever came back
    """A real number of any library as a float; None if it is none."""
    if isinstance(value, Tensor | np.ndarray) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, Real | np.bool_):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def finite(scores: Float[Tensor, " n"], prompts: Sequence[str], name: str) -> Float[Tensor, " n"]:
    """The scores, if all are finite.

    Raises:
        NonFiniteError: one is not; the message names the item and its prompt.
    """
    wrong = (~scores.isfinite()).nonzero().flatten().tolist()
    if wrong:
        row = wrong[0]
        raise NonFiniteError(
            f"{name} gave {scores[row].item()} for item {row + 1} of the {len(scores)} it was given (prompt "
            f"{prompts[row]!r}); return a finite number for every item"
        )
    return scores


def shown(value: Any) -> str:  # noqa: ANN401 - whatever came back
    """What came, in a few words."""
    match value:
        case Tensor() | np.ndarray():
            kind = "a tensor" if isinstance(value, Tensor) else "an array"
            return f"{kind} of shape {tuple(value.shape)} and type {str(value.dtype).removeprefix('torch.')}"
        case list() | tuple():
            odd = next((item for item in value if number(item) is None), None)
            inside = f", of which one is {shown(odd)}" if odd is not None or None in list(value) else ""
            return f"a {type(value).__name__} of {len(value)}{inside}"
        case None:
            return "None"
        case str() | Real() | complex():
            return f"{type(value).__name__} {value!r}"[:80]
        case _:
            return f"{type(value).__name__} object"
