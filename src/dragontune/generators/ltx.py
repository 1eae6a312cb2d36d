"""LTX-Video (HaCohen et al. 2024, arXiv 2501.00103), text to video, by diffusers' LTXPipeline, as a Generator.

The network predicts the velocity of a rectified flow; how far times are shifted towards the noise depends on how many
tokens a video has. Decoders that take a last step of denoising are asked as the pipeline asks by default: at time 0,
without noise. Left out: decoders that add noise of their own, videos that begin with a picture, negative prompts,
rescaled guidance, upsamplers of latents.

The folder of a pipeline does not say how large its videos are: they are as the pipeline has them unless `size`, or a
file `video.json` beside `model_index.json`, says otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.models.autoencoders.autoencoder_kl_ltx import AutoencoderKLLTXVideo
from diffusers.models.transformers.transformer_ltx import LTXVideoTransformer3DModel
from diffusers.pipelines.ltx.pipeline_ltx import LTXPipeline
from jaxtyping import Bool, Float
from torch import Tensor

from dragontune.data import Media, Rows
from dragontune.errors import InputError
from dragontune.generators.checkpoint import Checkpoint, frozen
from dragontune.generators.codec import configuration
from dragontune.generators.flow_schedule import TRAINING_TIMES, flow_schedule
from dragontune.generators.pipeline import PipelineGenerator
from dragontune.generators.video_codec import VideoCodec, VideoSize, latent_sides, video_of, video_size
from dragontune.media.video import Video

USUAL = VideoSize(frames=161, height=512, width=704, fps=25.0)
TOKENS = 128
"""Of a prompt, as the pipeline has it."""
DECODE_TIME = 0.0
"""What decoders that take a last step are told, as the pipeline has it."""


@dataclass(frozen=True, eq=False)
class Condition(Rows):
    """Text tokens, and which of them are real."""

    tokens: Float[Tensor, " n tokens width"]
    mask: Bool[Tensor, " n tokens"]


@dataclass(frozen=True, eq=False)
class LtxCodec(VideoCodec):
    """LTX's autoencoder, whose latents are standardised channel by channel."""

    vae: AutoencoderKLLTXVideo
    fps: float
    time_stride: int
    stride: int

    @property
    def network(self) -> AutoencoderKLLTXVideo:
        """The autoencoder."""
        return self.vae

    @property
    def latent_channels(self) -> int:
        """As the autoencoder's configuration says."""
        return self.vae.config["latent_channels"]

    def decode(self, latents: Float[Tensor, " n *latent"]) -> Video:
        """Latents to video, held to [0, 1]; gradients pass where it is inside."""
        mean, scale = self._scale()
        rows = (latents * scale + mean).split(1 if self.vae.use_tiling else max(len(latents), 1))
        clips = torch.cat([self._decoded(some) for some in rows])
        return Video((clips / 2 + 0.5).clamp(0, 1).transpose(1, 2), self.fps)

    def encode(self, media: Media) -> Float[Tensor, " n *latent"]:
        """Video of a size, rate and length that fits to latents."""
        clips = video_of(media).frames.transpose(1, 2).to(next(self.vae.parameters()))
        mean, scale = self._scale()
        return (self.vae.encode(clips * 2 - 1, return_dict=False)[0].mode() - mean) / scale

    def settings(self) -> dict[str, object]:
        """The network's configuration and the frame rate."""
        own = configuration(self.vae)
        return {**own, "fps": self.fps}

    def _decoded(self, latents: Tensor) -> Tensor:
        time = latents.new_full((len(latents),), DECODE_TIME) if self.vae.config["timestep_conditioning"] else None
        # the annotation of diffusers asks for a float tensor, as this one is
        return self.vae.decode(latents, time, return_dict=False)[0]  # pyright: ignore[reportArgumentType]

    def _scale(self) -> tuple[Tensor, Tensor]:
        mean, std = (buffer.view(-1, 1, 1, 1) for buffer in (self.vae.latents_mean, self.vae.latents_std))
        return mean, std / self.vae.config["scaling_factor"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Ltx(PipelineGenerator[LTXPipeline]):
    """The pipeline's parts behind the generator's interface; made by `open_generator`."""

    seconds_and_pixels: tuple[float, int, int]
    """Of a latent place: how far it reaches in time, down and across."""

    @property
    def network(self) -> LTXVideoTransformer3DModel:
        """The diffusion transformer."""
        return self.pipeline.transformer

    def condition(self, prompts: Sequence[str]) -> Condition:
        """The text encoder's tokens."""
        tokens, mask, _, _ = self.pipeline.encode_prompt(
            list(prompts), do_classifier_free_guidance=False, max_sequence_length=TOKENS, device=self.device
        )
        return Condition(tokens, mask)  # pyright: ignore[reportArgumentType] - never None, as diffusers has it

    def prompt_vectors(self, condition: Rows) -> Float[Tensor, " n width"]:
        """The mean of the real tokens."""
        if not isinstance(condition, Condition):
            raise TypeError(f"expected this model's Condition, got {type(condition).__name__}")
        real = condition.mask.to(condition.tokens)[..., None]
        return (condition.tokens * real).sum(1) / real.sum(1).clamp(min=1)

    def predict(
        self, noisy: Float[Tensor, " n *latent"], t: Float[Tensor, " n"], condition: Condition
    ) -> Float[Tensor, " n *latent"]:
        """The flow. Every latent place is a token."""
        frames, height, width = noisy.shape[2:]
        times = t * TRAINING_TIMES
        flow = self.network(
            noisy.flatten(2).transpose(1, 2),
            encoder_hidden_states=condition.tokens,
            timestep=times,  # pyright: ignore[reportArgumentType] - whole times, says diffusers, and gives real ones
            encoder_attention_mask=condition.mask,
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=self.seconds_and_pixels,
            return_dict=False,
        )[0]
        return flow.transpose(1, 2).unflatten(2, (frames, height, width))


def open_generator(checkpoint: Checkpoint) -> Ltx:
    """The generator in a local pipeline folder; our sampler stands in for diffusers' scheduler.

    Raises:
        InputError: another scheduler, a network with patches, or a decoder that adds noise.
    """
    size = video_size(checkpoint, USUAL)
    pipeline = checkpoint.open(LTXPipeline)
    codec, config = _codec(pipeline.vae, size.fps, checkpoint), pipeline.transformer.config
    if (config["patch_size"], config["patch_size_t"]) != (1, 1):
        raise InputError(
            f"expected an LTX network without patches, got patches of {config['patch_size_t']} x "
            f"{config['patch_size']} in {checkpoint.name}; restore the folder"
        )
    frames, height, width = latent_sides(size, codec.time_stride, codec.stride)
    return Ltx(
        checkpoint=checkpoint,
        pipeline=pipeline,
        codec=codec,
        schedule=flow_schedule(checkpoint, frames * height * width, closed=False),
        latent_shape=(config["in_channels"], frames, height, width),
        prediction="flow",
        seconds_and_pixels=(codec.time_stride / size.fps, codec.stride, codec.stride),
    )


def open_codec(checkpoint: Checkpoint) -> LtxCodec:
    """The autoencoder alone."""
    vae = AutoencoderKLLTXVideo.from_pretrained(str(checkpoint.folder), subfolder="vae", use_safetensors=True)
    return _codec(frozen(vae, checkpoint.device), video_size(checkpoint, USUAL).fps, checkpoint)


def _codec(vae: AutoencoderKLLTXVideo, fps: float, checkpoint: Checkpoint) -> LtxCodec:
    if any(vae.config["decoder_inject_noise"]):
        raise InputError(
            f"expected a decoder that adds no noise, got one that does in {checkpoint.name}; use another version of "
            "LTX-Video"
        )
    if checkpoint.plan.tiling:
        vae.enable_tiling()
    return LtxCodec(vae, fps, vae.temporal_compression_ratio, vae.spatial_compression_ratio)
