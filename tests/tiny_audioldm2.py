"""AudioLDM 2 of the real classes with tiny random weights, for tests."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.audioldm2.modeling_audioldm2 import AudioLDM2ProjectionModel, AudioLDM2UNet2DConditionModel
from diffusers.pipelines.audioldm2.pipeline_audioldm2 import AudioLDM2Pipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import nn
from transformers import (
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaTokenizer,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tiny_stable_diffusion import telling

BETAS = {"beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear"}
LETTERS = "abcdefghijklmnopqrstuvwxyzG"
TOKENS = 40


def roberta() -> RobertaTokenizer:
    """A token for every letter."""
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "\u0120", *LETTERS]
    return RobertaTokenizer({word: i for i, word in enumerate(words)}, [], model_max_length=TOKENS)


def t5_tokenizer() -> T5Tokenizer:
    """A token for every letter."""
    words = ["<pad>", "</s>", "<unk>", "\u2581", *LETTERS]
    return T5Tokenizer([(word, -1.0) for word in words], extra_ids=0, model_max_length=512)


def clap() -> ClapModel:
    """Embeddings of width 16."""
    text = {
        "vocab_size": 6 + len(LETTERS),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": TOKENS + 2,
    }
    sound = {
        "spec_size": 8,
        "window_size": 4,
        "num_mel_bins": 8,
        "hidden_size": 16,
        "patch_size": 2,
        "patch_stride": 2,
        "patch_embeds_hidden_size": 8,
        "depths": [1, 1],
        "num_attention_heads": [1, 1],
    }
    network = ClapModel(ClapConfig(text_config=text, audio_config=sound, projection_dim=16))
    with torch.no_grad():
        for name, weight in network.text_model.named_parameters():
            if weight.ndim > 1 and "encoder" in name:
                nn.init.normal_(weight)
    return network


def mel_vae() -> AutoencoderKL:
    """Four spectra and four mel bands in a latent place of 4 channels."""
    settings: dict[str, Any] = {
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (4, 4, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "sample_size": 1024,
        "scaling_factor": 0.4,
    }
    return AutoencoderKL(**settings)


def vocoder() -> SpeechT5HifiGan:
    """160 samples for each of the spectra, and some more at the end, as in the models on the hub."""
    config = SpeechT5HifiGanConfig(
        model_in_dim=64,
        sampling_rate=16000,
        upsample_initial_channel=8,
        upsample_rates=[5, 4, 8],
        upsample_kernel_sizes=[16, 16, 8],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1]],
        normalize_before=False,
    )
    network = SpeechT5HifiGan(config)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(0.3 * torch.randn(weight.shape))
    return network


def save_audioldm2(folder: Path, seed: int = 0, scheduler: SchedulerMixin | None = None) -> Path:
    """0.32 s of 16 kHz audio in latents of 4 channels by 8 x 16, with the scheduler of the models on the hub."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        settings: dict[str, Any] = {
            "sample_size": 8,
            "block_out_channels": (8, 16),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "cross_attention_dim": ([None, 16, 24], [None, 16, 24]),
            "attention_head_dim": 2,
        }
        network = AudioLDM2UNet2DConditionModel(**settings)
        with torch.no_grad():
            network.conv_out.weight.mul_(0.4)
        t5 = T5Config(vocab_size=4 + len(LETTERS), d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        settings = {"vocab_size": 4, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 256}
        settings |= {"bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.3}
        gpt = GPT2Config(**settings)
        projection = AudioLDM2ProjectionModel(16, 24, 16)
        for name, weight in projection.named_parameters():
            if "embed" in name:
                nn.init.normal_(weight)
        scheduler = scheduler or DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)  # pyright: ignore
        parts = (mel_vae(), clap(), T5EncoderModel(t5), projection, GPT2LMHeadModel(gpt))
        tokenizers = (roberta(), t5_tokenizer(), ClapFeatureExtractor(feature_size=8))
        AudioLDM2Pipeline(*parts, *tokenizers, telling(network, 1.5), scheduler, vocoder()).save_pretrained(folder)  # pyright: ignore
    config = folder / "language_model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_new_tokens": 3}))
    return folder
