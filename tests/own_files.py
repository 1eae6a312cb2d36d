"""A file of rewards as a user would write them, right and wrong ones, and clips to try them on."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from dragontune.data import Samples
from dragontune.media.audio import Audio

REWARDS = """\
import torch
from dataclasses import dataclass
from dragontune import InstanceReward
from beside import SCALE

with open("executed.txt", "a") as log:
    log.write("x")


def level(media, prompts):
    return media.loudness() * SCALE


def trl(samples, prompts, metadata):
    rates = [row["sample_rate"] for row in metadata]
    return [float(wave.abs().mean()) * rate for wave, rate in zip(samples, rates)], {"seen": prompts}


def spread(media, prompts):
    return media.waveform.std()


@dataclass(frozen=True)
class Quiet(InstanceReward):
    scale: float = 1.0

    def encode(self, samples):
        return samples.media.loudness()

    def score(self, features):
        return -self.scale * features


def raises(media, prompts):
    def inner(wave):
        raise ValueError("no\\n  such beat")
    return [inner(wave) for wave in media.waveform]


def quits(media, prompts):
    raise SystemExit(0)


def nothing(media, prompts):
    pass


def words(media, prompts):
    return "loud"


def mapping(media, prompts):
    return {0: 1.0}


def mean(media, prompts):
    return media.loudness().mean()


def tall(media, prompts):
    return media.loudness()[:, None]


def longer(media, prompts):
    return [1.0] * (len(prompts) + 1)


def turned(media, prompts):
    return torch.fft.fft(media.loudness().double())


def broken(media, prompts):
    return [float("nan")] * len(prompts)


def one(media):
    return media.loudness()


def four(a, b, c, d):
    return b


def unpaired(samples, prompts, metadata):
    return [0.0] * len(prompts)


number = 3
"""


def samples(count: int = 4, length: int = 800) -> Samples:
    waves = torch.linspace(0.1, 0.5, count)[:, None, None] * torch.randn(count, 1, length, generator=draws())
    return Samples(tuple(f"clip {i}" for i in range(count)), torch.zeros(count, 2), Audio(waves, 16000))


def draws() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def level(media, prompts):
    return media.loudness()


@contextmanager
def own_files(folder: Path) -> Iterator[Path]:
    """The files in a folder, which is the working directory meanwhile."""
    (folder / "my_rewards.py").write_text(REWARDS)
    (folder / "beside.py").write_text("SCALE = 2.0\n")
    kept = list(sys.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder
    sys.path[:] = kept
    sys.modules.pop("beside", None)
