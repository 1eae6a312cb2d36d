"""CLAP encoders (Elizalde et al. 2022): audio and text in one space, by the contrast of pairs."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from dragontune.data import Media
from dragontune.embedded import locate
from dragontune.encoders.base import Embeddings, TextEncoder
from dragontune.encoders.fingerprint import fingerprint
from dragontune.encoders.tiny import TinyClapModel
from dragontune.errors import InputError
from dragontune.media.audio import Audio
from dragontune.media.kinds import expect


@dataclass(frozen=True, eq=False)
class TinyClap(TextEncoder):
    """`tiny-clap`: a unit vector for every half second of audio, and one for a text.

    `model` is a folder with the network and, in `tokenizer/`, its tokenizer. Nothing is loaded before it is used; the
    network follows the media to its device.
    """

    model: str = "tiny-clap"

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The folder's name."""
        return self.model.rstrip("/").rpartition("/")[2]

    @property
    def dim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The dimension of the shared space."""
        return self.network.config["dim"]

    @property
    def digest(self) -> str:
        """Of the weights, the network's settings and the tokenizer."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        settings = {key: value for key, value in self.network.config.items() if not key.startswith("_")}
        return fingerprint(self.network, settings | {"tokenizer": self._tokenizer_digest})

    @property
    def _tokenizer_digest(self) -> str:
        path = locate(self.model) / "tokenizer" / "tokenizer.json"
        try:
            return hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise InputError(f"expected {path} ({error}); restore the file") from error

    @cached_property
    def network(self) -> TinyClapModel:
        """The towers, frozen."""
        try:
            with torch.random.fork_rng(devices=[]):
                network = TinyClapModel.from_pretrained(
                    str(locate(self.model)), use_safetensors=True, local_files_only=True
                )
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(f"expected a tiny-clap folder, got {self.model} ({error}); restore its files") from error
        return network.requires_grad_(False).eval()

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Text to numbers."""
        try:
            folder = str(locate(self.model) / "tokenizer")
            return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise InputError(f"expected {self.model}/tokenizer ({error}); restore its files") from error

    def embed(self, media: Media) -> Embeddings:
        """Frames of unit length."""
        audio = expect(media, Audio, f"the encoder {self.name}")
        waveform = audio.mono().resample(self.network.config["sample_rate"]).waveform[:, 0]
        nn.Module.to(self.network, waveform.device)
        return _embeddings(self.network.audio_frames(waveform.float()))

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str]) -> Embeddings:
        """One unit vector a text; what exceeds the network's length is left out."""
        tokens = self.tokenizer(
            list(texts),
            padding="max_length",  # one length, so that a text's vector does not depend on its neighbours
            truncation=True,
            max_length=self.network.config["text_length"],
            return_tensors="pt",
        ).to(self.network.places.device)
        mask = tokens.attention_mask.clone()
        mask[:, 0] = 1  # an empty text has one token, of padding
        return _embeddings(self.network.text_vectors(tokens.input_ids, mask)[:, None])


def _embeddings(frames: Float[Tensor, " n frames dim"]) -> Embeddings:
    return Embeddings(frames, torch.full((len(frames),), frames.shape[1], device=frames.device))
