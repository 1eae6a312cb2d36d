"""A WanPipeline of the real classes with tiny random weights."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from transformers import UMT5Config, UMT5EncoderModel

from tiny_models import WORDS, tokenizer

SIZE = {"frames": 5, "height": 16, "width": 32, "fps": 8.0}
UNIPC: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


def quiet_padding(transformer: WanTransformer3DModel) -> None:
    """Zeros after a prompt say nothing; the rest is louder, for it is a hundredth of what is attended to."""
    with torch.no_grad():
        for name, weight in transformer.named_parameters():
            if "text_embedder" in name or "attn2.to_v" in name:
                weight.mul_(0.0 if name.endswith("bias") else 6.0)


def save_wan(
    folder: Path, seed: int = 0, scheduler: SchedulerMixin | None = None, heard: bool = False, **more: object
) -> Path:
    """Five frames of 16 x 32 in latents of 4 channels, 2 frames and 2 x 4; `more` is for the pipeline.

    Prompts say little to the network unless they are `heard`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKLWan(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.5, 0.7, 1.0, 2.0],
        )
        transformer = WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=16,
            freq_dim=32,
            ffn_dim=32,
            num_layers=2,
            cross_attn_norm=True,
            rope_max_seq_len=32,
        )
        if heard:
            quiet_padding(transformer)
        config = UMT5Config(vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        scheduler = scheduler or FlowMatchEulerDiscreteScheduler(shift=3.0)
        parts = (tokenizer(512), UMT5EncoderModel(config), vae, scheduler, transformer)
        WanPipeline(*parts, **more).save_pretrained(folder)  # pyright: ignore
    (folder / "video.json").write_text(json.dumps(SIZE))
    return folder
