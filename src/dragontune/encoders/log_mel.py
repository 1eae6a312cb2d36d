"""Log-mel spectra as embeddings: what a clip sounds like from moment to moment, with nothing learned.

Their mean and covariance over a set are the long-term average spectrum and how it varies. Left out: derivatives over
time, a decorrelating transform (a Fréchet distance does not change with one).
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
from dragontune.media.spectrum import mel_filters

SILENCE = 1e-5
"""Power below which a band counts as silent: it is what white noise at about -80 dB of full scale has in a window."""
SCALE = 10.0
"""Natural logarithms are divided by it: most values then lie between -1.2 and 1."""


@dataclass(frozen=True)
class LogMel(Encoder):
    """A vector of `mels` log powers every `hop` samples (at `sample_rate`), over windows of `fft` samples.

    Media of another rate are resampled, channels are averaged, and a clip shorter than a window is padded to one.
    """

    sample_rate: int = 16000
    mels: int = 64
    fft: int = 1024
    hop: int = 512

    def __post_init__(self) -> None:
        for name, least in (("sample_rate", 1000), ("mels", 1), ("fft", 16), ("hop", 1)):
            if getattr(self, name) < least:
                raise InputError(f"expected {name} of {least} or more for LogMel, got {getattr(self, name)}: raise it")
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
        settings = (self.name, self.sample_rate, self.mels, self.fft, self.hop, SILENCE, SCALE)
        return hashlib.sha256(repr(settings).encode()).hexdigest()

    def embed(self, media: Media) -> Embeddings:
        """Frames between -1.2 (silence) and about 1; gradients pass where nothing is resampled."""
        if not isinstance(media, Audio):
            raise TypeError(f"expected Audio, got {type(media).__name__}")
        waveform = media.mono().resample(self.sample_rate).waveform[:, 0].float()
        return Embeddings.of(self._frames(waveform))

    def _frames(self, waveform: Float[Tensor, " n samples"]) -> Float[Tensor, " n frames dim"]:
        if waveform.shape[1] < self.fft:
            waveform = functional.pad(waveform, (0, self.fft - waveform.shape[1]))
        window = torch.hann_window(self.fft, device=waveform.device)
        stft = torch.stft(waveform, self.fft, self.hop, window=window, center=False, return_complex=True)
        # power, not magnitude: its slope is defined at silence too
        filters = mel_filters(self.sample_rate, self.fft, self.mels).to(waveform)
        power = filters @ (stft.real.square() + stft.imag.square())
        return (power + SILENCE).log().mT / SCALE
