"""Several rewards, none at the cost of another: exchanges that lower a member are not taken (Pareto improvements).

Whether an exchange is taken depends on where the set stands, so this is a rule for dividing (a reward whose `swaps`
forbid some), not only a number. Left out: a front of many trade-offs; a search for the sets that dominate all others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dragontune.distances.swaps import Positions, Swaps, Total
from dragontune.errors import InputError
from dragontune.rewards.combine import Parts, Sum


@dataclass(frozen=True, eq=False)
class Pareto(Sum):
    """An exchange is taken only if no member gets worse and the weighted sum gets better.

    D+ begins as the set with the higher weighted sum, whether it dominates the other or not; from there no member
    falls. With instance rewards only, a pair is turned round only if the other item is better or equal in all of them.
    A member of weight 0 is guarded and not raised.

    `tolerance`, in units of `scales` (raw scores unless they are given or running), is how far a member may fall below
    the best value it has had since the division began; 0 forbids any fall.
    """

    tolerance: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.tolerance < float("inf"):
            raise InputError(f"expected a tolerance of 0 or more, got {self.tolerance}; 0 lets no member fall")
        for name, weight in self.weights.items():
            if weight < 0:
                raise InputError(f"expected weights of 0 or more in Pareto, got {weight} for {name!r}; correct it")

    @property
    def outermost(self) -> bool:
        """It cannot be a member of another reward: the other would not know what is forbidden."""
        return True

    def swaps(self, first: Parts, second: Parts) -> Swaps:
        """The sum of the members' exchanges, with those forbidden that lower a member."""
        scales = [self.scales.get(name, 1.0) for name in self.rewards]
        falls = [self.tolerance * scale if scale < float("inf") else 0.0 for scale in scales]
        return Guarded(self.terms(first, second), falls, self._offset)


class Guarded(Total):
    """A sum in which no term's own value may fall by more than `falls` below the highest that it has had."""

    steep = True

    def __init__(self, terms: Sequence[tuple[float, Swaps]], falls: Sequence[float], offset: float = 0.0) -> None:
        super().__init__(terms, offset)
        self._guarded, self._falls = [swaps for _, swaps in terms], falls
        self._highest = [swaps.value for swaps in self._guarded]
        self._kept: dict[str, Float[Tensor, " terms m c"]] = {}

    def allowed(self, i: Positions, j: Positions) -> Bool[Tensor, " k"]:
        """Whether no term falls; a value that is NaN is left to the caller."""
        after = torch.stack([swaps.pairs(i, j).cpu() for swaps in self._guarded])
        return ~(after < self._floors()[:, None]).any(0)

    def allowed_table(self) -> Bool[Tensor, " m c"]:
        """From the terms' tables."""
        return self._allowed(self._tables())

    def allowed_screen(self) -> Bool[Tensor, " m c"]:
        """From the terms' first looks."""
        return self._allowed(self._screens())

    def table(self) -> Float[Tensor, " m c"]:
        """The sum of the terms' tables, which are kept until the next exchange."""
        return self._sum(self._tables())

    def screen(self) -> Float[Tensor, " m c"]:
        """The sum of the terms' first looks; likewise."""
        return self._sum(self._screens())

    def _exchanged(self, i: int, j: int) -> None:
        super()._exchanged(i, j)
        self._kept.clear()
        self._highest = [max(high, swaps.value) for high, swaps in zip(self._highest, self._guarded, strict=True)]

    def _tables(self) -> Float[Tensor, " terms m c"]:
        if "tables" not in self._kept:
            self._kept["tables"] = torch.stack([swaps.table().cpu() for swaps in self._guarded])
        return self._kept["tables"]

    def _screens(self) -> Float[Tensor, " terms m c"]:
        if "screens" not in self._kept:
            self._kept["screens"] = torch.stack([swaps.screen().cpu() for swaps in self._guarded])
        return self._kept["screens"]

    def _sum(self, values: Float[Tensor, " terms m c"]) -> Float[Tensor, " m c"]:
        factors = torch.tensor([term.factor for term in self._terms], dtype=torch.float64)
        return (factors[:, None, None] * values).sum(0) + self._offset

    def _allowed(self, values: Float[Tensor, " terms m c"]) -> Bool[Tensor, " m c"]:
        return ~(values < self._floors()[:, None, None]).any(0)

    def _floors(self) -> Float[Tensor, " terms"]:
        """The lowest value that each term may have; rounding is no fall."""
        floors = [
            high - fall - swaps.rounding
            for high, fall, swaps in zip(self._highest, self._falls, self._guarded, strict=True)
        ]
        return torch.tensor(floors, dtype=torch.float64)
