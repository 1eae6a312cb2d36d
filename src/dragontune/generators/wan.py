"""Wan 2.1 (Wan team 2025, arXiv 2503.20314), text to video, by diffusers' WanPipeline, as a Generator.

The network predicts the velocity of a rectified flow; times are shifted towards the noise. Wan 2.2's model of 5 billion
weights is of the same class. Left out: Wan 2.2's pairs of networks, videos that begin with a picture, negative prompts.

The folder of a pipeline does not say how large its videos are. They are Wan's 81 frames of 480 x 832 at 16 a second,
unless a file `video.json` beside `model_index.json` says otherwise, for example `{"frames": 17, "height": 240}`.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from jaxtyping import Float
from torch import Tensor

from dragontune.data import Media, Rows
from dragontune.errors import InputError
from dragontune.generators.pipeline import Adapted, Codec, Precision, frozen
from dragontune.media.video import Video
from dragontune.schedule import Flow, Schedule, expand

SIZE_FILE = "video.json"
TOKENS = 512
"""Of a prompt, as the pipeline has it."""
TRAINING_TIMES = 1000
"""The network's time is a thousandth of this scale."""


@dataclass(frozen=True)
class Size:
    """How large the videos are, and how fast."""

    frames: int = 81
    height: int = 480
    width: int = 832
    fps: float = 16.0


@dataclass(frozen=True, eq=False)
class Condition(Rows):
    """Text tokens, zeros after the last of a prompt."""

    tokens: Float[Tensor, " n tokens width"]


@dataclass(frozen=True)
class ShiftedFlow(Schedule):
    """The process of `Flow`, visited at s t / (1 + (s - 1) t), s the `shift`, of evenly spaced t.

    These go from 1 to `last`, or, if not `closed`, from 1 towards it, one step short.
    """

    shift: float = 1.0
    last: float = 0.001
    closed: bool = True

    def alpha(self, t: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """1 - t."""
        return Flow().alpha(t)

    def sigma(self, t: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """The time itself."""
        return Flow().sigma(t)

    def training_times(self, uniforms: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """Those of `Flow`, shifted."""
        return self.shifted(Flow().training_times(uniforms))

    def times(self, steps: int) -> Float[Tensor, " times"]:
        """As diffusers' FlowMatchEulerDiscreteScheduler (`closed`) or UniPCMultistepScheduler (not), then 0."""
        spaced = torch.linspace(1, self.last, steps + (not self.closed), dtype=torch.float64)[:steps]
        return torch.cat([self.shifted(spaced), spaced.new_zeros(1)])

    def shifted(self, t: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """Nearer to the noise where `shift` is over 1."""
        return self.shift * t / (1 + (self.shift - 1) * t)


@dataclass(frozen=True, eq=False)
class Wan(Adapted):
    """The pipeline's parts behind the generator's interface; made by `open_generator`.

    `sample_rate` is the frame rate, rounded to a whole number.
    """

    name: str
    pipeline: WanPipeline
    transformer: WanTransformer3DModel
    schedule: Schedule
    latent_shape: tuple[int, ...]
    sample_rate: int
    device: torch.device
    size: Size
    precision: Precision = "float32"

    @property
    def network(self) -> WanTransformer3DModel:
        """The diffusion transformer."""
        return self.transformer

    @property
    def vae(self) -> AutoencoderKLWan:
        """The autoencoder."""
        return self.pipeline.vae

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Condition:
        """The text encoder's tokens."""
        tokens = self.pipeline.encode_prompt(
            list(prompts), do_classifier_free_guidance=False, max_sequence_length=TOKENS, device=self.device
        )[0]
        return Condition(tokens)

    def prompt_vectors(self, condition: Rows) -> Float[Tensor, " n width"]:
        """The mean of the real tokens."""
        tokens = _own(condition).tokens
        return tokens.sum(1) / (tokens != 0).any(2).sum(1, keepdim=True).clamp(min=1)

    def denoise(
        self, noisy: Float[Tensor, " n *latent"], t: Float[Tensor, " n"], condition: Rows
    ) -> Float[Tensor, " n *latent"]:
        """x_0 = x - t v, since x = (1 - t) x_0 + t eps and v = eps - x_0."""
        tokens, t = _own(condition).tokens, t.to(noisy)
        with self.autocast():
            # the annotation of diffusers asks for whole times, but its pipeline gives real ones
            velocity = self.network(noisy, t * TRAINING_TIMES, tokens, return_dict=False)[0]
        return noisy - expand(t, noisy) * velocity.to(noisy)

    def decode(self, latents: Float[Tensor, " n *latent"]) -> Video:
        """Latents to video; gradients pass where the autoencoder does not clip."""
        mean, std = self._scale(latents)
        # the annotation of diffusers asks for a float tensor, as this one is
        clips = self.vae.decode(latents * std + mean, return_dict=False)[0]  # pyright: ignore[reportArgumentType]
        return Video(((clips + 1) / 2).transpose(1, 2), self.size.fps)

    def encode(self, media: Media) -> Float[Tensor, " n *latent"]:
        """Video to latents, at the model's size, frame rate and length: cut, or the last frame held."""
        if not isinstance(media, Video):
            raise TypeError(f"expected Video, got {type(media).__name__}")
        clips = _fitted(media, self.size).to(next(self.vae.parameters()))
        latents = self.vae.encode(clips * 2 - 1, return_dict=False)[0].mode()
        mean, std = self._scale(latents)
        return (latents - mean) / std

    def _scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(self.vae.config[name]).to(like) for name in ("latents_mean", "latents_std"))
        return mean.view(-1, 1, 1, 1), std.view(-1, 1, 1, 1)


def open_generator(folder: str, name: str, device: torch.device, precision: Precision) -> Wan:
    """The generator in a local pipeline folder, in single precision; our sampler stands in for diffusers' scheduler."""
    schedule, size = _schedule(Path(folder)), _size(Path(folder))
    pipeline = WanPipeline.from_pretrained(folder, scheduler=None, dtype=torch.float32, use_safetensors=True)
    transformer = pipeline.transformer
    if transformer is None or pipeline.transformer_2 is not None:
        raise InputError(
            f"expected a Wan model of one network, got {name} with two; use Wan 2.1, or 2.2 with 5B weights"
        )
    for part in (pipeline.vae, pipeline.text_encoder, transformer):
        frozen(part, device)
    shape = _latent_shape(pipeline, transformer, size)
    return Wan(name, pipeline, transformer, schedule, shape, max(round(size.fps), 1), device, size, precision)


def open_codec(folder: str, device: torch.device) -> Codec:
    """There is none of audio.

    Raises:
        InputError: always.
    """
    raise InputError(f"expected a model of audio, got {folder}, which makes videos; choose another model")


def _latent_shape(pipeline: WanPipeline, transformer: WanTransformer3DModel, size: Size) -> tuple[int, ...]:
    stride, across = pipeline.vae_scale_factor_temporal, pipeline.vae_scale_factor_spatial
    _, *patch = transformer.config["patch_size"]
    if (size.frames - 1) % stride or size.height % (across * patch[0]) or size.width % (across * patch[1]):
        raise InputError(
            f"expected 1 and a multiple of {stride} frames, a height in steps of {across * patch[0]} and a width in "
            f"steps of {across * patch[1]}, got {size.frames}, {size.height} and {size.width}; correct {SIZE_FILE}"
        )
    frames = (size.frames - 1) // stride + 1
    return transformer.config["in_channels"], frames, size.height // across, size.width // across


def _fitted(media: Video, size: Size) -> Float[Tensor, " n 3 frames height width"]:
    last = media.frames.shape[1] - 1
    chosen = [min(math.floor(i / size.fps * media.fps + 1e-6), last) for i in range(size.frames)]
    frames = media.frames[:, torch.tensor(chosen, device=media.frames.device)]
    if frames.shape[3:] != (size.height, size.width):
        flat = torch.nn.functional.interpolate(
            frames.flatten(0, 1), (size.height, size.width), mode="bilinear", antialias=True
        )
        frames = flat.unflatten(0, (len(media), size.frames))
    return frames.transpose(1, 2)


def _own(condition: Rows) -> Condition:
    if not isinstance(condition, Condition):
        raise TypeError(f"expected this model's Condition, got {type(condition).__name__}")
    return condition


def _size(folder: Path) -> Size:
    file = folder / SIZE_FILE
    if not file.exists():
        return Size()
    kinds = {field.name: field.type for field in fields(Size)}
    try:
        given = json.loads(file.read_text())
        odd = [name for name in given if name not in kinds or type(given[name]) not in (int, kinds[name])]
        size = Size(**{name: value for name, value in given.items() if name not in odd})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"expected an object in JSON, got {file} ({error}); correct it") from error
    if odd or min(size.frames, size.height, size.width) < 1 or not (math.isfinite(size.fps) and size.fps > 0):
        raise InputError(f"expected positive numbers for {', '.join(kinds)}, got {given} in {file}; correct it")
    return size


def _schedule(folder: Path) -> ShiftedFlow:
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    odd = ("use_dynamic_shifting", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "shift_terminal")
    odd += ("invert_sigmas", "stochastic_sampling")
    plain = not any(config.get(name) for name in odd) and config.get("num_train_timesteps") == TRAINING_TIMES
    match config:
        case {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": shift} if plain:
            # that scheduler shifts the last of its times twice
            return ShiftedFlow(
                float(shift), ShiftedFlow(float(shift)).shifted(torch.tensor(0.001, dtype=torch.float64)).item()
            )
        case {"_class_name": str(kind), "flow_shift": shift, "use_flow_sigmas": True} if plain and "UniPC" in kind:
            return ShiftedFlow(float(shift), closed=False)
        case _:
            raise InputError(
                f"expected Wan's scheduler (FlowMatchEuler or UniPC of a flow, with a constant shift), got "
                f"{config.get('_class_name')}; restore {folder}"
            )
