"""Rewards: how good media is, one item at a time or a whole set at once. Higher is better, always.

A reward is two stages. `encode` is slow and runs once for every item, where the item was made. `score` is fast and
runs on any subset of the encoded items, gathered from every process: that is what lets a reward of a whole set be
asked about many sets that differ by one item.
"""

from abc import ABC, abstractmethod
from typing import Generic, TypeVar, final

from jaxtyping import Float
from torch import Tensor

from dragontune.data import Rows, Samples, join_columns
from dragontune.distances.swaps import Rescoring, Swaps
from dragontune.rewards.tally import Everything, Scores, Tally

Features = Tensor | Rows
"""What `encode` returns: anything with one row per item."""

F = TypeVar("F", bound=Features)


class Reward(ABC, Generic[F]):
    """A number to raise. Subclass `InstanceReward` or `DistributionReward`, never this.

    The type parameter is what `encode` hands to `score`; it may be left out.
    """

    @property
    def needs_media(self) -> bool:
        """Whether `encode` looks at decoded media, or at prompts and latents only."""
        return True

    @property
    def needs_prompts(self) -> bool:
        """Whether a score without a prompt means nothing."""
        return False

    @property
    def label(self) -> str:
        """What messages and reports call it."""
        return type(self).__name__

    @property
    def distance(self) -> bool:
        """Whether the score is a distance with its sign turned; reports then show the distance, lower is better."""
        return False

    @property
    def minimum(self) -> int:
        """The fewest items that can be scored together."""
        return 1

    @abstractmethod
    def encode(self, samples: Samples) -> F:
        """One row of features per item. Independent of the other items in the batch."""

    @abstractmethod
    def score(self, features: F) -> Float[Tensor, " *scores"]:
        """One score per item, or one for the set; float64 where the maths needs it."""

    def running(self) -> Tally[F]:
        """What takes the features of items part by part and scores them all at the end.

        Here it keeps them; a reward that can do with less overrides it, so that sets may be larger than memory.
        """
        return Everything(self.score)

    @final
    def __call__(self, samples: Samples) -> Float[Tensor, " *scores"]:
        """Encode and score."""
        return self.score(self.encode(samples))


class InstanceReward(Reward[F]):
    """One score per item. It may hold a `Reference`: then it is instance-to-distribution (per-song Fréchet)."""

    @abstractmethod
    def score(self, features: F) -> Float[Tensor, " n"]:
        """One score per row, whatever the other rows are."""

    def running(self) -> Tally[F]:
        """It scores items as they come."""
        return Scores(self.score)


class DistributionReward(Reward[F]):
    """One score for the whole set, against a `Reference` (set Fréchet) or not (Vendi)."""

    @abstractmethod
    def score(self, features: F) -> Float[Tensor, ""]:
        """One score for all rows together."""

    def swaps(self, first: F, second: F) -> Swaps:
        """What exchanging items of `first` with items of `second` would make of the score of `first`.

        Here by scoring from scratch; a reward that knows better overrides it.
        """
        both = join_columns([first, second])
        return Rescoring(lambda rows: self.score(both[rows]).item(), len(first), len(second))


class DifferentiableReward(Reward[F]):
    """Marker: gradients flow from the score back to the media."""
