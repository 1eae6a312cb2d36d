"""Steering tiny-music at equal cost: every method against the best of n, on three rewards; varied batches; a folder.

    python benchmarks/steering.py                  all cells, three seeds: about two hours on two cores
    python benchmarks/steering.py --only SVDD --rewards alignment --seeds 0
    python benchmarks/steering.py --report         the tables again, from what is there

Study `items`: 40 test prompts a seed, eight ancestral steps with guidance 2. A method may spend 136 denoiser and reward
calls an item in sum (as the best of 8 does: 8 x 16 denoiser calls and 8 reward calls), or as nearly as it can; a
differentiated denoiser call counts three, so `gradient` is also given 19 steps. What is learnt before the first item is
told apart. Every result is judged by all rewards, also by those that it was not steered by. Differences from the best
of n are paired by prompt.

Study `sets`: `vendi` makes 16 clips of each of four prompts, as different as can be; `folder` makes 40 clips of 40
prompts whose Fréchet distance to exemplars is small. Settings were chosen on validation prompts. Resumable: a finished
cell is a file in benchmarks/results/steering.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from math import sqrt
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

RESULTS = Path(__file__).parent / "results" / "steering"
PROMPTS = "tiny-music/prompts/test.txt"
COUNT, STEPS, BUDGET = 40, 8, 136
REWARDS = ("alignment", "per-song", "key")
METHODS = (
    "plain",
    "best of n",
    "SVDD",
    "SVDD, soft",
    "SVDD, lookahead 1",
    "SVDD, learnt value",
    "DSearch",
    "DSearch-R",
    "SMC",
    "Free2Guide",
    "Free2Guide, average",
    "gradient",
    "gradient, 19 steps",
)
SETS = ("plain", "best of n", "SVDD", "Free2Guide")
BATCH, BATCHES = 16, 4
SPREAD = {"alignment": 0.027, "per-song": 0.077, "key": 0.086}
"""Standard deviations of the rewards among eight generations of one validation prompt, roughly: what alpha is a share
of."""


def rewards() -> dict[str, Any]:
    from dragontune import Alignment, KeyStrength, SongFrechet, TinyClap

    clap = TinyClap()
    return {
        "alignment": Alignment(clap),
        "per-song": SongFrechet(clap, "tiny-music/references/validation-tiny-clap.safetensors"),
        "key": KeyStrength(),
    }


def held_out() -> dict[str, Any]:
    """Of sets, for judging only."""
    from dragontune import Latents, SetFrechet, TinyClap, Vendi

    return {
        "set distance": SetFrechet(TinyClap(), "tiny-music/references/test-tiny-clap.safetensors"),
        "latent set distance": SetFrechet(Latents(), "tiny-music/references/test-latents.safetensors"),
        "diversity": Vendi(TinyClap()),
    }


def method(name: str, of: str, reward: Any) -> Any:
    """The steering; None for the plain sampler, NotImplementedError where there is none."""
    from dragontune.rewards.base import DifferentiableReward
    from dragontune.steering.best_of_n import BestOfN
    from dragontune.steering.dsearch import DSearch
    from dragontune.steering.foresight import Lookahead
    from dragontune.steering.free2guide import Free2Guide
    from dragontune.steering.gradient import GradientGuidance
    from dragontune.steering.learned import LearnedValue
    from dragontune.steering.smc import Smc
    from dragontune.steering.svdd import Svdd

    spread = SPREAD.get(of, 1.0)
    match name:
        case "plain":
            return None
        case "best of n":
            return BestOfN(reward, n=8)
        case "SVDD":
            return Svdd(reward, candidates=6)
        case "SVDD, soft":
            return Svdd(reward, candidates=6, alpha=0.1 * spread)
        case "SVDD, lookahead 1":
            return Svdd(reward, candidates=4, value=Lookahead(1))
        case "SVDD, learnt value":
            return Svdd(reward, candidates=9, value=LearnedValue(None, "tiny-music/prompts/train.txt"))
        case "DSearch":
            return DSearch(reward, beams=3, children=2, multiplier=1.0, search="all")
        case "DSearch-R":
            return DSearch(reward, beams=5, children=1, multiplier=1.0, search="all", replace=0.2)
        case "SMC":
            return Smc(reward, alpha=0.05 * spread, particles=5)
        case "Free2Guide":
            return Free2Guide(reward, candidates=14, guided_steps=3)
        case "Free2Guide, average":
            return Free2Guide(reward, candidates=13, guided_steps=3, alpha=0.05 * spread, mode="average")
        case "gradient" | "gradient, 19 steps":
            if not isinstance(reward, DifferentiableReward) or of == "key":
                raise NotImplementedError
            return GradientGuidance(reward, alpha=0.1 * spread, limit={"alignment": 0.5, "per-song": 1.0}[of])
    raise ValueError(name)


def sampler(name: str = "") -> Any:
    from dragontune import Sampler

    return Sampler(steps=19 if name.endswith("19 steps") else STEPS, guidance=2.0, order=1, eta=1.0)


def asked(seed: int, count: int) -> list[str]:
    """Other prompts for every seed."""
    from dragontune.embedded import locate

    lines = [line for line in locate(PROMPTS).read_text().splitlines() if line]
    return lines[seed * count : (seed + 1) * count]


def items_cell(of: str, name: str, seed: int) -> dict[str, Any]:
    """One method, one reward, one seed."""
    import torch

    from dragontune import load
    from dragontune.seeding import Key

    known, process, key = rewards(), sampler(name), Key(seed).fold("steering")
    steering = method(name, of, known[of])
    generator, prompts = load("tiny-music"), asked(seed, COUNT)
    once = 0.0
    if steering is not None and any(asdict(steering.preparation(process)).values()):
        start = time.process_time()  # one item, thrown away: the value is learnt
        process.sample(generator, prompts[:1], key.fold("first"), steer=steering, decode=False)
        once = time.process_time() - start
    start = time.process_time()
    parts = []
    for first in range(0, COUNT, 8):
        part = range(first, first + 8)
        parts.append(process.sample(generator, [prompts[i] for i in part], key, items=part, steer=steering))
    spent = time.process_time() - start
    cost = steering.budget(process, COUNT, key) if steering is not None else None
    with torch.no_grad():
        from dragontune.data import Samples

        made = Samples.join(parts)
        each = {what: reward(made).double().tolist() for what, reward in known.items()}
        together = {what: float(reward(made)) for what, reward in held_out().items()}
    return {
        "items": each,
        "sets": together,
        "seconds": round(spent / COUNT, 3),
        "seconds_once": round(once, 1),
        "costs": {what: value / COUNT for what, value in asdict(cost).items()}
        if cost
        else {"items": 1.0, "calls": float(process.calls(1)), "decodes": 1.0, "encodes": 0.0, "gradient_calls": 0.0},
        "preparation": asdict(steering.preparation(process)) if steering is not None and once else None,
    }


def sets_cell(of: str, name: str, seed: int) -> dict[str, Any]:
    """One batch or four, steered as a set."""
    import torch

    from dragontune import SetFrechet, TinyClap, Vendi, load
    from dragontune.seeding import Key

    clap, process, key = TinyClap(), sampler(), Key(seed).fold("sets")
    reward = Vendi(clap) if of == "vendi" else SetFrechet(clap, "tiny-music/exemplars/train")
    judge = reward if of == "vendi" else SetFrechet(clap, "tiny-music/references/test-tiny-clap.safetensors")
    steering = method(name, of, reward)
    generator, known = load("tiny-music"), rewards()
    batches = [[prompt] * BATCH for prompt in asked(seed, BATCHES)] if of == "vendi" else [asked(seed, COUNT)]
    scores, aligned, spent = [], [], 0.0
    for number, prompts in enumerate(batches):
        start = time.process_time()
        made = process.sample(generator, prompts, key.fold(number), steer=steering)
        spent += time.process_time() - start
        with torch.no_grad():
            scores.append(float(judge(made)))
            aligned.append(known["alignment"](made).double().mean().item())
    items = sum(len(prompts) for prompts in batches)
    cost = steering.budget(process, 1, key) if steering is not None else None
    return {
        "scores": scores,
        "alignment": aligned,
        "seconds": round(spent / items, 3),
        "costs": asdict(cost) if cost else None,
    }


def run(study: str, of: str, name: str, seed: int) -> None:
    import torch

    torch.set_num_threads(1)
    try:
        found = (items_cell if study == "items" else sets_cell)(of, name, seed)
    except NotImplementedError:
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    cell = {"study": study, "of": of, "method": name, "seed": seed, **found}
    place(study, of, name, seed).write_text(json.dumps(cell, indent=None) + "\n")
    print(study, of, name, seed, found["seconds"], "s an item", flush=True)


def place(study: str, of: str, name: str, seed: int) -> Path:
    slug = name.replace(", ", "-").replace(" ", "-").lower()
    return RESULTS / f"{study}-{of}-{slug}-{seed}.json"


def cells(study: str, of: str, name: str) -> list[dict[str, Any]]:
    found = [place(study, of, name, seed) for seed in range(10)]
    return [json.loads(path.read_text()) for path in found if path.exists()]


def interval(values: Sequence[float]) -> str:
    """Mean and 95 % interval of the mean (normal)."""
    half = 1.96 * stdev(values) / sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{mean(values):+.4f} ({mean(values) - half:+.4f} to {mean(values) + half:+.4f})"


def report() -> None:
    for of in REWARDS:
        base = {cell["seed"]: cell for cell in cells("items", of, "best of n")}
        watched = [what for what in REWARDS if what != of]
        head = ["method", of, "against best of n, paired", *watched, "set distance", "diversity"]
        head += ["denoiser calls", "reward calls", "processor s"]
        print(f"\n{of}\n\n| {' | '.join(head)} |\n{'|---' * len(head)}|")
        for name in METHODS:
            found = cells("items", of, name)
            if not found:
                continue
            pairs = [
                a - b
                for cell in found
                if cell["seed"] in base
                for a, b in zip(cell["items"][of], base[cell["seed"]]["items"][of], strict=True)
            ]
            row = [name, f"{mean(v for c in found for v in c['items'][of]):.4f}", interval(pairs) if pairs else ""]
            row += [f"{mean(v for c in found for v in c['items'][what]):.4f}" for what in watched]
            row += [f"{mean(-c['sets']['set distance'] for c in found):.4f}"]
            row += [f"{mean(c['sets']['diversity'] for c in found):.2f}"]
            costs = [c["costs"] for c in found]
            row += [f"{mean(c['calls'] + c['gradient_calls'] for c in costs):.0f}"]
            row += [f"{mean(c['encodes'] for c in costs):.0f}", f"{mean(c['seconds'] for c in found):.2f}"]
            print(f"| {' | '.join(row)} |")
    for of in ("vendi", "folder"):
        print(f"\n{of}\n\n| method | by seed | mean | alignment | processor s an item |\n|---|---|---|---|---|")
        for name in SETS:
            found = cells("sets", of, name)
            if found:
                by_seed = [abs(mean(cell["scores"])) for cell in found]
                aligned = mean(v for cell in found for v in cell["alignment"])
                seeds = ", ".join(f"{value:.4f}" for value in by_seed)
                seconds = mean(cell["seconds"] for cell in found)
                print(f"| {name} | {seeds} | {mean(by_seed):.4f} | {aligned:.4f} | {seconds:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=list(METHODS))
    parser.add_argument("--rewards", nargs="+", default=[*REWARDS, "vendi", "folder"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--lanes", type=int, default=2)
    parser.add_argument("--report", action="store_true")
    given = parser.parse_args()
    if not given.report:
        work = [
            ("items" if of in REWARDS else "sets", of, name, seed)
            for seed in given.seeds
            for of in given.rewards
            for name in (METHODS if of in REWARDS else SETS)
            if name in given.only
        ]
        work = [cell for cell in work if not place(*cell).exists()]
        with ProcessPoolExecutor(given.lanes, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
            for done in [pool.submit(run, *cell) for cell in work]:
                done.result()
    report()


if __name__ == "__main__":
    main()
