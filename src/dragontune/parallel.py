"""What processes say to each other: the only file that knows of ranks."""

from collections.abc import Iterable
from typing import TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor

from dragontune.data import join_columns

T = TypeVar("T")


def is_main() -> bool:
    """Whether this process writes files and speaks to the user."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def processes() -> int:
    """How many there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def share(count: int) -> Int[Tensor, " k"]:
    """The consecutive part of 0 .. count - 1 that is this process's work."""
    numbers = torch.arange(count)
    if not (dist.is_available() and dist.is_initialized()):
        return numbers
    return numbers.tensor_split(dist.get_world_size())[dist.get_rank()]


def gather_rows(rows: T) -> T:
    """The rows of every process, in the order of ranks; `rows` itself where there is one process."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows
    parts: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, rows)
    return join_columns(parts)


def add_up(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor, in place, by its sum over all processes."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    for tensor in tensors:
        dist.all_reduce(tensor)
