"""A StableDiffusion3Pipeline of the real classes with tiny random weights; FLUX has some of the same parts."""

from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from tiny_models import WORDS, text_encoder, tokenizer


def clip_config(width: int = 16, projection: int = 8) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(WORDS),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        projection_dim=projection,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=1,
    )


def image_autoencoder() -> AutoencoderKL:
    """Latents of 4 channels, half as high and wide as images."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,  # pyright: ignore[reportArgumentType] - of any length
        up_block_types=("UpDecoderBlock2D",) * 2,  # pyright: ignore[reportArgumentType]
        block_out_channels=(8, 8),  # pyright: ignore[reportArgumentType]
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=1.5,
        shift_factor=0.1,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def louder(network: nn.Module, gain: float = 2.0) -> None:
    """Larger weights of linear layers, so that prompts and times are heard in what a network says."""
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, nn.Linear):
                part.weight.mul_(gain)


def save_stable_diffusion_3(
    folder: Path, seed: int = 0, scheduler: FlowMatchEulerDiscreteScheduler | None = None, t5: bool = True
) -> Path:
    """Images of 16 x 16 in latents of 4 channels by 8 x 8, with the scheduler of Stable Diffusion 3."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = SD3Transformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=40,
            caption_projection_dim=16,
            pooled_projection_dim=20,
            pos_embed_max_size=12,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        )
        louder(transformer)
        StableDiffusion3Pipeline(
            transformer=transformer,
            scheduler=scheduler or FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=image_autoencoder(),
            text_encoder=CLIPTextModelWithProjection(clip_config()),
            tokenizer=tokenizer(),  # pyright: ignore[reportArgumentType] - as quick to save as CLIP's is slow to make
            text_encoder_2=CLIPTextModelWithProjection(clip_config(projection=12)),
            tokenizer_2=tokenizer(),  # pyright: ignore[reportArgumentType]
            text_encoder_3=text_encoder(40) if t5 else None,  # pyright: ignore[reportArgumentType]
            tokenizer_3=tokenizer(256) if t5 else None,  # pyright: ignore[reportArgumentType]
        ).save_pretrained(folder)
    return folder
