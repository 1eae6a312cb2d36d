"""Stable Diffusion 3 and 3.5 (Esser et al. 2024, arXiv 2403.03206), by diffusers' StableDiffusion3Pipeline.

The network predicts the velocity of a rectified flow; times are shifted towards the noise. Of the three text encoders
the third, T5, may be missing in the folder, as the pipeline allows. Left out: skip-layer guidance, negative prompts,
other prompts for the second and third encoder, prompts that are pictures (IP-Adapter).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from jaxtyping import Float
from torch import Tensor

from dragontune.errors import InputError
from dragontune.generators.checkpoint import Checkpoint
from dragontune.generators.flow_schedule import TRAINING_TIMES, flow_schedule
from dragontune.generators.image_codec import image_codec, open_codec
from dragontune.generators.pipeline import PipelineGenerator
from dragontune.generators.pooled_text import PooledText

__all__ = ["StableDiffusion3", "open_codec", "open_generator"]

TOKENS = 256
"""Of T5, as the pipeline has it."""


@dataclass(frozen=True, eq=False, kw_only=True)
class StableDiffusion3(PipelineGenerator[StableDiffusion3Pipeline]):
    """The pipeline's parts behind the generator's interface; made by `open_generator`."""

    @property
    def network(self) -> SD3Transformer2DModel:
        """The diffusion transformer."""
        return self.pipeline.transformer

    def condition(self, prompts: Sequence[str]) -> PooledText:
        """The tokens of both CLIPs side by side, then those of T5 (zeros without it); and the CLIPs' pooled vectors."""
        texts = list(prompts)
        tokens, _, pooled, _ = self.pipeline.encode_prompt(
            texts, texts, texts, self.device, do_classifier_free_guidance=False, max_sequence_length=TOKENS
        )
        return PooledText(tokens, pooled)  # pyright: ignore[reportArgumentType] - never None, as diffusers has it

    def predict(
        self, noisy: Float[Tensor, " n *latent"], t: Float[Tensor, " n"], condition: PooledText
    ) -> Float[Tensor, " n *latent"]:
        """The flow. The annotation of diffusers asks for whole times, but its pipeline gives real ones."""
        times = t * TRAINING_TIMES
        return self.network(
            noisy,
            encoder_hidden_states=condition.tokens,
            pooled_projections=condition.pooled,
            timestep=times,  # pyright: ignore[reportArgumentType]
            return_dict=False,
        )[0]


def open_generator(checkpoint: Checkpoint) -> StableDiffusion3:
    """The generator in a local pipeline folder; our sampler stands in for diffusers' scheduler.

    Raises:
        InputError: another scheduler, or a size that the network has no places for.
    """
    index = checkpoint.read("model_index.json")
    t5 = {name: None for name in ("text_encoder_3", "tokenizer_3") if (index.get(name) or [None])[0] is None}
    pipeline = checkpoint.open(StableDiffusion3Pipeline, **t5)
    codec, config = image_codec(pipeline.vae, checkpoint), pipeline.transformer.config
    usual, patch = config["sample_size"] * codec.stride, config["patch_size"]
    shape = codec.shape(checkpoint.size, usual, usual, patch)
    rows, columns = shape[1] // patch, shape[2] // patch
    if max(rows, columns) > config["pos_embed_max_size"]:
        raise InputError(
            f"expected a height and a width of at most {config['pos_embed_max_size'] * patch * codec.stride} pixels "
            f"for {checkpoint.name}, got {shape[1] * codec.stride} and {shape[2] * codec.stride}; lower size"
        )
    return StableDiffusion3(
        checkpoint=checkpoint,
        pipeline=pipeline,
        codec=codec,
        schedule=flow_schedule(checkpoint, rows * columns),
        latent_shape=shape,
        prediction="flow",
    )
