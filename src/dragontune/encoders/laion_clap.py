"""CLAP checkpoints of transformers' `ClapModel` (Wu et al. 2023, arXiv 2211.06687), as `laion/larger_clap_music`.

Licences: this code Apache-2.0, `ClapModel` Apache-2.0; the weights of `laion/larger_clap_music` Apache-2.0 and LAION's
own repository CC0-1.0, as far as known here: check the model card. Left out: checkpoints with feature fusion
(`laion/clap-htsat-fused`), whose crops of long clips are random.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from dragontune.data import Media
from dragontune.encoders import checkpoint, waves
from dragontune.encoders.base import Embeddings, TextEncoder
from dragontune.encoders.checkpoint import CheckpointEncoder
from dragontune.errors import InputError

SILENCE = 1e-10
"""Power of a mel band that counts as silent: -100 dB."""


class Standardise(nn.BatchNorm2d):
    """Batch norm after training, by plain arithmetic.

    PyTorch's own (2.13, on CPUs) gives wrong gradients where its weights are frozen and what comes back is laid out in
    memory otherwise than what went in, as it is in this network.
    """

    @classmethod
    def of(cls, trained: nn.BatchNorm2d) -> "Standardise":
        """With the same weights, frozen."""
        found = cls(trained.num_features, trained.eps)
        found.load_state_dict(trained.state_dict())
        return found.to(trained.weight).requires_grad_(False).eval()

    def forward(self, input: Float[Tensor, " n c h w"]) -> Float[Tensor, " n c h w"]:
        """With the mean and variance of training."""
        if self.running_mean is None or self.running_var is None:
            raise TypeError("expected a batch norm that kept its mean and variance")
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return input * scale[:, None, None] + shift[:, None, None]


@dataclass(frozen=True, eq=False)
class Clap(CheckpointEncoder, TextEncoder):  # pyright: ignore[reportIncompatibleVariableOverride]
    """A unit vector for every 10 s of audio (48 kHz, mono), and one for a text.

    A longer clip has as few windows of 10 s as cover it, evenly spread, a frame each; a shorter one is repeated as the
    checkpoint says. `model` is a folder or a hub name; see `weights` in `CheckpointEncoder`. Nothing is loaded before
    it is used; the network follows the media to their device.

    >>> Alignment(Clap())
    """

    model: str = "laion/larger_clap_music"
    weights: str | None = None

    @property
    def dim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The dimension of the shared space."""
        return self.network.config.projection_dim

    def open(self) -> Any:  # noqa: ANN401
        """The `ClapModel`, frozen; InputError where it fuses features."""
        said = checkpoint.settings_of(self.folder, ("clap",))
        fused = said.get("audio_config", {}).get("enable_fusion", False)
        if fused or self._sound.get("truncation", "fusion") != "rand_trunc":
            raise InputError(
                f"expected a CLAP checkpoint without feature fusion, got one with it in {self.model}, whose crops of "
                "long clips are random; take an unfused one such as laion/larger_clap_music"
            )
        network = checkpoint.load(self.folder, "ClapModel", self.weights, ("clap",))
        tower = network.audio_model.audio_encoder
        tower.batch_norm = Standardise.of(tower.batch_norm)
        return network

    @cached_property
    def tokenizer(self) -> Any:  # noqa: ANN401
        """Text to numbers."""
        return checkpoint.tokenizer(self.folder)

    @cached_property
    def _sound(self) -> dict[str, Any]:
        return checkpoint.preparation(self.folder, "feature_extractor")

    def embed(self, media: Media) -> Embeddings:
        """Frames of unit length. Gradients pass."""
        rate = self._sound.get("sampling_rate", 48000)
        length = int(self._sound.get("max_length_s", 10) * rate)
        clips = waves.spread(waves.at_least(waves.mono(media, rate, f"the encoder {self.name}"), 1), length)
        n, count = clips.shape[:2]
        features = self.mel(self._repeated(checkpoint.follow(self.network, clips.flatten(0, 1)), length))
        vectors = self.network.get_audio_features(input_features=features[:, None]).pooler_output
        return Embeddings.of(vectors.unflatten(0, (n, count)))

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str]) -> Embeddings:
        """One unit vector a text; what exceeds the network's length is left out."""
        length = self.network.config.text_config.max_position_embeddings - 2  # two places are never used
        longest = min(length, self.tokenizer.model_max_length)
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        tokens = tokens.to(self.network.logit_scale_a.device)
        vectors = self.network.get_text_features(tokens.input_ids, tokens.attention_mask).pooler_output
        return Embeddings.of(vectors[:, None])

    def mel(self, waveform: Float[Tensor, " n samples"]) -> Float[Tensor, " n steps mels"]:
        """The power in mel bands in decibels, as `ClapFeatureExtractor` measures it without fusion."""
        fft, hop = self._sound.get("fft_window_size", 1024), self._sound.get("hop_length", 480)
        window = torch.hann_window(fft, device=waveform.device)
        stft = torch.stft(waveform, fft, hop, window=window, center=True, pad_mode="reflect", return_complex=True)
        power = self._filters.to(waveform) @ (stft.real.square() + stft.imag.square())
        return 10 * power.clamp(min=SILENCE).log10().mT

    @cached_property
    def _filters(self) -> Float[Tensor, " mels bins"]:
        """Slaney's filters: what unfused checkpoints were trained with."""
        filters = import_module("transformers.audio_utils").mel_filter_bank(
            num_frequency_bins=self._sound.get("fft_window_size", 1024) // 2 + 1,
            num_mel_filters=self._sound.get("feature_size", 64),
            min_frequency=self._sound.get("frequency_min", 0),
            max_frequency=self._sound.get("frequency_max", 14000),
            sampling_rate=self._sound.get("sampling_rate", 48000),
            norm="slaney",
            mel_scale="slaney",
        )
        return torch.from_numpy(filters).mT.float()

    def _repeated(self, waveform: Float[Tensor, " n samples"], length: int) -> Float[Tensor, " n length"]:
        """A shorter clip, brought to `length` samples as the checkpoint says."""
        samples, how = waveform.shape[1], self._sound.get("padding", "repeatpad")
        if how == "repeat":
            return waveform.repeat(1, length // samples + 1)[:, :length]
        if how == "repeatpad":
            waveform = waveform.repeat(1, length // samples)
        return pad(waveform, (0, length - waveform.shape[1]))
