"""Micro-batches of 4, 10 and 40 on the embedded model: the same D+ and D-, the same adapter to 1e-5."""

import json
from pathlib import Path

import torch

from dragontune.algorithms.dragon import Dragon
from dragontune.embedded import locate
from dragontune.encoders.clap import TinyClap
from dragontune.generators.adapters import Lora
from dragontune.generators.pretrained import load
from dragontune.losses import Kto
from dragontune.rewards.frechet import SetFrechet
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from dragontune.training.loop import Loop


def main() -> None:
    """Three rounds each."""
    prompts = locate("tiny-music/prompts/train.txt").read_text().splitlines()
    reward = SetFrechet(TinyClap(), "tiny-music/exemplars/train")
    weights, positive = {}, {}
    for size in (4, 10, 40):
        generator = load("tiny-music", Lora(rank=16, alpha=16))
        algorithm = Dragon(generator, reward, Kto(), Sampler(steps=12, guidance=2.0), beta=50.0, micro_batch=size)
        loop = Loop(rounds=3, pairs=40, updates=4, batch=40, micro_batch=size, lr=1e-5, max_norm=1.0, sample_every=0)
        loop.run(algorithm, prompts)
        weights[size] = torch.cat([p.detach().flatten() for p in generator.parameters()])
        pairs, _ = algorithm.collect(prompts[:40], Key(1))
        positive[size] = pairs.positive.latents
    result = {
        "largest difference of an adapter weight": {
            f"{a} and {b}": (weights[a] - weights[b]).abs().max().item() for a, b in ((4, 40), (10, 40), (4, 10))
        },
        "largest weight": weights[40].abs().max().item(),
        "largest difference of D+ (latents, of size about 0.5; another division would give about 1)": {
            f"{a} and {b}": (positive[a] - positive[b]).abs().max().item() for a, b in ((4, 40), (10, 40), (4, 10))
        },
    }
    text = json.dumps(result, indent=1)
    Path("benchmarks/results/microbatch.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
