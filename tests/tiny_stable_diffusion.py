"""Stable Diffusion of the real classes with tiny random weights, for tests."""

import string
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LETTERS = ["<|startoftext|>", "<|endoftext|>", *string.ascii_lowercase, *(f"{c}</w>" for c in string.ascii_lowercase)]
TOKENS = 24


def clip_tokenizer() -> CLIPTokenizer:
    """A token for every letter."""
    return CLIPTokenizer({letter: i for i, letter in enumerate(LETTERS)}, [], model_max_length=TOKENS)


def clip_config(width: int = 16, layers: int = 2) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(LETTERS),
        hidden_size=width,
        intermediate_size=32,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def image_vae() -> AutoencoderKL:
    """Two pixels each way in a latent position of 4 channels."""
    settings: dict[str, Any] = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "sample_size": 16,
        "scaling_factor": 0.18215,
    }
    return AutoencoderKL(**settings)


def telling(network: nn.Module, gain: float = 2.5) -> nn.Module:
    """With weights between text and image, and of time, that matter more than at random."""
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.ndim > 1 and any(
                part in name for part in ("attn2.to_v", "attn2.to_out", "time_emb", "embedding")
            ):
                weight.mul_(gain)
    return network


def save_stable_diffusion(folder: Path, seed: int = 0, scheduler: SchedulerMixin | None = None, **unet: Any) -> Path:
    """Images of 16 x 16 in latents of 4 channels by 8 x 8, with the scheduler of Stable Diffusion 1.5."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        settings: dict[str, Any] = {
            "sample_size": 8,
            "block_out_channels": (8, 16),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "cross_attention_dim": 16,
            "attention_head_dim": 2,
        }
        network = telling(UNet2DConditionModel(**settings | unet))
        scheduler = scheduler or PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1)  # pyright: ignore
        text = CLIPTextModel(clip_config())
        parts = (image_vae(), text, clip_tokenizer(), network, scheduler, None, None)
        StableDiffusionPipeline(*parts, requires_safety_checker=False).save_pretrained(folder)  # pyright: ignore
    return folder
