"""Resampling that gradients pass: a sinc filter under a Hann-squared window (Smith, "Digital Audio Resampling", 1984).

Left out: everything that makes it fast; where no gradients are asked, soxr does the work.
"""

from functools import lru_cache
from math import ceil, gcd

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

ZEROS = 48
"""Zero crossings of the filter on either side."""
ROLLOFF = 0.95
"""Cut-off as a share of the lower of the two Nyquist frequencies."""


def resample(
    waveform: Float[Tensor, " n channels samples"], old: int, new: int
) -> Float[Tensor, " n channels resampled"]:
    """From `old` to `new` hertz; of `samples` become round(samples new / old).

    Tones below 0.9 of the lower Nyquist frequency keep their amplitude to 0.1 %.
    """
    shared = gcd(old, new)
    step, phases = old // shared, new // shared
    filters, reach = _filters(step, phases)
    samples = waveform.shape[-1]
    flat = functional.pad(waveform.reshape(-1, 1, samples), (reach, reach + step))
    found = functional.conv1d(flat, filters.to(waveform)[:, None], stride=step)
    return found.transpose(1, 2).reshape(*waveform.shape[:-1], -1)[..., : round(samples * new / old)]


@lru_cache(maxsize=16)
def _filters(step: int, phases: int) -> tuple[Float[Tensor, " phases taps"], int]:
    """One filter for each output sample in `step` input samples, and how far it reaches before the first of them."""
    cut = ROLLOFF * min(1.0, phases / step)  # as a share of the input's Nyquist frequency
    width = ZEROS / cut
    reach = ceil(width)
    places = torch.arange(-reach, reach + step, dtype=torch.float64)
    off = places[None] - torch.arange(phases, dtype=torch.float64)[:, None] * step / phases
    window = torch.cos(torch.pi / 2 * (off / width).clamp(-1, 1)) ** 4
    return cut * torch.sinc(cut * off) * window, reach
