"""Fréchet rewards: minus the distance to exemplars, of a whole set or of each item (DRAGON, Bai et al. 2025).

The encoder and the exemplars are the reward. Exemplars may be texts where the encoder embeds both (CLAP). A set's
frames are pooled; what is kept of an item are the sums of its frames and of their outer products, so that a set is
scored by adding rows. Exact tables of all exchanges at once are left out.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from dragontune.data import Samples
from dragontune.distances.frechet import Moments, factor, frechet_to
from dragontune.encoders.base import Encoder
from dragontune.errors import InputError
from dragontune.reference import Reference, open_reference
from dragontune.rewards.base import DifferentiableReward, DistributionReward, InstanceReward


@dataclass(frozen=True, eq=False)
class _Target:
    """Exemplars as a Gaussian, moved so that its mean is 0: sums of frames then keep their digits."""

    mean: Float[Tensor, " dim"]
    factor: Float[Tensor, " dim dim"]

    @classmethod
    def of(cls, reference: Reference) -> "_Target":
        return cls(reference.mean, factor(reference.covariance))

    def moments(self, encoder: Encoder, samples: Samples) -> Moments:
        """Of each item's frames, about the exemplars' mean."""
        embeddings = encoder.encode(samples)
        return Moments.of(embeddings.frames.to("cpu", torch.float64) - self.mean, embeddings.mask())

    def distance(self, moments: Moments) -> Float[Tensor, " n"]:
        """Of each row to the exemplars."""
        return frechet_to(moments.mean(), moments.covariance(), torch.zeros_like(self.mean), self.factor)


@dataclass(frozen=True, eq=False)
class SetFrechet(DistributionReward[Moments], DifferentiableReward):
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
    def target(self) -> _Target:
        """The exemplars."""
        return _Target.of(open_reference(self.encoder, self.exemplars))

    def encode(self, samples: Samples) -> Moments:
        """Sums over each item's frames."""
        return self.target.moments(self.encoder, samples)

    def score(self, features: Moments) -> Float[Tensor, ""]:
        """Minus the distance of the pooled frames."""
        if len(features) < self.minimum:
            raise InputError(f"SetFrechet needs at least {self.minimum} items in a set, got {len(features)}")
        return -self.target.distance(features.merge())[0]


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
    def target(self) -> _Target:
        """The exemplars."""
        return _Target.of(open_reference(self.encoder, self.exemplars))

    def encode(self, samples: Samples) -> Float[Tensor, " n"]:
        """Each item's distance."""
        moments = self.target.moments(self.encoder, samples)
        if (moments.count < 2).any():
            raise InputError(
                f"SongFrechet needs 2 frames in an item, {self.encoder.name} gives {int(moments.count.min())}: "
                "take longer items or another encoder"
            )
        return self.target.distance(moments)

    def score(self, features: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Minus the distances."""
        return -features
