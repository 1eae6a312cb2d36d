"""`tiny-music`, the embedded text-to-music model, as a Generator (EDM parametrisation, T5 text tokens)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dragontune.data import Media, Rows
from dragontune.generators.checkpoint import Checkpoint, frozen
from dragontune.generators.codec import AudioCodec, audio_of, match, whole_frames
from dragontune.generators.pipeline import PipelineGenerator
from dragontune.generators.tiny import TinyAutoencoder, TinyDiT, TinyMusicPipeline
from dragontune.media.audio import Audio
from dragontune.schedule import Edm


@dataclass(frozen=True, eq=False)
class Condition(Rows):
    """Text tokens; `mask` is 1 where the token is real."""

    text: Float[Tensor, " n tokens width"]
    mask: Int[Tensor, " n tokens"]


@dataclass(frozen=True, eq=False)
class TinyCodec(AudioCodec):
    """The autoencoder of `tiny-music`: mono, one latent frame every 64 ms."""

    vae: TinyAutoencoder
    sample_rate: int
    stride: int
    channels: int = 1

    @property
    def network(self) -> TinyAutoencoder:
        """The autoencoder."""
        return self.vae

    def encode(self, media: Media) -> Float[Tensor, " n latent_channels frames"]:
        """The posterior's mean, standardised; the end is padded to a whole frame."""
        return self.vae.encode(whole_frames(match(audio_of(media), self).waveform, self.stride))

    def decode(self, latents: Float[Tensor, " n latent_channels frames"]) -> Audio:
        """Latents to mono audio."""
        return Audio(self.vae.decode(latents), self.sample_rate)


@dataclass(frozen=True, eq=False, kw_only=True)
class TinyMusic(PipelineGenerator[TinyMusicPipeline]):
    """The pipeline's parts behind the generator's interface; made by `open_generator`."""

    @property
    def network(self) -> TinyDiT:
        """The diffusion transformer."""
        return self.pipeline.transformer

    def condition(self, prompts: Sequence[str]) -> Condition:
        """The text encoder's tokens, padded to one length so that a prompt's do not depend on its neighbours."""
        tokens = self.pipeline.tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt")
        mask = tokens.attention_mask.to(self.device)
        return Condition(self.pipeline.text_encoder(tokens.input_ids.to(self.device), attention_mask=mask)[0], mask)

    def prompt_vectors(self, condition: Rows) -> Float[Tensor, " n width"]:
        """The mean of the real tokens."""
        if not isinstance(condition, Condition):
            raise TypeError(f"expected this model's Condition, got {type(condition).__name__}")
        real = condition.mask.to(condition.text)[..., None]
        return (condition.text * real).sum(1) / real.sum(1).clamp(min=1)

    def predict(
        self, noisy: Float[Tensor, " n *latent"], t: Float[Tensor, " n"], condition: Condition
    ) -> Float[Tensor, " n *latent"]:
        """EDM's D(x; sigma). At t = 0 there is no noise, and the input is the estimate."""
        sigma = self.schedule.sigma(t)
        clean = self.network.denoise(noisy, sigma.clamp(min=1e-6), condition.text, condition.mask)
        return torch.where((sigma > 0)[:, None, None], clean, noisy)


def open_generator(checkpoint: Checkpoint) -> TinyMusic:
    """The generator in a local pipeline folder. Its clips are as long as the network was made for."""
    checkpoint.size.check("clips of one length")
    pipeline = checkpoint.open(TinyMusicPipeline)
    config = pipeline.transformer.config
    return TinyMusic(
        checkpoint=checkpoint,
        pipeline=pipeline,
        codec=_codec(pipeline.vae),
        schedule=Edm(**{name: config[name] for name in ("sigma_min", "sigma_max", "p_mean", "p_std", "sigma_data")}),
        latent_shape=(config["channels"], config["frames"]),
        prediction="clean",
    )


def open_codec(checkpoint: Checkpoint) -> TinyCodec:
    """The autoencoder alone."""
    network = TinyAutoencoder.from_pretrained(str(checkpoint.folder), subfolder="vae", use_safetensors=True)
    return _codec(frozen(network, checkpoint.device))


def _codec(vae: TinyAutoencoder) -> TinyCodec:
    return TinyCodec(vae, vae.config["sample_rate"], vae.config["hop"] * vae.config["stride"])
