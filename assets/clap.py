"""Train tiny-clap: audio and caption of the same clip together, of others apart."""

import random
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize

from dragontune.encoders.tiny import TinyClapModel
from music import Facts, caption
from tokenizer import Words
from trainer import DEVICE, train

STEPS, BATCH, LR = 1600, 96, 1.5e-3


def clap(build: Path, sound: np.ndarray, facts: list[Facts], words: Words, steps: int = STEPS) -> TinyClapModel:
    """The trained pair of towers. Clips whose captions coincide in a batch count as one another's matches."""
    torch.manual_seed(1)
    torch.backends.mkldnn.conv.fp32_precision = "bf16"
    model = TinyClapModel(vocabulary=words.size)
    rows = [i for i, fact in enumerate(facts) if fact.split == "train"]
    mels = mels_of(build, model, sound)

    def loss(draw: torch.Generator, rng: random.Random) -> Tensor:
        picks = [rows[i] for i in torch.randint(len(rows), (BATCH,), generator=draw).tolist()]
        mel = mels[picks].float().roll(int(torch.randint(256, (), generator=draw)), dims=2)
        power = (mel * 4 - 2 - 1.5 * torch.rand(BATCH, 1, 1, generator=draw)).exp()  # quieter by up to 6.5 dB
        floor = 1e-5 * 10 ** (3 * torch.rand(BATCH, 1, 1, generator=draw))  # and with noise at up to -20 dB
        mel = ((power + floor * torch.rand(power.shape, generator=draw)).clamp(min=1e-5).log() + 2) / 4
        texts = [caption(facts[i], rng, rng.random() > 0.1) for i in picks]
        audio = normalize(model.frames(mel.to(DEVICE)).mean(1), dim=1)
        text = model.text_vectors(*(tokens.to(DEVICE) for tokens in words(texts)))
        same = torch.tensor([[float(a == b) for b in texts] for a in texts], device=DEVICE)
        target = same / same.sum(1, keepdim=True)
        logits = model.log_scale.clamp(max=4.0).exp() * audio @ text.T
        return -(target * logits.log_softmax(1)).sum(1).mean() - (target * logits.T.log_softmax(1)).sum(1).mean()

    train("clap", {"clap": model}, loss, build, steps, LR, average=0.995)
    torch.backends.mkldnn.conv.fp32_precision = "ieee"
    return model.eval().requires_grad_(False)


def mels_of(build: Path, model: TinyClapModel, sound: np.ndarray) -> Tensor:
    """The log-mel spectrogram of every clip, float16, computed once."""
    file = build / "mels.safetensors"
    if not file.exists():
        parts = [
            model.mel(torch.from_numpy(some.astype(np.float32) / 32768)).half()
            for some in track(np.array_split(sound, len(sound) // 64), "spectrograms")
        ]
        save_file({"mels": torch.cat(parts)}, file)
    return load_file(file)["mels"]
