"""Exact resume: runs of DRAGON and DRaFT on the embedded model, killed with SIGKILL at random moments, go on each time.

    OMP_NUM_THREADS=1 python benchmarks/kills.py --jobs 2 --out benchmarks/results/kills.json

prints `100 of 100` kills whose run ended with the bytes of one that was left alone: adapter, samples, log (without
seconds and memory) and the report's figures. Half of the runs save every third round and have a guard. A kill comes
while loading, at any moment of a round, while a checkpoint is being written, while samples are, or after the last round
(adapter and report). With `--processes 2` a run of two processes is killed once, and goes on with one and with four:
the adapters must agree to 1e-5, and to 1 % of what changed. Exit code 1 where anything differs.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import children
import torch
from recipes_short import recipe
from safetensors.torch import load_file
from torch import Tensor

ROUNDS = 14
VARIANTS = {
    f"{algorithm}{'-guard' if guard else ''}": (algorithm, guard, 3 if guard else 1)
    for algorithm in ("dragon", "draft")
    for guard in (False, True)
}
MOMENTS = ("round", "loading", "round", "saving", "round", "samples", "round", "saving", "round", "ending")
"""Of ten kills, in this order; `ending` comes last, when there is little left to kill."""
TOLERANCE, RELATIVE = 1e-5, 0.01


def whole(name: str, folder: Path) -> dict[str, float]:
    """Run a variant to its end, undisturbed; how long loading, a round and the end took, in seconds."""
    began, seen, run = time.monotonic(), dict[int, float](), folder / name
    child = children.start(["tune", f"{run}.yaml", "--out", str(run)], folder / f"{name}.txt")
    while child.poll() is None:
        seen.setdefault(len(_lines(run)), time.monotonic() - began)
        time.sleep(0.01)
    if child.status != 0:
        sys.exit(child.said.read_text())
    steps = sorted(later - earlier for earlier, later in pairwise(seen[i] for i in range(1, ROUNDS + 1)))
    ending = time.monotonic() - began - seen[ROUNDS]
    return {"loading": seen[1], "round": steps[len(steps) // 2], "ending": ending}


def killed(
    name: str, folder: Path, number: int, kills: int, lengths: dict[str, float], expected: dict[str, str]
) -> dict:
    """Kill one run so often, and say how each went; a run that ends before its kill is compared and begun anew."""
    moments, done, wrong, part = random.Random(f"{name} {number}"), Counter[str](), list[str](), 0
    while sum(done.values()) < kills:
        run = folder / f"{name}-{number}-{part}"
        kinds = [MOMENTS[i % len(MOMENTS)] for i in range(sum(done.values()), kills)]
        after = sorted(moments.choices(range(ROUNDS - 2), k=len(kinds)))
        for kind, least in zip(kinds, after, strict=True):
            child = _start(name, folder, run)
            until = _moment(kind, run, least, lengths, moments, child)
            while child.poll() is None and not until():
                time.sleep(0.001)
            child.send(signal.SIGKILL)
            if child.wait() != -signal.SIGKILL:
                break
            done[kind] += 1
        part += 1
        if (last := _start(name, folder, run)).wait() != 0:
            wrong.append(f"{run.name}: {last.said.read_text()[-400:]}")
        elif (found := children.results(run)) != expected:
            differ = [key for key in {**expected, **found} if expected.get(key) != found.get(key)]
            wrong.append(f"{run.name}: {', '.join(differ)}")
    return {"run": f"{name}-{number}", "kills": dict(done), "wrong": wrong}


def _start(name: str, folder: Path, run: Path) -> children.Child:
    return children.start(["tune", f"{folder / name}.yaml", "--out", str(run), "--resume"], run.with_suffix(".txt"))


def _moment(
    kind: str, run: Path, least: int, lengths: dict[str, float], moments: random.Random, child: children.Child
) -> Callable[[], bool]:
    """Whether the moment to kill has come."""
    if kind == "loading":
        return _after(lambda: True, moments.uniform(0, lengths["loading"]))
    if kind == "ending":
        return _after(lambda: len(_lines(run)) == ROUNDS, moments.uniform(0, lengths["ending"]))
    begun = _after(lambda: len(_lines(run)) >= least, moments.uniform(0, 1.5 * lengths["round"]))
    if kind == "round":
        return begun
    place = run / ("checkpoints" if kind == "saving" else "samples")
    before = children.newest(run)
    beside = f".round-*{'json' if moments.random() < 0.5 else 'safetensors'}" if kind == "saving" else ".round-*"
    return lambda: begun() and (any(place.glob(beside)) or children.newest(run) > max(before, least) + 4)


def _after(reached: Callable[[], bool], seconds: float) -> Callable[[], bool]:
    """Whether so much time has passed since something was reached first."""
    since = list[float]()

    def passed() -> bool:
        if not since and reached():
            since.append(time.monotonic())
        return bool(since) and time.monotonic() - since[0] >= seconds

    return passed


def _lines(run: Path) -> list[str]:
    log = run / "log.jsonl"
    return log.read_text().splitlines() if log.exists() else []


def side_by_side(works: list[Callable[[], dict]], jobs: int, folder: Path) -> Iterator[dict]:
    """What each work returns, in forked processes, so many at a time."""
    waiting, running = list(enumerate(works)), dict[int, Path]()
    while waiting or running:
        while waiting and len(running) < jobs:
            number, work = waiting.pop(0)
            place = folder / f"outcome-{number}.json"
            sys.stdout.flush()
            if not (process := os.fork()):
                try:
                    place.write_text(json.dumps(work()))
                finally:
                    os._exit(0)
            running[process] = place
        process, _ = os.wait()
        place = running.pop(process)
        yield (
            json.loads(place.read_text()) if place.exists() else {"run": place.stem, "kills": {}, "wrong": ["it broke"]}
        )


def spread(processes: int, folder: Path) -> dict[str, float]:
    """Kill a run of several processes once; go on with one and with four; how the adapters differ.

    Adam divides a gradient by its size, so where one is no larger than rounding, adapters differ by part of the rate:
    hence a rate of 1e-5, as in benchmarks/processes.py.
    """
    file, run = folder / "spread.yaml", folder / "spread"
    loop = {"rounds": 8, "pairs": 8, "batch": 8, "sample_every": 0, "lr": 1e-5}
    file.write_text(recipe("dragon", False, loop))
    first = _launch(processes, file, run)
    while len(_lines(run)) < 3 and first.poll() is None:
        time.sleep(0.02)
    assert first.poll() is None, "it ended before it could be killed"
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    time.sleep(1)
    adapters = {}
    for count in (0, 1, 4):
        place = folder / f"spread-{count}"
        if count:
            shutil.copytree(run, place)
        if (code := _launch(max(count, 1), file, place).wait()) != 0:
            sys.exit(f"the run on {max(count, 1)} processes ended with {code}")
        adapters[count] = load_file(place / "adapter" / "adapter_model.safetensors")
    return {
        f"{count} processes, {kind}": value
        for count in (1, 4)
        for kind, value in _differences(adapters[0], adapters[count]).items()
    }


def _differences(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, float]:
    """The largest of any weight, and of the B matrices, which start at zero, the norm relative to theirs."""
    trained = [name for name in one if "lora_B" in name]
    size, difference = (
        torch.cat([(one[name] - part * other[name]).flatten() for name in trained]).norm().item() for part in (0, 1)
    )
    return {
        "largest": max((one[name] - other[name]).abs().max().item() for name in one),
        "relative": difference / size,
    }


def _launch(processes: int, file: Path, run: Path) -> subprocess.Popen[bytes]:
    alone = [sys.executable, "-m", "dragontune.cli"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    start = alone if processes == 1 else [*launcher, "-m", "dragontune"]
    command = [*start, "tune", str(file), "--out", str(run), "--resume", "--evaluation", "null"]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Print a line a run, and the figure; exit 1 where anything differs."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", type=int, default=10, help="half of DRAGON, half of DRaFT (default: 10)")
    options.add_argument("--kills", type=int, default=10, help="of each run (default: 10)")
    options.add_argument("--jobs", type=int, default=2, help="runs at a time (default: 2)")
    options.add_argument("--processes", type=int, help="instead: kill a run of so many processes once")
    options.add_argument("--out", type=Path, metavar="FILE.json")
    given = options.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if given.processes:
            found = spread(given.processes, folder)
            print(
                f"killed on {given.processes} processes, adapters of the resumed runs against one left alone: {found}"
            )
            good = all(value <= (TOLERANCE if "largest" in name else RELATIVE) for name, value in found.items())
            figures = dict[str, Any](differences=found)
        else:
            good, figures = all_kills(folder, given.runs, given.kills, given.jobs)
    figures["minutes"] = round((time.monotonic() - began) / 60, 1)
    print(f"{figures['minutes']} minutes")
    if given.out:
        given.out.write_text(json.dumps({"command": sys.argv, **figures}, indent=1) + "\n")
    sys.exit(not good)


def all_kills(folder: Path, runs: int, kills: int, jobs: int) -> tuple[bool, dict[str, Any]]:
    """Whether every run ended as it should, and the figures."""
    children.warm()
    names = [list(VARIANTS)[2 * (i % 2) + i // 2 % 2] for i in range(runs)]
    works = list[Callable[[], dict]]()
    for name in dict.fromkeys(names):
        algorithm, guard, every = VARIANTS[name]
        (folder / f"{name}.yaml").write_text(recipe(algorithm, guard, {"rounds": ROUNDS, "checkpoint_every": every}))
        lengths = whole(name, folder)
        expected = children.results(folder / name)
        print(f"{name} left alone: {', '.join(f'{k} {v:.2f} s' for k, v in lengths.items())}", flush=True)
        for number, other in enumerate(names):
            if other == name:
                works.append(lambda n=name, i=number, t=lengths, e=expected: killed(n, folder, i, kills, t, e))
    outcomes = list[dict]()
    for outcome in side_by_side(works, jobs, folder):
        outcomes.append(outcome)
        print(f"{outcome['run']}: killed {outcome['kills']}, {outcome['wrong'] or 'the same bytes'}", flush=True)
    total = sum(sum(outcome["kills"].values()) for outcome in outcomes)
    good = sum(sum(outcome["kills"].values()) for outcome in outcomes if not outcome["wrong"])
    by_moment = sum((Counter(outcome["kills"]) for outcome in outcomes), Counter[str]())
    print(f"kills by moment: {dict(by_moment)}\n{good} of {total}", flush=True)
    return good == total == runs * kills, {"good": good, "kills": total, "by_moment": dict(by_moment), "runs": outcomes}


if __name__ == "__main__":
    main()
