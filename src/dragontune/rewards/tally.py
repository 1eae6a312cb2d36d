"""A set that comes part by part: what is kept of it until it is scored."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from dragontune.data import Rows, join_columns

F = TypeVar("F", bound=Tensor | Rows)

PARTS = 256
"""Parts that wait before they are joined: many small tensors take several times the memory of their numbers."""
TOGETHER = 64
"""Parts that wait before they are scored, where each item is scored by itself."""


class Tally(ABC, Generic[F]):
    """Takes the features of a set's items, some at a time, and scores all of them at the end."""

    @abstractmethod
    def add(self, features: F) -> None:
        """The features of more items."""

    @abstractmethod
    def score(self) -> Float[Tensor, " *scores"]:
        """The score of the set, or of each item; InputError where the reward refuses it."""


class Everything(Tally[F]):
    """Keeps all features."""

    def __init__(self, score: Callable[[F], Tensor]) -> None:
        self._score = score
        self._joined: list[F] = []
        self._parts: list[F] = []

    def add(self, features: F) -> None:
        """Keep them."""
        self._parts.append(features)
        if len(self._parts) == PARTS:
            self._joined.append(join_columns(self._parts))
            self._parts = []

    def score(self) -> Float[Tensor, " *scores"]:
        """Of all of them together."""
        return self._score(join_columns([*self._joined, *self._parts]))


class Scores(Tally[F]):
    """Scores each item by itself and keeps nothing else, but for a few items at a time."""

    def __init__(self, score: Callable[[F], Tensor]) -> None:
        self._score = score
        self._parts: list[F] = []
        self._scores: list[Tensor] = []

    def add(self, features: F) -> None:
        """Score them, soon."""
        self._parts.append(features)
        if len(self._parts) == TOGETHER:
            self._settle()

    def score(self) -> Float[Tensor, " n"]:
        """Of every item, on the CPU in double precision."""
        if self._parts:
            self._settle()
        return torch.cat(self._scores) if self._scores else torch.zeros(0, dtype=torch.float64)

    def _settle(self) -> None:
        self._scores.append(self._score(join_columns(self._parts)).double().cpu())
        self._parts = []
