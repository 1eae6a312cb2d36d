"""One process or several, whole networks or pieces, micro-batches of any size: the same D+ and D-, the same adapter.

    python benchmarks/processes.py --out benchmarks/results/processes.json
    python benchmarks/processes.py --processes 2 --micro-batches 5 --rewards set --pairs 10   # in a minute or two

Every run is made on `tiny-music` by real processes (torchrun, gloo) and compared with two runs of one process: with the
one in micro-batches of 20 (`difference`, bar 1e-5) and with the one in micro-batches of the same size (`same size`).
Where a process has whole micro-batches only, the work is cut in the same places and the latter must be 0: the same
bits, at any rate. D+ and D- are compared by their item numbers in every round, adapters by their largest difference.
Exit code 1 where a bar is missed. Micro-batches of another size round differently, and Adam divides a gradient by its
size, so where a gradient is no larger than rounding the adapters differ by a part of the rate: at 1e-5, as in
microbatch.py, the bar holds; at 1e-4 one process alone misses it. `relative`: norm of `difference` over the change's.
"""

import argparse
import hashlib
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table

from dragontune import Alignment, Draft, Dragon, Loop, Lora, Sampler, SetFrechet, SongFrechet, TinyClap, load
from dragontune.algorithms import dragon
from dragontune.demonstrations import Division
from dragontune.embedded import locate
from dragontune.generators.checkpoint import Plan
from dragontune.parallel import is_main, processes
from dragontune.training.processes import joined

BAR = 1e-5
ROUNDS, UPDATES, STEPS = 2, 2, 4
EXEMPLARS = "tiny-music/references/validation-tiny-clap.safetensors"
REWARDS = {
    "instance": lambda: Alignment(TinyClap()),
    "exemplar": lambda: SongFrechet(TinyClap(), EXEMPLARS),
    "set": lambda: SetFrechet(TinyClap(), EXEMPLARS),
}
ALGORITHMS = {
    "DRAGON": lambda model, reward, size: Dragon(
        model, reward, beta=50.0, sampler=Sampler(steps=STEPS, guidance=2.0), micro_batch=size
    ),
    "DRaFT": lambda model, reward, size: Draft(
        model, reward, sampler=Sampler(steps=STEPS, guidance=2.0), micro_batch=size
    ),
}
WEIGHTS = {"whole": False, "pieces": True}


def main() -> int:
    """Start the processes, compare, print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    options.add_argument("--micro-batches", type=int, nargs="+", default=[1, 5, 7, 20])
    options.add_argument("--rewards", nargs="+", choices=REWARDS, default=list(REWARDS))
    options.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS))
    options.add_argument("--pairs", type=int, default=20)
    options.add_argument("--rate", type=float, default=1e-5)
    options.add_argument("--out", type=Path)
    options.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.worker:
        with joined():
            return work(given)
    with tempfile.TemporaryDirectory() as folder:
        found = {count: launched(count, sys.argv[1:], Path(folder)) for count in {1, *given.processes}}
    expected = {(run["algorithm"], run["reward"]): run for run in found[1] if run["micro_batch"] == 20}
    alone = {(run["algorithm"], run["reward"], run["micro_batch"]): run["adapter"] for run in found[1]}
    rows = [
        compared(
            run, expected[what := (run["algorithm"], run["reward"])], alone[*what, run["micro_batch"]], given.pairs
        )
        for count in sorted(found)
        for run in found[count]
    ]
    show(rows)
    alike = [row["same_size"] for row in rows if row["alike"] and row["processes"] > 1]
    result = {
        "runs": len(rows),
        "identical": sum(row["identical"] for row in rows),
        "largest_difference": max(row["difference"] for row in rows),
        "bar": BAR,
        "cut_alike": len(alike),
        "largest_difference_where_cut_alike": max(alike, default=None),
        "rounds": ROUNDS,
        "updates": UPDATES,
        "rate": given.rate,
        "pairs": given.pairs,
        "table": rows,
    }
    print(f"{result['identical']} of {result['runs']} with identical D+ and D-; adapters differ by at most "
          f"{result['largest_difference']:.1e} (bar {BAR:.0e}), by at most {max(alike, default=0):.1e} in {len(alike)} "
          "runs of several processes that are cut like that of one (bar 0)")  # fmt: skip
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")
    good = result["identical"] == result["runs"] and result["largest_difference"] <= BAR and not any(alike)
    return 0 if good else 1


def launched(count: int, arguments: list[str], folder: Path) -> list[dict[str, Any]]:
    """All runs of so many processes."""
    place = folder / f"{count}.pt"
    launch = ["-m", "torch.distributed.run", f"--nproc-per-node={count}", "--rdzv-backend=c10d"]
    launch += ["--rdzv-endpoint=localhost:0"]
    subprocess.run([sys.executable, *launch, __file__, *arguments, "--worker", str(place)], check=True)
    return torch.load(place, weights_only=True)


def work(given: argparse.Namespace) -> int:
    """What each process does; the main one writes."""
    torch.set_num_threads(1)
    prompts = locate("tiny-music/prompts/train.txt").read_text().splitlines()
    rewards = {name: REWARDS[name]() for name in given.rewards}
    sizes = sorted({*given.micro_batches, *([20] if processes() == 1 else [])})
    runs = []
    for kind in WEIGHTS if processes() > 1 else ["whole"]:
        model = load("tiny-music", Lora(rank=4, alpha=4.0), device="cpu", plan=Plan(shard=WEIGHTS[kind]))
        fresh = [weight.detach().clone() for weight in model.parameters()]
        for name, reward, size in itertools.product(given.algorithms, rewards, sizes):
            with torch.no_grad():
                for weight, start in zip(model.parameters(), fresh, strict=True):
                    weight.copy_(start)
            algorithm = ALGORITHMS[name](model, rewards[reward], size)
            loop = Loop(
                rounds=ROUNDS, pairs=given.pairs, updates=UPDATES, batch=given.pairs, micro_batch=size, lr=given.rate,
                max_norm=1.0, sample_every=0,
            )  # fmt: skip
            divided: list[str] = []
            begun = time.perf_counter()
            with patch.object(dragon, "divide", spy(divided)):
                loop.run(algorithm, prompts)
            runs.append({
                "processes": processes(), "weights": kind, "algorithm": name, "reward": reward, "micro_batch": size,
                "divided": divided, "seconds": time.perf_counter() - begun,
                "adapter": torch.cat([weight.detach().flatten() for weight in model.parameters()]),
                "moved": max(map(distance, model.parameters(), fresh)),
                "start": torch.cat([start.flatten() for start in fresh]),
            })  # fmt: skip
    if is_main():
        torch.save(runs, given.worker)
    return 0


def distance(weight: torch.Tensor, other: torch.Tensor) -> float:
    """The largest of an element."""
    return (weight.detach() - other).abs().max().item()


def spy(divided: list[str]) -> Any:
    """`divide`, which also notes a digest of the item numbers in D+ and D-."""
    divide = dragon.divide

    def noted(*arguments: Any, **named: Any) -> Division:
        found = divide(*arguments, **named)
        numbers = json.dumps([found.positive.tolist(), found.negative.tolist()])
        divided.append(hashlib.sha256(numbers.encode()).hexdigest()[:16])
        return found

    return noted


def compared(run: dict[str, Any], expected: dict[str, Any], alone: torch.Tensor, pairs: int) -> dict[str, Any]:
    """A row of the table."""
    alike = pairs % (run["processes"] * run["micro_batch"]) == 0
    off, change = run["adapter"] - expected["adapter"], expected["adapter"] - expected["start"]
    kept = {name: value for name, value in run.items() if name not in ("adapter", "start", "divided")}
    found = {"difference": off.abs().max().item(), "relative": (off.norm() / change.norm()).item()}
    found |= {"same_size": (run["adapter"] - alone).abs().max().item(), "alike": alike}
    return {**kept, "identical": run["divided"] == expected["divided"], **found}


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table()
    for name in (
        "processes",
        "weights",
        "algorithm",
        "reward",
        "micro-batch",
        "D+ and D-",
        "difference",
        "relative",
        "same size",
        "s",
    ):
        table.add_column(name)
    for row in rows:
        same = ("identical" if row["identical"] else "DIFFERENT") if row["algorithm"] == "DRAGON" else "none"
        named = [str(row[name]) for name in ("processes", "weights", "algorithm", "reward", "micro_batch")]
        figures = [
            f"{row['difference']:.1e}",
            f"{row['relative']:.1e}",
            f"{row['same_size']:.1e}{' =' if row['alike'] else ''}",
            f"{row['seconds']:.1f}",
        ]
        table.add_row(*named, same, *figures)
    Console(width=120).print(table)


if __name__ == "__main__":
    sys.exit(main())
