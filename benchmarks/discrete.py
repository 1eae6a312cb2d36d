"""Steering masked diffusion on sequences like DNA that this script makes: one black-box reward, equal budgets, 3 seeds.

    python benchmarks/discrete.py train        (minutes on one thread; writes runs/discrete/letters)
    python benchmarks/discrete.py measure      (writes benchmarks/results/discrete.json)
    python benchmarks/discrete.py show         (the table of docs/discrete.md)

The sequences are promoter-like: an AT-rich, CpG-poor Markov chain, and textbook motifs where they are found: a CCAAT
box and a GC box upstream, a TATA box 30 letters before the start of transcription, an initiator at it.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dragontune.data import Samples
from dragontune.generators.sequences import Letters, LettersPipeline, letters, open_generator
from dragontune.generators.tokens import TokenTransformer, masked_cross_entropy
from dragontune.media.sequences import Sequences
from dragontune.rewards.motif import Motifs
from dragontune.seeding import Key
from dragontune.steering.base import Steering
from dragontune.steering.best_of_n import BestOfN
from dragontune.steering.dsearch import DSearch
from dragontune.steering.svdd import Svdd
from dragontune.unmasking import Unmasking

HERE = Path(__file__).parent
MODEL, RESULT = Path("runs/discrete/letters"), HERE / "results" / "discrete.json"
LENGTH, START, COUNT = 96, 84, 40_000
BACKGROUND = [  # rows: after A, C, G, T; CG is rare
    [0.34, 0.17, 0.21, 0.28],
    [0.35, 0.25, 0.05, 0.35],
    [0.30, 0.20, 0.24, 0.26],
    [0.24, 0.19, 0.22, 0.35],
]
PLANTED = (  # motif, how often, first place, how far it wanders
    ("RRCCAATSR", 0.4, 4, 8),
    ("RGGGCGGRR", 0.45, 28, 8),
    ("TATAWAWR", 0.55, START - 31, 2),
    ("YYANWYY", 0.65, START - 2, 0),
)
REWARD = Motifs(("CCAAT", "GGGCGG", "TATAWAW", "YYANWYY", "TGACGTCA"))  # the last, the CRE, is not planted
STEPS, ITEMS, SEEDS, CANDIDATES = 48, 32, (0, 1, 2), 10


def sequences(count: int, seed: int) -> torch.Tensor:
    """What the network learns from, int64 [count, LENGTH]."""
    rng = np.random.default_rng(seed)
    sums = np.cumsum(BACKGROUND, 1)
    tokens = np.zeros((count, LENGTH), dtype=np.int64)
    tokens[:, 0] = rng.integers(4, size=count)
    for i in range(1, LENGTH):
        tokens[:, i] = (rng.random((count, 1)) > sums[tokens[:, i - 1]]).sum(1).clip(max=3)
    for motif, share, first, wander in PLANTED:
        weights = Motifs((motif,), slip=0.03).weights[0].exp().numpy().T / 4  # places, letters
        starts = first + rng.integers(-wander, wander + 1, size=count)
        rows = np.flatnonzero(rng.random(count) < share)
        for i, column in enumerate(weights):
            tokens[rows, starts[rows] + i] = rng.choice(4, size=len(rows), p=column / column.sum())
    return torch.from_numpy(tokens)


def train(seconds: float = 300, batch: int = 32, rate: float = 3e-3) -> None:
    """A small transformer by MDLM's bound; the rate of learning rises and falls with the time that is left."""
    torch.manual_seed(0)
    data, held = sequences(COUNT, 0), sequences(200, 1)
    config = {"vocabulary": 4, "length": LENGTH, "width": 64, "depth": 3, "heads": 4}
    generator = letters(LettersPipeline(TokenTransformer(**config)), "letters")
    network = generator.network.train().requires_grad_()
    log: list[float] = []
    optimiser = torch.optim.AdamW(network.parameters(), rate, betas=(0.9, 0.98), weight_decay=0.01)
    began, step = time.monotonic(), 0
    while (share := (time.monotonic() - began) / seconds) < 1:
        optimiser.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 50, 1.001 - share)
        draws = Key(0).fold("train", step).generator()
        tokens = data[torch.randint(len(data), (batch,), generator=draws)]
        rates = (torch.rand((), generator=draws) + torch.arange(batch) / batch) % 1
        uniforms = torch.rand(tokens.shape, generator=draws)
        losses = masked_cross_entropy(generator, tokens, rates.clamp(min=1 / LENGTH), uniforms, empty(generator, batch))
        optimiser.zero_grad()
        (losses.mean() / LENGTH).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        step += 1
        log.append(losses.mean().item() / LENGTH)
        if step % 100 == 0:
            print(f"{step} {time.monotonic() - began:.0f} s {sum(log[-100:]) / 100:.4f} nats a letter", flush=True)
    network.eval().requires_grad_(False)
    print(f"{step} steps; held out {bound(generator, held).mean() / LENGTH:.4f} nats a letter")
    generator.pipeline.save_pretrained(MODEL)


def empty(generator: Letters, count: int):
    return generator.encode_prompts([""] * count)


@torch.no_grad()
def bound(generator: Letters, tokens: torch.Tensor, draws: int = 16) -> torch.Tensor:
    """The bound on -log p of each sequence in nats, over `draws` spread rates of masking."""
    parts = []
    for i in range(draws):
        rate = torch.full((len(tokens),), (i + 0.5) / draws)
        uniforms = torch.rand(tokens.shape, generator=Key(7).fold("bound", i).generator())
        parts.append(masked_cross_entropy(generator, tokens, rate, uniforms, empty(generator, len(tokens))))
    return torch.stack(parts).mean(0)


def words(tokens: torch.Tensor, length: int = 4) -> torch.Tensor:
    """How often each word of `length` letters occurs, as shares."""
    windows = tokens.unfold(1, length, 1).flatten(0, 1) @ (4 ** torch.arange(length))
    return windows.bincount(minlength=4**length).double() / len(windows)


def describe(generator: Letters, media: Sequences, scores: torch.Tensor) -> dict[str, float]:
    """The reward, how different the sequences are, and how natural."""
    tokens = media.tokens
    apart = (tokens[:, None] != tokens[None]).double().mean(2)
    return {
        "median": scores.median().item(),
        "mean": scores.mean().item(),
        "lowest": scores.min().item(),
        "hamming": (apart.sum() / (len(tokens) * (len(tokens) - 1))).item(),
        "nats": (bound(generator, tokens).mean() / LENGTH).item(),
        "words": (words(tokens) - words(sequences(COUNT, 0))).abs().sum().item() / 2,
    }


METHODS: dict[str, Steering | None] = {
    "plain": None,
    "best of 10": BestOfN(REWARD, CANDIDATES),  # as many evaluations of the network as SVDD
    "best of 20": BestOfN(REWARD, 2 * CANDIDATES),  # as many, reward calls counted like them
    "SVDD": Svdd(REWARD, CANDIDATES),
    "SVDD, alpha 1": Svdd(REWARD, CANDIDATES, alpha=1.0),
    "DSearch": DSearch(REWARD, beams=5, children=2, multiplier=1.0, search="all"),
}


def measure() -> None:
    """Every method on every seed; what is there already is not made again."""
    generator = open_generator(str(MODEL), "letters", torch.device("cpu"), "float32")
    held = sequences(200, 1)
    found: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {"methods": {}}
    media = Sequences(held, "ACGT")
    found["made by the script"] = describe(generator, media, REWARD(Samples(("",) * 200, held, media)))
    found["best possible"] = REWARD.best
    for seed in SEEDS:
        for name, steering in METHODS.items():
            rows = found["methods"].setdefault(name, {})
            if str(seed) in rows:
                continue
            began, process = time.monotonic(), Unmasking(STEPS)
            samples = process.sample(generator, [""] * ITEMS, Key(seed), steer=steering)
            seconds = time.monotonic() - began
            costs = steering.budget(process, 1, Key(seed)) if steering else None
            assert isinstance(samples.media, Sequences)
            scores = REWARD(samples)
            rows[str(seed)] = {
                **describe(generator, samples.media, scores),
                "calls": costs.calls if costs else process.calls(1),
                "reward calls": costs.encodes if costs else 0,
                "seconds": seconds,
                "scores": [round(score, 3) for score in scores.tolist()],
                "first": samples.media.text()[0],
            }
            print(name, seed, {k: v for k, v in rows[str(seed)].items() if k not in ("scores", "first")}, flush=True)
            RESULT.write_text(json.dumps(found, indent=1) + "\n")


def interval(values: list[float], draws: int = 2000) -> tuple[float, float]:
    """Of the median, by the bootstrap: 95 %."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(values, (draws, len(values))), axis=1)
    return float(np.quantile(medians, 0.025)), float(np.quantile(medians, 0.975))


def show() -> None:
    """A row a method: of all seeds together the median with its interval, of the rest the mean of the seeds."""
    found = json.loads(RESULT.read_text())
    columns = ("calls", "reward calls", "mean", "lowest", "hamming", "nats", "words")
    print(f"| method | median (95 %) | medians by seed | {' | '.join(columns)} |\n{'|---' * (3 + len(columns))}|")
    for name, seeds in found["methods"].items():
        runs = list(seeds.values())
        scores = [score for run in runs for score in run["scores"]]
        low, high = interval(scores)
        by_seed = ", ".join(f"{run['median']:.1f}" for run in runs)
        cells = [f"{sum(run[column] for run in runs) / len(runs):.4g}" for column in columns]
        print(f"| {name} | {np.median(scores):.1f} ({low:.1f} to {high:.1f}) | {by_seed} | {' | '.join(cells)} |")
    real = found["made by the script"]
    cells = [f"{real[column]:.4g}" for column in columns[2:]]
    print(f"| what it learned from | {real['median']:.1f} | | | | {' | '.join(cells)} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"train": train, "measure": measure, "show": show}[sys.argv[1]]()
