"""Does a long run grow? As many rounds as three hours of `make demo` have, in one process, with all that a run writes.

    OMP_NUM_THREADS=1 python benchmarks/soak.py --run runs/soak --out benchmarks/results/soak.json

A round of recipes/demo.yaml takes 13.3 s on two cores (docs/results.md: 30 rounds in 6 min 39 s), so three hours are
812 rounds. Here rounds are made short (few pairs and steps), with a checkpoint every round, samples every tenth, a line
in the log, a look of the guard every fifth. Every few rounds the resident memory, open descriptors, threads and live
tensors are noted; a line is fitted to the memory after the warm-up (Theil-Sen: the allocator keeps more or less from
one note to the next), and its rise over all rounds is printed with the descriptors before and after. Exit code 1 where
memory grows by 1 % or more, or a descriptor, thread or tensor is left. `--minutes` stops earlier, and the same command
with the same `--run` goes on from there (each part is judged alone).
"""

import argparse
import gc
import json
import os
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import children
import numpy as np
import torch
from recipes_short import recipe
from scipy.stats import theilslopes

from dragontune.commands import parsing
from dragontune.commands.recipe import read_prompts
from dragontune.errors import InterruptedRun
from dragontune.training.listening import Listening
from dragontune.training.progress import Reporter
from dragontune.training.run_folder import RunFolder

HOURS, DEMO_ROUND = 3, 399 / 30
ROUNDS = round(HOURS * 3600 / DEMO_ROUND)
WARM = 0.1
"""Of the rounds, at least `LEAST`, before growth is measured."""
LEAST, GROWTH = 30, 0.01


def resident() -> int:
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@dataclass
class Gauge(Reporter):
    """Notes the state of the process before rounds, and stops the run when its time is over."""

    every: int
    seconds: float
    notes: list[dict[str, int]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def __call__(self, phase: str, done: int, total: int, note: str = "") -> None:
        """Take a note, if it is time to."""
        if phase != "tuning":
            return
        if done % self.every == 0 or done == total:
            gc.collect()
            kinds = [type(thing) for thing in gc.get_objects()]
            self.notes.append(
                {
                    "round": done,
                    "bytes": resident(),
                    "descriptors": len(os.listdir("/proc/self/fd")),
                    "threads": threading.active_count(),
                    "tensors": sum(issubclass(kind, torch.Tensor) for kind in kinds),
                }
            )
            print(f"{self.notes[-1]}, {note}", flush=True)
        if time.monotonic() - self.began > self.seconds:
            raise KeyboardInterrupt


def main() -> None:
    """Print the notes and the figures; exit 1 where the bar is missed."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--run", type=Path, required=True, metavar="FOLDER", help="new, or one to go on with")
    options.add_argument("--rounds", type=int, default=ROUNDS, help=f"(default: {ROUNDS})")
    options.add_argument("--every", type=int, default=4, help="rounds between notes (default: 4)")
    options.add_argument("--minutes", type=float, default=1e9, help="stop after so many (default: never)")
    options.add_argument("--out", type=Path, metavar="FILE.json")
    given = options.parse_args()
    print(f"{HOURS} hours of recipes/demo.yaml at {DEMO_ROUND:.1f} s a round are {ROUNDS} rounds; here {given.rounds}")
    given.run.mkdir(parents=True, exist_ok=True)
    file = given.run.with_suffix(".yaml")
    file.write_text(recipe("dragon", True, {"rounds": given.rounds, "sample_every": 10, "lr": 1e-5}))
    built, text, fixed = parsing.read_recipe(file, ["--guard.every", "5", "--guard.patience", "10000"])
    prompts, folder = read_prompts(built.prompts), RunFolder(given.run)
    gauge = Gauge(given.every, 60 * given.minutes)
    with folder.held():
        folder.check(fixed, True)
        folder.claim(text, fixed)
        algorithm = built.build()
        built.rehearse(algorithm, prompts)
        listening = Listening(algorithm.generator, algorithm.sampler, built.listened(prompts))
        watch = built.watch(algorithm, gauge, lambda sentence: None)
        try:
            built.loop.run(algorithm, prompts, folder, listening=listening, report=gauge, watch=watch)
        except InterruptedRun as stop:
            print(stop)
    good, figures = judge(gauge.notes)
    figures["checkpoint_bytes"] = sum(path.stat().st_size for path in (given.run / "checkpoints").glob("round-*"))
    print(json.dumps(figures, indent=1))
    if given.out:
        given.out.write_text(json.dumps({"command": sys.argv, **figures, "notes": gauge.notes}, indent=1) + "\n")
    sys.exit(not good)


def judge(notes: list[dict[str, int]]) -> tuple[bool, dict[str, float]]:
    """Whether nothing grew, and by how much it did from the end of the warm-up to the last note."""
    first, last = notes[0]["round"], notes[-1]["round"]
    warm = first + max(LEAST, WARM * (last - first))
    kept = [note for note in notes if note["round"] >= warm]
    if len(kept) < 10:
        sys.exit(f"expected ten notes after a warm-up of {warm - first:.0f} rounds, got {len(kept)}; give it more time")
    rounds = np.array([note["round"] for note in kept], float)
    # what jumps up and down weighs little
    fit = theilslopes([note["bytes"] for note in kept], rounds - rounds[0])
    slope, start = np.array([*fit], float)[:2].tolist()
    figures = {
        "rounds": last - first,
        "warm_up_rounds": rounds[0] - first,
        "mebibytes_after_warm_up": start / 2**20,
        "kibibytes_a_round": slope / 2**10,
        "growth": slope * (rounds[-1] - rounds[0]) / start,
        **{f"{name}_before": kept[0][name] for name in ("descriptors", "threads", "tensors")},
        **{f"{name}_after": kept[-1][name] for name in ("descriptors", "threads", "tensors")},
    }
    left = [name for name in ("descriptors", "threads", "tensors") if kept[-1][name] > kept[0][name]]
    print(f"left over: {', '.join(left) or 'nothing'}; memory growth {100 * figures['growth']:.2f} % (bar: 1 %)")
    return not left and figures["growth"] < GROWTH, figures


if __name__ == "__main__":
    children.warm()
    main()
