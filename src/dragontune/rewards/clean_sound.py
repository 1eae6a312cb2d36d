"""How cleanly a clip sounds, by an openly stated rule on the audio alone: tuning, clipping, noise and timing.

The rule is the project's own. It stands in for people where ratings are needed that anybody can compute again: the
ratings that ship are simulated from it (docs/aesthetics.md). It measures defects, not beauty: composition,
expression, loudness and how well a prompt is met are left out, and so is perception (no model of masking).
"""

from dataclasses import dataclass
from math import log

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool1d, pad

from dragontune.data import Samples
from dragontune.errors import InputError
from dragontune.rewards.base import InstanceReward
from dragontune.rewards.signal import finite_audio

RATE = 16000
"""What everything is measured at, in hertz."""
SILENCE = 1e-4
"""Root mean square (-80 dB) under which nothing is measured and every defect counts in full."""
WORST = (50.0, 1.0, 0.0, 1.0)


@dataclass(frozen=True, eq=False)
class CleanSound(InstanceReward[Tensor]):
    """A quality from 1 (bad) to 5 (clean): 1 + 4 exp(-(d_tuning + d_clipping + d_noise + d_timing)).

    A defect d is its coefficient times how far the measurement lies beyond what very clean clips have, in units of a
    plainly audible amount: `(x - clean) / audible`, at least 0. The coefficients, the two numbers of each measurement
    and the form are the project's choices, not the result of a listening test. The measurements:

    - tuning: `mistuning`, cents from the equal-tempered grid (A = 440 Hz), 5 clean, 10 audible;
    - clipping: `flat_tops`, share of samples near the clip's own top, 0.005 clean, 0.03 audible;
    - noise: `noise_floor`, decibels of the floor between partials, -45 clean, 10 audible;
    - timing: `irregularity`, 0 (a perfect pulse) to 1, 0.3 clean, 0.3 audible.
    """

    tuning: float = 0.15
    clipping: float = 0.6
    noise: float = 0.8
    timing: float = 0.1

    def __post_init__(self) -> None:
        for name, value in zip(("tuning", "clipping", "noise", "timing"), self._coefficients(), strict=True):
            if not value >= 0:
                raise InputError(f"expected a coefficient of {name} of 0 or more, got {value}; 0 leaves it out")

    @torch.no_grad()
    def encode(self, samples: Samples) -> Float[Tensor, " n 4"]:
        """The measurements: cents, share, decibels, irregularity.

        Raises:
            NonFiniteError: a clip holds NaN or infinity; the message names it.
        """
        audio = finite_audio(samples, self.label).mono().resample(RATE)
        return torch.stack([_measure(clip) for clip in audio.waveform[:, 0]])

    def score(self, features: Float[Tensor, " n 4"]) -> Float[Tensor, " n"]:
        """The quality."""
        clean, audible = torch.tensor([[5.0, 0.005, -45.0, 0.3], [10.0, 0.03, 10.0, 0.3]]).to(features)
        defects = ((features - clean) / audible).clamp(min=0)
        return 1 + 4 * torch.exp(-(defects * torch.tensor(self._coefficients()).to(features)).sum(1))

    def _coefficients(self) -> tuple[float, ...]:
        return self.tuning, self.clipping, self.noise, self.timing


def _measure(clip: Float[Tensor, " samples"]) -> Float[Tensor, " 4"]:
    """All four of one clip, on the CPU in double precision; of silence the worst."""
    clip = clip.cpu().double()
    if not clip.square().mean() > SILENCE**2:
        return torch.tensor(WORST, dtype=torch.float64)
    clip = pad(clip, (0, max(0, RATE // 2 - len(clip))))
    return torch.stack([mistuning(clip), flat_tops(clip), noise_floor(clip), irregularity(clip)])


def mistuning(clip: Float[Tensor, " samples"]) -> Float[Tensor, ""]:
    """Mean distance of spectral peaks from the nearest equal-tempered pitch in cents, 0 to 50, weighted by power.

    Peaks of a 256 ms Hann window between 110 and 2000 Hz within 30 dB of their frame's highest; the frequency of a peak
    is the vertex of the parabola through three log powers. Peaks at random give 25.
    """
    power = _power(clip, 4096, 1024, padded=8192)
    step = RATE / 8192
    low, high = int(110 / step), int(2000 / step)
    left, middle, right = (power[low + k : high + k].clamp(min=1e-20).log() for k in (-1, 0, 1))
    top = power[low:high].amax(0)
    peaks = (middle > left) & (middle >= right) & (power[low:high] > 1e-3 * top) & (top > 1e-12)
    vertex = (0.5 * (left - right) / (left - 2 * middle + right).clamp(max=-1e-12)).clamp(-0.5, 0.5)
    hertz = (torch.arange(low, high, dtype=clip.dtype)[:, None] + vertex) * step
    cents = 1200 / log(2) * (hertz / 440).log()
    off = ((cents + 50) % 100 - 50).abs()
    weight = power[low:high] * peaks
    return (weight * off).sum() / weight.sum() if weight.sum() > 0 else clip.new_tensor(WORST[0])


def flat_tops(clip: Float[Tensor, " samples"]) -> Float[Tensor, ""]:
    """Share of samples above 0.9 of the level that one sample in a thousand exceeds.

    A limit: waves that are flat at the top by nature count as clipped, 0.29 for a steady sine (music has about 0.01).
    Runs of equal samples would tell them apart, but a coded or resampled clip has none.
    """
    level = clip.abs()
    return (level > 0.9 * level.quantile(0.999)).double().mean()


def noise_floor(clip: Float[Tensor, " samples"]) -> Float[Tensor, ""]:
    """Decibels of the floor between partials against the whole, 200 to 4000 Hz; about -10 for white noise.

    The floor at a frequency is the tenth percentile of the power within 150 Hz of it (128 ms Hann window); of the
    frames within 20 dB of the loudest, the median counts.
    """
    power = _power(clip, 2048, 1024)
    step = RATE / 2048
    low, high, reach = int(200 / step), int(4000 / step), int(150 / step)
    around = power[low - reach : high + reach].unfold(0, 2 * reach + 1, 1)
    floor = around.kthvalue(1 + reach // 5, dim=2).values.sum(0)
    whole = power[low:high].sum(0)
    heard = whole > 0.01 * whole.amax()
    if not whole.amax() > 0:
        return clip.new_tensor(WORST[2])
    return 10 * (floor / whole)[heard].median().clamp(1e-10, 1).log10()


def irregularity(clip: Float[Tensor, " samples"]) -> Float[Tensor, ""]:
    """One minus how well onsets keep to one pulse of 1.5 to 10 Hz (their mean resultant length, at its best pulse).

    Onsets: the rise of the log magnitude every 10 ms, summed over frequency, less its mean over half a second.
    """
    magnitude = (1 + 100 * _power(clip, 1024, 160).sqrt()).log()
    rise = magnitude.diff(dim=1).clamp(min=0).sum(0)
    onsets = (rise - avg_pool1d(rise[None], 51, 1, 25, count_include_pad=False)[0]).clamp(min=0)
    if not onsets.sum() > 0:
        return clip.new_tensor(WORST[3])
    size = max(4096, 1 << (len(onsets) - 1).bit_length())
    spectrum = torch.fft.rfft(onsets, size).abs() / onsets.sum()
    hertz = torch.arange(len(spectrum)) * 100 / size
    return 1 - spectrum[(hertz >= 1.5) & (hertz <= 10)].amax()


def _power(clip: Tensor, size: int, hop: int, padded: int | None = None) -> Float[Tensor, " bins frames"]:
    """The short-time power spectrum; a full-scale sine has a peak of 1/4."""
    window = torch.hann_window(size, dtype=clip.dtype)
    window = window / window.sum()
    total = padded or size
    clip = pad(clip, (0, max(0, total - len(clip))))
    spectrum = torch.stft(clip, total, hop, size, window, center=False, return_complex=True)
    return spectrum.real.square() + spectrum.imag.square()
