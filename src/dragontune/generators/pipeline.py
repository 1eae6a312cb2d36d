"""What generators made of a pretrained pipeline have in common: a frozen autoencoder and a network with an adapter."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dragontune.data import Media
from dragontune.generators import adapters
from dragontune.generators.base import Generator
from dragontune.media.audio import Audio

N = TypeVar("N", bound=nn.Module)
Precision = Literal["float32", "bf16"]
"""In what the denoiser multiplies matrices. `bf16` (bfloat16 autocast) saves memory and needs no loss scaling, since it
has the range of single precision; weights, all outside of the denoiser and what it returns stay in float32."""


class Codec(ABC):
    """An autoencoder of audio; latents are laid out as the generator's are."""

    sample_rate: int
    channels: int
    stride: int
    """Samples in a latent frame."""

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """The weights."""

    @abstractmethod
    def encode(self, audio: Audio) -> Float[Tensor, " n latent_channels frames"]:
        """The posterior's mean for clips of any length, sample rate and channel count; gradients pass."""

    @abstractmethod
    def decode(self, latents: Float[Tensor, " n latent_channels frames"]) -> Audio:
        """Latents to audio; gradients pass."""


class Adapted(Generator):
    """A generator whose denoiser is `network`, with an adapter, and which computes in `precision`."""

    precision: Precision

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """The denoiser, the only part that is ever trained."""

    def autocast(self) -> AbstractContextManager[object]:
        """Within it matrices are multiplied in `precision`."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def parameters(self) -> Iterator[nn.Parameter]:
        """The adapter's weights."""
        return adapters.parameters(self.network)

    def reference(self) -> AbstractContextManager[None]:
        """Within it the adapter is off."""
        return adapters.disabled(self.network)

    def scaled(self, gamma: float) -> AbstractContextManager[None]:
        """Within it the adapter's change is multiplied by `gamma`."""
        return adapters.scaled(self.network, gamma)

    def save_adapter(self, folder: str) -> None:
        """Write the adapter in peft's format."""
        adapters.save(self.network, folder, self.name)

    def load_adapter(self, folder: str) -> None:
        """Take the adapter in `folder`; InputError if it does not fit."""
        adapters.load(self.network, folder)

    def mix_adapters(self, parts: Sequence[tuple[str, float]]) -> None:
        """Take a weighted sum of the changes of adapters, by folder; InputError if one does not fit."""
        adapters.mix(self.network, parts)

    def rescale(self, gamma: float) -> None:
        """Multiply the adapter's change by `gamma` for good."""
        adapters.rescale(self.network, gamma)


class PipelineGenerator(Adapted):
    """A generator of audio whose latents are those of `codec`."""

    codec: Codec

    def decode(self, latents: Float[Tensor, " n *latent"]) -> Audio:
        """Latents to audio; gradients pass."""
        return self.codec.decode(latents)

    def encode(self, media: Media) -> Float[Tensor, " n *latent"]:
        """Audio to latents; longer clips are cut to the model's length, shorter ones end in silence."""
        latents = self.codec.encode(fit(audio_of(media), self.codec, self.latent_shape[-1]))
        return latents[..., : self.latent_shape[-1]]


def frozen(network: N, device: torch.device) -> N:
    """The network on `device`, in evaluation mode, its weights not to be trained."""
    nn.Module.to(network, device)
    return network.requires_grad_(False).eval()


def audio_of(media: Media) -> Audio:
    """The media, which must be audio."""
    if not isinstance(media, Audio):
        raise TypeError(f"expected Audio, got {type(media).__name__}")
    return media


def fit(audio: Audio, codec: Codec, frames: int) -> Audio:
    """Cut or padded with silence to `frames` latent frames, at the codec's sample rate and channel count."""
    audio = match(audio, codec)
    wanted, got = frames * codec.stride, audio.waveform.shape[-1]
    waveform = torch.nn.functional.pad(audio.waveform[..., :wanted], (0, max(0, wanted - got)))
    return Audio(waveform, audio.sample_rate)


def match(audio: Audio, codec: Codec) -> Audio:
    """At the codec's sample rate and channel count: mixed down to one, or one repeated; and on its device."""
    audio = audio.resample(codec.sample_rate)
    if audio.waveform.shape[1] != codec.channels:
        audio = Audio(audio.mono().waveform.expand(-1, codec.channels, -1), audio.sample_rate)
    weight = next(codec.network.parameters())
    return Audio(audio.waveform.to(weight.device, weight.dtype), audio.sample_rate)


def whole_frames(waveform: Float[Tensor, " n channels samples"], stride: int) -> Float[Tensor, " n channels padded"]:
    """Padded with silence to whole latent frames."""
    return torch.nn.functional.pad(waveform, (0, -waveform.shape[-1] % stride))
