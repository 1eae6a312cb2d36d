"""Records that travel through the house. All are frozen, and all have one row per item."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

R = TypeVar("R", bound="Rows")


@dataclass(frozen=True, eq=False)
class Rows:
    """A record of equally long columns (tensors, tuples, other `Rows`): count, index and join its rows.

    A column of any other type (a sample rate, `None`) is a constant, shared by all rows.
    """

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def __getitem__(self: R, index: Int[Tensor, " k"]) -> R:
        return type(self)(*(_take(getattr(self, field.name), index) for field in fields(self)))

    @classmethod
    def join(cls: type[R], parts: Sequence[R]) -> R:
        """Stack the rows of `parts`, in order; constants must agree."""
        if len(parts) == 1:
            return parts[0]
        return cls(*(join_columns([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def chunks(self: R, size: int) -> list[R]:
        """Consecutive pieces of at most `size` rows."""
        return [self[rows] for rows in torch.arange(len(self)).split(size)]


def _take(column: Any, index: Tensor) -> Any:  # noqa: ANN401 - a column is of any kind
    match column:
        case Tensor():
            return column[index.to(column.device)]
        case Rows():
            return column[index]
        case tuple():
            return tuple(column[i] for i in index.tolist())
        case _:
            return column


def join_columns(columns: Sequence[Any]) -> Any:  # noqa: ANN401 - a column is of any kind
    """Stack columns of one kind, or agree on a constant."""
    first = columns[0]
    match first:
        case Tensor():
            return torch.cat(list(columns))
        case Rows():
            return type(first).join(columns)
        case tuple():
            return tuple(value for column in columns for value in column)
        case _:
            if any(column != first for column in columns[1:]):
                raise ValueError(f"rows with different constants cannot be joined: {columns}")
            return first


Media = Tensor | Rows
"""Media with one row per item: `Audio`, `Images` or `Video` of `dragontune.media`, or a plain tensor."""


@dataclass(frozen=True, eq=False)
class Samples(Rows):
    """A batch of generations: what was asked, the clean latents, the decoded media (None: not decoded)."""

    prompts: tuple[str, ...]
    latents: Shaped[Tensor, " n *latent"]
    media: Media | None


@dataclass(frozen=True, eq=False)
class Demonstrations(Rows):
    """`positive[i]` belongs to D+, `negative[i]` to D-; two generations of one prompt, unless divided unpaired."""

    positive: Samples
    negative: Samples
