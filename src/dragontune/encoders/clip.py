"""CLIP checkpoints of transformers' `CLIPModel` (Radford et al. 2021, arXiv 2103.00020).

Licences: this code Apache-2.0, `CLIPModel` Apache-2.0; OpenAI's code and weights MIT, its model card names uses
out of scope; LAION's weights (`laion/CLIP-ViT-H-14-laion2B-s32B-b79K`) MIT, as far as known here: check the model card.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from dragontune.data import Media
from dragontune.encoders import checkpoint
from dragontune.encoders.base import Embeddings, TextEncoder
from dragontune.encoders.checkpoint import CheckpointEncoder
from dragontune.encoders.pictures import Preparation, pictures_of


@dataclass(frozen=True, eq=False)
class Clip(CheckpointEncoder, TextEncoder):  # pyright: ignore[reportIncompatibleVariableOverride]
    """A unit vector for an image, for every frame of a video, and for a text.

    `model` is a folder or a hub name; `processor` another that has its tokenizer and `preprocessor_config.json`, where
    the model has none; see `weights` in `CheckpointEncoder`. Nothing is loaded before it is used; the network follows
    the media to their device.

    >>> Alignment(Clip())
    """

    model: str = "openai/clip-vit-large-patch14"
    processor: str | None = None
    weights: str | None = None

    @property
    def dim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The dimension of the shared space."""
        return self.network.config.projection_dim

    def open(self) -> Any:  # noqa: ANN401
        """The `CLIPModel`, frozen."""
        return checkpoint.load(self.folder, "CLIPModel", self.weights, ("clip",))

    @cached_property
    def _words(self) -> Path:
        return self.folder if self.processor is None else checkpoint.find(self.processor)

    @property
    def settings(self) -> dict[str, object]:
        """Of the model, and of the processor, where it is another."""
        return super().settings | ({"processor": checkpoint.contents(self._words)} if self.processor else {})

    @cached_property
    def tokenizer(self) -> Any:  # noqa: ANN401
        """Text to numbers."""
        return checkpoint.tokenizer(self._words)

    @cached_property
    def prepare(self) -> Preparation:
        """Pixels to what the network takes."""
        found = {"do_center_crop": True} | checkpoint.preparation(self._words, "image_processor")
        return Preparation.read(found, self._words)

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
        vectors = self.network.get_text_features(tokens.input_ids, tokens.attention_mask).pooler_output
        return Embeddings.of(normalize(vectors, dim=1)[:, None])
