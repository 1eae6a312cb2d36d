"""Fréchet rewards: minus the distance to exemplars, of a whole set or of each item (DRAGON, Bai et al. 2025).

A set's frames are pooled; an item is judged by its own frames. Left out: extrapolation to sets without end (evaluate
sets of one size instead).
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from dragontune.data import Samples
from dragontune.distances.frechet import Gaussian, frechet_distance, frechet_distance_per_item
from dragontune.distances.frechet_swaps import FrechetSwaps
from dragontune.distances.inputs import finite
from dragontune.distances.moments import RunningMoments
from dragontune.distances.swaps import Swaps, Total
from dragontune.encoders.base import Embeddings
from dragontune.errors import InputError
from dragontune.rewards.base import DifferentiableReward, DistributionReward, InstanceReward
from dragontune.rewards.exemplar import ExemplarReward
from dragontune.rewards.tally import Tally

KEPT = 1 << 24
"""Numbers of a large set that are kept (128 MiB); of a larger one only its mean and covariance."""


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

    def running(self) -> Tally[Embeddings]:
        """Frames up to `KEPT` numbers; beyond that their moments."""
        return FrechetTally(self)

    def swaps(self, first: Embeddings, second: Embeddings) -> Swaps:
        """All exchanges at once."""
        return Total([(-1.0, FrechetSwaps(first.items(), self.target, second.items()))])


class FrechetTally(Tally[Embeddings]):
    """A set of any size: to rounding, the score of all its frames; to the bit, while they are kept."""

    def __init__(self, reward: SetFrechet, kept: int = KEPT) -> None:
        self.reward, self.kept = reward, kept
        self.items = self._numbers = 0
        self._frames: list[Tensor] = []
        self._running: RunningMoments | None = None

    def add(self, features: Embeddings) -> None:
        """More items."""
        frames = features.pooled()
        self.items += len(features)
        self._numbers += frames.numel()
        if self._running is None and self._numbers > self.kept:
            self._running = RunningMoments()
            for earlier in self._frames:
                self._running.add(earlier)
            self._frames = []
        if self._running is not None:
            self._running.add(finite(frames, "the frames"))
            return
        self._frames.append(frames)

    def score(self) -> Float[Tensor, ""]:
        """Minus the distance of all frames."""
        self.reward.check_count(self.items)
        if self._running is None:
            return -frechet_distance(torch.cat(self._frames), self.reward.target)
        moments = self._running.total()
        return -frechet_distance((moments.mean[0], moments.covariance()[0]), self.reward.target)


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
