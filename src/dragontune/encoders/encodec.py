"""EnCodec checkpoints of transformers' `EncodecModel` (Défossez et al. 2022, arXiv 2210.13438): latents before codes.

Licences: this code Apache-2.0, `EncodecModel` Apache-2.0; Meta's code and weights (`facebook/encodec_24khz`,
`facebook/encodec_48khz`) MIT, as far as known here: check the model card.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dragontune.data import Media
from dragontune.encoders import checkpoint, waves
from dragontune.encoders.base import Embeddings
from dragontune.encoders.checkpoint import CheckpointEncoder

QUIETEST = 1e-8
"""Added to the root mean square that a chunk is divided by."""


@dataclass(frozen=True, eq=False)
class Encodec(CheckpointEncoder):
    """The continuous latents of a clip, before they are quantised.

    75 vectors a second at 24 kHz mono, 150 at 48 kHz stereo. Where the checkpoint works in chunks (48 kHz: of 1 s,
    which overlap by 1 %) and divides each by its level, so does this: how loud a chunk was is then lost. Another number
    of channels is mixed down to one, which is repeated. `model` is a folder or a hub name; see `weights` in
    `CheckpointEncoder`. Nothing is loaded before it is used; the network follows the media to their device.

    >>> SetFrechet(Encodec(), "my-songs/")
    """

    model: str = "facebook/encodec_24khz"
    weights: str | None = None

    @property
    def dim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The latent channels."""
        return self.network.config.hidden_size

    def open(self) -> Any:  # noqa: ANN401
        """The `EncodecModel`, frozen."""
        network = checkpoint.load(self.folder, "EncodecModel", self.weights, ("encodec",))
        for part in network.modules():
            if isinstance(part, nn.LSTM):
                part.train()  # it has no dropout, and cuDNN gives gradients in this mode only
        return network

    def embed(self, media: Media) -> Embeddings:
        """Frames of any length, chunk after chunk; the last chunk may be shorter. Gradients pass."""
        config = self.network.config
        who = f"the encoder {self.name}"
        clips = waves.with_channels(media, config.sampling_rate, config.audio_channels, who)
        clips = waves.at_least(checkpoint.follow(self.network, clips), 1)
        length, stride = config.chunk_length or clips.shape[2], config.chunk_stride or clips.shape[2]
        starts = range(0, clips.shape[2], stride)
        latents = [self.network.encoder(self._level(clips[..., start : start + length])) for start in starts]
        return Embeddings.of(torch.cat(latents, 2).mT)

    def _level(self, chunk: Float[Tensor, " n channels samples"]) -> Float[Tensor, " n channels samples"]:
        """Divided by the root mean square of the mean channel, if the checkpoint was trained so."""
        if not self.network.config.normalize:
            return chunk
        power = chunk.mean(1, keepdim=True).square().mean(2, keepdim=True)
        heard = power > 0
        level = torch.where(heard, power, 1.0).sqrt() * heard  # a root has no slope at silence
        return chunk / (level + QUIETEST)
