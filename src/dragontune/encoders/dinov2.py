"""DINOv2 checkpoints of transformers' `Dinov2Model` (Oquab et al. 2023, arXiv 2304.07193).

Licences: this code Apache-2.0, `Dinov2Model` Apache-2.0; Meta's code and weights (`facebook/dinov2-base`) Apache-2.0,
as far as known here: check the model card. Left out: checkpoints with registers.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from dragontune.data import Media
from dragontune.encoders import checkpoint
from dragontune.encoders.base import Embeddings
from dragontune.encoders.checkpoint import CheckpointEncoder
from dragontune.encoders.pictures import Preparation, pictures_of


@dataclass(frozen=True, eq=False)
class Dinov2(CheckpointEncoder):
    """What a picture shows, learned without words: the class token, or those of the patches, after the last norm.

    With `tokens="class"` an image has one frame and a video one for each of its own; with `"patches"` as many as there
    are patches (256 of 14 x 14 pixels usually), picture after picture. `model` is a folder or a hub name; see `weights`
    in `CheckpointEncoder`. Nothing is loaded before it is used; the network follows the media to their device.

    >>> SetFrechet(Dinov2(), "my-pictures.safetensors")
    """

    model: str = "facebook/dinov2-base"
    tokens: Literal["class", "patches"] = "class"
    weights: str | None = None

    @property
    def dim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The width of the network."""
        return self.network.config.hidden_size

    def open(self) -> Any:  # noqa: ANN401
        """The `Dinov2Model`, frozen."""
        return checkpoint.load(self.folder, "Dinov2Model", self.weights, ("dinov2",))

    @cached_property
    def prepare(self) -> Preparation:
        """Pixels to what the network takes."""
        found = {"do_center_crop": True} | checkpoint.preparation(self.folder, "image_processor")
        return Preparation.read(found, self.folder)

    def embed(self, media: Media) -> Embeddings:
        """Frames of any length. Gradients pass."""
        pictures = pictures_of(media, f"the encoder {self.name}")
        pixels = self.prepare(checkpoint.follow(self.network, pictures.flatten(0, 1)))
        found = self.network(pixel_values=pixels).last_hidden_state
        found = found[:, :1] if self.tokens == "class" else found[:, 1:]
        return Embeddings.of(found.unflatten(0, pictures.shape[:2]).flatten(1, 2))
