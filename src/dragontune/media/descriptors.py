"""What a clip sounds like in one number: brightness, tempo, key. Plain signal processing, float64 on the CPU.

Left out: beat tracking, tempo that changes, tuning other than A = 440 Hz, key changes.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv1d, pad

from dragontune.media.audio import Audio

INAUDIBLE = 1e-12
"""Mean square under which (-120 dB of full scale) a clip is taken to be silent."""
MAJOR = (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88)
MINOR = (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17)
"""How well each of the 12 tones fits a key, from the tonic upwards: Krumhansl & Kessler 1982, experiment 1."""
LOWEST, OCTAVES = 45, 4
"""The tones that count for the key: from A2 (MIDI note 45, 110 Hz) up, whole octaves."""
SMOOTHING = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=torch.float64) / 16
"""Of the onsets, so that a period between two frames is as strong as any other."""
NEARLY = 0.95
"""Peaks of the autocorrelation that differ by less are taken to be equally high."""
UNEVEN = 0.1
"""Standard deviation of a chroma vector, relative to its mean, that may be chance."""


def spectral_centroid(audio: Audio) -> Float[Tensor, " n"]:
    """The mean frequency in hertz, weighted by the power of the whole clip in all channels; 0 for silence.

    Peeters 2004, section 6.1.1, with power for amplitude. A sine gives its frequency, white noise a quarter of the
    sample rate.
    """
    power = _power(audio, 0.046, 2).sum((1, 3))
    hertz = torch.linspace(0, audio.sample_rate / 2, power.shape[1], dtype=torch.float64)
    return _unless_silent(audio, (power * hertz).sum(1) / power.sum(1))


def tempo(audio: Audio, lowest: float, highest: float) -> Float[Tensor, " n"]:
    """Beats a minute, between `lowest` and `highest`: the strongest period of the onsets. 0 where there are none.

    Onsets are rises of the compressed spectrum, summed over frequency; the period is the highest peak of their
    autocorrelation (Peeters 2007, Ellis 2007, without the preference for usual tempi). What repeats at a period repeats
    at its multiples, too: of nearly equal peaks the shortest wins. Half and double the tempo a listener taps are the
    usual mistakes.
    """
    power = _power(audio, 0.046, 8).sum(1)
    level = power.mean((1, 2), keepdim=True).clamp(min=1e-30)
    rises = (power / level).mul(100).log1p().diff(dim=2).clamp(min=0).sum(1)
    rises = conv1d(rises[:, None], SMOOTHING[None, None], padding="same")[:, 0]
    rate = audio.sample_rate / (_frame(audio.sample_rate, 0.046) // 8)
    return _unless_silent(audio, torch.stack([_period(clip - clip.mean(), rate, lowest, highest) for clip in rises]))


def key_correlations(audio: Audio) -> Float[Tensor, " n 24"]:
    """How well each major key (C, C sharp, ...) and each minor key fits, in [-1, 1]; 0 for silence.

    The correlation of a chroma vector with the profile of the key (Krumhansl & Schmuckler, in Krumhansl 1990, chapter
    4). Chroma: the share of time that each tone sounds, from frames of about 0.4 s, each spectrum divided by frequency,
    so that noise is even. A chroma vector as even as chance makes it correlates with nothing: to its variance is added
    that of `UNEVEN`.
    """
    chroma = _chroma(audio)
    about = chroma - chroma.mean(1, keepdim=True)
    spread = (about.square().mean(1) + (UNEVEN * chroma.mean(1)).square()).sqrt()
    keys = torch.tensor([MAJOR, MINOR], dtype=torch.float64)
    keys = (keys - keys.mean(1, keepdim=True)) / keys.std(1, correction=0, keepdim=True)
    rotated = torch.cat([torch.stack([key.roll(tonic) for tonic in range(12)]) for key in keys])
    return _unless_silent(audio, about @ rotated.mT / 12 / spread[:, None].clamp(min=1e-30))


def _chroma(audio: Audio) -> Float[Tensor, " n 12"]:
    """From C upwards; the 12 numbers of a clip sum to 1, if anything sounds."""
    power = _power(audio, 0.37, 4).sum(1)
    hertz = torch.linspace(0, audio.sample_rate / 2, power.shape[1], dtype=torch.float64)[1:]
    note = (69 + 12 * (hertz / 440).log2()).round().long()
    inside = (note >= LOWEST) & (note < LOWEST + 12 * OCTAVES)
    even = power[:, 1:][:, inside] / hertz[inside, None]
    tones = torch.zeros(len(power), 12, power.shape[2], dtype=torch.float64).index_add(1, note[inside] % 12, even)
    total = tones.sum(1, keepdim=True)
    sounding = total > 1e-4 * total.amax(2, keepdim=True)
    return (tones / total.clamp(min=1e-30) * sounding).sum(2) / sounding.sum(2).clamp(min=1)


def _period(onsets: Float[Tensor, " frames"], rate: float, lowest: float, highest: float) -> Float[Tensor, ""]:
    """In beats a minute; `rate` is frames a second."""
    first, last = math.floor(60 * rate / highest), math.ceil(60 * rate / lowest)
    last = min(last, len(onsets) - 2)
    if last <= first:
        return torch.zeros((), dtype=torch.float64)
    spectrum = torch.fft.rfft(onsets, 2 * len(onsets)).abs().square()
    agreement = torch.fft.irfft(spectrum)[: len(onsets)]
    inner = agreement[first : last + 1]
    peaks = (inner >= agreement[first - 1 : last]) & (inner > agreement[first + 1 : last + 2]) & (inner > 0)
    if not peaks.any():
        return torch.zeros((), dtype=torch.float64)
    at = first + peaks.nonzero().flatten()
    before, top, after = agreement[at - 1], agreement[at], agreement[at + 1]
    beyond = 0.5 * (before - after) / (before - 2 * top + after)  # the top of the parabola through the three
    height = top - 0.25 * (before - after) * beyond
    shortest = int((height > NEARLY * height.max()).nonzero()[0])
    return (60 * rate / (at + beyond)[shortest]).clamp(lowest, highest)


def _power(audio: Audio, seconds: float, overlap: int) -> Float[Tensor, " n channels bins frames"]:
    """The power spectra of Hann frames of about that length; `overlap` of them cover each sample."""
    waves = audio.waveform.detach().to("cpu", torch.float64)
    waves = waves - waves.mean(2, keepdim=True)
    n, channels, length = waves.shape
    frame = _frame(audio.sample_rate, seconds)
    padded = pad(waves.reshape(n * channels, length), (frame // 2, frame // 2 + frame))
    window = torch.hann_window(frame, dtype=torch.float64)
    spectra = (
        torch.stft(padded, frame, frame // overlap, window=window, center=False, return_complex=True).abs().square()
    )
    return spectra.reshape(n, channels, *spectra.shape[1:])


def _frame(rate: int, seconds: float) -> int:
    """The nearest power of two of samples, at least 8."""
    return 2 ** max(3, round(math.log2(rate * seconds)))


def _unless_silent(audio: Audio, values: Float[Tensor, " n *any"]) -> Float[Tensor, " n *any"]:
    waves = audio.waveform.detach().to("cpu", torch.float64)
    heard = (waves - waves.mean(2, keepdim=True)).square().mean((1, 2)) > INAUDIBLE
    return torch.where(heard.reshape(-1, *[1] * (values.ndim - 1)), values, 0.0)
