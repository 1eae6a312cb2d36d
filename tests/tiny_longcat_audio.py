"""LongCat-AudioDiT's pipeline of the real classes with tiny random weights."""

from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_longcat_audio_dit import LongCatAudioDiTVae
from diffusers.models.transformers.transformer_longcat_audio_dit import LongCatAudioDiTTransformer
from diffusers.pipelines.longcat_audio_dit.pipeline_longcat_audio_dit import LongCatAudioDiTPipeline
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from tiny_models import WORDS, tokenizer


def save_longcat_audio(folder: Path, seed: int = 0, **options: Any) -> Path:
    """9.6 s of mono at 800 Hz, of 30 at most, in latents of 4 channels by 15 frames."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = LongCatAudioDiTVae(
            channels=4,
            c_mults=[1, 2],
            strides=[16, 32],
            latent_dim=4,
            encoder_latent_dim=8,
            downsampling_ratio=512,
            sample_rate=800,
        )
        transformer = LongCatAudioDiTTransformer(
            dit_dim=16, dit_depth=2, dit_heads=2, dit_text_dim=16, latent_dim=4, ff_mult=2.0, **options
        )
        for weight in transformer.parameters():  # where the real class begins with zeros
            if not weight.any():
                nn.init.normal_(weight, std=0.3)
        nn.init.normal_(transformer.proj_out.weight, std=0.5)
        config = UMT5Config(vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        parts = (vae, UMT5EncoderModel(config), tokenizer(64), transformer)
        LongCatAudioDiTPipeline(*parts).save_pretrained(folder)
    return folder
