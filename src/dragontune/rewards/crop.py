"""Score a random part of each item, so that a long item need not be decoded whole while tuning.

Algorithms that follow gradients cut the window out of the latents and decode nothing else: memory and time fall with
the share, and over many rounds every part of an item is heard (VADER, Prabhudesai et al. 2024, scores random frames of
a video for the same reason). Left out: windows in space, and several windows an item.
"""

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float
from torch import Tensor

from dragontune.data import Media, Samples
from dragontune.distances.swaps import Swaps
from dragontune.errors import InputError
from dragontune.rewards.base import (
    DifferentiableReward,
    DistributionReward,
    F,
    InstanceReward,
    Reward,
)
from dragontune.rewards.tally import Tally
from dragontune.seeding import Key


@dataclass(frozen=True, eq=False)
class Crop(Reward[F]):
    """A window of `share` of the last axis (time). Base of `SetCrop` and `InstanceCrop`.

    Outside of tuning the window of an item is drawn from `seed` and its prompt, so that a model before and after is
    heard at the same place.
    """

    reward: Reward
    share: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        kind = type(self).__name__
        if not 0 < self.share <= 1:
            raise InputError(f"expected a share above 0 and up to 1 in {kind}, got {self.share}; 0.25 is a start")
        if not isinstance(self.reward, DifferentiableReward):
            raise InputError(
                f"expected a DifferentiableReward in {kind}, got {self.reward.label}, which is none; crops are for "
                "algorithms that follow gradients, so give the reward itself"
            )

    @property
    def needs_media(self) -> bool:
        """As the reward."""
        return self.reward.needs_media

    @property
    def needs_prompts(self) -> bool:
        """As the reward."""
        return self.reward.needs_prompts

    @property
    def label(self) -> str:
        """The reward's and the share."""
        return f"{self.reward.label} of {self.share:g} of each item"

    @property
    def distance(self) -> bool:
        """As the reward."""
        return self.reward.distance

    @property
    def minimum(self) -> int:
        """As the reward."""
        return self.reward.minimum

    def window(self, values: Float[Tensor, " n *axes"], places: Float[Tensor, " n"]) -> Float[Tensor, " n *window"]:
        """Of each row the window whose place is given in [0, 1): 0 is the first, just under 1 the last."""
        length = values.shape[-1]
        width = max(1, round(self.share * length))
        starts = (places * (length - width + 1)).long().tolist()
        return torch.stack([row[..., start : start + width] for row, start in zip(values, starts, strict=True)])

    def encode(self, samples: Samples) -> F:
        """The reward's features of each item's window."""
        places = torch.cat([Key(self.seed).fold("crop", prompt).uniform([0]) for prompt in samples.prompts])
        media = None if samples.media is None else self._media(samples.media, places)
        latents = self.window(samples.latents, places) if samples.latents.numel() else samples.latents
        return self.reward.encode(Samples(samples.prompts, latents, media))

    def score(self, features: F) -> Float[Tensor, " *scores"]:
        """The reward's."""
        return self.reward.score(features)

    def running(self) -> Tally[F]:
        """The reward's."""
        return self.reward.running()

    def _media(self, media: Media, places: Float[Tensor, " n"]) -> Media:
        if isinstance(media, Tensor):
            return self.window(media, places)
        columns = {field.name: getattr(media, field.name) for field in fields(media)}
        return replace(media, **{n: self.window(c, places) for n, c in columns.items() if isinstance(c, Tensor)})


@dataclass(frozen=True, eq=False)
class InstanceCrop(Crop[F], InstanceReward[F], DifferentiableReward[F]):
    """A reward of single items, of a window of each.

    >>> InstanceCrop(Alignment(TinyClap()), share=0.5)
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.reward, InstanceReward):
            raise InputError(f"expected a reward of single items in InstanceCrop, got {self.reward.label}; use SetCrop")


@dataclass(frozen=True, eq=False)
class SetCrop(Crop[F], DistributionReward[F], DifferentiableReward[F]):
    """A reward of a set, of a window of each item.

    >>> SetCrop(SetFrechet(TinyClap(), "my songs"), share=0.5)
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.reward, DistributionReward):
            raise InputError(f"expected a reward of a set in SetCrop, got {self.reward.label}; use InstanceCrop")

    def swaps(self, first: F, second: F) -> Swaps:
        """The reward's."""
        return self.reward.swaps(first, second)  # pyright: ignore[reportAttributeAccessIssue]
