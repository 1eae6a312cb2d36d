"""MERT checkpoints (Li et al. 2023, arXiv 2306.00107) in transformers' `HubertModel`: without remote code.

The released code is a HuBERT with settings added; where these are off its weights are HuBERT's, by the same names.
Licences: this code Apache-2.0, `HubertModel` Apache-2.0; the weights (`m-a-p/MERT-v1-95M`, `-330M`) CC BY-NC 4.0, which
forbids commercial use: check the model card. Left out: deep norm (`attention_relax` works with it only) and constant-Q
features (`feature_extractor_cqt`).
"""

from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any

from jaxtyping import Float
from torch import Tensor

from dragontune.data import Media
from dragontune.encoders import checkpoint, waves
from dragontune.encoders.base import Embeddings
from dragontune.encoders.checkpoint import CheckpointEncoder
from dragontune.errors import InputError


@dataclass(frozen=True, eq=False)
class Mert(CheckpointEncoder):
    """75 vectors a second of 24 kHz mono audio (what `preprocessor_config.json` says), or their mean.

    `layer` is the transformer block whose output is taken, 0 what enters the first; None the network's own output. A
    clip goes through in one piece: with a long one memory grows. `model` is a folder or a hub name; `weights` a file of
    it, a pickle only by its name (the hub's checkpoints have no other: `weights="pytorch_model.bin"`). Nothing is
    loaded before it is used; the network follows the media to their device.

    >>> SetFrechet(Mert(weights="pytorch_model.bin", layer=7), "my-songs/")
    """

    model: str = "m-a-p/MERT-v1-95M"
    weights: str | None = None
    layer: int | None = None
    average: bool = False
    """Whether a clip has one frame, the mean over time."""

    @property
    def dim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The width of the network."""
        return self.network.config.hidden_size

    def open(self) -> Any:  # noqa: ANN401
        """A `HubertModel` with these weights, frozen.

        Raises:
            InputError: it cannot express the checkpoint, `layer` is none of it, or files are missing or torn.
        """
        said = checkpoint.settings_of(self.folder, ("mert_model", "hubert"))
        for setting in ("deepnorm", "feature_extractor_cqt"):
            if said.get(setting):
                raise InputError(
                    f"expected a MERT checkpoint that a HuBERT network can express, got one with {setting} in "
                    f"{self.model}; take another, such as m-a-p/MERT-v1-95M"
                )
        blocks = said.get("num_hidden_layers", 12)
        if self.layer is not None and not 0 <= self.layer <= blocks:
            raise InputError(f"expected a layer from 0 to {blocks} for {self.model}, got {self.layer}; correct it")
        state = checkpoint.read_weights(self.folder, self.weights)
        with checkpoint.readable(self.folder), checkpoint.quiet():
            transformers = import_module("transformers")
            known = set(transformers.HubertConfig().to_dict()) - {"model_type", *checkpoint.VOLATILE}
            config = transformers.HubertConfig(**{name: value for name, value in said.items() if name in known})
            return checkpoint.made(transformers.HubertModel, config, state)

    @cached_property
    def _sound(self) -> dict[str, Any]:
        return checkpoint.preparation(self.folder, "feature_extractor")

    def embed(self, media: Media) -> Embeddings:
        """Frames of any length. Gradients pass."""
        rate = self._sound.get("sampling_rate", 24000)
        clips = checkpoint.follow(self.network, waves.mono(media, rate, f"the encoder {self.name}"))
        clips = self._normalised(waves.at_least(clips, waves.reach(self.network.config)))
        if self.layer is None:
            frames = self.network(clips).last_hidden_state
        else:
            frames = self.network(clips, output_hidden_states=True).hidden_states[self.layer]
        return Embeddings.of(frames.mean(1, keepdim=True) if self.average else frames)

    def _normalised(self, clips: Float[Tensor, " n samples"]) -> Float[Tensor, " n samples"]:
        """To mean 0 and variance 1, if the checkpoint's preprocessor does so."""
        if not self._sound.get("do_normalize", True):
            return clips
        off = clips - clips.mean(1, keepdim=True)
        return off / (off.square().mean(1, keepdim=True) + 1e-7).sqrt()
