"""MusicLDM of the real classes with tiny random weights, for tests."""

from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.deprecated.musicldm.pipeline_musicldm import MusicLDMPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from transformers import ClapFeatureExtractor

from tiny_audioldm2 import BETAS, clap, mel_vae, roberta, vocoder
from tiny_stable_diffusion import telling


def save_musicldm(folder: Path, seed: int = 0, scheduler: SchedulerMixin | None = None) -> Path:
    """0.32 s of 16 kHz audio in latents of 4 channels by 8 x 16, with the scheduler of the model on the hub."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        settings: dict[str, Any] = {
            "sample_size": 8,
            "block_out_channels": (8, 16),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "cross_attention_dim": (8, 16),
            "attention_head_dim": 2,
            "class_embed_type": "simple_projection",
            "projection_class_embeddings_input_dim": 16,
            "class_embeddings_concat": True,
        }
        network = UNet2DConditionModel(**settings)
        with torch.no_grad():
            network.class_embedding.weight.mul_(4)  # pyright: ignore
            network.conv_out.weight.mul_(0.6)
        scheduler = scheduler or DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)  # pyright: ignore
        parts = (mel_vae(), clap(), roberta(), ClapFeatureExtractor(feature_size=8), telling(network), scheduler)
        MusicLDMPipeline(*parts, vocoder()).save_pretrained(folder)  # pyright: ignore[reportArgumentType]
    return folder
