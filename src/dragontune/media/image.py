"""Images: tensors (n, 3, height, width) in [0, 1], as bytes and as PNG files (Pillow)."""

import io

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from dragontune.errors import InputError, NonFiniteError

ROUNDING = 1e-3
"""How far outside of [0, 1] a pixel may lie; it is then clipped."""


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
    encoded = io.BytesIO()
    Image.fromarray(picture.numpy()).save(encoded, "PNG")
    return encoded.getvalue()
