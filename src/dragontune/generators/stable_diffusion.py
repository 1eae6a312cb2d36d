"""Stable Diffusion 1 and 2 (Rombach et al. 2022), by diffusers' StableDiffusionPipeline, as a Generator.

The network predicts the noise (1.x, 2 base) or the velocity (2.x) of a process in discrete time. Left out: the safety
checker, which is not loaded; image prompts, negative prompts, skipped text layers, inpainting, and distilled networks
that are told the guidance.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from jaxtyping import Float
from torch import Tensor

from dragontune.data import Rows
from dragontune.errors import InputError
from dragontune.generators import image_codec
from dragontune.generators.checkpoint import Checkpoint
from dragontune.generators.discrete import discrete
from dragontune.generators.image_codec import ImageCodec
from dragontune.generators.pipeline import PipelineGenerator
from dragontune.schedule import Discrete

INSISTED = {"steps_offset": 1, "clip_sample": False}
"""What the pipeline corrects in the configuration of its scheduler."""


@dataclass(frozen=True, eq=False)
class Condition(Rows):
    """Text tokens, padded to one length."""

    tokens: Float[Tensor, " n tokens width"]


@dataclass(frozen=True, eq=False, kw_only=True)
class StableDiffusion(PipelineGenerator[StableDiffusionPipeline]):
    """The pipeline's parts behind the generator's interface; made by `open_generator`."""

    schedule: Discrete

    def condition(self, prompts: Sequence[str]) -> Condition:
        """The text encoder's tokens; what is longer than it can read is cut."""
        return Condition(self.pipeline.encode_prompt(list(prompts), self.device, 1, False)[0])

    def predict(
        self, noisy: Float[Tensor, " n *latent"], t: Float[Tensor, " n"], condition: Condition
    ) -> Float[Tensor, " n *latent"]:
        """The noise or the velocity."""
        return self.network(noisy, self.schedule.index(t), condition.tokens, return_dict=False)[0]


def open_generator(checkpoint: Checkpoint) -> StableDiffusion:
    """The generator in a local pipeline folder; our sampler stands in for diffusers' scheduler."""
    schedule = discrete(checkpoint, INSISTED)
    parts = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
    pipeline = checkpoint.open(StableDiffusionPipeline, requires_safety_checker=False, **parts)
    codec = image_codec.image_codec(pipeline.vae, checkpoint)
    return StableDiffusion(
        checkpoint=checkpoint,
        pipeline=pipeline,
        codec=codec,
        schedule=schedule,
        latent_shape=latent_shape(pipeline.unet, codec, checkpoint),
        prediction=schedule.prediction,
    )


def open_codec(checkpoint: Checkpoint) -> ImageCodec:
    """The autoencoder alone."""
    return image_codec.open_codec(checkpoint)


def latent_shape(unet: UNet2DConditionModel, codec: ImageCodec, checkpoint: Checkpoint) -> tuple[int, int, int]:
    """Of images as large as asked for, else as the network was trained for.

    Raises:
        InputError: a size that cannot be, or a network that wants more than noisy latents, a time and text.
    """
    config = unet.config
    if config["in_channels"] != codec.latent_channels or config["time_cond_proj_dim"] is not None:
        raise InputError(
            f"expected a network that makes images of text alone, got {checkpoint.name}, which is for inpainting or "
            "distilled; choose its base model"
        )
    size = config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return codec.shape(checkpoint.size, height * codec.stride, width * codec.stride)
