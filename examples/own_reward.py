"""Tune with a reward of your own: brighter or darker sound, measured by the spectral centroid.

    python examples/own_reward.py

A reward is a class with two methods. It may be any code: no gradients are needed.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from dragontune import Alignment, Audio, Dragon, InstanceReward, Loop, Lora, Sampler, Samples, TinyClap, load
from dragontune.evaluation.evaluate import Evaluation, evaluate


@dataclass(frozen=True)
class Brightness(InstanceReward):
    """The spectral centroid in kilohertz; `sign` -1 asks for darkness."""

    sign: float = 1.0

    def encode(self, samples: Samples) -> torch.Tensor:
        assert isinstance(samples.media, Audio)
        power = torch.fft.rfft(samples.media.mono().waveform[:, 0]).abs().square()
        kilohertz = torch.linspace(0, samples.media.sample_rate / 2000, power.shape[1])
        return (power * kilohertz).sum(1) / power.sum(1).clamp(min=1e-12)

    def score(self, features: torch.Tensor) -> torch.Tensor:
        return self.sign * features


def main() -> None:
    reward = Brightness()
    generator = load("tiny-music", Lora(rank=16))
    algorithm = Dragon(generator, reward, sampler=Sampler(steps=5, guidance=2.0), beta=50)
    prompts = Evaluation("tiny-music/prompts/train.txt", count=400).read()
    history = Loop(rounds=8, lr=3e-4, max_norm=1.0).run(algorithm, prompts)

    watched = {"prompt alignment": Alignment(TinyClap())}
    evaluation = Evaluation("tiny-music/prompts/test.txt", count=60, subset=20, subsets=50, rewards=watched)
    metrics = evaluate(generator, evaluation, reward, algorithm.sampler, 0, Path("runs/own-reward/report"), history)
    for name, entry in metrics["rewards"].items():
        print(f"{name}: {entry['before']:.3f} -> {entry['after']:.3f}, win rate {entry['win_rate']:.0%}")


if __name__ == "__main__":
    main()
