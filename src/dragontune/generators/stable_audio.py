"""Stable Audio Open (Evans et al. 2024) and its kin, by diffusers' StableAudioPipeline, as a Generator.

The network predicts the velocity of a variance-preserving process with a cosine; diffusers writes the same in EDM's
scaling, where its time is 2/pi arctan(sigma). Left out: initial audio, negative prompts, start seconds other than 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import atan, log, pi

import torch
from diffusers.models.autoencoders.autoencoder_oobleck import AutoencoderOobleck
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from diffusers.models.transformers.stable_audio_transformer import StableAudioDiTModel
from diffusers.pipelines.stable_audio.pipeline_stable_audio import StableAudioPipeline
from jaxtyping import Float
from torch import Tensor

from dragontune.data import Media, Rows
from dragontune.errors import InputError
from dragontune.generators.checkpoint import Checkpoint, frozen
from dragontune.generators.codec import AudioCodec, audio_of, match, whole_frames
from dragontune.generators.pipeline import PipelineGenerator
from dragontune.media.audio import Audio
from dragontune.schedule import Cosine, Schedule


@dataclass(frozen=True, eq=False)
class Condition(Rows):
    """Text tokens followed by the start and end second, and the two seconds for the global embedding."""

    tokens: Float[Tensor, " n tokens width"]
    seconds: Float[Tensor, " n 1 seconds_width"]


@dataclass(frozen=True)
class ExponentialCosine(Schedule):
    """The process of `Cosine`, visited where sigma / alpha falls by equal factors from `ratio_max` to `ratio_min`."""

    ratio_min: float = 0.3
    ratio_max: float = 500.0

    def alpha(self, t: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """cos(pi t / 2)."""
        return Cosine().alpha(t)

    def sigma(self, t: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """sin(pi t / 2)."""
        return Cosine().sigma(t)

    def training_times(self, uniforms: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """Uniform up to the time of `ratio_max`, the noisiest that the sampler visits."""
        return uniforms * (atan(self.ratio_max) * 2 / pi)

    def times(self, steps: int) -> Float[Tensor, " times"]:
        """From just under 1, as diffusers' CosineDPMSolverMultistepScheduler, then 0."""
        ratios = torch.linspace(log(self.ratio_max), log(self.ratio_min), steps, dtype=torch.float64).exp()
        return torch.cat([ratios.atan() * 2 / pi, ratios.new_zeros(1)])


@dataclass(frozen=True, eq=False)
class OobleckCodec(AudioCodec):
    """Stable Audio's convolutional autoencoder."""

    vae: AutoencoderOobleck
    sample_rate: int
    channels: int
    stride: int

    @property
    def network(self) -> AutoencoderOobleck:
        """The autoencoder."""
        return self.vae

    def encode(self, media: Media) -> Float[Tensor, " n latent_channels frames"]:
        """The posterior's mean; the end is padded to a whole frame."""
        waveform = whole_frames(match(audio_of(media), self).waveform, self.stride)
        return self.vae.encode(waveform, return_dict=False)[0].mode()

    def decode(self, latents: Float[Tensor, " n latent_channels frames"]) -> Audio:
        """Latents to audio."""
        # the annotation of diffusers asks for a float tensor, as this one is
        waveform = self.vae.decode(latents, return_dict=False)[0]  # pyright: ignore[reportArgumentType]
        return Audio(waveform, self.sample_rate)


@dataclass(frozen=True, eq=False, kw_only=True)
class StableAudio(PipelineGenerator[StableAudioPipeline]):
    """The pipeline's parts behind the generator's interface; made by `open_generator`."""

    seconds: float

    @property
    def network(self) -> StableAudioDiTModel:
        """The diffusion transformer."""
        return self.pipeline.transformer

    @cached_property
    def rotary(self) -> tuple[Float[Tensor, " places half"], Float[Tensor, " places half"]]:
        """Sines and cosines of the places: of the seconds' token and of the latent frames."""
        half, places = self.network.config["attention_head_dim"] // 2, self.latent_shape[1] + 1
        cosines, sines = get_1d_rotary_pos_embed(half, places, use_real=True, repeat_interleave_real=False)
        return cosines.to(self.device), sines.to(self.device)

    def condition(self, prompts: Sequence[str]) -> Condition:
        """Text and seconds; the empty prompt has zeros for both among the tokens, as the pipeline's guidance has."""
        text = self.pipeline.encode_prompt(list(prompts), self.device, False)
        start, end = self.pipeline.encode_duration(0.0, self.seconds, self.device, False, len(prompts))
        said = torch.tensor([prompt != "" for prompt in prompts], device=self.device)
        parts = [part for part in (text, start, end) if part is not None]  # none is: diffusers' annotation is wider
        tokens = torch.where(said[:, None, None], torch.cat(parts, dim=1), 0.0)
        return Condition(tokens, torch.cat([start, end], dim=2))

    def predict(
        self, noisy: Float[Tensor, " n *latent"], t: Float[Tensor, " n"], condition: Condition
    ) -> Float[Tensor, " n *latent"]:
        """The velocity; the network's time is ours."""
        return self.network(
            noisy,
            t,
            encoder_hidden_states=condition.tokens,
            global_hidden_states=condition.seconds,
            rotary_embedding=self.rotary,
            return_dict=False,
        )[0]

    def decode(self, latents: Float[Tensor, " n *latent"]) -> Audio:
        """Latents to audio of `seconds`."""
        audio = audio_of(self.codec.decode(latents))
        return Audio(audio.waveform[..., : int(self.seconds * self.sample_rate)], self.sample_rate)


def open_generator(checkpoint: Checkpoint) -> StableAudio:
    """The generator in a local pipeline folder; our sampler stands in for diffusers' scheduler.

    Latents are always of the network's full length, as in its training; shorter clips are cut from what is decoded.
    """
    schedule = _schedule(checkpoint)
    pipeline = checkpoint.open(StableAudioPipeline)
    if checkpoint.precision != "float32":
        _tell_exactly(pipeline.transformer, checkpoint.device)
    codec, config = oobleck(pipeline.vae, checkpoint), pipeline.transformer.config
    shape = (config["in_channels"], config["sample_size"])
    longest = config["sample_size"] * codec.stride / codec.sample_rate
    seconds = checkpoint.seconds(min(longest, float(pipeline.projection_model.config["max_value"])))
    return StableAudio(
        checkpoint=checkpoint,
        pipeline=pipeline,
        codec=codec,
        schedule=schedule,
        latent_shape=shape,
        prediction="velocity",
        seconds=seconds,
    )


def open_codec(checkpoint: Checkpoint) -> OobleckCodec:
    """The autoencoder alone."""
    vae = AutoencoderOobleck.from_pretrained(str(checkpoint.folder), subfolder="vae", use_safetensors=True)
    return oobleck(frozen(vae, checkpoint.device), checkpoint)


def oobleck(vae: AutoencoderOobleck, checkpoint: Checkpoint) -> OobleckCodec:
    """The codec of a pipeline's autoencoder, thrifty if it is to be."""
    if checkpoint.plan.tiling:
        vae.enable_slicing()
        vae.enable_tiling()
    return OobleckCodec(vae, vae.config["sampling_rate"], vae.config["audio_channels"], vae.hop_length)


def _tell_exactly(network: StableAudioDiTModel, device: torch.device) -> None:
    """Make the waves of times in single precision: in bfloat16 the first of many steps are all at the same time."""
    waves = network.time_proj.float()  # the network rounds times to what the first of its weights, these, are in
    waves.forward = torch.autocast(device.type, enabled=False)(waves.forward)


def _schedule(checkpoint: Checkpoint) -> ExponentialCosine:
    config = checkpoint.read("scheduler/scheduler_config.json")
    kind = {name: config.get(name) for name in ("sigma_data", "prediction_type", "sigma_schedule")}
    if kind != {"sigma_data": 1.0, "prediction_type": "v_prediction", "sigma_schedule": "exponential"}:
        raise InputError(f"expected Stable Audio's scheduler (sigma_data 1, v_prediction, exponential), got {kind}")
    return ExponentialCosine(config["sigma_min"], config["sigma_max"])
