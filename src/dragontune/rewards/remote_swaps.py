"""Features of a set that only a service can read, and exchanges of items that it computes, many in a request."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dragontune.data import Rows
from dragontune.distances.swaps import Positions, Swaps
from dragontune.errors import NonFiniteError
from dragontune.wire import Message, WireError


@dataclass(frozen=True, eq=False)
class Items(Rows):
    """One message an item, as the service packed it."""

    packed: tuple[Tensor, ...]
    """Bytes, as tensors, which processes can exchange."""

    def tensors(self) -> dict[str, Tensor]:
        """All in one message: the bytes one after another, and how many are whose."""
        lengths = torch.tensor([len(item) for item in self.packed], dtype=torch.int64)
        return {"items": torch.cat([torch.zeros(0, dtype=torch.uint8), *self.packed]), "lengths": lengths}

    @classmethod
    def read(cls, message: Message, count: int) -> "Items":
        """The inverse; WireError unless there are `count`."""
        lengths = message.tensor("lengths", (count,), torch.int64).tolist()
        if any(length < 0 for length in lengths):
            raise WireError("items of a length below 0")
        return cls(tuple(part.clone() for part in message.tensor("items", (sum(lengths),), torch.uint8).split(lengths)))


Ask = Callable[[dict[str, object], dict[str, Tensor], Callable[[Message], Any]], Any]
"""Ask the service about the items of a set: a header, tensors, and what to make of the reply, which is returned."""


@dataclass(frozen=True)
class _Composition:
    """What the service said of one composition of the set."""

    value: float
    rounding: float
    approximate: bool
    steep: bool
    pairs: dict[tuple[int, int], tuple[float, bool]]


class RemoteSwaps(Swaps):
    """Exchanges that a service computes.

    A question about the exchange of the two items of one prompt asks about all such exchanges, since those are what
    comes next; everything is remembered until an exchange is accepted.
    """

    def __init__(self, ask: Ask, members: int, candidates: int) -> None:
        super().__init__(members, candidates)
        self._ask = ask
        self._tables: dict[str, tuple[Tensor, Tensor]] = {}
        known = self._begin()
        self._known: _Composition | None = known
        self.approximate, self.steep = known.approximate, known.steep

    @property
    def value(self) -> float:
        """Of the set as it is."""
        return self._now.value

    @property
    def rounding(self) -> float:
        """As the service's reward says."""
        return self._now.rounding

    def pairs(self, i: Positions, j: Positions) -> Float[Tensor, " k"]:
        """The value after each exchange."""
        return torch.tensor([value for value, _ in self._of(i, j)], dtype=torch.float64)

    def allowed(self, i: Positions, j: Positions) -> Bool[Tensor, " k"]:
        """Whether each exchange is allowed."""
        return torch.tensor([allowed for _, allowed in self._of(i, j)], dtype=torch.bool)

    def table(self) -> Float[Tensor, " m c"]:
        """The value after every exchange."""
        return self._every("table")[0]

    def allowed_table(self) -> Bool[Tensor, " m c"]:
        """Whether every exchange is allowed."""
        return self._every("table")[1]

    def screen(self) -> Float[Tensor, " m c"]:
        """The service's first look."""
        return self._every("screen")[0]

    def allowed_screen(self) -> Bool[Tensor, " m c"]:
        """The service's first look at what is allowed."""
        return self._every("screen")[1]

    @property
    def _now(self) -> _Composition:
        if self._known is None:
            self._known = self._begin()
        return self._known

    def _exchanged(self, i: int, j: int) -> None:
        self._known, self._tables = None, {}

    def _begin(self) -> _Composition:
        """With the exchanges within prompts, where members and candidates are as many."""
        count = min(len(self.members), len(self.candidates))
        rows = torch.arange(count)

        def read(reply: Message) -> _Composition:
            value, rounding = (float(reply.tensor(name, (), torch.float64)) for name in ("value", "rounding"))
            if not (isfinite(value) and 0 <= rounding < inf):  # nothing would ever be an improvement on it
                raise NonFiniteError(f"the reward of a set is {value} (to {rounding}) at the service: not finite")
            values, allowed = _answers(reply, (count,))
            known = dict(zip(zip(range(count), range(count), strict=True), _pairs(values, allowed), strict=True))
            return _Composition(value, rounding, reply.get("approximate", bool), reply.get("steep", bool), known)

        return self._ask({"ask": "pairs"}, self._rows(rows, rows), read)

    def _of(self, i: Positions, j: Positions) -> Sequence[tuple[float, bool]]:
        first, second = self.positions(i, j)
        wanted = list(zip(first.tolist(), second.tolist(), strict=True))
        known = self._now.pairs
        if missing := sorted({pair for pair in wanted if pair not in known}):
            a, b = torch.tensor(missing).T

            def read(reply: Message) -> list[tuple[float, bool]]:
                return _pairs(*_answers(reply, (len(missing),)))

            known.update(zip(missing, self._ask({"ask": "pairs"}, self._rows(a, b), read), strict=True))
        return [known[pair] for pair in wanted]

    def _every(self, what: str) -> tuple[Tensor, Tensor]:
        if what not in self._tables:
            shape = (len(self.members), len(self.candidates))
            nothing = torch.arange(0)
            self._tables[what] = self._ask(
                {"ask": what}, self._rows(nothing, nothing), lambda reply: _answers(reply, shape)
            )
        return self._tables[what]

    def _rows(self, i: Tensor, j: Tensor) -> dict[str, Tensor]:
        return {"members": self.members, "candidates": self.candidates, "i": i.long(), "j": j.long()}


def _answers(reply: Message, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    return reply.tensor("values", shape, torch.float64), reply.tensor("allowed", shape, torch.bool)


def _pairs(values: Tensor, allowed: Tensor) -> list[tuple[float, bool]]:
    if len(values) != len(allowed):
        raise WireError("values without word whether they are allowed")
    return list(zip(values.tolist(), allowed.tolist(), strict=True))
