"""FLUX.1 dev and schnell (Black Forest Labs 2024), by diffusers' FluxPipeline, as a Generator.

The network predicts the velocity of a rectified flow. That of dev was distilled from a guided one and is told how much
guidance to imitate: `GUIDANCE`, in one call of the network. The sampler's guidance is another, true one, which costs a
second call and which these models are usually sampled without (1). Left out: other scales of the imitated guidance,
negative prompts, another prompt for T5, prompts that are pictures (IP-Adapter), the fill, control and Kontext models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from dragontune.errors import InputError
from dragontune.generators.checkpoint import Checkpoint
from dragontune.generators.flow_schedule import flow_schedule
from dragontune.generators.image_codec import image_codec, open_codec
from dragontune.generators.pipeline import PipelineGenerator
from dragontune.generators.pooled_text import PooledText

__all__ = ["Flux", "open_codec", "open_generator"]

GUIDANCE = 3.5
"""What distilled networks are told, as the pipeline has it."""
TOKENS = 512
"""Of T5, as the pipeline has it."""
USUAL = 128
"""Latent rows and columns, as the pipeline has them; the network does not say."""
PATCH = 2
"""Latent rows and columns in a token."""
SCALE = 1000
"""By which the network multiplies times and guidance before it makes waves of them."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Flux(PipelineGenerator[FluxPipeline]):
    """The pipeline's parts behind the generator's interface; made by `open_generator`."""

    @property
    def network(self) -> FluxTransformer2DModel:
        """The diffusion transformer."""
        return self.pipeline.transformer

    @cached_property
    def places(self) -> tuple[Float[Tensor, " texts 3"], Float[Tensor, " tokens 3"]]:
        """Of the text's tokens, all the same, and of the latents': 0, row and column."""
        rows, columns = (torch.arange(length // PATCH, dtype=torch.float32) for length in self.latent_shape[1:])
        grid = torch.cartesian_prod(torch.zeros(1), rows, columns)
        return torch.zeros(TOKENS, 3, device=self.device), grid.to(self.device)

    def condition(self, prompts: Sequence[str]) -> PooledText:
        """The tokens of T5, and CLIP's pooled vector."""
        tokens, pooled, _ = self.pipeline.encode_prompt(list(prompts), device=self.device, max_sequence_length=TOKENS)
        return PooledText(tokens, pooled)  # pyright: ignore[reportArgumentType] - never None, as diffusers has it

    def predict(
        self, noisy: Float[Tensor, " n *latent"], t: Float[Tensor, " n"], condition: PooledText
    ) -> Float[Tensor, " n *latent"]:
        """The flow. A token is a square of latent places."""
        packed = pixel_unshuffle(noisy, PATCH)
        texts, images = self.places
        told = [t, torch.full_like(t, GUIDANCE)] if self.network.config["guidance_embeds"] else [t]
        flow = self.network(
            packed.flatten(2).transpose(1, 2),
            encoder_hidden_states=condition.tokens,
            pooled_projections=torch.cat([condition.pooled.to(t), SCALE * torch.stack(told, 1)], 1),
            timestep=t,  # pyright: ignore[reportArgumentType] - whole times, says diffusers, and gives real ones
            img_ids=images,
            txt_ids=texts,
            guidance=told[1] if len(told) > 1 else None,
            return_dict=False,
        )[0]
        return pixel_shuffle(flow.transpose(1, 2).unflatten(2, packed.shape[2:]), PATCH)


def open_generator(checkpoint: Checkpoint) -> Flux:
    """The generator in a local pipeline folder; our sampler stands in for diffusers' scheduler.

    Raises:
        InputError: another scheduler, or a network whose input is not the packed latents (fill, control).
    """
    pipeline = checkpoint.open(FluxPipeline)
    codec, config = image_codec(pipeline.vae, checkpoint), pipeline.transformer.config
    shape = codec.shape(checkpoint.size, USUAL * codec.stride, USUAL * codec.stride, PATCH)
    width = shape[0] * PATCH**2
    if config["in_channels"] != width or config["patch_size"] != 1 or config["out_channels"] not in (None, width):
        raise InputError(
            f"expected a FLUX network of {width} channels, packed from the latents' {shape[0]}, got "
            f"{config['in_channels']} to {config['out_channels']} in patches of {config['patch_size']}; use a "
            "text-to-image model"
        )
    _tell_exactly(pipeline.transformer)
    return Flux(
        checkpoint=checkpoint,
        pipeline=pipeline,
        codec=codec,
        schedule=flow_schedule(checkpoint, shape[1] // PATCH * (shape[2] // PATCH), closed=False),
        latent_shape=shape,
        prediction="flow",
    )


def _tell_exactly(network: FluxTransformer2DModel) -> None:
    """Let the network hear times and guidance as they are, for which bfloat16, its own, is too coarse.

    They come as columns after the pooled vector, which reaches `time_text_embed` as it was given; without such columns
    the network is as ever.
    """
    network.time_text_embed.register_forward_pre_hook(partial(_take_over, network.config["pooled_projection_dim"]))


def _take_over(width: int, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """What comes after the first `width` columns of the last input, in place of those before it."""
    pooled = inputs[-1]
    if pooled.shape[1] <= width:
        return None
    return (*pooled[:, width:].unbind(1), pooled[:, :width].contiguous())
