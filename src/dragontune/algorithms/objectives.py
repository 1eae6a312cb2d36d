"""What is made small when a reward's own gradient is followed: minus the reward, or its distance to a target.

A target is the simplest guard against over-optimisation: a reward that has reached it pulls no further.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import isfinite

from jaxtyping import Float
from torch import Tensor

from dragontune.errors import InputError


class Objective(ABC):
    """From scores (higher is better) to losses, score by score."""

    @abstractmethod
    def losses(self, scores: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """One loss a score; gradients pass."""

    @property
    def capped(self) -> bool:
        """Whether it asks for nothing more where its loss is 0."""
        return True


@dataclass(frozen=True)
class Maximise(Objective):
    """-scale r: without an end (DRaFT, Clark et al. 2024, eq. 1)."""

    scale: float = 1.0

    def __post_init__(self) -> None:
        _check(self.scale)

    @property
    def capped(self) -> bool:
        """It always asks for more."""
        return False

    def losses(self, scores: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """Minus the scores."""
        return -self.scale * scores


@dataclass(frozen=True)
class Target(Objective):
    """scale |r - value|: scores above the target are pulled back (AlignProp, Prabhudesai et al. 2023, aesthetics).

    Their values are 10 for the LAION aesthetics score and a scale of 0.01.
    """

    value: float
    scale: float = 1.0

    def __post_init__(self) -> None:
        _check(self.scale, self.value)

    def losses(self, scores: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """The distances to the target."""
        return self.scale * (scores - self.value).abs()


@dataclass(frozen=True)
class Capped(Objective):
    """scale max(0, value - r): scores above the target are left alone."""

    value: float
    scale: float = 1.0

    def __post_init__(self) -> None:
        _check(self.scale, self.value)

    def losses(self, scores: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """What is missing to the target."""
        return self.scale * (self.value - scores).relu()


@dataclass(frozen=True)
class ImageRewardLoss(Objective):
    """0.001 max(0, 2 - r): ReFL's (Xu et al. 2023), for rewards on the scale of ImageReward."""

    def losses(self, scores: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """What is missing to 2, in thousandths."""
        return Capped(2.0, 1e-3).losses(scores)


def _check(scale: float, value: float = 0.0) -> None:
    if not (isfinite(scale) and scale > 0):
        raise InputError(f"expected a finite scale above 0 in algorithm.objective, got {scale}; leave it out for 1")
    if not isfinite(value):
        raise InputError(f"expected a finite value in algorithm.objective, got {value}; give the score to reach")
