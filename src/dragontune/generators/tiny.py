"""The networks of `tiny-music`, a small text-to-music latent diffusion model of the kind of Stable Audio Open.

A frame-level autoencoder with an inverse-STFT head (after Vocos, Siuzdak 2023), and a diffusion transformer with EDM
preconditioning (Karras et al. 2022) whose attention layers see the text tokens beside the audio tokens, as in DRAGON's
base model (Bai et al. 2025). Left out: adversarial training of the decoder, rotary positions, variable width.
Both are diffusers models, so `tiny-music` is an ordinary pipeline folder.
"""

from math import log

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional


class ConvNext(nn.Module):
    """A ConvNeXt block on frames (Liu et al. 2022): depthwise convolution, norm, two pointwise layers, residual."""

    def __init__(self, width: int, expansion: int = 2) -> None:
        super().__init__()
        self.mix = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, expansion * width)
        self.down = nn.Linear(expansion * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Float[Tensor, " n width frames"]) -> Float[Tensor, " n width frames"]:
        """Frames to frames."""
        y = self.norm(self.mix(x).transpose(1, 2))
        y = self.down(functional.gelu(self.up(y))) * self.scale
        return x + y.transpose(1, 2)


class TinyAutoencoder(ModelMixin, ConfigMixin):
    """Waveform to latent frames and back, by way of the short-time Fourier transform.

    `encode` gives the mean and log-variance of latents standardised to `sigma_data`; `decode` takes such latents. One
    latent frame is `hop * stride` samples (64 ms at 16 kHz with the defaults).
    """

    @register_to_config
    def __init__(
        self,
        sample_rate: int = 16000,
        channels: int = 32,
        width: int = 256,
        fft: int = 1024,
        hop: int = 256,
        stride: int = 4,
        fine_blocks: int = 3,
        coarse_blocks: int = 3,
        sigma_data: float = 0.5,
    ) -> None:
        super().__init__()
        bins = fft // 2 + 1
        self.register_buffer("window", torch.hann_window(fft), persistent=False)
        self.register_buffer("shift", torch.zeros(channels))
        self.register_buffer("spread", torch.ones(channels))
        self.encoder = nn.Sequential(
            nn.Conv1d(bins, width, 1),
            *(ConvNext(width) for _ in range(fine_blocks - 1)),
            nn.Conv1d(width, width, stride, stride),
            *(ConvNext(width) for _ in range(coarse_blocks)),
            nn.Conv1d(width, 2 * channels, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv1d(channels, width, 3, padding=1),
            *(ConvNext(width) for _ in range(coarse_blocks)),
            nn.ConvTranspose1d(width, width, stride, stride),
            *(ConvNext(width) for _ in range(fine_blocks)),
        )
        self.head_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 2 * bins)

    def spectrum(self, waveform: Float[Tensor, " n 1 samples"]) -> Float[Tensor, " n bins frames"]:
        """Log-magnitude short-time Fourier transform, one frame every `hop` samples."""
        window = self.window.to(waveform.dtype)
        stft = torch.stft(waveform[:, 0], self.config["fft"], self.config["hop"], window=window, return_complex=True)
        return stft.abs().clamp(min=1e-4).log()[..., :-1]

    def posterior(
        self, waveform: Float[Tensor, " n 1 samples"]
    ) -> tuple[Float[Tensor, " n channels frames"], Float[Tensor, " n channels frames"]]:
        """Mean and log-variance before standardisation."""
        mean, log_variance = self.encoder(self.spectrum(waveform)).chunk(2, dim=1)
        return mean, log_variance.clamp(-12, 4)

    def encode(self, waveform: Float[Tensor, " n 1 samples"]) -> Float[Tensor, " n channels frames"]:
        """The posterior mean, each channel standardised to zero mean and standard deviation `sigma_data`."""
        mean, _ = self.posterior(waveform)
        return (mean - self.shift[:, None]) * (self.config["sigma_data"] / self.spread[:, None])

    def decode(self, latents: Float[Tensor, " n channels frames"]) -> Float[Tensor, " n 1 samples"]:
        """Standardised latents to a waveform of `hop * stride` samples a frame."""
        return self.synthesize(latents * (self.spread[:, None] / self.config["sigma_data"]) + self.shift[:, None])

    def synthesize(self, latents: Float[Tensor, " n channels frames"]) -> Float[Tensor, " n 1 samples"]:
        """Latents before standardisation to a waveform."""
        hidden = self.decoder(latents)
        log_magnitude, phase = self.head(self.head_norm(hidden.transpose(1, 2))).transpose(1, 2).chunk(2, dim=1)
        spectrum = torch.polar(log_magnitude.clamp(max=6).exp(), phase)
        spectrum = torch.cat([spectrum, spectrum[..., -1:]], dim=2)  # the centred transform has one frame more
        length = (spectrum.shape[2] - 1) * self.config["hop"]
        window = self.window.to(latents.dtype)
        return torch.istft(spectrum, self.config["fft"], self.config["hop"], window=window, length=length)[:, None]


class JointAttention(nn.Module):
    """Audio queries attend to audio and text keys together."""

    def __init__(self, width: int, text_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.text_k = nn.Linear(text_width, width)
        self.text_v = nn.Linear(text_width, width)
        self.to_out = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, " n frames width"], text: Float[Tensor, " n tokens text"], mask: Int[Tensor, " n tokens"]
    ) -> Float[Tensor, " n frames width"]:
        """`mask` is 1 where the text token is real."""
        keys = torch.cat([self.to_k(x), self.text_k(text)], dim=1)
        values = torch.cat([self.to_v(x), self.text_v(text)], dim=1)
        seen = torch.cat([mask.new_ones(x.shape[:2]), mask], dim=1).bool()[:, None, None]
        q, k, v = (y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in (self.to_q(x), keys, values))
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.to_out(y.transpose(1, 2).flatten(2))


class DitBlock(nn.Module):
    """Attention and a two-layer network, both modulated by the noise level (adaptive layer norm)."""

    def __init__(self, width: int, text_width: int, heads: int) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm_2 = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = JointAttention(width, text_width, heads)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.offset = nn.Parameter(torch.zeros(6, width))

    def forward(
        self,
        x: Float[Tensor, " n frames width"],
        level: Float[Tensor, " n 6 width"],
        text: Float[Tensor, " n tokens text"],
        mask: Int[Tensor, " n tokens"],
    ) -> Float[Tensor, " n frames width"]:
        """`level`: shift, scale and gate for each of the two halves, shared by all blocks up to `offset`."""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = (level + self.offset).unsqueeze(2).unbind(1)
        x = x + gate_1 * self.attention(self.norm_1(x) * (1 + scale_1) + shift_1, text, mask)
        hidden = self.norm_2(x) * (1 + scale_2) + shift_2
        return x + gate_2 * self.down(functional.gelu(self.up(hidden), approximate="tanh"))


class TinyDiT(ModelMixin, ConfigMixin):
    """F of EDM: from the scaled noisy latents, c_noise = ln(sigma) / 4 and text tokens to the network's raw output."""

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        channels: int = 32,
        frames: int = 64,
        width: int = 160,
        depth: int = 5,
        heads: int = 5,
        text_width: int = 128,
        level_width: int = 128,
        sigma_data: float = 0.5,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        p_mean: float = -0.4,
        p_std: float = 1.0,
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.enter = nn.Linear(channels, width)
        self.level_in = nn.Linear(level_width, width)
        self.level_out = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(DitBlock(width, text_width, heads) for _ in range(depth))
        self.last_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.leave = nn.Linear(width, channels)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(
        self,
        scaled: Float[Tensor, " n channels frames"],
        c_noise: Float[Tensor, " n"],
        text: Float[Tensor, " n tokens text"],
        mask: Int[Tensor, " n tokens"],
    ) -> Float[Tensor, " n channels frames"]:
        """One pass; `scaled` is c_in times the noisy latents."""
        x = self.enter(scaled.transpose(1, 2))
        x = x + sinusoid(torch.arange(x.shape[1], device=x.device, dtype=x.dtype), x.shape[2], 1000.0)
        level = sinusoid(c_noise * 100, self.config["level_width"], 1000.0)
        level = self.level_out(functional.silu(self.level_in(level))).unflatten(1, (6, -1))
        for block in self.blocks:
            if self._gradient_checkpointing_func and self.gradient_checkpointing and torch.is_grad_enabled():
                x = self._gradient_checkpointing_func(block, x, level, text, mask)
            else:
                x = block(x, level, text, mask)
        return self.leave(self.last_norm(x)).transpose(1, 2)

    def denoise(
        self,
        noisy: Float[Tensor, " n channels frames"],
        sigma: Float[Tensor, " n"],
        text: Float[Tensor, " n tokens text"],
        mask: Int[Tensor, " n tokens"],
    ) -> Float[Tensor, " n channels frames"]:
        """D(x; sigma) with EDM's preconditioning: the estimate of the clean latents."""
        total = (sigma.square() + self.config["sigma_data"] ** 2)[:, None, None]
        s = sigma[:, None, None]
        output = self(noisy / total.sqrt(), sigma.log() / 4, text, mask)
        return self.config["sigma_data"] ** 2 / total * noisy + s * self.config["sigma_data"] / total.sqrt() * output


class TinyMusicPipeline(DiffusionPipeline):
    """`tiny-music` as a diffusers folder: autoencoder, text encoder (T5), tokenizer and transformer."""

    def __init__(self, vae: TinyAutoencoder, text_encoder: nn.Module, tokenizer: object, transformer: TinyDiT) -> None:
        super().__init__()
        self.register_modules(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, transformer=transformer)


def sinusoid(values: Float[Tensor, " n"], width: int, longest: float) -> Float[Tensor, " n width"]:
    """Sines and cosines of `values` at `width / 2` wavelengths from 2 pi to 2 pi `longest`."""
    steps = torch.arange(width // 2, device=values.device, dtype=values.dtype) / (width // 2 - 1)
    angles = values[:, None] * torch.exp(-log(longest) * steps)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
