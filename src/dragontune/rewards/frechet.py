"""Fréchet rewards: minus the distance to exemplars, of a whole set or of each item (DRAGON, Bai et al. 2025).

A set's frames are pooled; an item is judged by its own frames. Left out: extrapolation to sets without end (evaluate
sets of one size instead).
"""

from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Float
from torch import Tensor

from dragontune.data import Samples
from dragontune.distances.frechet import Gaussian, frechet_distance, frechet_distance_per_item
from dragontune.distances.frechet_swaps import FrechetSwaps
from dragontune.distances.swaps import Swaps, Total
from dragontune.encoders.base import Embeddings
from dragontune.errors import InputError
from dragontune.rewards.base import DifferentiableReward, DistributionReward, InstanceReward
from dragontune.rewards.exemplar import ExemplarReward


@dataclass(frozen=True, eq=False)
class SetFrechet(ExemplarReward[Embeddings], DistributionReward[Embeddings], DifferentiableReward):
    """Minus the Fréchet distance of all frames of a set to those of the exemplars."""

    @property
    def distance(self) -> bool:
        """It is."""
        return True

    @property
    def minimum(self) -> int:
        """A covariance needs two items."""
        return 2

    @cached_property
    def target(self) -> Gaussian:
        """The exemplars."""
        return self.reference.gaussian

    def encode(self, samples: Samples) -> Embeddings:
        """Each item's frames, on the CPU in double precision."""
        return self.encoder.encode(samples).double_on_cpu()

    def score(self, features: Embeddings) -> Float[Tensor, ""]:
        """Minus the distance of the pooled frames."""
        self.check_set(features)
        return -frechet_distance(features.pooled(), self.target)

    def swaps(self, first: Embeddings, second: Embeddings) -> Swaps:
        """All exchanges at once."""
        return Total([(-1.0, FrechetSwaps(first.items(), self.target, second.items()))])


@dataclass(frozen=True, eq=False)
class SongFrechet(ExemplarReward[Tensor], InstanceReward[Tensor], DifferentiableReward):
    """Minus the Fréchet distance of one item's own frames to those of the exemplars."""

    @property
    def distance(self) -> bool:
        """It is."""
        return True

    @cached_property
    def target(self) -> Gaussian:
        """The exemplars."""
        return self.reference.gaussian

    def encode(self, samples: Samples) -> Float[Tensor, " n"]:
        """Each item's distance."""
        embeddings = self.encoder.encode(samples).double_on_cpu()
        if (embeddings.count < 2).any():
            raise InputError(
                f"SongFrechet needs 2 frames in an item, {self.encoder.name} gives {int(embeddings.count.min())}: "
                "take longer items or another encoder"
            )
        return frechet_distance_per_item(embeddings.items(), self.target)

    def score(self, features: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Minus the distances."""
        return -features
