"""How sets are divided in one round of tuning: the reward gap each way reaches, and its share of the round's time.

    python benchmarks/contrast.py

One round of the demo recipe's model, sampler and reward at 40 pairs (three seeds) and at 400 (one), untuned weights;
every way of dividing gets the same generations. Writes benchmarks/results/contrast.json.
"""

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from dragontune import Dragon, Kto, Latents, Lora, Sampler, SetFrechet, Sum, TinyClap, load
from dragontune.data import Samples
from dragontune.demonstrations import Division, divide
from dragontune.embedded import locate
from dragontune.rewards.base import DistributionReward, Features
from dragontune.seeding import Key
from dragontune.training.rounds import Rounds

RESULTS = Path(__file__).parent / "results" / "contrast.json"
WAYS: dict[str, dict[str, Any]] = {
    "one pass over the pairs (the paper)": {},
    "passes until nothing is accepted": {"passes": 1000},
    "best pair first": {"search": "best"},
    "best n of 2n, unpaired": {"pairing": "unpaired"},
}


class FromScratch(DistributionReward[Features]):
    """The same reward, every exchange scored from scratch."""

    def __init__(self, inner: DistributionReward) -> None:
        self.inner = inner

    def encode(self, samples: Samples) -> Features:
        return self.inner.encode(samples)

    def score(self, features: Features) -> torch.Tensor:
        return self.inner.score(features)


def reward() -> Sum:
    folder = "tiny-music/references/train-"
    return Sum(
        {
            "sound": SetFrechet(TinyClap(), f"{folder}tiny-clap.safetensors"),
            "latents": SetFrechet(Latents(), f"{folder}latents.safetensors"),
        },
        scales={"sound": 0.1, "latents": 0.4},
    )


def measure(prompts: Sequence[str], pairs: int, seed: int) -> dict[str, Any]:
    """A round, timed whole, then the same generations divided in every way."""
    generator = load("tiny-music", Lora(16, 16))
    algorithm = Dragon(generator, reward(), Kto(), Sampler(steps=5, guidance=2.0), beta=50)
    weights = list(algorithm.parameters())
    rounds = Rounds(
        algorithm=algorithm,
        prompts=prompts,
        weights=weights,
        optimizer=torch.optim.Adam(weights, lr=1e-12),
        key=Key(seed),
        pairs=pairs,
        updates=4,
        batch=pairs,
        micro_batch=40,
        max_norm=1.0,
        rate=lambda number: 1e-12,
    )
    if pairs <= 40:
        rounds(0)  # what is made once is made now; at 400 pairs it is a small share
    seconds = rounds(0)["seconds"]
    key = rounds.key.fold("round", 0).fold("collect")
    chosen = rounds.chosen(0)
    with torch.no_grad():
        first, second = (algorithm._generate(chosen, key.fold(name))[1] for name in ("first", "second"))
        features = type(first).join([first, second])
        ways = dict(WAYS)
        found = {name: way(algorithm.reward, features, chosen, key, **options) for name, options in ways.items()}
        if pairs <= 40:
            plain = FromScratch(algorithm.reward)
            found["one pass, every exchange from scratch"] = way(plain, features, chosen, key)
    return {"pairs": pairs, "seed": seed, "round_seconds": seconds, "ways": found}


def way(target: DistributionReward, features: Features, prompts: Sequence[str], key: Key, **options: Any) -> dict:
    start = time.perf_counter()
    division: Division = divide(target, features, list(prompts) * 2, key.fold("division"), **options)
    seconds = time.perf_counter() - start
    positive, negative = (target.score(features[rows]).item() for rows in (division.positive, division.negative))
    return {
        "seconds": seconds,
        "gap": positive - negative,
        "positive": positive,
        "accepted": division.accepted,
        "asked": division.asked,
    }


def main() -> None:
    prompts = [line for line in locate("tiny-music/prompts/train.txt").read_text("utf-8").splitlines() if line.strip()]
    runs = [measure(prompts, pairs, seed) for pairs, seeds in ((40, 3), (400, 1)) for seed in range(seeds)]
    table = Table("pairs", "way", "reward gap D+ - D-", "reward of D+", "accepted", "asked", "ms", "% of the round")
    for pairs in (40, 400):
        some = [run for run in runs if run["pairs"] == pairs]
        for name in some[0]["ways"]:
            values = [run["ways"][name] for run in some]
            mean = {key: statistics.mean(value[key] for value in values) for key in values[0]}
            share = statistics.mean(
                100 * value["seconds"] / run["round_seconds"] for value, run in zip(values, some, strict=True)
            )
            table.add_row(
                str(pairs),
                name,
                f"{mean['gap']:.3f}",
                f"{mean['positive']:.3f}",
                f"{mean['accepted']:.1f}",
                f"{mean['asked']:.0f}",
                f"{1000 * mean['seconds']:.1f}",
                f"{share:.2f}",
            )
    Console().print(table)
    RESULTS.write_text(json.dumps({"threads": torch.get_num_threads(), "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
