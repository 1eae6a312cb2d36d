"""The networks of `tiny-clap`: an audio and a text tower, trained contrastively (after CLAP, Elizalde et al. 2022).

The audio tower is convolutional, so it gives a unit vector for every half second (eight for a clip of the training
length); the embedding of a clip is their mean, normalised. Left out: pretrained towers, fusion of long inputs.
"""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from dragontune.media.spectrum import mel_filters


class FrameBlock(nn.Module):
    """Depthwise convolution over time, norm, two pointwise layers, residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv1d(width, width, 5, padding=2, groups=width)
        self.norm = nn.GroupNorm(1, width)
        self.up = nn.Conv1d(width, 2 * width, 1)
        self.down = nn.Conv1d(2 * width, width, 1)

    def forward(self, x: Float[Tensor, " n width frames"]) -> Float[Tensor, " n width frames"]:
        """Frames to frames."""
        return x + self.down(functional.gelu(self.up(self.norm(self.mix(x)))))


class TinyClapModel(ModelMixin, ConfigMixin):
    """Audio frames and texts in one space of `dim` dimensions."""

    @register_to_config
    def __init__(
        self,
        sample_rate: int = 16000,
        dim: int = 64,
        mels: int = 64,
        fft: int = 1024,
        hop: int = 256,
        width: int = 160,
        vocabulary: int = 1024,
        text_width: int = 128,
        text_depth: int = 2,
        text_length: int = 32,
    ) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(fft), persistent=False)
        self.register_buffer("filters", mel_filters(sample_rate, fft, mels), persistent=False)
        self.audio = nn.Sequential(
            nn.Conv1d(mels, width, 5, padding=2),
            FrameBlock(width),
            nn.Conv1d(width, width, 4, 4),
            FrameBlock(width),
            FrameBlock(width),
            nn.Conv1d(width, 2 * width, 4, 4),
            FrameBlock(2 * width),
            nn.Conv1d(2 * width, 2 * width, 2, 2),
            FrameBlock(2 * width),
            nn.GroupNorm(1, 2 * width),
            nn.Conv1d(2 * width, dim, 1),
        )
        self.words = nn.Embedding(vocabulary, text_width)
        self.places = nn.Parameter(0.02 * torch.randn(text_length, text_width))
        layer = nn.TransformerEncoderLayer(
            text_width, 4, 2 * text_width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.text = nn.TransformerEncoder(layer, text_depth, enable_nested_tensor=False)
        self.text_out = nn.Linear(text_width, dim)
        self.log_scale = nn.Parameter(torch.tensor(2.6))

    def mel(self, waveform: Float[Tensor, " n samples"]) -> Float[Tensor, " n mels frames"]:
        """Log-mel spectrogram, roughly standardised."""
        stft = torch.stft(waveform, self.config["fft"], self.config["hop"], window=self.window, return_complex=True)
        # power, not magnitude: its slope is defined at silence too
        power = self.filters @ (stft.real.square() + stft.imag.square())[..., :-1]
        return (power.clamp(min=1e-5).log() + 2) / 4

    def audio_frames(self, waveform: Float[Tensor, " n samples"]) -> Float[Tensor, " n frames dim"]:
        """A unit vector for every 32 spectrogram frames (0.512 s); shorter audio is padded to one frame."""
        shortest = 32 * self.config["hop"]
        if waveform.shape[1] < shortest:
            waveform = functional.pad(waveform, (0, shortest - waveform.shape[1]))
        return self.frames(self.mel(waveform))

    def frames(self, mel: Float[Tensor, " n mels steps"]) -> Float[Tensor, " n frames dim"]:
        """The audio tower from log-mel spectrograms on."""
        return functional.normalize(self.audio(mel).transpose(1, 2), dim=2)

    def text_vectors(self, tokens: Int[Tensor, " n tokens"], mask: Int[Tensor, " n tokens"]) -> Float[Tensor, " n dim"]:
        """A unit vector for each text; `mask` is 1 where the token is real."""
        tokens, mask = tokens[:, : self.config["text_length"]], mask[:, : self.config["text_length"]]
        hidden = self.text(self.words(tokens) + self.places[: tokens.shape[1]], src_key_padding_mask=mask == 0)
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return functional.normalize(self.text_out(mean), dim=1)
