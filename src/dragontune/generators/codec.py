"""Autoencoders between media and latents."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dragontune.data import Media
from dragontune.media.audio import Audio
from dragontune.media.kinds import expect


class Codec(ABC):
    """An autoencoder; latents are laid out as the generator's are: channels first."""

    sample_rate: int
    """Of the media: samples or frames a second, 1 for images."""

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """The weights."""

    @property
    @abstractmethod
    def latent_channels(self) -> int:
        """The first axis of an item's latents."""

    @abstractmethod
    def encode(self, media: Media) -> Float[Tensor, " n *latent"]:
        """The posterior's mean for media of any length, size and rate; gradients pass."""

    @abstractmethod
    def decode(self, latents: Float[Tensor, " n *latent"]) -> Media:
        """Latents to media; gradients pass."""

    @abstractmethod
    def fit(self, media: Media, latent_shape: tuple[int, ...]) -> Media:
        """Cut, padded or scaled so that `encode` gives latents of `latent_shape`."""

    @abstractmethod
    def settings(self) -> dict[str, object]:
        """What decides the latents beside the weights."""


class AudioCodec(Codec):
    """An autoencoder of audio; latents are (n, channels, frames)."""

    channels: int
    stride: int
    """Samples in a latent frame."""

    @property
    def latent_channels(self) -> int:
        """Found out with a frame of silence."""
        with torch.no_grad():
            return self.encode(Audio(torch.zeros(1, self.channels, self.stride), self.sample_rate)).shape[1]

    def fit(self, media: Media, latent_shape: tuple[int, ...]) -> Audio:
        """Cut or padded with silence to as many latent frames, at the codec's sample rate and channel count."""
        audio = match(audio_of(media), self)
        wanted, got = latent_shape[-1] * self.stride, audio.waveform.shape[-1]
        waveform = torch.nn.functional.pad(audio.waveform[..., :wanted], (0, max(0, wanted - got)))
        return Audio(waveform, audio.sample_rate)

    def settings(self) -> dict[str, object]:
        """The network's configuration, the sample rate and the stride."""
        return {**configuration(self.network), "sample_rate": self.sample_rate, "stride": self.stride}


def configuration(network: nn.Module) -> dict[str, object]:
    """What a network of diffusers was made with."""
    return {key: value for key, value in dict(getattr(network, "config", {})).items() if not key.startswith("_")}


def audio_of(media: Media) -> Audio:
    """The media, which must be audio."""
    return expect(media, Audio, "this model's autoencoder")


def match(audio: Audio, codec: AudioCodec) -> Audio:
    """At the codec's sample rate and channel count: mixed down to one, or one repeated; and on its device."""
    audio = audio.resample(codec.sample_rate)
    if audio.waveform.shape[1] != codec.channels:
        audio = Audio(audio.mono().waveform.expand(-1, codec.channels, -1), audio.sample_rate)
    weight = next(codec.network.parameters())
    return Audio(audio.waveform.to(weight.device, weight.dtype), audio.sample_rate)


def whole_frames(waveform: Float[Tensor, " n channels samples"], stride: int) -> Float[Tensor, " n channels padded"]:
    """Padded with silence to whole latent frames."""
    return torch.nn.functional.pad(waveform, (0, -waveform.shape[-1] % stride))


def in_tiles(
    function: Callable[[Tensor], Tensor],
    signal: Float[Tensor, " n channels length"],
    units: tuple[int, int],
    tile: int,
    context: int,
) -> Float[Tensor, " n new_channels new_length"]:
    """`function` item by item, on `tile` latent frames at a time and `context` frames at each side of them.

    What comes of the context is cut off again, so the result is exact if `function` looks no further. `units` are the
    lengths of a latent frame in what goes in and in what comes out.
    """
    into, out = units
    frames = signal.shape[-1] // into

    def one(item: Tensor, start: int) -> Tensor:
        first, stop = max(0, start - context), min(start + tile, frames)
        made = function(item[..., first * into : (stop + context) * into])
        return made[..., (start - first) * out : (stop - first) * out]

    return torch.cat(
        [torch.cat([one(item, start) for start in range(0, frames, tile)], -1) for item in signal.split(1)]
    )
