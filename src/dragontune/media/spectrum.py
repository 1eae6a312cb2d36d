"""Spectra of waveforms: the filters of a mel spectrogram."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def mel_filters(rate: int, fft: int, mels: int) -> Float[Tensor, " mels bins"]:
    """Triangular filters, equally spaced on the mel scale of O'Shaughnessy (1987), from 30 Hz to half the rate."""
    edges = torch.linspace(_mel(30.0), _mel(rate / 2), mels + 2)
    hertz = 700 * (10 ** (edges / 2595) - 1)
    bins = torch.linspace(0, rate / 2, fft // 2 + 1)
    rising = (bins - hertz[:-2, None]) / (hertz[1:-1] - hertz[:-2])[:, None]
    falling = (hertz[2:, None] - bins) / (hertz[2:] - hertz[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp(min=0)


def _mel(hertz: float) -> float:
    return 2595 * math.log10(1 + hertz / 700)
