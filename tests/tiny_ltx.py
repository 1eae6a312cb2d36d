"""An LTXPipeline of the real classes with tiny random weights."""

import json
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl_ltx import AutoencoderKLLTXVideo
from diffusers.models.transformers.transformer_ltx import LTXVideoTransformer3DModel
from diffusers.pipelines.ltx.pipeline_ltx import LTXPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from tiny_models import text_encoder, tokenizer
from tiny_stable_diffusion_3 import louder

SIZE = {"frames": 5, "height": 32, "width": 64, "fps": 8.0}


def shifted() -> FlowMatchEulerDiscreteScheduler:
    """As LTX has it, with another range of sizes."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=16,
        max_image_seq_len=256,
        shift_terminal=0.1,
    )


def save_ltx(
    folder: Path, seed: int = 0, scheduler: FlowMatchEulerDiscreteScheduler | None = None, **more: object
) -> Path:
    """Five frames of 32 x 64 in latents of 4 channels, 3 frames and 4 x 8; `more` is for the autoencoder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKLLTXVideo(
            latent_channels=4,
            block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            down_block_types=("LTXVideoDownBlock3D",) * 2,
            downsample_type=("conv",) * 2,
            layers_per_block=(1, 1, 1),
            decoder_layers_per_block=(1, 1, 1),
            spatio_temporal_scaling=(True, False),
            decoder_spatio_temporal_scaling=(True, False),
            upsample_residual=(False, False),
            upsample_factor=(1, 1),
            scaling_factor=1.2,
            **{"decoder_inject_noise": (False, False, False), **more},  # pyright: ignore[reportArgumentType]
        )
        vae.latents_mean.copy_(torch.tensor([0.1, -0.2, 0.3, 0.0]))
        vae.latents_std.copy_(torch.tensor([1.5, 0.7, 1.0, 2.0]))
        transformer = LTXVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            num_layers=2,
            caption_channels=16,
        )
        louder(transformer)
        parts = (scheduler or shifted(), vae, text_encoder(), tokenizer(128), transformer)
        LTXPipeline(*parts).save_pretrained(folder)  # pyright: ignore[reportArgumentType]
    (folder / "video.json").write_text(json.dumps(SIZE))
    return folder
