"""A reward function written for TRL's DDPOTrainer, unchanged, and a second opinion beside it.

    python examples/trl_reward.py

The function never sees a gradient or the model. `Function` tells by its three parameters that it is one of TRL's.
"""

from pathlib import Path

import torch

from dragontune import Dragon, Loop, Lora, Sampler, load
from dragontune.evaluation.evaluate import Evaluation, evaluate
from dragontune.rewards.function import Function
from dragontune.rewards.signal import KeyStrength, Loudness


def steadiness(samples: torch.Tensor, prompts: tuple[str, ...], metadata: tuple[dict, ...]):
    """Minus how much the level changes from one tenth of a second to the next, in decibels."""
    step = metadata[0]["sample_rate"] // 10
    power = samples.mean(1).unfold(1, step, step).square().mean(2)
    return -(10 * (power + 1e-6).log10()).diff(dim=1).abs().mean(1), {"prompts": prompts}


def main() -> None:
    reward = Function(steadiness)
    generator = load("tiny-music", Lora(rank=16))
    algorithm = Dragon(generator, reward, sampler=Sampler(steps=5, guidance=2.0), beta=50)
    prompts = Evaluation("tiny-music/prompts/train.txt", count=400).read()
    history = Loop(rounds=8, lr=2e-4, max_norm=1.0).run(algorithm, prompts)

    watched = {"loudness (LUFS)": Loudness(), "key strength": KeyStrength()}
    evaluation = Evaluation("tiny-music/prompts/test.txt", count=60, subset=20, subsets=50, rewards=watched)
    metrics = evaluate(generator, evaluation, reward, algorithm.sampler, 0, Path("runs/trl-reward/report"), history)
    for name, entry in metrics["rewards"].items():
        print(f"{name}: {entry['before']:.3f} -> {entry['after']:.3f}, win rate {entry['win_rate']:.0%}")


if __name__ == "__main__":
    main()
