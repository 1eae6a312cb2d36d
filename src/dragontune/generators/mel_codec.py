"""The autoencoder of AudioLDM (Liu et al. 2023, arXiv 2301.12503) and its kin: of log-mel spectrograms, with a vocoder.

A clip is turned into a spectrogram as in the training of AudioLDM, but at the level that it has: there, the mean of
every clip is taken away and its peak set to half of full scale.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from jaxtyping import Float
from torch import Tensor
from transformers import ClapModel, PreTrainedTokenizerBase, SpeechT5HifiGan
from transformers.audio_utils import mel_filter_bank

from dragontune.data import Media
from dragontune.errors import InputError
from dragontune.generators.checkpoint import Checkpoint, frozen
from dragontune.generators.codec import AudioCodec, audio_of, configuration, match, whole_frames
from dragontune.media.audio import Audio

RATE, HOP, FFT, BANDS = 16_000, 160, 1024, 64
"""Hertz, samples between spectra, samples in one, and mel bands from 0 Hz to half the rate."""
LEAST = 1e-5
"""The smallest magnitude in a band, before the logarithm."""


@dataclass(frozen=True, eq=False)
class MelCodec(AudioCodec):
    """Latents are (n, channels, frames, bands). With `one_by_one` the vocoder takes clips in turn."""

    vae: AutoencoderKL
    vocoder: SpeechT5HifiGan
    one_by_one: bool = False
    sample_rate: int = RATE
    channels: int = 1

    @property
    def network(self) -> AutoencoderKL:
        """The autoencoder of spectrograms, which decides the latents."""
        return self.vae

    @property
    def latent_channels(self) -> int:
        """As the autoencoder's configuration says."""
        return self.vae.config["latent_channels"]

    @property
    def shrinking(self) -> int:
        """Spectra in a latent frame, and mel bands in a latent one."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @property
    def stride(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Samples in a latent frame."""
        return self.shrinking * HOP

    @cached_property
    def filters(self) -> Float[Tensor, " bins bands"]:
        """Of the mel spectrogram: triangles of one area, on Slaney's scale."""
        bank = mel_filter_bank(FFT // 2 + 1, BANDS, 0.0, RATE / 2, RATE, norm="slaney", mel_scale="slaney")
        return torch.from_numpy(bank).to(next(self.vae.parameters()))

    def spectrogram(self, waveform: Float[Tensor, " n 1 samples"]) -> Float[Tensor, " n 1 spectra bands"]:
        """The logarithm of magnitudes in mel bands, one spectrum every `HOP` samples."""
        window = torch.hann_window(FFT, device=waveform.device)
        stft = torch.stft(waveform[:, 0], FFT, HOP, window=window, pad_mode="reflect", return_complex=True)
        bands = stft.abs().mT @ self.filters
        return bands[:, None, : waveform.shape[-1] // HOP].clamp(min=LEAST).log()

    def encode(self, media: Media) -> Float[Tensor, " n channels frames bands"]:
        """The posterior's mean; the end is padded to a whole frame."""
        waveform = whole_frames(match(audio_of(media), self).waveform, self.stride)
        posterior = self.vae.encode(self.spectrogram(waveform), return_dict=False)[0]
        return posterior.mode() * self.vae.config["scaling_factor"]

    def decode(self, latents: Float[Tensor, " n channels frames bands"]) -> Audio:
        """Latents to mono audio of whole frames; gradients pass."""
        unscaled = latents / self.vae.config["scaling_factor"]
        # the annotation of diffusers asks for a float tensor, as this one is
        spectra = self.vae.decode(unscaled, return_dict=False)[0][:, 0]  # pyright: ignore[reportArgumentType]
        parts = spectra.split(1) if self.one_by_one and len(spectra) else [spectra]
        waveform = torch.cat([self.vocoder(part) for part in parts])
        return Audio(waveform[:, None, : latents.shape[2] * self.stride], RATE)

    def fit(self, media: Media, latent_shape: tuple[int, ...]) -> Audio:
        """Cut or padded with silence to as many latent frames, at the codec's sample rate, in mono."""
        waveform, wanted = match(audio_of(media), self).waveform, latent_shape[1] * self.stride
        return Audio(torch.nn.functional.pad(waveform[..., :wanted], (0, max(0, wanted - waveform.shape[-1]))), RATE)

    def settings(self) -> dict[str, object]:
        """The network's configuration, and how spectrograms are made."""
        own = configuration(self.vae)
        return {**own, "rate": RATE, "hop": HOP, "fft": FFT, "bands": BANDS, "least": LEAST}

    def seconds(self, sample_size: int, checkpoint: Checkpoint) -> float:
        """How long clips are to be: as asked, else as long as the network was trained for.

        Raises:
            InputError: shorter than a latent frame.
        """
        seconds, least = checkpoint.seconds(math.inf, sample_size * self.stride / RATE), self.stride / RATE
        if seconds < least:
            raise InputError(
                f"expected size.seconds of at least {least} for {checkpoint.name}, got {seconds}; raise it"
            )
        return seconds

    def latent_shape(self, seconds: float) -> tuple[int, int, int]:
        """Of clips of so many seconds, in whole frames."""
        return self.latent_channels, math.ceil(round(seconds * RATE / self.stride, 6)), BANDS // self.shrinking


def mel_codec(vae: AutoencoderKL, vocoder: SpeechT5HifiGan, checkpoint: Checkpoint) -> MelCodec:
    """The codec of a pipeline's autoencoder and vocoder, thrifty if it is to be.

    Raises:
        InputError: the vocoder is of another kind of spectrogram.
    """
    config = vocoder.config
    kind = (config.sampling_rate, math.prod(config.upsample_rates), config.model_in_dim)
    if kind != (RATE, HOP, BANDS):
        raise InputError(
            f"expected AudioLDM's vocoder ({RATE} Hz, {HOP} samples a spectrum, {BANDS} bands), got {kind} in "
            f"{checkpoint.folder}; choose another model"
        )
    if checkpoint.plan.tiling:
        vae.enable_slicing()
        vae.enable_tiling()
    return MelCodec(vae, vocoder, checkpoint.plan.tiling)


def open_codec(checkpoint: Checkpoint) -> MelCodec:
    """The autoencoder and the vocoder alone."""
    folder = str(checkpoint.folder)
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", use_safetensors=True)
    vocoder = SpeechT5HifiGan.from_pretrained(folder, subfolder="vocoder", use_safetensors=True)
    return mel_codec(frozen(vae, checkpoint.device), frozen(vocoder, checkpoint.device), checkpoint)


def cut(media: Media, seconds: float) -> Audio:
    """The first so many seconds."""
    audio = audio_of(media)
    return Audio(audio.waveform[..., : int(seconds * audio.sample_rate)], audio.sample_rate)


def clap(
    encoder: ClapModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], device: torch.device
) -> Float[Tensor, " n width"]:
    """The embeddings of prompts, of length 1, in the space that CLAP shares between text and audio."""
    read = tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt").to(device)
    said: Any = encoder.get_text_features(read.input_ids, attention_mask=read.attention_mask)  # no tuple, as annotated
    return said.pooler_output
