"""The gradient of a batch, added up over its micro-batches and over all processes in double precision.

A sum of float32 numbers in float64 is exact unless they differ in size by more than about 2^24, so neither their order
nor which process worked on which micro-batch changes a bit of it: one process or eight that work on the same
micro-batches take the same step. Left out: the rounding within a micro-batch, which depends on how many rows it has.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dragontune.parallel import add_up, processes


@dataclass(eq=False)
class GradientSum:
    """Takes what `backward` leaves in `weights`, one micro-batch after the other, and puts the sum there in the end."""

    weights: Sequence[nn.Parameter]
    parts: int
    """How many micro-batches this process works on; of a single one, on one process, no copy is made."""
    _sums: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._clear()

    @torch.no_grad()
    def take(self) -> None:
        """Add what the weights hold, and clear it; weights that a loss did not reach count as 0."""
        if not self._several:
            return
        if not self._sums:
            self._sums = [torch.zeros_like(weight, dtype=torch.float64) for weight in self.weights]
        for total, weight in zip(self._sums, self.weights, strict=True):
            if weight.grad is not None:
                total += weight.grad
        self._clear()

    def drop(self) -> None:
        """Clear what the weights hold: it was work for the sake of other processes."""
        self._clear()

    @torch.no_grad()
    def hand_over(self) -> list[Tensor]:
        """The sum of all processes, as gradients of the weights; all call this at once."""
        if self._several:
            sums = self._sums or [torch.zeros_like(weight, dtype=torch.float64) for weight in self.weights]
            add_up(sums)
            for total, weight in zip(sums, self.weights, strict=True):
                weight.grad = total.to(weight.dtype)
            self._sums = []
        found = list[Tensor]()
        for weight in self.weights:
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
            found.append(weight.grad)
        return found

    @property
    def _several(self) -> bool:
        return self.parts > 1 or processes() > 1

    def _clear(self) -> None:
        for weight in self.weights:
            weight.grad = None
