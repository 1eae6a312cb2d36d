"""Images and videos for the report: small copies that are kept while it is made, and shown inside the page.

Left out: videos that can be stopped (browsers play an animated picture without end), and sound.
"""

import io
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dragontune.evaluation.plots import Clip, data_uri
from dragontune.media.audio import Audio
from dragontune.media.image import Images, pixels
from dragontune.media.video import Video

LARGEST = 512
"""Height and width in pixels that a picture is scaled down to."""
STILL_BYTES, MOVING_BYTES = 250_000, 1_000_000
"""What one picture may add to the page, before base64."""


@dataclass(frozen=True, eq=False)
class Picture:
    """An image (one frame, no rate) or a video, scaled down to at most 512 pixels a side.

    `height` and `width` are those before.
    """

    frames: UInt8[np.ndarray, " frames rows columns 3"]
    fps: float | None
    height: int
    width: int

    @property
    def length(self) -> str:
        """Its size, and for a video how long it lasts, for people."""
        size = f"{self.width} × {self.height}"
        return size if self.fps is None else f"{size}, {len(self.frames) / self.fps:.1f} s"


Kept = Clip | Picture
"""One item for the report, apart from PyTorch."""


def kept(media: object, row: int) -> Kept | None:
    """One item of a batch; None of media that the report cannot show.

    Raises:
        InputError: pixels outside of [0, 1].
        NonFiniteError: a pixel is NaN or infinite.
    """
    match media:
        case Audio():
            return Clip(media.waveform[row].detach().float().cpu().numpy(), media.sample_rate)
        case Images():
            return _picture(pixels(media.pixels[row : row + 1]).numpy(), None)
        case Video():
            return _picture(pixels(media.frames[row]).numpy(), media.fps)
        case _:
            return None


def picture_uri(picture: Picture) -> str:
    """As a data URI (WebP): of an image lossless where that is small enough; of a video smaller where need be."""
    if picture.fps is None:
        plain = _webp(picture.frames, None, lossless=True)
        return data_uri(plain if len(plain) <= STILL_BYTES else _webp(picture.frames, None), "image/webp")
    content = b""
    for largest in (LARGEST, LARGEST // 2, LARGEST // 4):
        content = _webp(_scaled(picture.frames, largest), picture.fps)
        if len(content) <= MOVING_BYTES:
            break
    return data_uri(content, "image/webp")


def _picture(frames: UInt8[np.ndarray, " frames height width 3"], fps: float | None) -> Picture:
    return Picture(_scaled(frames, LARGEST), fps, *frames.shape[1:3])


def _scaled(
    frames: UInt8[np.ndarray, " frames height width 3"], largest: int
) -> UInt8[np.ndarray, " frames rows columns 3"]:
    """As they are, or, where a side is longer than `largest`, smaller."""
    height, width = frames.shape[1:3]
    scale = largest / max(height, width)
    if scale >= 1:
        return frames
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.stack([np.array(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR)) for frame in frames])


def _webp(frames: UInt8[np.ndarray, " frames rows columns 3"], fps: float | None, lossless: bool = False) -> bytes:
    first, *others = [Image.fromarray(frame) for frame in frames]
    content = io.BytesIO()
    if fps is None:
        first.save(content, "WEBP", lossless=lossless, quality=90)
        return content.getvalue()
    ends = [round(1000 * i / fps) for i in range(len(frames) + 1)]
    lasting = [max(end - start, 1) for start, end in pairwise(ends)]
    first.save(content, "WEBP", save_all=True, append_images=others, duration=lasting, loop=0, quality=80, method=2)
    return content.getvalue()
