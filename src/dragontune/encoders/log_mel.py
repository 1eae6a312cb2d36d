"""Log-mel spectra as embeddings: what a clip sounds like from moment to moment, with nothing learned.

Their mean and covariance over a set are the long-term average spectrum and how it varies. Left out: derivatives over
time, a decorrelating transform (a Fréchet distance does not change with one), and loudness as it is heard.
"""

import hashlib
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from dragontune.data import Media
from dragontune.encoders.base import Embeddings, Encoder
from dragontune.errors import InputError
from dragontune.media.audio import Audio
from dragontune.media.kinds import expect
from dragontune.media.spectrum import mel_filters

SILENCE = 5e-11
"""Mean square (-103 dB of full scale) of a band that counts as silent, at any rate, window size and number of bands."""
MIDDLE = 5e-6
"""Mean square (-53 dB) of a band whose value is 0."""
SCALE = 10.0
"""Natural logarithms are divided by it."""
QUIETEST = 1e-8
"""Mean square (-80 dB) of a clip below which its level is left alone: what is silent stays silent."""


@dataclass(frozen=True)
class LogMel(Encoder):
    """A vector of `mels` log powers every `hop` samples (at `sample_rate`), over windows of `fft` samples.

    Media of another rate are resampled, channels are averaged, and a clip shorter than a window is padded to one. With
    a `level`, in decibels of root mean square, each clip is brought to it first: how loud it was makes no difference
    then, down to -80 dB, below which it stays as it is.

    >>> LogMel(level=-20.0).embed(quiet).frames.allclose(LogMel(level=-20.0).embed(loud).frames)
    True
    """

    sample_rate: int = 16000
    mels: int = 64
    fft: int = 1024
    hop: int = 512
    level: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("sample_rate", 1000), ("mels", 1), ("fft", 16), ("hop", 1)):
            if getattr(self, name) < least:
                raise InputError(f"expected {name} of {least} or more for LogMel, got {getattr(self, name)}: raise it")
        if self.level is not None and not -80 <= self.level <= 0:
            raise InputError(f"expected a level from -80 to 0 decibels for LogMel, got {self.level}: try -20")
        if (mel_filters(self.sample_rate, self.fft, self.mels).sum(1) == 0).any():
            raise InputError(
                f"expected fewer mel bands than {self.mels} for windows of {self.fft} samples at {self.sample_rate} "
                "Hz, since some hold no frequency: lower mels or raise fft"
            )

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Always the same."""
        return "log-mel"

    @property
    def dim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The bands."""
        return self.mels

    @property
    def digest(self) -> str:
        """Of the settings."""
        settings = (self.name, self.sample_rate, self.mels, self.fft, self.hop, self.level)
        constants = (SILENCE, MIDDLE, SCALE, QUIETEST)
        return hashlib.sha256(repr(settings + constants).encode()).hexdigest()

    def embed(self, media: Media) -> Embeddings:
        """Frames between -1.15 (silence) and 1.22 (a band that holds all of a clip at full scale).

        With a `level` a clip may exceed full scale. Gradients pass.
        """
        audio = expect(media, Audio, f"the encoder {self.name}")
        waveform = audio.mono().resample(self.sample_rate).waveform[:, 0].float()
        return Embeddings.of(self._frames(self._levelled(waveform)))

    def _levelled(self, waveform: Float[Tensor, " n samples"]) -> Float[Tensor, " n samples"]:
        if self.level is None:
            return waveform
        square = waveform.square().mean(1, keepdim=True)
        gain = 10 ** (self.level / 20) * square.clamp(min=QUIETEST).rsqrt()
        return torch.where(square < QUIETEST, waveform, gain * waveform)

    def _frames(self, waveform: Float[Tensor, " n samples"]) -> Float[Tensor, " n frames dim"]:
        """Of the mean square in each band: the bins' powers of both signs of frequency over the window's energy."""
        if waveform.shape[1] < self.fft:
            waveform = functional.pad(waveform, (0, self.fft - waveform.shape[1]))
        window = torch.hann_window(self.fft, device=waveform.device)
        stft = torch.stft(waveform, self.fft, self.hop, window=window, center=False, return_complex=True)
        # power, not magnitude: its slope is defined at silence too
        filters = mel_filters(self.sample_rate, self.fft, self.mels).to(waveform)
        power = filters @ (stft.real.square() + stft.imag.square()) * (2 / (self.fft * window.square().sum()))
        return ((power + SILENCE) / MIDDLE).log().mT / SCALE
