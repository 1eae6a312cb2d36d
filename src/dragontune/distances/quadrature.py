"""Integrals over (0, inf) by the trapezoid rule in log t, which converges geometrically for analytic integrands.

For an integrand that is analytic in the strip |Im log t| < `strip`, a step of 2 pi strip / log(1 / tol) leaves an
error of about tol (Trefethen & Weideman 2014, section 5).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Nodes:
    """Where to evaluate, and the weight (dt) of each value."""

    t: Float[Tensor, " nodes"]
    weight: Float[Tensor, " nodes"]
    low: int
    """How many of the nodes lie below the scale of the problem."""
    scale: float

    def to(self, device: torch.device) -> "Nodes":
        """On another device."""
        return Nodes(self.t.to(device), self.weight.to(device), self.low, self.scale)

    def tail(self, change: Tensor) -> Tensor:
        """What the sum over the nodes leaves out of integrands that end like change / t^2.

        That is the integral of change / (t^2 + scale^2), pi / (2 scale), without the share that the sum already has.
        """
        share = (self.weight / (self.t.square() + self.scale**2)).sum().item()
        return change * (math.pi / (2 * self.scale) - share)


def log_nodes(
    scale: float, tolerance: float, strip: float, left: float, right: float, smallest: float | None = None
) -> Nodes:
    """Nodes for an integrand f with t f(t) of the order of t^left below `scale` and of t^-right above it.

    Where a batch of integrands has several scales, `scale` is the largest and `smallest` the smallest.
    """
    digits = math.log(30 / tolerance)
    step = 2 * math.pi * strip / digits
    start, stop = math.log(smallest or scale) - digits / left, math.log(scale) + digits / right
    t = torch.arange(start, stop + step, step, dtype=torch.float64).exp()
    return Nodes(t, step * t, int((t < scale).sum()), scale)
