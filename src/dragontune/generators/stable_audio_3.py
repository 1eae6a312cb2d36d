"""Stable Audio 3 (Evans et al. 2026, arXiv 2605.17991) by diffusers' StableAudio3Pipeline, as a Generator.

The network predicts the velocity of a rectified flow. Checkpoints that were distilled want few steps with all noise
put back (`Sampler(steps=8, order=1, eta=inf)`, ping-pong), the base ones many without (`Sampler(steps=100, order=1)`).
Left out: inpainting, initial audio, negative prompts, latents made beyond the end of a clip.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import torch
from diffusers.models.autoencoders.autoencoder_same import AutoencoderSAME
from diffusers.models.transformers.transformer_stable_audio3 import StableAudio3DiTModel, StableAudio3RotaryEmbedding
from diffusers.pipelines.stable_audio_3.modeling_stable_audio_3 import StableAudio3DurationEmbedder
from diffusers.pipelines.stable_audio_3.pipeline_stable_audio_3 import StableAudio3Pipeline
from jaxtyping import Float, Int
from torch import Tensor

from dragontune.data import Media, Rows
from dragontune.generators.checkpoint import Checkpoint, frozen
from dragontune.generators.codec import AudioCodec, audio_of, in_tiles, match, whole_frames
from dragontune.generators.flow_schedule import check_unshifted
from dragontune.generators.pipeline import PipelineGenerator
from dragontune.media.audio import Audio
from dragontune.schedule import Flow, Schedule

USUAL_SECONDS = 10.0
"""As the pipeline has it."""
TILE = 128
"""Latent frames that are decoded at once where memory is to be saved."""


@dataclass(frozen=True, eq=False)
class Condition(Rows):
    """Text tokens followed by one of the duration, 1 where they are real, and the duration for the modulation."""

    tokens: Float[Tensor, " n tokens width"]
    mask: Int[Tensor, " n tokens"]
    duration: Float[Tensor, " n duration_width"]


@dataclass(frozen=True)
class LogSnrFlow(Schedule):
    """The process of `Flow`, visited where log(alpha / sigma) rises by equal steps from `least` to `most`.

    The first time is then put to 1, and 0 is the last. Training draws from the same range, uniformly in the logarithm.
    """

    least: float = -6.2
    most: float = 2.0

    def alpha(self, t: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """1 - t."""
        return Flow().alpha(t)

    def sigma(self, t: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """The time itself."""
        return Flow().sigma(t)

    def training_times(self, uniforms: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """Where log(alpha / sigma) is uniform."""
        return (uniforms * (self.most - self.least) - self.most).sigmoid()

    def times(self, steps: int) -> Float[Tensor, " times"]:
        """As the pipeline's `logsnr_sigma_schedule`, then 0."""
        visited = self.training_times(torch.linspace(1, 0, steps + 1, dtype=torch.float64))
        visited[0], visited[-1] = 1.0, 0.0
        return visited


@dataclass(frozen=True, eq=False)
class SameCodec(AudioCodec):
    """Stable Audio 3's autoencoder of transformers with a window; if there is a `tile`, it works on so many frames."""

    vae: AutoencoderSAME
    sample_rate: int
    channels: int
    stride: int
    tile: int | None = None

    @property
    def network(self) -> AutoencoderSAME:
        """The autoencoder."""
        return self.vae

    @property
    def latent_channels(self) -> int:
        """As the autoencoder's configuration says."""
        return self.vae.config["latent_dim"]

    @property
    def reach(self) -> int:
        """How many latent frames to each side matter to one: each layer of attention sees those in its window."""
        return self.vae.config["sliding_window"] * sum(self.vae.config["encoder_transformer_depths"])

    def encode(self, media: Media) -> Float[Tensor, " n latent_channels frames"]:
        """The latents; the end is padded to a whole frame."""
        waveform = whole_frames(match(audio_of(media), self).waveform, self.stride)
        if self.tile is None:
            return self._encode(waveform)
        return in_tiles(self._encode, waveform, (self.stride, 1), self.tile, self.reach)

    def decode(self, latents: Float[Tensor, " n latent_channels frames"]) -> Audio:
        """Latents to audio."""
        if self.tile is None:
            return Audio(self._decode(latents), self.sample_rate)
        return Audio(in_tiles(self._decode, latents, (1, self.stride), self.tile, self.reach), self.sample_rate)

    def _encode(self, waveform: Tensor) -> Tensor:
        return self.vae.encode(waveform).latents  # pyright: ignore[reportAttributeAccessIssue] - also not a tuple

    def _decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents).sample  # pyright: ignore[reportAttributeAccessIssue] - also not a tuple


@dataclass(frozen=True, eq=False, kw_only=True)
class StableAudio3(PipelineGenerator[StableAudio3Pipeline]):
    """The pipeline's parts behind the generator's interface; made by `open_generator`."""

    seconds: float

    @property
    def network(self) -> StableAudio3DiTModel:
        """The diffusion transformer."""
        return self.pipeline.transformer

    def condition(self, prompts: Sequence[str]) -> Condition:
        """Text and duration. The empty prompt is text like any other, as in the pipeline's guidance."""
        text, mask = self.pipeline.encode_prompt(list(prompts), self.device, 1)
        duration = self.pipeline.encode_duration(self.seconds, self.device, 1, len(prompts))
        # the annotation of diffusers allows for no mask, but there is one wherever it reads text
        tokens, real = self.pipeline.prepare_cross_attention(text, mask, duration)  # pyright: ignore[reportArgumentType]
        return Condition(tokens, real, duration)

    def prompt_vectors(self, condition: Rows) -> Float[Tensor, " n width"]:
        """The mean of the real tokens."""
        if not isinstance(condition, Condition):
            raise TypeError(f"expected this model's Condition, got {type(condition).__name__}")
        real = condition.mask.to(condition.tokens)[..., None]
        return (condition.tokens * real).sum(1) / real.sum(1)

    def predict(
        self, noisy: Float[Tensor, " n *latent"], t: Float[Tensor, " n"], condition: Condition
    ) -> Float[Tensor, " n *latent"]:
        """The flow; the network's time is ours."""
        return self.network(
            noisy,
            t,
            encoder_hidden_states=condition.tokens,
            global_hidden_states=condition.duration,
            encoder_attention_mask=condition.mask,
            return_dict=False,
        )[0]

    def decode(self, latents: Float[Tensor, " n *latent"]) -> Audio:
        """Latents to audio of `seconds`, held to [-1, 1]; gradients pass where they are inside."""
        waveform = audio_of(self.codec.decode(latents)).waveform
        return Audio(waveform[..., : int(self.seconds * self.sample_rate)].clamp(-1, 1), self.sample_rate)


def open_generator(checkpoint: Checkpoint) -> StableAudio3:
    """The generator in a local pipeline folder; our sampler stands in for diffusers' scheduler."""
    check_unshifted(checkpoint, "stochastic_sampling")
    pipeline = checkpoint.open(StableAudio3Pipeline)
    config = pipeline.transformer.config
    if checkpoint.precision != "float32":
        _in_single_precision(pipeline, checkpoint)
    codec = _codec(pipeline.vae, checkpoint)
    longest = float(pipeline.duration_embedder.config["max_val"])
    seconds = checkpoint.seconds(longest, min(USUAL_SECONDS, longest))
    frames = ceil(seconds * codec.sample_rate / codec.stride)
    return StableAudio3(
        checkpoint=checkpoint,
        pipeline=pipeline,
        codec=codec,
        schedule=LogSnrFlow(),
        latent_shape=(config["io_channels"], frames + -frames % config["patch_size"]),
        prediction="flow",
        seconds=seconds,
    )


def open_codec(checkpoint: Checkpoint) -> SameCodec:
    """The autoencoder alone."""
    vae = AutoencoderSAME.from_pretrained(str(checkpoint.folder), subfolder="vae", use_safetensors=True)
    return _codec(frozen(vae, checkpoint.device), checkpoint)


def _codec(vae: AutoencoderSAME, checkpoint: Checkpoint) -> SameCodec:
    tile = TILE if checkpoint.plan.tiling else None
    return SameCodec(vae, vae.config["sampling_rate"], vae.config["audio_channels"], vae.downsampling_ratio, tile)


def _in_single_precision(pipeline: StableAudio3Pipeline, checkpoint: Checkpoint) -> None:
    """Positions and durations, for whose frequencies bfloat16 is too coarse."""
    config, device = pipeline.transformer.config, pipeline.duration_embedder.device
    half = config["embed_dim"] // config["num_heads"] // 2
    pipeline.transformer.rotary_pos_emb = frozen(StableAudio3RotaryEmbedding(half), checkpoint.device)
    embedder = StableAudio3DurationEmbedder.from_pretrained(
        str(checkpoint.folder), subfolder="duration_embedder", use_safetensors=True
    )
    pipeline.duration_embedder = frozen(embedder, device)
