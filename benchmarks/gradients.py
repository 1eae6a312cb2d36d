"""Reward against generations and against seconds: tuning by the reward's gradient, by contrast, by policy gradient.

    python benchmarks/gradients.py                     both studies, every method, three seeds: an hour on two cores
    python benchmarks/gradients.py --study set         one of them
    python benchmarks/gradients.py --only DRaFT-1 VARD --seeds 0
    python benchmarks/gradients.py --report            the tables and the plots again, from what is there

Study `alignment`: one reward (CLAP alignment of tiny-music with its prompts) and one budget for all methods. Study
`set`: the Fréchet distance of the whole set to real music, by its gradient against DRAGON, which gets three times the
generations. A run ends after so many generations or seconds of processor time, whichever is first, on one thread. Every
model is judged on the same 100 test prompts with the same noise, also by rewards that it was not tuned for; judging is
not counted. All sample with five steps and guidance 2, DDPO with the ancestral sampler, which it needs, all others with
DPM++ 2M: so gains are compared, not levels. Settings were chosen on validation prompts. Resumable: a finished run is a
file in benchmarks/results/gradients.
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "gradients"
RUNS = Path("runs/gradients")
MARKS = (40, 80, 160, 320, 640, 960, 1920)
"""Generations after which a run is judged, as near as its rounds allow."""
SLACK = 1.3
"""Rounds are whole, so a run may take a little longer than it should."""
PROMPTS = "tiny-music/prompts/test.txt"
JUDGED = 100
WATCHED = ("alignment", "set distance", "per-song distance", "latent set distance", "diversity")


@dataclass(frozen=True)
class Study:
    """Which reward, judged by which of `WATCHED`; the most processor seconds; the most generations of each method."""

    watched: str
    seconds: float
    generations: dict[str, int]


GRADIENTS = ("DRaFT-1", "DRaFT-2", "DRaFT-LV", "AlignProp")
STUDIES = {
    "alignment": Study("alignment", 160.0, dict.fromkeys((*GRADIENTS, "VARD", "DRAGON", "DDPO"), 640)),
    "set": Study("set distance", 600.0, {"DRaFT-1": 640, "DRaFT-2": 640, "DRAGON": 1920}),
}


def methods(study: str) -> dict[str, tuple[Callable[[Any, Any], Any], dict[str, Any], int]]:
    """By name: the algorithm, the loop's settings, generations a round. Chosen on validation prompts."""
    from dragontune import AlignProp, Ddpo, Draft, DraftLv, Dragon, Kto, Sampler, Vard

    five = Sampler(steps=5, guidance=2.0)
    each, rate = (40, 5e-4) if study == "set" else (20, 1e-3)
    gradients = {"pairs": each, "batch": each, "micro_batch": 20, "updates": 1, "lr": rate}
    found = {
        "DRaFT-1": (lambda g, r: Draft(g, r, five, micro_batch=20), gradients, each),
        "DRaFT-2": (lambda g, r: Draft(g, r, five, last=2, micro_batch=20), gradients, each),
        "DRaFT-LV": (lambda g, r: DraftLv(g, r, five, last=2, micro_batch=20), gradients, each),
        "AlignProp": (lambda g, r: AlignProp(g, r, five, micro_batch=20), gradients, each),
        "VARD": (
            lambda g, r: Vard(g, r, five, kl=0.001, refresh=1, value_prompts="tiny-music/prompts/train.txt"),
            {"pairs": 20, "batch": 20, "micro_batch": 20, "updates": 4, "lr": 1e-3},
            20,
        ),
        "DRAGON": (
            lambda g, r: Dragon(g, r, preference=Kto(), beta=50, sampler=five),
            {"pairs": 40, "batch": 40, "micro_batch": 40, "updates": 4, "lr": 4e-4},
            80,
        ),
        "DDPO": (
            lambda g, r: Ddpo(g, r, sampler=Sampler(steps=5, guidance=2.0, order=1, eta=1.0), clip=1e-2),
            {"pairs": 10, "batch": 80, "micro_batch": 40, "updates": 4, "lr": 3e-3},
            80,
        ),
    }
    return {name: found[name] for name in STUDIES[study].generations}


def judge(generator: Any, sampler: Any, rewards: dict[str, Any]) -> dict[str, float]:
    """Every reward on the judged prompts."""
    import torch

    from dragontune.data import join_columns
    from dragontune.embedded import locate
    from dragontune.evaluation.evaluate import spaced
    from dragontune.seeding import Key

    lines = locate(PROMPTS).read_text().splitlines()
    prompts = [lines[row] for row in spaced(len(lines), JUDGED)]
    features: dict[str, list[Any]] = {name: [] for name in rewards}
    with torch.no_grad():
        for start in range(0, JUDGED, 50):
            rows = range(start, start + 50)
            samples = sampler.sample(generator, [prompts[i] for i in rows], Key(2025), items=rows)
            for name, reward in rewards.items():
                features[name].append(reward.encode(samples))
        scored = {name: rewards[name].score(join_columns(found)) for name, found in features.items()}
        return {name: score.double().mean().item() for name, score in scored.items()}


def run(study: str, name: str, seed: int) -> None:
    """One method with one seed."""
    import torch

    from dragontune import Alignment, Latents, Lora, SetFrechet, SongFrechet, TinyClap, Vendi, load
    from dragontune.embedded import locate
    from dragontune.training.loop import Loop
    from dragontune.training.run_folder import RunFolder

    torch.set_num_threads(1)
    clap, latents = TinyClap(), Latents()
    rewards = {
        "alignment": Alignment(clap),
        "set distance": SetFrechet(clap, "tiny-music/references/test-tiny-clap.safetensors"),
        "per-song distance": SongFrechet(clap, "tiny-music/references/test-tiny-clap.safetensors"),
        "latent set distance": SetFrechet(latents, "tiny-music/references/test-latents.safetensors"),
        "diversity": Vendi(clap),
    }
    reward = SetFrechet(clap, "tiny-music/exemplars/train") if study == "set" else rewards["alignment"]
    make, settings, each = methods(study)[name]
    plan = STUDIES[study]
    generator = load("tiny-music", Lora(rank=16, alpha=16))
    algorithm = make(generator, reward)
    folder = RUNS / f"{study}-{name}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    prompts = locate("tiny-music/prompts/train.txt").read_text().splitlines()
    curve = [{"generations": 0, "seconds": 0.0, "wall": 0.0, **judge(generator, algorithm.sampler, rewards)}]
    spent = wall = 0.0
    for mark in MARKS:
        if spent * mark / max(1.0, curve[-1]["generations"]) > SLACK * plan.seconds:
            break  # it would take far longer than it may
        rounds = max(1, round(mark / each))
        loop = Loop(rounds=rounds, seed=seed, max_norm=1.0, sample_every=0, checkpoint_every=10**6, **settings)
        start, started = time.process_time(), time.perf_counter()
        history = loop.run(algorithm, prompts, RunFolder(folder))
        spent, wall = spent + time.process_time() - start, wall + time.perf_counter() - started
        made = sum(record["metrics"]["generations"] for record in history)
        point = {
            "generations": made,
            "seconds": round(spent, 1),
            "wall": round(wall, 1),
            **judge(generator, algorithm.sampler, rewards),
        }
        if made > curve[-1]["generations"]:
            curve.append(point)
        value = point[plan.watched]
        print(f"{study}, {name}, seed {seed}: {made:.0f} generations, {spent:.0f} s, {value:.4f}", flush=True)
        if made >= plan.generations[name] or spent >= plan.seconds:
            break
    RESULTS.mkdir(parents=True, exist_ok=True)
    cell = {"study": study, "method": name, "seed": seed, "loop": settings, "curve": curve}
    place(study, name, seed).write_text(json.dumps(cell, indent=1) + "\n")


def place(study: str, name: str, seed: int) -> Path:
    return RESULTS / f"{study}-{name}-{seed}.json"


def cells(study: str) -> dict[str, list[dict[str, Any]]]:
    """What is there, by method."""
    found = {name: sorted(RESULTS.glob(f"{study}-{name}-?.json")) for name in STUDIES[study].generations}
    parts = {name: [json.loads(path.read_text()) for path in paths] for name, paths in found.items() if paths}
    for name, each in parts.items():
        most = STUDIES[study].generations[name]
        for part in each:
            limit = SLACK * STUDIES[study].seconds
            part["curve"] = [p for p in part["curve"] if p["generations"] <= most and p["seconds"] <= limit]
    return parts


def reached(curve: list[dict[str, float]], watched: str, gain: float, what: str) -> float | None:
    """Generations or seconds at the first judged point at which the reward has risen by `gain`: at most so many."""
    return next((point[what] for point in curve[1:] if point[watched] >= curve[0][watched] + gain), None)


def report(study: str) -> None:
    """The table, what each method needs for the gain of the slow ones, and the plot."""
    found, watched = cells(study), STUDIES[study].watched
    if not found:
        return
    head = ("method", "generations", "processor seconds", f"{watched}, by seed", "gain", *WATCHED)
    print(f"\n{study}\n\n| {' | '.join(head)} |\n{'|---' * len(head)}|")
    for name, parts in found.items():
        ends, starts = [part["curve"][-1] for part in parts], [part["curve"][0] for part in parts]
        row = [name, f"{mean(e['generations'] for e in ends):.0f}", f"{mean(e['seconds'] for e in ends):.0f}"]
        row.append(", ".join(f"{abs(end[watched]):.4f}" for end in ends))
        row.append(f"{mean(end[watched] - start[watched] for end, start in zip(ends, starts, strict=True)):+.4f}")
        changes = [(mean(abs(s[what]) for s in starts), mean(abs(e[what]) for e in ends)) for what in WATCHED]
        row += [f"{before:.3f} → {after:.3f}" for before, after in changes]
        print(f"| {' | '.join(row)} |")
    for other in ("DDPO", "DRAGON"):
        if other not in found:
            continue
        gain = mean(part["curve"][-1][watched] - part["curve"][0][watched] for part in found[other])
        print(f"\nGenerations (processor seconds) after which the gain of {other}, {gain:.4f}, is seen, by seed:")
        spent = mean(part["curve"][-1]["generations"] for part in found[other])
        for name, parts in found.items():
            curves = [part["curve"] for part in parts]
            needed = [tuple(reached(c, watched, gain, what) for what in ("generations", "seconds")) for c in curves]
            said = ", ".join("never" if a is None else f"{a:.0f} ({b:.0f} s)" for a, b in needed)
            known = [a for a, _ in needed if a is not None]
            ratio = f": {spent / mean(known):.1f} times fewer" if len(known) == len(needed) and name != other else ""
            print(f"  {name}: {said}{ratio}")
    plot(study, found)


def plot(study: str, found: dict[str, list[dict[str, Any]]]) -> None:
    """docs/gradients-alignment.svg, docs/gradients-set.svg."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "gradients"
    watched = STUDIES[study].watched
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for number, (name, parts) in enumerate(found.items()):
        for part in parts:
            for axis, what in zip(axes, ("generations", "seconds"), strict=True):
                points = [point for point in part["curve"] if point[what] > 0]
                axis.plot(
                    [point[what] for point in points],
                    [point[watched] - part["curve"][0][watched] for point in points],
                    color=f"C{number}",
                    alpha=0.8,
                    linewidth=1.4,
                    label=name if part is parts[0] else None,
                )
    for axis, what in zip(axes, ("generations", "processor seconds"), strict=True):
        axis.axhline(0, color="0.5", linewidth=0.8, linestyle=":")
        axis.set_xscale("log")
        axis.set_xlabel(what)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.2)
    axes[0].set_ylabel(f"gain of {'minus the ' * ('distance' in watched)}{watched}, 100 test prompts")
    axes[0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(HERE.parent / "docs" / f"gradients-{study}.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--study", choices=list(STUDIES))
    parser.add_argument("--only", nargs="+", metavar="METHOD")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--lanes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--report", action="store_true")
    given = parser.parse_args()
    studies = [given.study] if given.study else list(STUDIES)
    todo = [
        (study, name, seed)
        for seed in given.seeds
        for study in studies
        for name in STUDIES[study].generations
        if (not given.only or name in given.only) and not place(study, name, seed).exists()
    ]
    if not given.report and todo:
        with ProcessPoolExecutor(given.lanes, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
            for done in [pool.submit(run, *each) for each in todo]:
                done.result()
    for study in studies:
        report(study)


if __name__ == "__main__":
    main()
