"""AlignProp (Prabhudesai, Goyal, Pathak & Fragkiadaki 2023, arXiv 2310.03739): DRaFT-K with K drawn anew every update.

The predictions of the first tau steps are detached, which zeroes both their own gradient and the one that would pass
through them: T - tau steps carry gradients. A random tau takes out the bias of a fixed one. Left out: mixing
checkpoints at evaluation, which `generate --adapter A:0.5 B:0.5` does for any adapters.
"""

from dataclasses import dataclass
from math import isfinite
from typing import Literal

from dragontune.algorithms.draft import Draft
from dragontune.errors import InputError
from dragontune.seeding import Key

TRIES = 10_000
"""Draws before giving up; the fields are checked so that one in a hundred is accepted."""


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
            return min(max(1, int(self.mean * steps)), steps - 1)
        for number in range(TRIES):
            found = int(steps * (self.mean + self.deviation * key.normal([number], (1,)).item()))
            if 1 <= found < steps:
                return found
        raise InputError(
            f"expected AlignProp's mean and deviation to allow 1 <= tau < {steps}, got none in {TRIES} draws; raise "
            "deviation or use truncation: fixed"
        )

    def depth(self, key: Key) -> int:
        """T - tau."""
        return self.sampler.steps - self.tau(key)
