"""Train the autoencoder on the rendered clips: multi-resolution spectra, and a light Gaussian prior on the latents."""

import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dragontune.generators.tiny import TinyAutoencoder
from dragontune.media.spectrum import mel_filters
from trainer import DEVICE, train

STEPS, BATCH, CROP, LR = 3200, 16, 32768, 1e-3
FFTS = (256, 512, 1024, 2048)


def autoencoder(build: Path, sound: np.ndarray, rows: list[int], steps: int = STEPS) -> TinyAutoencoder:
    """The trained autoencoder, its latents standardised on the training clips."""
    torch.manual_seed(0)
    torch.backends.mkldnn.conv.fp32_precision = "bf16"
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    model = TinyAutoencoder()
    windows = {n: torch.hann_window(n, device=DEVICE) for n in FFTS}
    filters = mel_filters(16000, 1024, 80).to(DEVICE)

    def loss(draw: torch.Generator, _: random.Random) -> Tensor:
        picks = torch.randint(len(rows), (BATCH,), generator=draw).tolist()
        places = torch.randint(sound.shape[1] - CROP, (BATCH,), generator=draw).tolist()
        wave = torch.stack([_floats(sound[rows[i], p : p + CROP]) for i, p in zip(picks, places, strict=True)])
        wave = (wave * (10 ** (-torch.rand(BATCH, 1, generator=draw) * 0.4))).to(DEVICE)
        mean, log_variance = model.posterior(wave[:, None])
        noise = torch.randn(mean.shape, generator=draw).to(DEVICE)
        rebuilt = model.synthesize(mean + (log_variance / 2).exp() * noise)[:, 0]
        prior = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        total = 2e-3 * prior
        for size, window in windows.items():
            a, b = (torch.stft(w, size, size // 4, window=window, return_complex=True) for w in (rebuilt, wave))
            a, b = ((s.real.square() + s.imag.square()).clamp(min=1e-8).sqrt() for s in (a, b))
            total = total + (a.clamp(min=1e-3).log() - b.clamp(min=1e-3).log()).abs().mean() / 4
            total = total + ((a - b).square().sum((1, 2)) / b.square().sum((1, 2)).clamp(min=1e-4)).sqrt().mean() / 8
            if size == 1024:
                a, b = ((filters @ s.square()).clamp(min=1e-5).log() for s in (a, b))
                total = total + (a - b).abs().mean() / 2
        return total

    train("autoencoder", {"vae": model}, loss, build, steps, LR, average=0.995)
    torch.backends.mkldnn.conv.fp32_precision = "ieee"
    torch.backends.mkldnn.matmul.fp32_precision = "ieee"
    model.eval().requires_grad_(False)
    means = torch.cat([model.posterior(_floats(sound[some])[:, None])[0] for some in np.array_split(rows[::4], 40)])
    model.shift.copy_(means.mean((0, 2)))
    model.spread.copy_(means.std((0, 2)))
    return model


def _floats(samples: np.ndarray) -> Tensor:
    return torch.from_numpy(samples.astype(np.float32) / 32768)
