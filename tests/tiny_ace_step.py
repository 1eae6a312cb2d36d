"""ACE-Step's pipeline of the real classes with tiny random weights."""

from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_oobleck import AutoencoderOobleck
from diffusers.models.transformers.ace_step_transformer import AceStepTransformer1DModel
from diffusers.pipelines.ace_step.modeling_ace_step import AceStepConditionEncoder
from diffusers.pipelines.ace_step.pipeline_ace_step import AceStepPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from tokenizers import pre_tokenizers
from torch import nn
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

LETTERS = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|endoftext|>"]


def save_ace_step(folder: Path, seed: int = 0, turbo: bool = False) -> Path:
    """60.16 s of 800 Hz stereo, of 600 at most, in latents of 4 channels by 94 frames; tokens are bytes."""
    width: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "head_dim": 8, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderOobleck(
            encoder_hidden_size=8,
            downsampling_ratios=[8, 64],
            channel_multiples=[1, 2],
            decoder_channels=4,
            decoder_input_channels=4,
            audio_channels=2,
            sampling_rate=800,
        )
        transformer = AceStepTransformer1DModel(
            **width,
            num_hidden_layers=2,
            num_key_value_heads=1,
            in_channels=12,
            audio_acoustic_hidden_dim=4,
            sliding_window=8,
            is_turbo=turbo,
        )
        encoder = AceStepConditionEncoder(
            **width,
            text_hidden_dim=16,
            timbre_hidden_dim=4,
            num_lyric_encoder_hidden_layers=1,
            num_timbre_encoder_hidden_layers=1,
            num_key_value_heads=1,
            sliding_window=8,
        )
        for silence in encoder.buffers():
            silence.normal_()
        for name, weight in transformer.named_parameters():  # so that the prompt is heard over the noise
            if "cross_attn.to_v" in name or "cross_attn.to_out" in name:
                nn.init.normal_(weight, std=0.5)
        vocabulary = {letter: i for i, letter in enumerate(LETTERS)}
        config = Qwen3Config(
            **width, vocab_size=len(vocabulary), num_hidden_layers=1, num_key_value_heads=1, max_position_embeddings=512
        )
        parts = (
            vae,
            Qwen3Model(config),
            Qwen2Tokenizer(vocabulary, []),
            transformer,
            encoder,
            FlowMatchEulerDiscreteScheduler(num_train_timesteps=1),
        )
        AceStepPipeline(*parts).save_pretrained(folder)  # pyright: ignore[reportArgumentType]
    return folder
