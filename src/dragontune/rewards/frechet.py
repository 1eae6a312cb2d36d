"""Fréchet rewards: minus the distance to exemplars, of a whole set or of each item (DRAGON, Bai et al. 2025).

The encoder and the exemplars are the reward. Exemplars may be texts where the encoder embeds both (CLAP). A set's
frames are pooled.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from dragontune.data import Samples
from dragontune.distances.frechet import Gaussian, frechet_distance, frechet_distance_per_item
from dragontune.distances.frechet_swaps import FrechetSwaps
from dragontune.distances.swaps import Swaps, Total
from dragontune.encoders.base import Embeddings, Encoder
from dragontune.errors import InputError
from dragontune.reference import Reference, open_reference
from dragontune.rewards.base import DifferentiableReward, DistributionReward, InstanceReward


@dataclass(frozen=True, eq=False)
class SetFrechet(DistributionReward[Embeddings], DifferentiableReward):
    """Minus the Fréchet distance of all frames of a set to the exemplars.

    `exemplars` is a folder of audio, a file of captions, a stored reference, or a `Reference`; read at the first use.
    """

    encoder: Encoder
    exemplars: str | Path | Reference

    @property
    def needs_media(self) -> bool:
        """As the encoder."""
        return self.encoder.needs_media

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
        return open_reference(self.encoder, self.exemplars).gaussian

    def encode(self, samples: Samples) -> Embeddings:
        """Each item's frames, on the CPU in double precision."""
        return self.encoder.encode(samples).double_on_cpu()

    def score(self, features: Embeddings) -> Float[Tensor, ""]:
        """Minus the distance of the pooled frames."""
        if len(features) < self.minimum:
            raise InputError(f"SetFrechet needs at least {self.minimum} items in a set, got {len(features)}")
        return -frechet_distance(features.pooled(), self.target)

    def swaps(self, first: Embeddings, second: Embeddings) -> Swaps:
        """All exchanges at once."""
        return Total([(-1.0, FrechetSwaps(first.items(), self.target, second.items()))])


@dataclass(frozen=True, eq=False)
class SongFrechet(InstanceReward[Tensor], DifferentiableReward):
    """Minus the Fréchet distance of one item's own frames to the exemplars; `exemplars` as in `SetFrechet`."""

    encoder: Encoder
    exemplars: str | Path | Reference

    @property
    def needs_media(self) -> bool:
        """As the encoder."""
        return self.encoder.needs_media

    @property
    def distance(self) -> bool:
        """It is."""
        return True

    @cached_property
    def target(self) -> Gaussian:
        """The exemplars."""
        return open_reference(self.encoder, self.exemplars).gaussian

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
