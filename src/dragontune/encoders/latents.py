"""The model's own latents as embeddings: a reward in them needs no decoder and no other network."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from dragontune.data import Media, Samples
from dragontune.encoders.base import Embeddings, Encoder
from dragontune.encoders.fingerprint import fingerprint
from dragontune.generators.codec import Codec
from dragontune.generators.pretrained import load_codec


@dataclass(frozen=True, eq=False)
class Latents(Encoder):
    """Every latent frame (of images and videos: every place) is a frame; its channels are the dimensions.

    `model` must be the model that is tuned: generations give their latents as they are, exemplars are encoded by the
    model's autoencoder, which is loaded when it is first needed.
    """

    model: str = "tiny-music"

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The model's name, marked."""
        return f"latents of {self.model.rstrip('/').rpartition('/')[2]}"

    @property
    def dim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The latent channels."""
        return self.codec.latent_channels

    @property
    def digest(self) -> str:
        """Of the autoencoder's weights and settings."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return fingerprint(self.codec.network, self.codec.settings())

    @cached_property
    def codec(self) -> Codec:
        """The model's autoencoder."""
        return load_codec(self.model)

    @property
    def needs_media(self) -> bool:
        """Latents are enough."""
        return False

    def embed(self, media: Media) -> Embeddings:
        """Through the autoencoder; the last frame may hold some silence."""
        return _embeddings(self.codec.encode(media))

    def encode(self, samples: Samples) -> Embeddings:
        """The latents of generations, without decoding; media that never had latents (files) are embedded."""
        if samples.latents.numel() == 0 and samples.media is not None:
            return self.embed(samples.media)
        return _embeddings(samples.latents)


def _embeddings(latents: Float[Tensor, " n channels *places"]) -> Embeddings:
    frames = latents.flatten(2).transpose(1, 2)
    return Embeddings(frames, torch.full((len(frames),), frames.shape[1], device=frames.device))
