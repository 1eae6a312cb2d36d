"""AlignProp (Prabhudesai, Goyal, Pathak & Fragkiadaki 2023, arXiv 2310.03739): DRaFT-K with K drawn anew every update.

The predictions of the first tau steps are detached, which zeroes both their own gradient and the one that would pass
through them: T - tau steps carry gradients. A random tau takes out the bias of a fixed one. Left out: mixing
checkpoints at evaluation, which `generate --adapter A:0.5 B:0.5` does for any adapters.
"""

from dataclasses import dataclass
from itertools import count
from math import isfinite
from statistics import NormalDist
from typing import Literal

from dragontune.algorithms.draft import Draft
from dragontune.errors import InputError
from dragontune.seeding import Key

RAREST = 0.01
"""How often a draw must be accepted."""


@dataclass(frozen=True, eq=False)
class AlignProp(Draft):
    """Gradients through the last T - tau of T steps; `last` is not used.

    `gaussian`: tau = int(N(mean T, (deviation T)^2)), drawn until 1 <= tau < T; with the defaults and the paper's T of
    50 that is its N(42, 5). `uniform`: tau from 1 to T - 1. `fixed`: tau = int(mean T), between 1 and T - 1.

    >>> AlignProp(generator, Alignment(TinyClap()), sampler=Sampler(steps=50), truncation="uniform")
    """

    truncation: Literal["gaussian", "uniform", "fixed"] = "gaussian"
    mean: float = 0.84
    """As a share of the steps."""
    deviation: float = 0.1
    """As a share of the steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampler.steps < 2:
            raise InputError(
                "expected a sampler of 2 steps or more for AlignProp, which detaches at least one, got 1; raise "
                "sampler.steps or use Draft"
            )
        if not 0 < self.mean < 1:
            raise InputError(f"expected AlignProp's mean between 0 and 1, got {self.mean}; the paper's is 0.84")
        if not (isfinite(self.deviation) and 0 < self.deviation <= 1):
            raise InputError(
                f"expected AlignProp's deviation above 0 and up to 1, got {self.deviation}; the paper's is 0.1"
            )
        if self.truncation == "gaussian" and self._accepted() < RAREST:
            raise InputError(
                f"expected AlignProp's mean and deviation to give 1 <= tau < {self.sampler.steps} now and then, got "
                f"{self.mean} and {self.deviation}, which hardly ever do; raise deviation or use truncation: fixed"
            )
        if self.last != 1:
            raise InputError(
                f"expected no last for AlignProp, which draws the number of steps, got {self.last}; remove it, or use "
                "Draft for a fixed number"
            )

    def tau(self, key: Key) -> int:
        """How many steps of an update are detached."""
        steps = self.sampler.steps
        if self.truncation == "uniform":
            return 1 + int(key.uniform([0]).item() * (steps - 1))
        if self.truncation == "fixed":
            return min(max(1, int(self.mean * steps + 1e-9)), steps - 1)
        for number in count():
            found = int(steps * (self.mean + self.deviation * key.normal([number], (1,)).item()))
            if 1 <= found < steps:
                return found
        raise AssertionError("a draw is accepted sooner or later")

    def _accepted(self) -> float:
        """The probability that the first draw of the Gaussian is."""
        law, steps = NormalDist(self.mean, self.deviation), self.sampler.steps
        return law.cdf(1) - law.cdf(1 / steps)

    def depth(self, key: Key) -> int:
        """T - tau."""
        return self.sampler.steps - self.tau(key)
