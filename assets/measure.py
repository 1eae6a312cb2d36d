"""Is the embedded default worth listening to? Measured on clips of test pieces (`make assets` must have run).

Prints JSON: (a) what the autoencoder keeps, (b) and (c) how often tiny-clap names the right instrument on real clips
and on generations for test captions, (d) silent, clipped or shifted clips among them.
"""

import json
import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from dragontune.encoders.clap import TinyClap
from dragontune.generators.pretrained import load
from dragontune.media.audio import Audio
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from music import INSTRUMENTS, Facts, caption
from render import clips

BUILD = Path(__file__).resolve().parent.parent / ".build"
COUNT, RATE = 560, 16000


@torch.no_grad()
def main() -> None:
    """All four measurements."""
    sound, facts = clips(BUILD)
    rng = random.Random(5)
    rows = sorted(rng.sample([i for i, fact in enumerate(facts) if fact.split == "test"], COUNT))
    some = [facts[i] for i in rows]
    real = torch.from_numpy(sound[rows].astype(np.float32) / 32768)[:, None]
    generator, clap = load("tiny-music"), TinyClap()
    rebuilt = torch.cat([generator.decode(generator.encode(Audio(part, RATE))).waveform for part in real.split(40)])
    prompts = [caption(fact, rng) for fact in some]
    sampler, made = Sampler(steps=16, guidance=2.0), []
    for batch in range(0, COUNT, 40):
        texts = prompts[batch : batch + 40]
        made.append(sampler.sample(generator, texts, Key(0), items=range(batch, batch + len(texts))).media.waveform)
    generated = torch.cat(made)
    shuffled = real[torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))]
    accuracy = {name: instrument_accuracy(clap, wave, some) for name, wave in
                (("real", real), ("rebuilt", rebuilt), ("generated", generated))}  # fmt: skip
    print(json.dumps({
        "clips": COUNT,
        "stft_distance_rebuilt": spectral_distance(real, rebuilt),
        "stft_distance_between_clips": spectral_distance(real, shuffled),
        "instrument_accuracy": accuracy,
        "rebuilt_to_real": accuracy["rebuilt"] / accuracy["real"],
        "defects_real": defects(real), "defects_rebuilt": defects(rebuilt), "defects_generated": defects(generated),
    }, indent=1))  # fmt: skip


def instrument_accuracy(clap: TinyClap, wave: Tensor, facts: list[Facts]) -> float:
    """How often the instrument whose phrases are nearest is the right one."""
    forms = ("The sound of a {}", "{}", "A piece for {}")
    phrases = [[form.format(way) for way in ways for form in forms] for _, _, ways in INSTRUMENTS.values()]
    classes = torch.stack([normalize(clap.embed_text(some).mean().mean(0), dim=0) for some in phrases])
    audio = torch.cat([clap.embed(Audio(part, RATE)).mean() for part in wave.split(80)])
    names = list(INSTRUMENTS)
    found = [names[k] for k in (audio @ classes.T).argmax(1).tolist()]
    return float(np.mean([name == fact.instrument for name, fact in zip(found, facts, strict=True)]))


def spectral_distance(a: Tensor, b: Tensor) -> float:
    """Mean absolute difference of log magnitudes (natural logarithm, floor 1e-3) over four resolutions."""
    total = 0.0
    for size in (256, 512, 1024, 2048):
        window = torch.hann_window(size)
        x, y = (torch.stft(w[:, 0], size, size // 4, window=window, return_complex=True).abs() for w in (a, b))
        total += (x.clamp(min=1e-3).log() - y.clamp(min=1e-3).log()).abs().mean().item() / 4
    return total


def defects(wave: Tensor) -> dict[str, int]:
    """Counts of silent (below -50 dBFS), clipped (more than 1 in 1,000 samples at full scale) and DC-shifted clips."""
    level = wave.square().mean((1, 2)).sqrt()
    return {
        "silent": int((level < 10**-2.5).sum()),
        "clipped": int(((wave.abs() >= 0.999).float().mean((1, 2)) > 1e-3).sum()),
        "shifted": int((wave.mean((1, 2)).abs() > 0.01).sum()),
    }


if __name__ == "__main__":
    main()
