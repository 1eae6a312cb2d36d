"""Damaged checkpoints: each is found out, the one before is used with a warning, and the run ends with the same bytes.

    OMP_NUM_THREADS=1 python benchmarks/torn.py --jobs 2 --out benchmarks/results/torn.json

Runs of DRAGON and DRaFT on the embedded model are stopped half-way; copies of them are damaged in fifty ways (either
file of the newest checkpoint torn at a random byte, with a random bit flipped, empty, gone, exchanged with the other
round's, or with a header that declares an absurd size) and resumed through the command line. Prints `50 of 50`; exit
code 1 where one was not found, or where adapter, samples or log differ from a run left alone.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import children
from kills import side_by_side
from recipes_short import recipe

ROUNDS, HALF = 6, 4
FILES = (".safetensors", ".json")


def torn(path: Path, other: Path, moments: random.Random) -> None:
    """Cut at a random byte."""
    content = path.read_bytes()
    path.write_bytes(content[: moments.randrange(1, len(content))])


def flipped(path: Path, other: Path, moments: random.Random) -> None:
    """One bit at a random place."""
    content = bytearray(path.read_bytes())
    content[moments.randrange(len(content))] ^= 1 << moments.randrange(8)
    path.write_bytes(content)


def empty(path: Path, other: Path, moments: random.Random) -> None:
    """Zero bytes."""
    path.write_bytes(b"")


def gone(path: Path, other: Path, moments: random.Random) -> None:
    """No file."""
    path.unlink()


def exchanged(path: Path, other: Path, moments: random.Random) -> None:
    """The file of the round before in place of this one."""
    shutil.copy(other, path)


def renamed(path: Path, other: Path, moments: random.Random) -> None:
    """Both files of the round before under this one's name: whole in themselves, of another round."""
    for suffix in FILES:
        shutil.copy(other.with_suffix(suffix), path.with_suffix(suffix))


def hostile(path: Path, other: Path, moments: random.Random) -> None:
    """A header of safetensors that declares up to 2^64 bytes; brackets a million deep for JSON."""
    if path.suffix == ".json":
        path.write_bytes(b"[" * 10**6)
    else:
        content = path.read_bytes()
        path.write_bytes(
            (2 ** moments.randrange(40, 64) + moments.randrange(2**20)).to_bytes(8, "little") + content[8:]
        )


DAMAGES = (torn, flipped, torn, flipped, empty, gone, torn, exchanged, renamed, hostile, flipped)


def damaged(name: str, number: int, folder: Path, expected: dict[str, str]) -> dict:
    """Damage a copy of the half run, resume it, and say what came of it."""
    moments, damage, suffix = random.Random(number), DAMAGES[number // 2 % len(DAMAGES)], FILES[number % 2]
    run = folder / f"{name}-{number}"
    shutil.copytree(folder / f"{name}-half", run)
    damage(
        run / "checkpoints" / f"round-{HALF:06d}{suffix}",
        run / "checkpoints" / f"round-{HALF - 1:06d}{suffix}",
        moments,
    )
    again = children.start([*_tune(folder, name, run, ROUNDS), "--resume"], run.with_suffix(".txt"))
    code, said, wrong = again.wait(), again.said.read_text(), list[str]()
    if f"round-{HALF:06d}.json is damaged" not in said or "the one before it is used" not in said:
        wrong.append("no warning")
    if code != 0:
        wrong.append(f"exit code {code}: {said[-300:]}")
    elif children.results(run) != expected:
        wrong.append("another end")
    shutil.rmtree(run)
    return {"run": f"{name} {damage.__name__} {suffix}", "damage": damage.__name__, "wrong": wrong}


def _tune(folder: Path, name: str, run: Path, rounds: int) -> list[str]:
    more = ["--loop.rounds", str(rounds), "--evaluation", "null"]
    return ["tune", f"{folder / name}.yaml", "--out", str(run), *more]


def main() -> None:
    """Print a line a damage, and the figure; exit 1 where one was not found or the end differs."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--count", type=int, default=50, help="(default: 50)")
    options.add_argument("--jobs", type=int, default=2, help="runs at a time (default: 2)")
    options.add_argument("--out", type=Path, metavar="FILE.json")
    given = options.parse_args()
    children.warm()
    with tempfile.TemporaryDirectory() as scratch:
        folder, works = Path(scratch), list[Callable[[], dict]]()
        for part, name in enumerate(("dragon", "draft")):
            (folder / f"{name}.yaml").write_text(recipe(name, False, {"rounds": ROUNDS, "sample_every": 2}))
            for place, rounds in ((name, ROUNDS), (f"{name}-half", HALF)):
                child = children.start(_tune(folder, name, folder / place, rounds), folder / f"{place}.txt")
                if child.wait() != 0:
                    sys.exit(child.said.read_text())
            expected = children.results(folder / name)
            for number in range(given.count):
                if number // 22 % 2 == part:
                    works.append(lambda n=name, i=number, e=expected: damaged(n, i, folder, e))
        outcomes = list[dict]()
        for outcome in side_by_side(works, given.jobs, folder):
            outcomes.append(outcome)
            print(f"{outcome['run']}: {outcome['wrong'] or 'found, and the same bytes'}", flush=True)
    good = sum(not outcome["wrong"] for outcome in outcomes)
    by_damage = Counter(outcome.get("damage") for outcome in outcomes)
    print(f"damages: {dict(by_damage)}\n{good} of {given.count}")
    if given.out:
        found = {"command": sys.argv, "good": good, "count": given.count, "by_damage": by_damage, "runs": outcomes}
        given.out.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(good != given.count)


if __name__ == "__main__":
    main()
