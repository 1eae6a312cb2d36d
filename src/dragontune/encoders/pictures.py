"""Pictures as encoders take them: resized, cropped and normalised as a checkpoint says. Gradients pass.

The same as the Pillow processors of transformers, but for their rounding to whole numbers from 0 to 255 (about 0.004
of a pixel's range), and for few pixels at hard edges where the height shrinks much more than the width, since Pillow 13
then resizes it first. Left out: Lanczos and box filters, sizes with a longest edge, channels other than three.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate, pad

from dragontune.data import Media
from dragontune.errors import InputError
from dragontune.media.image import Images
from dragontune.media.kinds import expect
from dragontune.media.video import Video

FILTERS = {2: "bilinear", 3: "bicubic"}
"""By Pillow's numbers."""
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def pictures_of(media: Media, who: str) -> Float[Tensor, " n frames 3 height width"]:
    """The pixels of images (one frame an item) or of videos; InputError for other media, which says that `who` asks."""
    return media.frames if isinstance(media, Video) else expect(media, Images, who).pixels[:, None]


@dataclass(frozen=True)
class Preparation:
    """What is done to a picture, in this order.

    `shortest` is the length of the shorter edge after resizing, or `size` both edges (one of them, or neither: no
    resizing); `crop` the middle that is kept, surrounded by black where it exceeds the picture.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float
    filter: str
    shortest: int | None = None
    size: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None

    @classmethod
    def read(cls, settings: Mapping[str, Any], place: object) -> "Preparation":
        """From the fields of a `preprocessor_config.json`; InputError where they ask for what is left out."""
        size, crop = settings.get("size", 224), settings.get("crop_size", 224)
        size = {"shortest_edge": size} if isinstance(size, int) else dict(size)
        crop = {"height": crop, "width": crop} if isinstance(crop, int) else dict(crop)
        both = (size["height"], size["width"]) if {"height", "width"} <= set(size) else None
        filter_ = FILTERS.get(settings.get("resample", 3))
        known = both is not None or set(size) == {"shortest_edge"}
        if filter_ is None or not (known or not settings.get("do_resize", True)):
            raise InputError(
                "expected pictures resized by a bilinear or bicubic filter to a shortest edge or to height and width, "
                f"got resample {settings.get('resample')} and size {size} in {place}; choose another checkpoint"
            )
        normalise, resize = settings.get("do_normalize", True), settings.get("do_resize", True)
        return cls(
            mean=tuple(settings.get("image_mean", CLIP_MEAN)) if normalise else (0.0,) * 3,
            std=tuple(settings.get("image_std", CLIP_STD)) if normalise else (1.0,) * 3,
            scale=255 * settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 255.0,
            filter=filter_,
            shortest=size["shortest_edge"] if resize and both is None else None,
            size=both if resize else None,
            crop=(crop["height"], crop["width"]) if settings.get("do_center_crop", False) else None,
        )

    def __call__(self, pixels: Float[Tensor, " n 3 height width"]) -> Float[Tensor, " n 3 h w"]:
        """Pixels in [0, 1] to what the network takes."""
        pixels = self._cropped(self._resized(pixels.float()))
        mean, std = (torch.tensor(values).to(pixels)[:, None, None] for values in (self.mean, self.std))
        return (self.scale * pixels - mean) / std

    def _resized(self, pixels: Float[Tensor, " n 3 height width"]) -> Float[Tensor, " n 3 h w"]:
        height, width = pixels.shape[2:]
        if self.shortest is not None:
            short, long = sorted((height, width))
            longer = int(self.shortest * long / short)
            target = (longer, self.shortest) if width <= height else (self.shortest, longer)
        elif self.size is not None:
            target = self.size
        else:
            return pixels
        # a bicubic filter overshoots: like Pillow, which keeps whole numbers, cut off after either pass
        for edges in ((height, target[1]), target):
            if edges != tuple(pixels.shape[2:]):
                pixels = interpolate(pixels, edges, mode=self.filter, antialias=True, align_corners=False).clamp(0, 1)
        return pixels

    def _cropped(self, pixels: Float[Tensor, " n 3 height width"]) -> Float[Tensor, " n 3 h w"]:
        if self.crop is None:
            return pixels
        for axis, wanted in ((2, self.crop[0]), (3, self.crop[1])):
            found = pixels.shape[axis]
            if found >= wanted:
                pixels = pixels.narrow(axis, (found - wanted) // 2, wanted)
            else:
                before = ceil((wanted - found) / 2)
                edges = (before, wanted - found - before)
                pixels = pad(pixels, edges if axis == 3 else (0, 0, *edges))
        return pixels
