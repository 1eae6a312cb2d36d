"""Autoencoders of video: what they share, which is how a clip is brought to a model's size, rate and length."""

import math
from dataclasses import dataclass, fields

import torch

from dragontune.data import Media
from dragontune.errors import InputError
from dragontune.generators.checkpoint import Checkpoint
from dragontune.generators.codec import Codec
from dragontune.media.kinds import expect
from dragontune.media.video import Video

SIZE_FILE = "video.json"


@dataclass(frozen=True)
class VideoSize:
    """How large the videos are, in frames and pixels, and how fast."""

    frames: int
    height: int
    width: int
    fps: float


class VideoCodec(Codec):
    """An autoencoder of videos; latents are (n, channels, frames, height, width)."""

    fps: float
    time_stride: int
    """Frames in a latent frame, but for the first, which holds one."""
    stride: int
    """Pixels in a latent position, each way."""

    @property
    def sample_rate(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The frame rate, rounded to a whole number."""
        return max(round(self.fps), 1)

    def fit(self, media: Media, latent_shape: tuple[int, ...]) -> Video:
        """At the codec's frame rate, cut or with the last frame held, and scaled."""
        media = video_of(media)
        _, frames, *sides = latent_shape
        height, width = (side * self.stride for side in sides)
        last, count = media.frames.shape[1] - 1, (frames - 1) * self.time_stride + 1
        chosen = [min(math.floor(i / self.fps * media.fps + 1e-6), last) for i in range(count)]
        clips = media.frames[:, torch.tensor(chosen, device=media.frames.device)]
        if clips.shape[3:] != (height, width):
            flat = torch.nn.functional.interpolate(
                clips.flatten(0, 1), (height, width), mode="bilinear", antialias=True
            )
            clips = flat.unflatten(0, (len(media), count))
        return Video(clips, self.fps)


def video_of(media: Media) -> Video:
    """The media, which must be video."""
    return expect(media, Video, "this model's autoencoder")


def video_size(checkpoint: Checkpoint, usual: VideoSize) -> VideoSize:
    """As asked, else as a file `video.json` beside `model_index.json` says, else as `usual`.

    Raises:
        InputError: a name or value that makes no sense.
    """
    checkpoint.size.check("videos", "frames", "height", "width", "fps")
    kinds = {field.name: field.type for field in fields(VideoSize)}
    given = checkpoint.read(SIZE_FILE) if (checkpoint.folder / SIZE_FILE).exists() else {}
    odd = [name for name in given if name not in kinds or type(given[name]) not in (int, kinds[name])]
    values = {name: getattr(usual, name) for name in kinds} | given
    if odd or not all(math.isfinite(value) and value > 0 for value in values.values()):
        raise InputError(
            f"expected positive numbers for {', '.join(kinds)}, got {given} in {checkpoint.folder / SIZE_FILE}; "
            "correct it"
        )
    values |= checkpoint.size.given()
    return VideoSize(int(values["frames"]), int(values["height"]), int(values["width"]), float(values["fps"]))


def latent_sides(
    size: VideoSize, time_stride: int, stride: int, steps: tuple[int, int] = (1, 1)
) -> tuple[int, int, int]:
    """Latent frames, height and width; the network takes the sides in `steps` of latent positions.

    Raises:
        InputError: the size is not a whole number of them.
    """
    down, across = stride * steps[0], stride * steps[1]
    if (size.frames - 1) % time_stride or size.height % down or size.width % across:
        raise InputError(
            f"expected 1 and a multiple of {time_stride} frames, a height in steps of {down} and a width in steps of "
            f"{across}, got {size.frames}, {size.height} and {size.width}; correct size or {SIZE_FILE}"
        )
    return (size.frames - 1) // time_stride + 1, size.height // stride, size.width // stride
