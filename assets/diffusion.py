"""Train the diffusion transformer and its text encoder on the latents of the clips (EDM, Karras et al. 2022)."""

import random
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from dragontune.generators.tiny import TinyAutoencoder, TinyDiT
from music import Facts, caption
from tokenizer import Words
from trainer import DEVICE, train

STEPS, BATCH, LR = 3000, 64, 1e-3


def latents_of(build: Path, vae: TinyAutoencoder, sound: np.ndarray) -> Tensor:
    """The latents of every clip (clips, channels, frames), computed once."""
    file = build / "latents.safetensors"
    if not file.exists():
        with torch.no_grad():
            parts = [
                vae.encode(torch.from_numpy(some.astype(np.float32) / 32768)[:, None])
                for some in track(np.array_split(sound, len(sound) // 64), "latents")
            ]
        save_file({"latents": torch.cat(parts)}, file)
    return load_file(file)["latents"]


def diffusion(
    build: Path, latents: Tensor, facts: list[Facts], words: Words, steps: int = STEPS
) -> tuple[TinyDiT, T5EncoderModel]:
    """The trained transformer and text encoder; one caption in ten is dropped, so that guidance works."""
    torch.manual_seed(2)
    transformer = TinyDiT()
    config = T5Config(
        vocab_size=words.size, d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4, dropout_rate=0.0,
        feed_forward_proj="gated-gelu", pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    text_encoder = T5EncoderModel(config)
    rows = [i for i, fact in enumerate(facts) if fact.split == "train"]
    c = transformer.config

    def loss(draw: torch.Generator, rng: random.Random) -> Tensor:
        picks = [rows[i] for i in torch.randint(len(rows), (BATCH,), generator=draw).tolist()]
        texts = ["" if rng.random() < 0.1 else caption(facts[i], rng, rng.random() > 0.15) for i in picks]
        tokens, mask = (part.to(DEVICE) for part in words(texts))
        hidden = text_encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
        clean = latents[picks].to(DEVICE)
        sigma = (c["p_mean"] + c["p_std"] * torch.randn(BATCH, generator=draw)).exp().to(DEVICE)
        noisy = clean + sigma[:, None, None] * torch.randn(clean.shape, generator=draw).to(DEVICE)
        weight = (sigma**2 + c["sigma_data"] ** 2) / (sigma * c["sigma_data"]) ** 2
        error = (transformer.denoise(noisy, sigma, hidden, mask) - clean).square().mean((1, 2))
        return (weight * error).mean()

    train("diffusion", {"transformer": transformer, "text": text_encoder}, loss, build, steps, LR)
    return transformer.eval().requires_grad_(False), text_encoder.eval().requires_grad_(False)
