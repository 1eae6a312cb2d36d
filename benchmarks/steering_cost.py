"""What steering costs beside the network: time over plain batches with a free reward, and memory as candidates grow.

    python benchmarks/steering_cost.py

Time: M candidates against M plain batches, in turns, on one thread; every call of the network sees five items (ten with
guidance) on either side. The reward looks at a number of the clean estimate and is free.
Memory: the most bytes of tensors alive at once (dragontune.alive), beyond the models' own, for two prompts and M from 4
to 64, against budgets that were declared by `Steering.within`.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

from dragontune import Alignment, Sampler, TinyClap, load
from dragontune.alive import peak
from dragontune.data import Samples
from dragontune.rewards.base import InstanceReward
from dragontune.seeding import Key
from dragontune.steering.base import Steering
from dragontune.steering.best_of_n import BestOfN
from dragontune.steering.dsearch import DSearch
from dragontune.steering.free2guide import Free2Guide
from dragontune.steering.smc import Smc
from dragontune.steering.svdd import Svdd

RESULT = Path(__file__).parent / "results" / "steering-cost.json"
SAMPLER = Sampler(steps=8, guidance=2.0, order=1, eta=1.0)
PROMPTS = [f"a tune for {name}" for name in ("flute", "violin", "banjo", "organ", "choir")]
SIZE, TURNS, ROWS, BUDGETS = len(PROMPTS), 5, 16, (64, 128)
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Free(InstanceReward[Tensor]):
    """The first number of the latents."""

    @property
    def needs_media(self) -> bool:
        return False

    def encode(self, samples: Samples) -> Tensor:
        return samples.latents.flatten(1)[:, 0]

    def score(self, features: Tensor) -> Tensor:
        return features


def overhead() -> dict[str, dict[str, float]]:
    """Ratios of processor time: M candidates over M plain batches."""
    generator, found = load("tiny-music"), {}
    for count in (5, 10):
        for name, steering in {
            "SVDD": Svdd(Free(), candidates=count, micro_batch=SIZE),
            "best of n": BestOfN(Free(), n=count, micro_batch=SIZE),
            "DSearch": DSearch(
                Free(), beams=SIZE, children=count // SIZE, multiplier=1.0, search="all", micro_batch=SIZE
            ),
            "SMC": Smc(Free(), alpha=0.1, particles=count, micro_batch=SIZE),
        }.items():
            ratios = []
            for turn in range(TURNS + 1):
                start = time.process_time()
                SAMPLER.sample(generator, PROMPTS, Key(turn), steer=steering, decode=False)
                middle = time.process_time()
                for batch in range(count):
                    SAMPLER.sample(generator, PROMPTS, Key(turn).fold(batch), decode=False)
                ratios.append((middle - start) / (time.process_time() - middle))
            ratios = ratios[1:]  # the first warms up
            spent, plain = steering.budget(SAMPLER, 1, Key(0)).calls, SAMPLER.calls(count)
            found[f"{name}, {count}"] = {"ratio": median(ratios), "most": max(ratios), "calls": spent / plain}
            print(f"{name}, M = {count}: {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})", flush=True)
    return found


def memory() -> dict[str, float]:
    """Peaks in MiB."""
    generator, reward = load("tiny-music"), Alignment(TinyClap())

    def used(prompts: list[str], steering: Steering) -> float:
        return peak(lambda: SAMPLER.sample(generator, prompts, Key(0), steer=steering)) / MEBIBYTE

    def plain() -> None:
        with torch.no_grad():
            reward(SAMPLER.sample(generator, [PROMPTS[i % len(PROMPTS)] for i in range(ROWS)], Key(0)))

    plain()
    found: dict[str, float] = {"a plain batch": peak(plain) / MEBIBYTE}
    print(f"a plain batch of {ROWS}: {found['a plain batch']:.1f} MiB")
    for declared in BUDGETS:
        for count in (4, 8, 16, 32, 64):
            methods: dict[str, Steering] = {
                "SVDD": Svdd(reward, count),
                "best of n": BestOfN(reward, count),
                "DSearch": DSearch(reward, count // 2, 2, 1.0, "all"),
                "SMC": Smc(reward, 0.01, count),
                "Free2Guide": Free2Guide(reward, count, 3),
            }
            for name, free in methods.items():
                steering = free.within(declared, SAMPLER, generator, prompts=2)
                got = found[f"{name}, {count} in {declared}"] = used(PROMPTS[:2], steering)
                verdict = "within" if got <= declared else "TOO MUCH"
                print(f"{declared} MiB, {name}, M = {count}: {steering.micro_batch} rows, {got:.1f} MiB, {verdict}")
    return found


def main() -> None:
    torch.set_num_threads(1)
    result = {"overhead": overhead(), "memory": memory()}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
