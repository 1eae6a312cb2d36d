"""What all rewards that compare with exemplars have in common: an encoder, the exemplars, and what is known of them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor

from dragontune.encoders.base import Encoder
from dragontune.errors import InputError
from dragontune.reference import Reference, open_reference
from dragontune.rewards.base import Features, Reward

F = TypeVar("F", bound=Features)


@dataclass(frozen=True, eq=False)
class ExemplarReward(Reward[F]):
    """The encoder and the exemplars are the reward (DRAGON, Bai et al. 2025).

    `exemplars` is a folder of audio, a file of captions (where the encoder embeds both), a stored reference, or a
    `Reference`; read at the first use.
    """

    encoder: Encoder
    exemplars: str | Path | Reference

    @property
    def needs_media(self) -> bool:
        """As the encoder."""
        return self.encoder.needs_media

    @cached_property
    def reference(self) -> Reference:
        """The exemplars."""
        return open_reference(self.encoder, self.exemplars)

    def check_set(self, features: Features) -> None:
        """InputError for a set that is too small to be scored."""
        self.check_count(len(features))

    def check_count(self, items: int) -> None:
        """The same for a set of so many items."""
        if items < self.minimum:
            raise InputError(
                f"{type(self).__name__} needs at least {self.minimum} items in a set, got {items}: add some"
            )

    def check_exemplars(self, least: int) -> Float[Tensor, " items dim"]:
        """One vector an exemplar (float64); InputError if there are fewer than `least`."""
        vectors = self.reference.item_vectors
        if len(vectors) < least:
            raise InputError(
                f"{type(self).__name__} needs at least {least} exemplars, got {len(vectors)} in "
                f"{self.reference.source}: add some"
            )
        return vectors
