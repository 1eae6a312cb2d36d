"""How much of what the exemplars are a set reaches: recall (Kynkäänniemi et al. 2019), coverage (Naeem et al. 2020).

An item and an exemplar are their mean frame. Both are shares of exemplars, so they move in steps and have no gradient;
exchanges are scored from scratch. Left out as rewards: precision and density, which collapse a set onto few exemplars.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from dragontune.data import Samples
from dragontune.distances.neighbours import coverage, recall
from dragontune.errors import InputError
from dragontune.rewards.base import DistributionReward
from dragontune.rewards.exemplar import ExemplarReward


@dataclass(frozen=True, eq=False)
class NeighbourReward(ExemplarReward[Tensor], DistributionReward[Tensor]):
    """`k`: which neighbour gives a ball its radius."""

    k: int = 5

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"expected k of 1 or more neighbours, got {self.k}: 5 is usual")

    def encode(self, samples: Samples) -> Float[Tensor, " n dim"]:
        """The mean frame of each item, on the CPU in double precision."""
        return self.encoder.encode(samples).double_on_cpu().mean().detach()


@dataclass(frozen=True, eq=False)
class Coverage(NeighbourReward):
    """The share of exemplars that have an item of the set among what lies as near as their `k`-th nearest exemplar."""

    def score(self, features: Float[Tensor, " n dim"]) -> Float[Tensor, ""]:
        """From 0 to 1."""
        self.check_set(features)
        return coverage(features, self.check_exemplars(self.k + 1), self.k)


@dataclass(frozen=True, eq=False)
class Recall(NeighbourReward):
    """The share of exemplars that lie within the `k`-th nearest neighbour's distance of an item of the set."""

    @property
    def minimum(self) -> int:
        """Every item needs `k` neighbours."""
        return self.k + 1

    def score(self, features: Float[Tensor, " n dim"]) -> Float[Tensor, ""]:
        """From 0 to 1."""
        self.check_set(features)
        return recall(features, self.check_exemplars(1), self.k)
