"""Build the ratings that ship: clips with known defects and clips of the embedded model, rated by simulated raters.

    python assets/ratings.py

No person rated anything. Each file as written is measured by the rule of `CleanSound`, and eight simulated raters, each
with a bias, a scale and noise of their own, turn it into four ratings a file, from 1 to 5. Everything is drawn from one
seed.
"""

import csv
import io
import json
import random
import shutil
from pathlib import Path

import soundfile
import soxr
import torch
from torch import Tensor

from dragontune import Sampler, Samples, load
from dragontune.embedded import ASSETS
from dragontune.media import audio
from dragontune.media.audio import Audio
from dragontune.rewards.clean_sound import CleanSound
from dragontune.seeding import Key

SEED, RATE = 0, 16000
EXEMPLARS, OUT = ASSETS / "tiny-music" / "exemplars", ASSETS / "tiny-music" / "ratings"
PROMPTS, SECONDS = 46, 2.75
STEPS = (5, 20)
"""Of the sampler: one generated clip a prompt for each."""
RATERS, PER_FILE = 8, 4
BIAS, SCALE, NOISE = 0.4, (0.7, 1.2), 0.25
SEVERITY = {"detuned": (15, 25, 40), "clipped": (0.05, 0.12, 0.25), "noisy": (24, 16, 9), "mistimed": (0.05, 0.1, 0.2)}
"""Cents; share of samples cut; decibels of signal over noise; standard deviation of a piece's delay in seconds."""
HISS = (0.001, 0.01, 0.1)
"""Root mean squares of white noise: -60, -40 and -20 dB."""
README = """\
# Simulated ratings

No person rated these clips. `ratings.csv` was made by `assets/ratings.py`: an openly stated rule (`CleanSound`,
docs/aesthetics.md) measured every file as it lies here, and eight simulated raters with a bias, a scale and noise of
their own gave it a number from 1 to 5. For each prompt there are an exemplar clip of the embedded model as it is
(`clean`), versions of it with one or two defects put in, and clips that the embedded model generated (`made`); for
some also silence (`silent`) or quiet white noise (`hiss`).
"""
ENCODER = "class_path: LogMel\ninit_args: {fft: 4096, hop: 1024, mels: 128, level: -10.0}\n"
"""Fine enough in frequency to see the floor between partials, and deaf to how loud a clip is."""


def main() -> None:
    """Clips, ratings.csv, the encoder that suits them, and README.md."""
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    prompts = chosen(random.Random(SEED))
    rows = sorted([*real(random.Random(SEED)), *made(prompts), *hushed(prompts)])
    quality = [measure(OUT / name) for name, _ in rows]
    rng = random.Random(SEED + 2)
    raters = [(rng.uniform(-BIAS, BIAS), rng.uniform(*SCALE)) for _ in range(RATERS)]
    with (OUT / "ratings.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("file", "rating", "rater", "prompt"))
        for (name, prompt), value in zip(rows, quality, strict=True):
            for rater in sorted(rng.sample(range(RATERS), PER_FILE)):
                bias, scale = raters[rater]
                rating = round(2 * (3 + bias + scale * (value - 3) + rng.gauss(0, NOISE))) / 2
                table.writerow((name, min(max(rating, 1.0), 5.0), f"simulated-{rater}", prompt))
    (OUT / "README.md").write_text(README, encoding="utf-8")
    (OUT / "encoder.yaml").write_text(ENCODER, encoding="utf-8")
    size = sum(path.stat().st_size for path in OUT.iterdir())
    print(f"{len(rows)} files, {size / 1e6:.2f} MB, quality {min(quality):.2f} to {max(quality):.2f}")


def chosen(rng: random.Random) -> list[tuple[str, Path]]:
    """Captions, no two the same, and their clips."""
    facts = [json.loads(line) for line in (EXEMPLARS / "train.jsonl").read_text("utf-8").splitlines()]
    captions = (EXEMPLARS / "train-captions.txt").read_text("utf-8").splitlines()
    clips = {caption: EXEMPLARS / "train" / fact["file"] for fact, caption in zip(facts, captions, strict=True)}
    return rng.sample(sorted(clips.items()), PROMPTS)


def real(rng: random.Random) -> list[tuple[str, str]]:
    """Exemplar clips: clean, clipped, noisy, and with one or two defects by chance, each at a severity by chance."""
    rows = []
    for place, (caption, path) in enumerate(chosen(rng)):
        clip = audio.read(path).mono().resample(RATE).waveform[0, 0]
        third = rng.choice([["detuned"], ["mistimed"], rng.sample(list(SEVERITY), 2)])
        for defects in ([], ["clipped"], ["noisy"], third):
            version = clip
            for defect in defects:
                version = DEGRADE[defect](version, rng.choice(SEVERITY[defect]), rng)
            name = f"{place:02}-{'-'.join(defects) or 'clean'}.ogg"
            write(version, OUT / name)
            rows.append((name, caption))
    return rows


def made(prompts: list[tuple[str, Path]]) -> list[tuple[str, str]]:
    """Clips of the untuned embedded model for the same captions."""
    captions = [caption for caption, _ in prompts]
    generator, rows = load("tiny-music"), []
    for steps in STEPS:
        key = Key(SEED).fold("ratings", steps)
        media = Sampler(steps=steps, guidance=2.0).sample(generator, captions, key).media
        assert isinstance(media, Audio)
        for place, clip in enumerate(media.waveform[:, 0]):
            name = f"{place:02}-made-{steps}.ogg"
            write(clip, OUT / name)
            rows.append((name, captions[place]))
    return rows


def hushed(prompts: list[tuple[str, Path]]) -> list[tuple[str, str]]:
    """For every fourth prompt silence or white noise of -60 to -20 dB, in turn."""
    rows = []
    for place in range(0, len(prompts), 4):
        noise = torch.randn(round(SECONDS * RATE), generator=torch.Generator().manual_seed(SEED + place))
        silent = place % 8 == 0
        name = f"{place:02}-{'silent' if silent else 'hiss'}.ogg"
        write(noise * 0 if silent else noise * HISS[place // 8 % len(HISS)], OUT / name)
        rows.append((name, prompts[place][0]))
    return rows


def detuned(clip: Tensor, cents: float, rng: random.Random) -> Tensor:
    """All pitches moved by `cents`, or wobbling by as much one and a half times a second."""
    if rng.random() < 0.5:
        faster = soxr.resample(clip.numpy(), RATE, RATE * 2 ** (rng.choice((-1, 1)) * cents / 1200))
        return torch.from_numpy(faster)
    place = torch.arange(len(clip), dtype=torch.float64)
    pulse = 2 * torch.pi * 1.5 / RATE
    place = place + (2 ** (cents / 1200) - 1) / pulse * (pulse * place).sin()
    low = place.floor().long().clamp(0, len(clip) - 2)
    share = (place - low).clamp(0, 1).float()
    return clip[low] * (1 - share) + clip[low + 1] * share


def clipped(clip: Tensor, share: float, rng: random.Random) -> Tensor:
    """The loudest `share` of the samples cut off, at the level of the clip."""
    limit = clip.abs().quantile(1 - share)
    return clip.clamp(-limit, limit) * (0.7 / limit).clamp(max=2)


def noisy(clip: Tensor, decibels: float, rng: random.Random) -> Tensor:
    """With white noise `decibels` below the clip."""
    noise = torch.randn(len(clip), generator=torch.Generator().manual_seed(rng.randrange(2**31)))
    return clip + noise * clip.square().mean().sqrt() * 10 ** (-decibels / 20)


def mistimed(clip: Tensor, seconds: float, rng: random.Random) -> Tensor:
    """Cut into quarter seconds, each begun early or late, with edges of 10 ms."""
    length, edge = RATE // 4, RATE // 100
    ramp = torch.ones(length + edge)
    ramp[:edge] = torch.linspace(0, 1, edge)
    ramp[-edge:] = torch.linspace(1, 0, edge)
    out = torch.zeros(len(clip))
    for start in range(0, len(clip) - length - edge, length):
        at = min(max(start + round(rng.gauss(0, seconds) * RATE), 0), len(clip) - length - edge)
        out[at : at + length + edge] += clip[start : start + length + edge] * ramp
    return out


DEGRADE = {"detuned": detuned, "clipped": clipped, "noisy": noisy, "mistimed": mistimed}


def write(clip: Tensor, path: Path) -> None:
    """The first seconds as a small Vorbis file, peaks at most at 0.9."""
    clip = clip[: round(SECONDS * RATE)]
    clip = clip * (0.9 / clip.abs().amax().clamp(min=0.9))
    encoded = io.BytesIO()
    with soundfile.SoundFile(encoded, "w", RATE, 1, "VORBIS", format="OGG", compression_level=0.8) as file:
        file.write(clip.numpy())
    path.write_bytes(encoded.getvalue())


def measure(path: Path) -> float:
    """The rule's quality of a file as written."""
    return CleanSound()(Samples(("",), torch.empty(1, 0), audio.read(path))).item()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
