"""Wan 2.1 (Wan team 2025, arXiv 2503.20314), text to video, by diffusers' WanPipeline, as a Generator.

The network predicts the velocity of a rectified flow; times are shifted towards the noise. Wan 2.2's model of 5 billion
weights is of the same class. Left out: Wan 2.2's pairs of networks, videos that begin with a picture, negative prompts.

The folder of a pipeline does not say how large its videos are. They are Wan's 81 frames of 480 x 832 at 16 a second,
unless `size`, or a file `video.json` beside `model_index.json`, says otherwise, as `{"frames": 17, "height": 240}`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from jaxtyping import Float
from torch import Tensor

from dragontune.data import Media, Rows
from dragontune.errors import InputError
from dragontune.generators.checkpoint import Checkpoint, frozen
from dragontune.generators.codec import configuration
from dragontune.generators.flow_schedule import EULER, TRAINING_TIMES, flow_schedule, scheduler
from dragontune.generators.pipeline import PipelineGenerator
from dragontune.generators.video_codec import VideoCodec, VideoSize, latent_sides, video_of, video_size
from dragontune.media.video import Video
from dragontune.schedule import ShiftedFlow

USUAL = VideoSize(frames=81, height=480, width=832, fps=16.0)
TOKENS = 512
"""Of a prompt, as the pipeline has it."""
UNIPC = "UniPCMultistepScheduler"


@dataclass(frozen=True, eq=False)
class Condition(Rows):
    """Text tokens, zeros after the last of a prompt."""

    tokens: Float[Tensor, " n tokens width"]


@dataclass(frozen=True, eq=False)
class WanCodec(VideoCodec):
    """Wan's causal autoencoder, whose latents are standardised channel by channel."""

    vae: AutoencoderKLWan
    fps: float
    time_stride: int
    stride: int

    @property
    def network(self) -> AutoencoderKLWan:
        """The autoencoder."""
        return self.vae

    @property
    def latent_channels(self) -> int:
        """As the autoencoder's configuration says."""
        return self.vae.config["z_dim"]

    def decode(self, latents: Float[Tensor, " n *latent"]) -> Video:
        """Latents to video; gradients pass where the autoencoder does not clip."""
        mean, std = self._scale(latents)
        # the annotation of diffusers asks for a float tensor, as this one is
        clips = self.vae.decode(latents * std + mean, return_dict=False)[0]  # pyright: ignore[reportArgumentType]
        return Video(((clips + 1) / 2).transpose(1, 2), self.fps)

    def encode(self, media: Media) -> Float[Tensor, " n *latent"]:
        """Video of a size, rate and length that fits to latents."""
        clips = video_of(media).frames.transpose(1, 2).to(next(self.vae.parameters()))
        latents = self.vae.encode(clips * 2 - 1, return_dict=False)[0].mode()
        mean, std = self._scale(latents)
        return (latents - mean) / std

    def settings(self) -> dict[str, object]:
        """The network's configuration and the frame rate."""
        own = configuration(self.vae)
        return {**own, "fps": self.fps}

    def _scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(self.vae.config[name]).to(like) for name in ("latents_mean", "latents_std"))
        return mean.view(-1, 1, 1, 1), std.view(-1, 1, 1, 1)


@dataclass(frozen=True, eq=False, kw_only=True)
class Wan(PipelineGenerator[WanPipeline]):
    """The pipeline's parts behind the generator's interface; made by `open_generator`."""

    def condition(self, prompts: Sequence[str]) -> Condition:
        """The text encoder's tokens."""
        tokens = self.pipeline.encode_prompt(
            list(prompts), do_classifier_free_guidance=False, max_sequence_length=TOKENS, device=self.device
        )[0]
        return Condition(tokens)

    def prompt_vectors(self, condition: Rows) -> Float[Tensor, " n width"]:
        """The mean of the real tokens."""
        if not isinstance(condition, Condition):
            raise TypeError(f"expected this model's Condition, got {type(condition).__name__}")
        tokens = condition.tokens
        return tokens.sum(1) / (tokens != 0).any(2).sum(1, keepdim=True).clamp(min=1)

    def predict(
        self, noisy: Float[Tensor, " n *latent"], t: Float[Tensor, " n"], condition: Condition
    ) -> Float[Tensor, " n *latent"]:
        """The flow. The annotation of diffusers asks for whole times, but its pipeline gives real ones."""
        return self.network(noisy, t * TRAINING_TIMES, condition.tokens, return_dict=False)[0]


def open_generator(checkpoint: Checkpoint) -> Wan:
    """The generator in a local pipeline folder; our sampler stands in for diffusers' scheduler."""
    schedule, size = _schedule(checkpoint), video_size(checkpoint, USUAL)
    pipeline = checkpoint.open(WanPipeline)
    transformer = pipeline.transformer
    if transformer is None or pipeline.transformer_2 is not None:
        raise InputError(
            f"expected a Wan model of one network, got {checkpoint.name} with two; use Wan 2.1, or 2.2 with 5B weights"
        )
    codec = _codec(pipeline.vae, size.fps, checkpoint)
    _, *patch = transformer.config["patch_size"]
    sides = latent_sides(size, codec.time_stride, codec.stride, (patch[0], patch[1]))
    return Wan(
        checkpoint=checkpoint,
        pipeline=pipeline,
        codec=codec,
        schedule=schedule,
        latent_shape=(transformer.config["in_channels"], *sides),
        prediction="flow",
    )


def open_codec(checkpoint: Checkpoint) -> WanCodec:
    """The autoencoder alone."""
    vae = AutoencoderKLWan.from_pretrained(str(checkpoint.folder), subfolder="vae", use_safetensors=True)
    return _codec(frozen(vae, checkpoint.device), video_size(checkpoint, USUAL).fps, checkpoint)


def _codec(vae: AutoencoderKLWan, fps: float, checkpoint: Checkpoint) -> WanCodec:
    if checkpoint.plan.tiling:
        vae.enable_tiling()
        vae.enable_slicing()
    return WanCodec(vae, fps, vae.config["scale_factor_temporal"], vae.config["scale_factor_spatial"])


def _schedule(checkpoint: Checkpoint) -> ShiftedFlow:
    """That of diffusers' example, or of the folders on the hub, whose UniPC tells the network whole times."""
    match scheduler(checkpoint, EULER, UNIPC):
        case {"_class_name": kind, "flow_shift": shift, "use_flow_sigmas": True, **others} if kind == UNIPC:
            if not others.get("use_dynamic_shifting"):
                return ShiftedFlow(float(shift), closed=False)
    return flow_schedule(checkpoint)
