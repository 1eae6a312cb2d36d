"""Tune the embedded model once for each of twenty rewards, judge every model by every reward (after DRAGON, table 1).

    python benchmarks/table.py                 all of recipes/table/rewards.yaml: hours on two cores
    python benchmarks/table.py --only small    four rewards, one of each kind; --only NAME NAME ...; --only rewards
    python benchmarks/table.py --lanes 4       so many models at a time, a thread each (default: the number of cores)
    python benchmarks/table.py --tune-only     judge later
    python benchmarks/table.py --list          what there is, and what is done

Resumable at any moment: a tuning goes on from its last round (runs/table/NAME), a finished model is a file
(benchmarks/results/table/NAME.json) that is made again only if the recipe, the evaluation or the rewards change.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, field, fields, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import yaml

from dragontune.commands import parsing
from dragontune.embedded import locate

HERE = Path(__file__).parent
RECIPE = HERE.parent / "recipes" / "table" / "rewards.yaml"
CELLS = HERE / "results" / "table"
RUNS = Path("runs/table")
ALIGNMENT, DIVERSITY = "clap", "vendi"
FALL = 0.03
"""How far the alignment of a model that was not tuned on it may fall."""
SHARE = 0.9
"""The share of the untuned model's diversity that must be left."""
SCALES = (0.75, 0.5, 0.25, 0.125)
"""LoRA scales to try, largest first, where one of these does not hold."""


@dataclass(frozen=True)
class Plan:
    """recipes/table/rewards.yaml."""

    content: dict[str, Any]

    @classmethod
    def read(cls) -> "Plan":
        return cls(yaml.safe_load(RECIPE.read_text()))

    @property
    def names(self) -> list[str]:
        """Every model: the rewards' in their order, then those of the ablations."""
        return [*self.content["rewards"], *self.content.get("ablations", {})]

    def chosen(self, only: Sequence[str]) -> list[str]:
        groups = {"small": self.content["small"], "rewards": list(self.content["rewards"])}
        groups["ablations"] = list(self.content.get("ablations", {}))
        found = [name for word in only for name in groups.get(word, [word])] or self.names
        unknown = [name for name in found if name not in self.names]
        if unknown:
            sys.exit(f"expected a name in {RECIPE.name} ({', '.join([*groups, *self.names])}), got {unknown[0]}")
        return list(dict.fromkeys(found))

    def target(self, name: str) -> str:
        """The reward a model is tuned for."""
        return self.content.get("ablations", {}).get(name, {}).get("reward", name)

    def recipe(self, name: str) -> dict[str, Any]:
        """The recipe of a model: what all share, and what is its own."""
        target = self.target(name)
        own = self.content.get("settings", {}).get(target, {})
        recipe = merged(self.content["shared"], own)
        recipe = merged(recipe, self.content.get("ablations", {}).get(name, {}).get("settings", {}))
        return {"reward": self.content["rewards"][target], **recipe}

    @property
    def rewards(self) -> dict[str, Any]:
        """Everything a model is judged by."""
        return {**self.content["rewards"], **self.content["watched"]}

    def key(self, name: str) -> dict[str, Any]:
        """What a finished model depends on."""
        settings = {"recipe": self.recipe(name), "evaluation": self.content["evaluation"], "rewards": self.rewards}
        return {**settings, "assets": assets()}

    def done(self, name: str) -> bool:
        path = CELLS / f"{name}.json"
        return path.exists() and json.loads(path.read_text())["key"] == self.key(name)


@cache
def assets() -> str:
    """A digest of the embedded models, heads, exemplars and prompts."""
    total = hashlib.sha256()
    for name in ("tiny-music", "tiny-clap"):
        for path in sorted(locate(name).rglob("*")):
            if path.is_file():
                total.update(path.relative_to(locate(name)).as_posix().encode() + path.read_bytes())
    return total.hexdigest()[:16]


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the fields of `over`, at any depth."""
    result = dict(base)
    for name, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(name), dict)
        result[name] = merged(result[name], value) if both and "class_path" not in value else value
    return result


def make(name: str, tune_only: bool) -> str:
    """Tune and judge one model; runs in a process of its own, which keeps the untuned model's generations."""
    plan, folder = Plan.read(), RUNS / name
    tune(plan, name, folder)
    if tune_only:
        return name
    started = time.perf_counter()
    cell = {"key": plan.key(name), "target": plan.target(name), "rounds": rounds(name), **judge(name, folder)}
    cell["seconds"] = {"tuning": seconds(name), "judging": round(time.perf_counter() - started, 1)}
    CELLS.mkdir(parents=True, exist_ok=True)
    path = CELLS / f"{name}.json"
    path.with_suffix(".new").write_text(json.dumps(cell, indent=1) + "\n")
    path.with_suffix(".new").replace(path)
    return name


def tune(plan: Plan, name: str, folder: Path) -> None:
    """`dragontune tune`, as anybody would run it."""
    RUNS.mkdir(parents=True, exist_ok=True)
    recipe, text = RUNS / f"{name}.yaml", yaml.safe_dump(plan.recipe(name), sort_keys=False)
    same = recipe.exists() and recipe.read_text() == text
    if same and (folder / "adapter").is_dir() and rounds(name) == plan.recipe(name)["loop"]["rounds"]:
        return
    if not same and folder.exists():
        shutil.rmtree(folder)  # under another recipe it is another run, even if only its length differs
    recipe.write_text(text)
    command = [sys.executable, "-m", "dragontune.cli", "tune", str(recipe), "--out", str(folder), "--resume"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[2:])}: exit code {done.returncode}: {done.stderr.strip()[-500:]}")


def judge(name: str, folder: Path) -> dict[str, Any]:
    """Every reward before and after; where the guard rails do not hold, the LoRA scale at which they do."""
    from dragontune.evaluation.comparison import Comparison

    bench = workbench()
    if name not in bench.plan.content["rewards"]:
        bench = bench.only(bench.target(name), ALIGNMENT, DIVERSITY, *bench.plan.content["watched"])
    bench.making.generator.load_adapter(str(folder / "adapter"))
    items = range(len(bench.making.prompts))
    comparison = Comparison(bench.making, bench.base, bench.making.make(name, items), bench.known)
    found = bench.verdicts(comparison, name)
    result: dict[str, Any] = {
        "rewards": found,
        "change": comparison.change(),
        "holds": holds(found, bench.target(name)),
    }
    if result["holds"]:
        return result
    target = bench.target(name)
    for scale in SCALES:
        bench = bench.only(target, ALIGNMENT, DIVERSITY)
        with bench.making.generator.scaled(scale):
            weaker = Comparison(bench.making, bench.base, bench.making.make(name, items), bench.known)
        found = bench.verdicts(weaker, name)
        if holds(found, target) or scale == SCALES[-1]:
            return {**result, "restored": {"scale": scale, "holds": holds(found, target), "rewards": found}}
    raise AssertionError("there is a last scale")


def holds(rewards: Mapping[str, Any], target: str) -> bool:
    """Whether alignment and diversity are what they were, as far as asked for."""
    alignment, diversity = rewards[ALIGNMENT], rewards[DIVERSITY]
    aligned = target == ALIGNMENT or alignment["after"] >= alignment["before"] - FALL
    return aligned and diversity["after"] >= SHARE * diversity["before"]


@dataclass(frozen=True, eq=False)
class Workbench:
    """What all models of a process share."""

    plan: Plan
    making: Any
    base: Any
    known: dict

    def target(self, name: str) -> str:
        return self.plan.target(name)

    def only(self, *names: str) -> "Workbench":
        """The same with fewer rewards."""
        rewards = {name: reward for name, reward in self.making.rewards.items() if name in names}
        return replace(self, making=replace(self.making, rewards=rewards))

    def verdicts(self, comparison: Any, name: str) -> dict[str, Any]:
        from dragontune.seeding import Key

        settings, key = self.plan.content["evaluation"], Key(self.plan.content["evaluation"]["seed"])
        names, target = self.making.rewards, self.target(name)
        size, times = settings["subset"], settings["subsets"]
        return {
            each: comparison.verdict(each, each == target, size, times, key.fold("subsets", each)).record()
            for each in names
        }


@cache
def workbench() -> Workbench:
    import torch

    from dragontune import Lora, load
    from dragontune.evaluation.evaluate import Evaluation
    from dragontune.evaluation.generations import Making
    from dragontune.rewards.base import Reward
    from dragontune.seeding import Key

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    parsing.import_parts()
    plan = Plan.read()
    settings, shared = plan.content["evaluation"], plan.content["shared"]
    prompts = Evaluation(settings["prompts"], count=settings["count"]).read()
    clap = once()
    rewards = {name: parsing.make(Reward, "reward", value) for name, value in plan.rewards.items()}
    rewards = {name: shared_encoder(reward, clap) for name, reward in rewards.items()}
    sampler = parsing.sampler(shared)
    key = Key(settings["seed"]).fold("evaluation").fold("noise")
    generator = load(shared["model"], Lora(**shared["lora"]))
    making = Making(generator, sampler, prompts, rewards, 50, key, lambda *_: None)
    with generator.reference():
        base = making.make("untuned", range(len(prompts)))
    return Workbench(plan, making, base, {})


def once() -> Any:
    """TinyClap, which embeds the same samples once however many rewards ask."""
    from dragontune import TinyClap

    @dataclass(frozen=True, eq=False)
    class Once(TinyClap):
        last: dict = field(default_factory=dict)

        def encode(self, samples: Any) -> Any:
            if self.last.get("samples") is not samples:
                self.last.update(samples=samples, found=super().encode(samples))
            return self.last["found"]

    return Once()


def shared_encoder(reward: Any, clap: Any) -> Any:
    """The reward, with this encoder if it has a TinyClap."""
    same = any(item.name == "encoder" for item in fields(reward)) and type(reward.encoder) is type(clap).__mro__[1]
    return replace(reward, encoder=clap) if same else reward


def rounds(name: str) -> int:
    """How many rounds a tuning has behind it."""
    log = RUNS / name / "log.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def seconds(name: str) -> float:
    """What the rounds of a tuning took."""
    return round(sum(json.loads(text)["seconds"] for text in (RUNS / name / "log.jsonl").read_text().splitlines()), 1)


def start(threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)


def run(plan: Plan, names: Sequence[str], lanes: int, threads: int, tune_only: bool) -> None:
    """Make what is not made yet, and say how far it is."""
    todo = [name for name in names if not plan.done(name)]
    print(
        f"{len(names) - len(todo)} of {len(names)} models are there; {len(todo)} to make, {lanes} at a time", flush=True
    )
    os.environ["OMP_NUM_THREADS"] = str(threads)
    total = {name: plan.recipe(name)["loop"]["rounds"] for name in todo}
    before, started, failed = {name: rounds(name) for name in todo}, time.time(), []
    with ProcessPoolExecutor(lanes, get_context("spawn"), start, (threads,)) as pool:
        waiting = {pool.submit(make, name, tune_only): name for name in todo}
        while waiting:
            finished, _ = wait(waiting, timeout=60, return_when=FIRST_COMPLETED)
            for future in finished:
                name = waiting.pop(future)
                if error := future.exception():
                    failed.append(name)
                    print(f"{name} FAILED: {error}", flush=True)
                else:
                    print(f"{name}: tuned" if tune_only else line(name), flush=True)
            gone, left = sum(rounds(name) - before[name] for name in todo), sum(total[n] - rounds(n) for n in todo)
            eta = (time.time() - started) / gone * left / 60 if gone else float("nan")
            print(
                f"{len(todo) - len(waiting)} of {len(todo)} done; {left} rounds left, about {eta:.0f} minutes",
                flush=True,
            )
    if failed:
        sys.exit(f"not made: {', '.join(failed)}; run the same command again")


def line(name: str) -> str:
    """One model in one line."""
    cell = json.loads((CELLS / f"{name}.json").read_text())
    target, clap, vendi = (cell["rewards"][each] for each in (cell["target"], ALIGNMENT, DIVERSITY))
    low, high = target["win_rate_ci95"]
    words = (
        f"{name}: {target['before']:.4g} -> {target['after']:.4g}, wins {target['win_rate']:.1%} ({low:.1%}-{high:.1%})"
    )
    words += f"; alignment {clap['after'] - clap['before']:+.3f}, diversity x{vendi['after'] / vendi['before']:.2f}"
    if restored := cell.get("restored"):
        same = restored["rewards"][cell["target"]]
        words += f"; at scale {restored['scale']}: wins {same['win_rate']:.1%}, guard rails {restored['holds']}"
    return f"{words} [{cell['seconds']['tuning']:.0f} + {cell['seconds']['judging']:.0f} s]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--lanes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--threads", type=int, default=1, help="a lane (default 1)")
    parser.add_argument("--tune-only", action="store_true")
    parser.add_argument("--list", action="store_true")
    given = parser.parse_args()
    plan = Plan.read()
    names = plan.chosen(given.only)
    if given.list:
        for name in names:
            print(line(name) if plan.done(name) else f"{name}: {rounds(name)} rounds done")
        return
    run(plan, names, given.lanes, given.threads, given.tune_only)


if __name__ == "__main__":
    main()
