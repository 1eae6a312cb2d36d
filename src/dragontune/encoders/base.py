"""An Encoder turns media (or text) into embeddings that distances and similarities can be taken of."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dragontune.data import Media, Rows, Samples


@dataclass(frozen=True, eq=False)
class Embeddings(Rows):
    """The frames of each item; items may have different numbers of frames (rows beyond `count` are padding)."""

    frames: Float[Tensor, " n frames dim"]
    count: Int[Tensor, " n"]

    @classmethod
    def of(cls, frames: Float[Tensor, " n frames dim"]) -> "Embeddings":
        """Items with equally many frames."""
        return cls(frames, torch.full((len(frames),), frames.shape[1], device=frames.device))

    @classmethod
    def join(cls, parts: "Sequence[Embeddings]") -> "Embeddings":  # pyright: ignore[reportIncompatibleMethodOverride]
        """Stack the items, padded to the longest."""
        longest = max(part.frames.shape[1] for part in parts)
        padded = [torch.nn.functional.pad(part.frames, (0, 0, 0, longest - part.frames.shape[1])) for part in parts]
        return cls(torch.cat(padded), torch.cat([part.count for part in parts]))

    def mask(self) -> Float[Tensor, " n frames 1"]:
        """1 for a real frame, 0 for padding."""
        positions = torch.arange(self.frames.shape[1], device=self.frames.device)
        return (positions < self.count[:, None]).to(self.frames.dtype)[..., None]

    def pooled(self) -> Float[Tensor, " total dim"]:
        """All real frames of all items, one after another."""
        return self.frames[self.mask()[..., 0] > 0]

    def items(self) -> "Float[Tensor, ' n frames dim'] | list[Tensor]":
        """Each item's real frames: one tensor where all have equally many, else a list."""
        if not len(self) or bool((self.count == self.frames.shape[1]).all()):
            return self.frames
        return [frames[: int(count)] for frames, count in zip(self.frames, self.count, strict=True)]

    def double_on_cpu(self) -> "Embeddings":
        """Where and how distances are computed."""
        return Embeddings(self.frames.to("cpu", torch.float64), self.count.cpu())

    def mean(self) -> Float[Tensor, " n dim"]:
        """The mean frame of each item."""
        return (self.frames * self.mask()).sum(1) / self.count[:, None].to(self.frames.dtype)


class Encoder(ABC):
    """Media to embeddings. Gradients pass where the encoder is a network."""

    name: str
    """Short name for messages and references, such as `tiny-clap`."""
    dim: int

    @property
    @abstractmethod
    def digest(self) -> str:
        """SHA-256 (hex) of what determines the embeddings: the weights and the settings."""

    @abstractmethod
    def embed(self, media: Media) -> Embeddings:
        """Frames of every item. Any sample rate and channel count is accepted and converted."""

    def encode(self, samples: Samples) -> Embeddings:
        """Frames of generations; the latent-space encoder answers from their latents without decoding."""
        if samples.media is None:
            raise ValueError(f"{self.name} embeds media, but these samples were not decoded")
        return self.embed(samples.media)

    @property
    def needs_media(self) -> bool:
        """Whether `encode` needs decoded media, or latents are enough."""
        return True


class TextEncoder(Encoder):
    """An encoder that embeds media and text into one space (CLAP, CLIP)."""

    @abstractmethod
    def embed_text(self, texts: Sequence[str]) -> Embeddings:
        """One frame a text, of unit length."""
