"""Images: pixels in [0, 1], red, green, blue, read from and written to files (Pillow).

Left out: colour profiles (numbers are taken to be sRGB), more than 8 bits a channel in what is written.
"""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from dragontune.data import Rows
from dragontune.errors import InputError, NonFiniteError
from dragontune.media import limits

READABLE = (".png", ".jpg", ".jpeg", ".webp")
WRITABLE = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG", ".jpeg": "JPEG"}
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
"""The decoders that may be given a file, whatever its name ends in."""
OPTIONS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "WEBP": {"lossless": True, "exact": True},
    "JPEG": {"quality": 95, "subsampling": 0},
}
MOST_PIXELS = 64_000_000
"""Of one picture: a small file can declare a size that fills any memory."""
MOST = "DRAGONTUNE_MOST_PIXELS"
"""The environment variable that sets another limit, of a picture and of all frames of a video."""
ROUNDING = 1e-3
"""How far outside of [0, 1] a pixel may lie; it is then clipped."""


@dataclass(frozen=True, eq=False)
class Images(Rows):
    """Pictures of one size; pixels are in [0, 1], red, green, blue.

    >>> Images(torch.zeros(2, 3, 32, 48)).size
    (32, 48)

    Raises:
        InputError: other axes, no pixel, or whole numbers for pixels.
    """

    pixels: Float[Tensor, " n 3 height width"]

    def __post_init__(self) -> None:
        _check(self.pixels)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.shape[2], self.pixels.shape[3]

    @classmethod
    def join(cls, parts: "Sequence[Images]") -> "Images":  # pyright: ignore[reportIncompatibleMethodOverride]
        """Stack pictures of one size, in order.

        Raises:
            InputError: they differ in size.
        """
        sizes = sorted({part.size for part in parts})
        if len(sizes) > 1:
            (height, width), (other, wide) = sizes[:2]
            raise InputError(
                f"expected pictures of one size to stack, got {height} x {width} and {other} x {wide}; scale them first"
            )
        return cls(torch.cat([part.pixels for part in parts]))

    @classmethod
    def read(cls, path: str | Path) -> "Images":
        """One file as one row: turned as its EXIF says, what is transparent on white; of an animation the first frame.

        Raises:
            InputError: the file is missing, not a picture, torn, or of more than 64 megapixels; the message names it.
        """
        path = Path(path)
        if not limits.there(path):
            raise InputError(f"expected an image file, got {path}, which is not there; check the path")
        with opened(path, "image") as file:
            return cls(images(rgb(ImageOps.exif_transpose(file))[None]))

    def write(self, path: str | Path) -> None:
        """One picture to a `.png` or `.webp` (both lossless, 8 bits a channel) or a `.jpg` (quality 95).

        Raises:
            InputError: another suffix, or pixels outside of [0, 1].
            NonFiniteError: a pixel is NaN or infinite.
            OSError: the file cannot be written, for example because the disk is full.
        """
        path = Path(path)
        kind = WRITABLE.get(path.suffix.lower())
        if kind is None:
            raise InputError(f"expected a name ending in {', '.join(WRITABLE)}, got {path.name}; rename the output")
        if len(self) != 1:
            raise ValueError(f"expected one picture to write, got {len(self)}; index a row first")
        path.write_bytes(encoded(pixels(self.pixels)[0], kind))


def pixels(images: Float[Tensor, " n 3 height width"]) -> UInt8[Tensor, " n height width 3"]:
    """Red, green and blue as whole numbers from 0 to 255, on the CPU, without gradients.

    Raises:
        InputError: a value is outside of [0, 1] by more than rounding.
        NonFiniteError: a value is NaN or infinite.
    """
    values = images.detach().cpu().float()
    if not bool(values.isfinite().all()):
        raise NonFiniteError("expected finite pixels, got NaN or infinity; look at the model's decoder")
    if values.numel() and not -ROUNDING <= values.min().item() <= values.max().item() <= 1 + ROUNDING:
        low, high = values.min().item(), values.max().item()
        raise InputError(f"expected pixels in [0, 1], got values from {low:.3g} to {high:.3g}; scale them to [0, 1]")
    return (values.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def images(stack: UInt8[np.ndarray, " n height width 3"]) -> Float[Tensor, " n 3 height width"]:
    """The inverse of `pixels`."""
    return torch.from_numpy(stack).permute(0, 3, 1, 2).contiguous().float() / 255


def png(picture: UInt8[Tensor, " height width 3"]) -> bytes:
    """The content of a PNG file."""
    return encoded(picture, "PNG")


def encoded(picture: UInt8[Tensor, " height width 3"], kind: str) -> bytes:
    """The content of a file of that kind, which `WRITABLE` names."""
    content = io.BytesIO()
    Image.fromarray(picture.numpy()).save(content, kind, **OPTIONS[kind])
    return content.getvalue()


@contextmanager
def opened(path: Path, what: str) -> Iterator[Image.Image]:
    """A picture or an animation, not decoded yet.

    Raises:
        InputError: it is none, it is torn (which may show while it is used), or it declares too many pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is lower
            file = Image.open(path, formats=FORMATS)
        with file:
            if file.width * file.height > limits.most(MOST, MOST_PIXELS):
                raise Image.DecompressionBombError(f"{file.width} x {file.height} pixels")
            yield file
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        limit = limits.most(MOST, MOST_PIXELS) // 1_000_000
        raise InputError(
            f"expected at most {limit} megapixels, got {path} ({error}); scale it down, or set {MOST}"
        ) from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"expected a readable {what}, got {path} (no content of a picture); replace or remove the file"
        ) from error
    except MemoryError as error:
        raise InputError(f"expected a {what} that fits into memory, got {path}; scale it down or remove it") from error
    except Exception as error:  # decoders of hostile content raise anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"expected a readable {what}, got {path} ({reason}); replace or remove the file") from error


def animated(path: Path) -> bool:
    """Whether it is a picture of more than one frame; what cannot be read is none."""
    try:
        with opened(path, "image") as file:
            return bool(getattr(file, "is_animated", False))
    except InputError:
        return False


def rgb(file: Image.Image) -> UInt8[np.ndarray, " height width 3"]:
    """The present frame in 8 bits a channel, what is transparent on white."""
    if file.mode.startswith("I"):  # 16 bits of grey
        grey = (np.asarray(file).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if file.has_transparency_data:
        layers = file.convert("RGBA")
        file = Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers)
    return np.array(file.convert("RGB"))


def _check(pixels: Tensor) -> None:
    shape = tuple(pixels.shape)
    if len(shape) != 4 or shape[1] != 3 or 0 in shape[1:] or not pixels.is_floating_point():
        raise InputError(
            f"expected pictures as real numbers in [0, 1] of shape (n, 3, height, width), got "
            f"{str(pixels.dtype).removeprefix('torch.')} of shape {shape}; convert them"
        )
