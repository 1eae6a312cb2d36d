"""SigLIP checkpoints of transformers' `SiglipModel` (Zhai et al. 2023, arXiv 2303.15343).

Licences: this code Apache-2.0, `SiglipModel` Apache-2.0; Google's weights (`google/siglip-base-patch16-224`)
Apache-2.0, as far as known here: check the model card. Its tokenizer needs sentencepiece (`pip install
'dragontune[siglip]'`). Left out: SigLIP 2 with pictures of any shape (NaFlex).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.nn.functional import normalize

from dragontune.data import Media
from dragontune.encoders import checkpoint
from dragontune.encoders.base import Embeddings, TextEncoder
from dragontune.encoders.checkpoint import CheckpointEncoder
from dragontune.encoders.pictures import Preparation, pictures_of

DEFAULTS = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}


@dataclass(frozen=True, eq=False)
class Siglip(CheckpointEncoder, TextEncoder):  # pyright: ignore[reportIncompatibleVariableOverride]
    """A unit vector for an image, for every frame of a video, and for a text.

    `model` is a folder or a hub name; see `weights` in `CheckpointEncoder`. Nothing is loaded before it is used; the
    network follows the media to their device.

    >>> Alignment(Siglip())
    """

    model: str = "google/siglip-base-patch16-224"
    weights: str | None = None

    @property
    def dim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The dimension of the shared space."""
        return self.network.config.vision_config.hidden_size

    def open(self) -> Any:  # noqa: ANN401
        """The `SiglipModel`, frozen."""
        return checkpoint.load(self.folder, "SiglipModel", self.weights, ("siglip",))

    @cached_property
    def tokenizer(self) -> Any:  # noqa: ANN401
        """Text to numbers."""
        return checkpoint.tokenizer(self.folder)

    @cached_property
    def prepare(self) -> Preparation:
        """Pixels to what the network takes."""
        return Preparation.read(DEFAULTS | checkpoint.preparation(self.folder, "image_processor"), self.folder)

    def embed(self, media: Media) -> Embeddings:
        """Frames of unit length. Gradients pass."""
        pictures = pictures_of(media, f"the encoder {self.name}")
        pixels = self.prepare(checkpoint.follow(self.network, pictures.flatten(0, 1)))
        vectors = self.network.get_image_features(pixel_values=pixels).pooler_output
        return Embeddings.of(normalize(vectors, dim=1).unflatten(0, pictures.shape[:2]))

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str]) -> Embeddings:
        """One unit vector a text; what exceeds the network's length is left out."""
        length = self.network.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).to(self.network.logit_scale.device)
        vectors = self.network.get_text_features(tokens.input_ids).pooler_output  # padding is seen, as in its training
        return Embeddings.of(normalize(vectors, dim=1)[:, None])
