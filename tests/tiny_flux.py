"""A FluxPipeline of the real classes with tiny random weights."""

from pathlib import Path

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from transformers import CLIPTextModel

from dragontune.generators.checkpoint import Size
from tiny_models import text_encoder, tokenizer
from tiny_stable_diffusion_3 import clip_config, image_autoencoder, louder

SIZE = Size(height=16, width=24)
"""The folder does not say how large images are; FLUX's own size is too large for a test."""


def dev() -> FlowMatchEulerDiscreteScheduler:
    """The shift depends on the size, here within that of tiny images."""
    return FlowMatchEulerDiscreteScheduler(
        shift=3.0, use_dynamic_shifting=True, base_image_seq_len=8, max_image_seq_len=64
    )


def save_flux(
    folder: Path, seed: int = 0, scheduler: FlowMatchEulerDiscreteScheduler | None = None, distilled: bool = True
) -> Path:
    """Images of 16 x 24 in latents of 4 channels by 8 x 12, like FLUX.1 dev; not `distilled`, like schnell."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            guidance_embeds=distilled,
            axes_dims_rope=(4, 4, 8),
        )
        louder(transformer)
        FluxPipeline(
            scheduler=scheduler or dev(),
            vae=image_autoencoder(),
            text_encoder=CLIPTextModel(clip_config()),
            tokenizer=tokenizer(),  # pyright: ignore[reportArgumentType] - as quick to save as CLIP's is slow to make
            text_encoder_2=text_encoder(),
            tokenizer_2=tokenizer(512),  # pyright: ignore[reportArgumentType]
            transformer=transformer,
        ).save_pretrained(folder)
    return folder
