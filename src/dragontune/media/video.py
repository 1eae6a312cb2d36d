"""Video: frames with their rate, read from and written to animated pictures (Pillow) and `.mp4` (PyAV, an extra).

Left out: sound, frame rates that change within a clip, resampling of the rate, and pixels that are not square.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from dragontune.data import Rows
from dragontune.errors import InputError
from dragontune.media import limits
from dragontune.media.image import MOST, images, opened, pixels, rgb

READABLE = (".webp", ".gif", ".png", ".mp4")
WRITABLE = {".webp": "WEBP", ".gif": "GIF", ".png": "PNG", ".mp4": "mp4"}
MOST_PIXELS = 256_000_000
"""Of all frames of a clip, 3 GiB in memory: a small file can declare a size that fills any."""
GRID = 512
"""Height and width of a grid of key frames in pixels (Free2Guide, Kim et al. 2025)."""


@dataclass(frozen=True, eq=False)
class Video(Rows):
    """Equally long clips of one size at one frame rate; pixels are in [0, 1], red, green, blue.

    >>> Video(torch.zeros(2, 16, 3, 32, 48), 8.0).seconds
    2.0

    Raises:
        InputError: other axes, no frame, whole numbers for pixels, or a frame rate that is not positive.
    """

    frames: Float[Tensor, " n frames 3 height width"]
    fps: float

    def __post_init__(self) -> None:
        _check(self.frames, self.fps)

    @property
    def seconds(self) -> float:
        """The duration of a clip."""
        return self.frames.shape[1] / self.fps

    def key_frames(self, count: int = 4) -> Float[Tensor, " n count 3 height width"]:
        """Evenly spaced frames from the first to the last (of 16: 0, 5, 10, 15); short clips repeat some.

        Raises:
            InputError: `count` is less than 1.
        """
        if count < 1:
            raise InputError(f"expected a count of key frames of 1 or more, got {count}; 4 are usual")
        last = self.frames.shape[1] - 1
        chosen = [math.floor(i * last / max(count - 1, 1) + 0.5) for i in range(count)]
        return self.frames[:, torch.tensor(chosen, device=self.frames.device)]

    def grid(self) -> Float[Tensor, " n 3 512 512"]:
        """Four key frames as one square picture: the first top left, then right, then the lower row. Gradients pass."""
        rows, n = self.key_frames(4).float(), len(self)
        height, width = rows.shape[3:]
        stitched = rows.unflatten(1, (2, 2)).permute(0, 3, 1, 4, 2, 5).reshape(n, 3, 2 * height, 2 * width)
        return torch.nn.functional.interpolate(stitched, (GRID, GRID), mode="bilinear", antialias=True)

    def write(self, path: str | Path) -> None:
        """One clip to an animated `.webp` or `.png` (lossless), `.gif` (256 colours) or, with PyAV, `.mp4` (H.264).

        Animated pictures keep time in milliseconds (`.gif`: hundredths of a second), so frames last a little more or
        less in turn, and the clip as a whole as long as it should.

        Raises:
            InputError: another suffix, pixels outside of [0, 1], or for `.mp4` an odd size or no PyAV.
            NonFiniteError: a pixel is NaN or infinite.
            OSError: the file cannot be written, for example because the disk is full.
        """
        path = Path(path)
        kind = WRITABLE.get(path.suffix.lower())
        if kind is None:
            raise InputError(f"expected a name ending in {', '.join(WRITABLE)}, got {path.name}; rename the output")
        if len(self) != 1:
            raise ValueError(f"expected one clip to write, got {len(self)}; index a row first")
        frames = pixels(self.frames[0]).numpy()
        path.write_bytes(_mp4(frames, self.fps) if kind == "mp4" else _animation(frames, self.fps, kind))


def read(path: str | Path) -> Video:
    """One file as one row. A still picture is one frame that lasts a second.

    Raises:
        InputError: the file is missing, not a video, torn, or `.mp4` and PyAV is not there; the message names it.
    """
    path = Path(path)
    if not limits.there(path):
        raise InputError(f"expected a video file, got {path}, which is not there; check the path")
    if path.suffix.lower() not in READABLE:
        raise InputError(f"expected a video file ({', '.join(READABLE)}), got {path.name}; convert it")
    try:
        if path.suffix.lower() == ".mp4":
            frames, fps = _read_mp4(path)
        else:
            frames, fps = _read_animation(path)
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"expected a video that fits into memory, got {path}; cut it, or remove the file") from error
    except Exception as error:  # decoders of hostile content raise anything
        reason = str(error).partition("\n")[0]
        raise InputError(f"expected a readable video, got {path} ({reason}); replace or remove the file") from error
    return Video(images(frames)[None], fps)


def _check(frames: Tensor, fps: float) -> None:
    shape = tuple(frames.shape)
    if len(shape) != 5 or shape[2] != 3 or 0 in shape[1:] or not frames.is_floating_point():
        raise InputError(
            f"expected the frames of clips as real numbers in [0, 1] of shape (n, frames, 3, height, width), got "
            f"{str(frames.dtype).removeprefix('torch.')} of shape {shape}; convert them"
        )
    if not (math.isfinite(fps) and fps > 0):
        raise InputError(f"expected a positive number of frames a second, got {fps}; 8 to 30 are usual")


def _animation(frames: np.ndarray, fps: float, kind: str) -> bytes:
    tick = 10 if kind == "GIF" else 1
    ends = [round(1000 * i / fps / tick) * tick for i in range(len(frames) + 1)]
    lasting = [max(end - start, tick) for start, end in pairwise(ends)]
    first, *others = [Image.fromarray(frame) for frame in frames]
    options: dict[str, Any] = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    encoded = io.BytesIO()
    first.save(encoded, kind, save_all=True, append_images=others, duration=lasting, loop=0, **options)
    return encoded.getvalue()


def _read_animation(path: Path) -> tuple[np.ndarray, float]:
    with opened(path, "video") as file:
        _bearable(path, getattr(file, "n_frames", 1), file.height, file.width)
        frames: list[np.ndarray] = []
        lasting: list[float] = []
        for i in range(getattr(file, "n_frames", 1)):
            file.seek(i)
            frames.append(rgb(file))
            lasting.append(float(file.info.get("duration") or 0))
    if len(frames) == 1:
        return np.stack(frames), 1000 / lasting[0] if lasting[0] > 0 else 1.0
    return _evenly(frames, lasting, path)


def _evenly(frames: Sequence[np.ndarray], lasting: Sequence[float], path: Path) -> tuple[np.ndarray, float]:
    """One frame for every tick: encoders write frames that are alike as one that lasts longer."""
    tick = min(lasting)
    if tick <= 0:
        raise InputError(f"expected frames that last some time, got {path} with one of 0 ms; write it again")
    times = [1] * len(frames)
    for _ in range(8):  # the shortest was rounded: what a tick is shows in all of them together
        times = [max(round(duration / tick), 1) for duration in lasting]
        tick = sum(lasting) / sum(times)
    _bearable(path, sum(times), *frames[0].shape[:2])
    return np.repeat(np.stack(frames), times, axis=0), 1000 / tick


def _bearable(path: Path, frames: int, height: int, width: int) -> None:
    """Raises InputError for clips that would fill the memory."""
    limit = limits.most(MOST, MOST_PIXELS)
    if frames * height * width > limit:
        raise InputError(
            f"expected at most {limit // 1_000_000} megapixels in all frames of a video, got {path} ({frames} frames "
            f"of {height} x {width}); cut it or scale it down, or set {MOST}"
        )


def _pyav() -> Any:  # noqa: ANN401 - a module that need not be there
    try:
        return import_module("av")
    except ImportError as error:
        raise InputError(
            "expected PyAV for .mp4, got none; run `pip install 'dragontune[video]'`, or use .webp"
        ) from error


def _mp4(frames: np.ndarray, fps: float) -> bytes:
    av, (height, width) = _pyav(), frames.shape[1:3]
    if height % 2 or width % 2:
        raise InputError(f"expected an even height and width for .mp4, got {height} x {width}; use .webp")
    encoded = io.BytesIO()  # the codec writes to memory, so that a full disk is an OSError and nothing else
    with av.open(encoded, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt, stream.options = width, height, "yuv420p", {"crf": "12"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return encoded.getvalue()


def _read_mp4(path: Path) -> tuple[np.ndarray, float]:
    av = _pyav()
    # a file, not a name, which may be an address; and no format that lists other files
    with path.open("rb") as file, av.open(file, format="mp4") as container:
        if not container.streams.video:
            raise InputError(f"expected a video, got {path} without pictures; replace or remove the file")
        stream = container.streams.video[0]
        rate = stream.average_rate
        _bearable(path, max(stream.frames, 1), stream.height, stream.width)
        frames = list[np.ndarray]()
        for frame in container.decode(video=0):
            frames.append(frame.to_ndarray(format="rgb24"))
            _bearable(path, len(frames), *frames[-1].shape[:2])  # whatever was declared
    if not frames or not rate:
        raise InputError(f"expected a video of some length, got {path} without a frame; replace or remove the file")
    return np.stack(frames), float(rate)
