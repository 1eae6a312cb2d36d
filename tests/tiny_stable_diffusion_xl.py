"""Stable Diffusion XL of the real classes with tiny random weights, for tests."""

from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from tiny_stable_diffusion import BETAS, clip_config, clip_tokenizer, image_vae, telling


def save_stable_diffusion_xl(
    folder: Path, seed: int = 0, scheduler: SchedulerMixin | None = None, zeros: bool = True
) -> Path:
    """Images of 16 x 16 in latents of 4 channels by 8 x 8, with the scheduler of SDXL's base."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        settings: dict[str, Any] = {
            "sample_size": 8,
            "block_out_channels": (8, 16),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "cross_attention_dim": 24,
            "attention_head_dim": (1, 2),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 16 + 6 * 4,
        }
        network = UNet2DConditionModel(**settings)
        scheduler = scheduler or EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1)  # pyright: ignore
        texts = CLIPTextModel(clip_config(8)), CLIPTextModelWithProjection(clip_config(16))
        parts = (image_vae(), *texts, clip_tokenizer(), clip_tokenizer(), telling(network), scheduler)
        pipeline = StableDiffusionXLPipeline(*parts, force_zeros_for_empty_prompt=zeros, add_watermarker=False)  # pyright: ignore
        pipeline.save_pretrained(folder)
    return folder
