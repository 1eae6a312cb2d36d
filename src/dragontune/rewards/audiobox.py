"""How people would rate a clip, learned from their ratings of speech, music and sound (Tjandra et al. 2025).

See `encoders/audiobox.py` for the network, its licences and what is left out.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from dragontune.data import Samples
from dragontune.encoders import audiobox, checkpoint, waves
from dragontune.rewards.base import DifferentiableReward, InstanceReward


@dataclass(frozen=True, eq=False)
class AudioboxAesthetics(InstanceReward[Tensor], DifferentiableReward):
    """A rating, about 1 to 10, on one axis.

    `CE` is content enjoyment, `CU` content usefulness, `PC` production complexity, `PQ` production quality. Audio of
    any rate is converted to 16 kHz mono; windows of 10 s are rated one by one. `model` is a folder or a hub name;
    `weights` a file of it, a pickle only by its name. Nothing is loaded before it is used; the network follows the
    media to their device.

    >>> AudioboxAesthetics(axis="CE")(samples)
    """

    model: str = "facebook/audiobox-aesthetics"
    axis: Literal["CE", "CU", "PC", "PQ"] = "PQ"
    weights: str | None = None

    @property
    def label(self) -> str:
        """With the axis."""
        return f"AudioboxAesthetics {self.axis}"

    @cached_property
    def network(self) -> audiobox.AudioboxNetwork:
        """Frozen; InputError where the checkpoint is missing, torn or of another structure."""
        return audiobox.load(checkpoint.find(self.model, self.weights), self.weights)

    def encode(self, samples: Samples) -> Float[Tensor, " n"]:
        """The ratings."""
        if samples.media is None:
            raise ValueError(f"{self.label} rates media, but these samples were not decoded")
        clips = waves.at_least(waves.mono(samples.media, audiobox.RATE, self.label), 1)
        return self.network(checkpoint.follow(self.network, clips), self.axis)

    def score(self, features: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The ratings as they are."""
        return features
