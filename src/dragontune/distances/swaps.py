"""Swaps: a set, candidates to exchange its members with, and what every exchange would make of the set's value.

A set of m members and c candidates has m c single exchanges. The distances of this package answer all of them at once
(`table`), some of them (`pairs`), and carry one out (`accept`): the member and the candidate change places, so that
members and candidates together always hold the same items. Whether high or low is good is the caller's affair.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dragontune.errors import InputError

Positions = Int[Tensor, " k"] | Sequence[int] | int
MEMORY = 256 * 2**20
"""Bytes that a table may use for its intermediate results unless the caller says otherwise."""

MARGIN = 1e-10
"""A change of a value by less than this share of it is rounding."""


class Swaps(ABC):
    """The members are the rows `members` of the items given (the set's, then the candidates'); likewise `candidates`.

    >>> swaps = FrechetSwaps(embeddings, reference, others)
    >>> i, j = divmod(int(swaps.table().argmin()), len(others))
    >>> swaps.accept(i, j)
    """

    def __init__(self, members: int, candidates: int) -> None:
        self.members = torch.arange(members)
        self.candidates = torch.arange(members, members + candidates)

    @property
    @abstractmethod
    def value(self) -> float:
        """Of the set as it is."""

    @abstractmethod
    def pairs(self, i: Positions, j: Positions) -> Float[Tensor, " k"]:
        """The value after exchanging member i[k] with candidate j[k], for each k by itself (float64)."""

    def table(self) -> Float[Tensor, " m c"]:
        """The value after every single exchange (float64); changes nothing."""
        m, c = len(self.members), len(self.candidates)
        i, j = torch.arange(m).repeat_interleave(c), torch.arange(c).repeat(m)
        return self.pairs(i, j).reshape(m, c)

    @property
    def rounding(self) -> float:
        """Changes of the value up to this size are rounding."""
        return MARGIN * abs(self.value)

    def allowed(self, i: Positions, j: Positions) -> Bool[Tensor, " k"]:
        """Whether member i[k] may be exchanged with candidate j[k], whatever it makes of the value: here always."""
        return torch.ones(len(self.positions(i, j)[0]), dtype=torch.bool)

    def allowed_table(self) -> Bool[Tensor, " m c"]:
        """Whether each single exchange is allowed."""
        return torch.ones(len(self.members), len(self.candidates), dtype=torch.bool)

    def allowed_screen(self) -> Bool[Tensor, " m c"]:
        """A first look at what is allowed, as `screen` is one at the values."""
        return self.allowed_table()

    def accept(self, i: int, j: int) -> None:
        """Exchange member i with candidate j."""
        first, second = self.positions(i, j)
        if len(first) != 1:
            raise InputError(f"expected one exchange to accept, got {len(first)}: accept them one after another")
        i, j = int(first[0]), int(second[0])
        row = self.members[i].clone()
        self.members[i], self.candidates[j] = self.candidates[j], row
        self._exchanged(i, j)

    approximate: bool = False
    """Whether `screen` is quicker than `table`, and only nearly right."""

    steep: bool = False
    """Whether near values can hide a step or something forbidden, so that `best` must not end on a first look."""

    def screen(self) -> Float[Tensor, " m c"]:
        """A first look at every exchange: the table, unless `approximate`."""
        return self.table()

    def best(
        self, highest: bool = False, verify: int = 10, look: Float[Tensor, " m c"] | None = None
    ) -> tuple[int, int, float]:
        """The exchange with the lowest (or highest) value, and that value.

        Where the first look is approximate, the best `verify` of it are evaluated exactly; if none of these is allowed
        and an improvement and the swaps are `steep`, the table decides. `look` is the screen, if the caller has it.
        """
        if verify < 1:
            raise InputError(f"expected at least 1 exchange to verify, got {verify}: 10 is the default")
        look = self.screen() if look is None else look
        look = look if highest else -look
        width = look.shape[1]
        if not self.approximate:
            i, j = divmod(int(look.argmax()), width)
            return i, j, float(look[i, j] if highest else -look[i, j])
        places = look.flatten().topk(min(verify, look.numel())).indices.sort().values.cpu()
        values = self.pairs(places // width, places % width)
        if self.steep:
            sign = 1.0 if highest else -1.0
            gains = (sign * values.cpu()).masked_fill(~self.allowed(places // width, places % width), -torch.inf)
            if not bool((gains > sign * self.value + self.rounding).any()):
                gains = (sign * self.table().cpu()).masked_fill(~self.allowed_table(), -torch.inf)
                i, j = divmod(int(gains.argmax()), width)
                return i, j, sign * float(gains[i, j])
            values = sign * gains
        first = int(values.argmax() if highest else values.argmin())
        return int(places[first]) // width, int(places[first]) % width, float(values[first])

    @abstractmethod
    def _exchanged(self, i: int, j: int) -> None:
        """`members[i]` and `candidates[j]` have just changed places: bring what was precomputed up to date."""

    def positions(self, i: Positions, j: Positions) -> tuple[Int[Tensor, " k"], Int[Tensor, " k"]]:
        """Both as tensors of one length; InputError for positions that are not there."""
        found = []
        for name, given, count in (("member", i, len(self.members)), ("candidate", j, len(self.candidates))):
            try:
                at = torch.as_tensor(given).cpu().reshape(-1)
            except (TypeError, ValueError, RuntimeError) as error:
                raise InputError(f"expected whole numbers for the {name}, got {given!r}: convert them") from error
            if len(at) and (at.is_floating_point() or at.is_complex() or at.dtype == torch.bool):
                raise InputError(f"expected whole numbers for the {name}, got {at.dtype}: convert them")
            at = at.long()
            wrong = at[(at < 0) | (at >= count)]
            if len(wrong):
                raise InputError(
                    f"expected the position of a {name} from 0 to {count - 1}, got {int(wrong[0])}: choose one of these"
                )
            found.append(at)
        first, second = found
        if len(first) != len(second):
            if 1 not in (len(first), len(second)) or 0 in (len(first), len(second)):
                raise InputError(
                    f"expected as many members as candidates, got {len(first)} and {len(second)}: give pairs"
                )
            first, second = (at.expand(max(len(first), len(second))) for at in (first, second))
        return first, second


class Rescoring(Swaps):
    """Any function of a set, asked again for every exchange. `score` takes the rows of the members, in order."""

    def __init__(self, score: Callable[[Int[Tensor, " m"]], float], members: int, candidates: int) -> None:
        super().__init__(members, candidates)
        self._score = score
        self._value = score(self.members)

    @property
    def value(self) -> float:
        """The score of the members."""
        return self._value

    def pairs(self, i: Positions, j: Positions) -> Float[Tensor, " k"]:
        """One call of the function each."""
        return torch.tensor([self._after(*pair) for pair in _tuples(self.positions(i, j))], dtype=torch.float64)

    def _after(self, i: int, j: int) -> float:
        rows = self.members.clone()
        rows[i] = self.candidates[j]
        return self._score(rows)

    def _exchanged(self, i: int, j: int) -> None:
        self._value = self._score(self.members)


class Means(Swaps):
    """The mean of one number an item: every exchange in closed form."""

    def __init__(self, members: Float[Tensor, " m"], candidates: Float[Tensor, " c"]) -> None:
        super().__init__(len(members), len(candidates))
        self._items = torch.cat([members, candidates]).to("cpu", torch.float64)

    @property
    def value(self) -> float:
        """The mean of the members."""
        return self._items[self.members].mean().item()

    def pairs(self, i: Positions, j: Positions) -> Float[Tensor, " k"]:
        """The mean moves by the difference of the two items, divided by the size of the set."""
        i, j = self.positions(i, j)
        old, new = self._items[self.members[i]], self._items[self.candidates[j]]
        return self.value + (new - old) / len(self.members)

    def _exchanged(self, i: int, j: int) -> None:
        pass


@dataclass(frozen=True, eq=False)
class _Term:
    factor: float
    swaps: Swaps


class Total(Swaps):
    """A weighted sum of the values of several swaps over the same items, plus `offset`; one of factor -1: its negative.

    >>> Total([(1.0, Means(torch.tensor([1.0, 3.0]), torch.tensor([7.0])))], offset=0.5).table()
    tensor([[5.5000],
            [4.5000]], dtype=torch.float64)
    """

    def __init__(self, terms: Sequence[tuple[float, Swaps]], offset: float = 0.0) -> None:
        if not terms:
            raise InputError("expected at least one term of a sum of swaps, got none: add one")
        first, kinds = terms[0][1], {id(swaps) for _, swaps in terms}
        same = all(
            torch.equal(swaps.members, first.members) and torch.equal(swaps.candidates, first.candidates)
            for _, swaps in terms
        )
        if len(kinds) < len(terms) or not same:
            raise InputError("expected different swaps over the same items, got shared or unequal ones: make each anew")
        super().__init__(len(first.members), len(first.candidates))
        self.members, self.candidates = first.members.clone(), first.candidates.clone()
        self._terms, self._offset = [_Term(factor, swaps) for factor, swaps in terms], offset
        self.approximate = any(swaps.approximate for _, swaps in terms)
        self.steep = self.steep or any(swaps.steep for _, swaps in terms)

    @property
    def value(self) -> float:
        """The sum."""
        return sum(term.factor * term.swaps.value for term in self._terms) + self._offset

    @property
    def rounding(self) -> float:
        """That of all terms, however small their sum is."""
        return sum(abs(term.factor) * term.swaps.rounding for term in self._terms)

    def pairs(self, i: Positions, j: Positions) -> Float[Tensor, " k"]:
        """The sum of the terms' values."""
        return torch.stack([term.factor * term.swaps.pairs(i, j).cpu() for term in self._terms]).sum(0) + self._offset

    def table(self) -> Float[Tensor, " m c"]:
        """The sum of the terms' tables."""
        return torch.stack([term.factor * term.swaps.table().cpu() for term in self._terms]).sum(0) + self._offset

    def screen(self) -> Float[Tensor, " m c"]:
        """The sum of the terms' first looks."""
        return torch.stack([term.factor * term.swaps.screen().cpu() for term in self._terms]).sum(0) + self._offset

    def _exchanged(self, i: int, j: int) -> None:
        for term in self._terms:
            term.swaps.accept(i, j)


def _tuples(positions: tuple[Tensor, Tensor]) -> list[tuple[int, int]]:
    i, j = positions
    return list(zip(i.tolist(), j.tolist(), strict=True))
