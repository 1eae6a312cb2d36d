"""Stable Diffusion XL (Podell et al. 2023, arXiv 2307.01952), by diffusers' StableDiffusionXLPipeline, as a Generator.

The network predicts the noise (or, in some of its kin, the velocity) of a process in discrete time; it is told the size
of the image, of which nothing is cropped. Left out: the refiner, a second prompt for the second text encoder, image
prompts, negative prompts, skipped text layers, the watermark, inpainting, and distilled networks that are told the
guidance.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from jaxtyping import Float
from torch import Tensor

from dragontune.data import Rows
from dragontune.errors import InputError
from dragontune.generators import image_codec
from dragontune.generators.checkpoint import Checkpoint
from dragontune.generators.discrete import discrete
from dragontune.generators.image_codec import ImageCodec
from dragontune.generators.pipeline import PipelineGenerator
from dragontune.generators.stable_diffusion import latent_shape
from dragontune.schedule import Discrete


@dataclass(frozen=True, eq=False)
class Condition(Rows):
    """The tokens of both text encoders side by side, and the second's embedding of the whole prompt."""

    tokens: Float[Tensor, " n tokens width"]
    pooled: Float[Tensor, " n pooled_width"]


@dataclass(frozen=True, eq=False, kw_only=True)
class StableDiffusionXL(PipelineGenerator[StableDiffusionXLPipeline]):
    """The pipeline's parts behind the generator's interface; made by `open_generator`."""

    schedule: Discrete
    codec: ImageCodec

    @cached_property
    def sizes(self) -> Float[Tensor, " 6"]:
        """Original height and width, the corner that was cropped at, and the height and width that are wanted."""
        height, width = (side * self.codec.stride for side in self.latent_shape[1:])
        return torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32, device=self.device)

    def condition(self, prompts: Sequence[str]) -> Condition:
        """Of both text encoders. The unconditional prompt is zeros, if the pipeline was trained so."""
        # the annotation of diffusers asks for one prompt, but its pipeline gives lists
        texts: Any = list(prompts)
        tokens, _, pooled, _ = self.pipeline.encode_prompt(texts, device=self.device, do_classifier_free_guidance=False)
        if tokens is None or pooled is None:
            raise TypeError("expected tokens of a prompt, got none")
        if self.pipeline.config["force_zeros_for_empty_prompt"]:
            said = torch.tensor([prompt != "" for prompt in prompts], device=self.device)
            tokens, pooled = tokens * said[:, None, None], pooled * said[:, None]
        return Condition(tokens, pooled)

    def predict(
        self, noisy: Float[Tensor, " n *latent"], t: Float[Tensor, " n"], condition: Condition
    ) -> Float[Tensor, " n *latent"]:
        """The noise or the velocity."""
        return self.network(
            noisy,
            self.schedule.index(t),
            condition.tokens,
            added_cond_kwargs={"text_embeds": condition.pooled, "time_ids": self.sizes.expand(len(noisy), -1)},
            return_dict=False,
        )[0]


def open_generator(checkpoint: Checkpoint) -> StableDiffusionXL:
    """The generator in a local pipeline folder; our sampler stands in for diffusers' scheduler."""
    schedule = discrete(checkpoint)
    parts = {"feature_extractor": None, "image_encoder": None, "add_watermarker": False}
    pipeline = checkpoint.open(StableDiffusionXLPipeline, **parts)
    codec = image_codec.image_codec(pipeline.vae, checkpoint)
    if pipeline.vae.config["latents_mean"] is not None:
        raise InputError(
            f"expected an autoencoder of SDXL, got one of {checkpoint.name} whose latents are standardised channel by "
            "channel; choose another model"
        )
    return StableDiffusionXL(
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
