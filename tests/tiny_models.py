"""Pipelines of the real classes with tiny random weights, for tests."""

from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_oobleck import AutoencoderOobleck
from diffusers.models.transformers.stable_audio_transformer import StableAudioDiTModel
from diffusers.pipelines.stable_audio.modeling_stable_audio import StableAudioProjectionModel
from diffusers.pipelines.stable_audio.pipeline_stable_audio import StableAudioPipeline
from diffusers.schedulers.scheduling_cosine_dpmsolver_multistep import CosineDPMSolverMultistepScheduler
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from dragontune.encoders.tiny import TinyClapModel
from dragontune.generators.tiny import TinyAutoencoder, TinyDiT, TinyMusicPipeline

WORDS = ["<pad>", "</s>", "<unk>", "a", "reel", "jig", "in", "G", "major", "for", "flute", "violin", "organ"]


def tokenizer(length: int = 8) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=length
    )


def text_encoder(width: int = 16) -> T5EncoderModel:
    config = T5Config(vocab_size=len(WORDS), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return T5EncoderModel(config)


def save_tiny_music(folder: Path, seed: int = 0) -> Path:
    """0.26 s of 16 kHz audio in latents of 4 channels by 16 frames."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = TinyAutoencoder(channels=4, width=8, fft=256, hop=64, stride=4, fine_blocks=1, coarse_blocks=1)
        transformer = TinyDiT(channels=4, frames=16, width=16, depth=2, heads=2, text_width=16, level_width=8)
        torch.nn.init.normal_(transformer.leave.weight, std=0.2)
        TinyMusicPipeline(vae, text_encoder(), tokenizer(), transformer).save_pretrained(folder)
    return folder


def save_tiny_clap(folder: Path, seed: int = 0) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = TinyClapModel(dim=8, mels=16, width=8, vocabulary=len(WORDS), text_width=8, text_depth=1)
        network.save_pretrained(folder)
    tokenizer().save_pretrained(folder / "tokenizer")
    return folder


def save_stable_audio(folder: Path, seed: int = 0) -> Path:
    """2.56 s of 800 Hz stereo in latents of 4 channels by 16 frames, with Stable Audio Open's scheduler."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderOobleck(
            encoder_hidden_size=8,
            downsampling_ratios=[4, 32],
            channel_multiples=[1, 2],
            decoder_channels=4,
            decoder_input_channels=4,
            audio_channels=2,
            sampling_rate=800,
        )
        transformer = StableAudioDiTModel(
            sample_size=16,
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            num_key_value_attention_heads=1,
            out_channels=4,
            cross_attention_dim=8,
            time_proj_dim=8,
            global_states_input_dim=32,
            cross_attention_input_dim=16,
        )
        projection = StableAudioProjectionModel(16, 16, 0, 512)
        scheduler = CosineDPMSolverMultistepScheduler()
        parts = (vae, text_encoder(), projection, tokenizer(), transformer, scheduler)
        StableAudioPipeline(*parts).save_pretrained(folder)  # pyright: ignore[reportArgumentType]
    return folder
