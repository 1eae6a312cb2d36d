"""Rewards that are measured on pixels alone: brightness, sharpness. Nothing to download or to trust.

As those of `signal` on sound, they are good for trying out methods and for asking for one property; neither measures
quality. Of a video the mean of its frames counts. Left out: colour, contrast, motion.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d

from dragontune.data import Samples
from dragontune.errors import InputError
from dragontune.media.image import Images
from dragontune.media.kinds import expect
from dragontune.media.video import Video
from dragontune.rewards.base import DifferentiableReward, InstanceReward

LUMA = (0.2126, 0.7152, 0.0722)
"""Weights of red, green and blue (ITU-R BT.709)."""
LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))


class PictureSignal(InstanceReward[Tensor], DifferentiableReward):
    """Something measured on each picture: the value, or minus its distance to `target` if there is one.

    Raises:
        InputError: a target that is not finite, or media that are neither `Images` nor `Video`.
    """

    target: float | None

    def __post_init__(self) -> None:
        if self.target is not None and not math.isfinite(self.target):
            raise InputError(
                f"expected a finite target, got {self.target}; leave it out to ask for as much as possible"
            )

    @property
    def distance(self) -> bool:
        """With a target."""
        return self.target is not None

    @abstractmethod
    def measure(self, luma: Float[Tensor, " n height width"]) -> Float[Tensor, " n"]:
        """The value of each picture, from its luma in [0, 1]."""

    def encode(self, samples: Samples) -> Float[Tensor, " n"]:
        """The values; gradients pass."""
        if isinstance(samples.media, Video):
            frames = samples.media.frames
            return self.measure(_luma(frames.flatten(0, 1))).unflatten(0, frames.shape[:2]).mean(1)
        return self.measure(_luma(expect(samples.media, Images, self.label).pixels))

    def score(self, features: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The values, or minus their distances to the target."""
        return features if self.target is None else -(features - self.target).abs()


@dataclass(frozen=True, eq=False)
class Brightness(PictureSignal):
    """The mean luma, from 0 (black) to 1 (white).

    >>> Brightness()(Samples(("a",), torch.empty(1, 0), Images(torch.full((1, 3, 8, 8), 0.25))))
    tensor([0.2500])
    """

    target: float | None = None

    def measure(self, luma: Float[Tensor, " n height width"]) -> Float[Tensor, " n"]:
        """In [0, 1]."""
        return luma.mean((1, 2))


@dataclass(frozen=True, eq=False)
class Sharpness(PictureSignal):
    """The variance of the luma's Laplacian (Pech-Pacheco et al. 2000): 0 for a plain area, higher for edges and noise.

    Pictures that differ in size cannot be compared. Those of fewer than 3 pixels a side have none.
    """

    target: float | None = None

    def measure(self, luma: Float[Tensor, " n height width"]) -> Float[Tensor, " n"]:
        """In squared luma."""
        if min(luma.shape[1:]) < 3:
            return 0 * luma.sum((1, 2))
        kernel = torch.tensor(LAPLACIAN).to(luma)
        return conv2d(luma[:, None], kernel[None, None]).flatten(1).var(1, correction=0)


def _luma(pixels: Float[Tensor, " n 3 height width"]) -> Float[Tensor, " n height width"]:
    """At least in single precision."""
    weights = torch.tensor(LUMA, device=pixels.device)
    return (pixels.to(torch.promote_types(pixels.dtype, torch.float32)) * weights[:, None, None]).sum(1)
