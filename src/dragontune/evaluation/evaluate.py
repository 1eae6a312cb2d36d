"""Compare the tuned model with the model it came from: same prompts, same noise, every reward, one page.

The untuned model may be steered beside it; a model without an adapter is compared with itself when it is steered.

Win rates of single items are those of DRAGON (Bai et al. 2025, arXiv 2504.15217). For rewards of a whole set its
definition could not be recovered; here it is the share of random subsets of the prompts on which the tuned model's
set scores higher.
"""

import json
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version

from dragontune.embedded import locate
from dragontune.errors import InputError
from dragontune.evaluation import arms
from dragontune.evaluation.arms import STEERED, STEERING_REWARD, TUNED
from dragontune.evaluation.comparison import Comparison, Verdict
from dragontune.evaluation.generations import Making, Progress, Steered
from dragontune.evaluation.looks import Looks
from dragontune.evaluation.report import Page, render, write
from dragontune.generators.base import Generator
from dragontune.health import Health, findings
from dragontune.rewards.base import InstanceReward, Reward
from dragontune.sampling import Sampler
from dragontune.seeding import Key

TARGET = "target"
PACKAGES = ("dragontune", "torch", "numpy", "scipy", "diffusers", "transformers", "peft", "soundfile")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What to compare on.

    `prompts` is a text file, one prompt a line, of which `count` are used, evenly spaced. Set rewards compare `subsets`
    random subsets of `subset` prompts. `scales` are the LoRA scales of the sweep, made on `subset` prompts. `rewards`
    are reported beside the target; one that is named `target` takes the target's place (the same distance to other
    exemplars, say). `players` is the number of prompts that can be listened to.

    >>> Evaluation("tiny-music/prompts/test.txt", count=20, subset=10).scales
    (0.0, 0.5, 1.0, 1.5)
    """

    prompts: str
    count: int = 200
    subset: int = 40
    subsets: int = 200
    scales: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5)
    rewards: dict[str, Reward] = field(default_factory=dict)
    micro_batch: int = 50
    players: int = 6

    def __post_init__(self) -> None:
        """InputError for numbers that make no sense."""
        for name, least in (("count", 2), ("subset", 1), ("subsets", 1), ("micro_batch", 1), ("players", 0)):
            if getattr(self, name) < least:
                raise InputError(f"evaluation.{name} is {least} or more, got {getattr(self, name)}: raise it")
        wrong = [scale for scale in self.scales if not 0 <= scale <= 10]
        if wrong:
            raise InputError(f"evaluation.scales are numbers from 0 (untuned) to 10, got {wrong[0]}: 1 is as tuned")

    def read(self) -> tuple[str, ...]:
        """The prompts: all of the file if it has no more than `count`, else evenly spaced ones."""
        return asked(self.prompts, self.count)

    def named(self, target: Reward) -> tuple[str, dict[str, Reward]]:
        """The target's name, and every reward by name, the target first unless it is listed."""
        return named(self.rewards, target)

    def check(self, rewards: Mapping[str, Reward], prompts: int) -> None:
        """InputError if there are too few prompts to compare a set reward on subsets of them."""
        for name, reward in rewards.items():
            if isinstance(reward, InstanceReward):
                continue
            if prompts <= self.subset:
                raise InputError(
                    f"the set reward {name!r} is compared on random subsets of {self.subset} prompts, which takes more "
                    f"prompts than that, got {prompts}: lower evaluation.subset or add prompts"
                )
            if self.subset < reward.minimum:
                raise InputError(
                    f"the set reward {name!r} needs at least {reward.minimum} items, got evaluation.subset "
                    f"{self.subset}: raise it"
                )


def evaluate(
    generator: Generator,
    evaluation: Evaluation,
    target: Reward,
    sampler: Sampler,
    seed: int,
    out: Path,
    history: list[dict] | None = None,
    progress: Progress | None = None,
    recipe: str | None = None,
    looks: Looks | None = None,
    steer: Steered | None = None,
    health: Health | None = None,
) -> dict:
    """Compare, write `out/index.html` and `out/metrics.json`, and return the metrics.

    `generator` carries the adapter; the untuned model is the same one with the adapter off. `history` is the run's log,
    a row a round; `recipe` is a text to show on the page; `looks` are those of the run's guard; `health` says
    what is well in the log. With `steer` the untuned model is steered, too, and compared with best of n at the same
    cost; a generator without an adapter is then compared with itself steered. In the metrics higher is better always: a
    distance is negative.

    Raises:
        InputError: too few prompts for a reward, or the steering does not fit.
        NonFiniteError: a reward is NaN or infinite; the message names it and the item.
    """
    started = time.perf_counter()
    prompts = evaluation.read()
    name, rewards = evaluation.named(target)
    judges = rewards if steer is None else judged(rewards, steer.steering.reward)
    evaluation.check(judges, len(prompts))
    if steer is not None:
        steer.check(len(prompts))
        steer = steer.fitted(generator, min(evaluation.micro_batch, len(prompts)))
    if len(prompts) < 2 * evaluation.subset and not all(isinstance(each, InstanceReward) for each in judges.values()):
        warnings.warn(
            f"subsets of {evaluation.subset} out of {len(prompts)} prompts have most prompts in common, so their win "
            "rates are near 0 or 1 by chance; lower evaluation.subset or add prompts",
            stacklevel=1,
        )
    key, tell = Key(seed).fold("evaluation"), progress or silent
    heard = spaced(len(prompts), evaluation.players)
    making = Making(generator, sampler, prompts, judges, evaluation.micro_batch, key.fold("noise"), tell)
    tuned = steer is None or any(True for _ in generator.parameters())
    compared = arms.lineup(sampler, making.key, tuned, steer)
    made = [arm.make(making, heard) for arm in compared]
    comparison = Comparison(making, made[0], made[1])

    def judge(sides: Comparison, each: str) -> Verdict:
        return sides.verdict(each, each == name, evaluation.subset, evaluation.subsets, key.fold("subsets", each))

    judgements = [judge(comparison, each) for each in judges]
    verdicts = [verdict for verdict in judgements if verdict.name in rewards]
    steering = None if steer is None else arms.compare(comparison, judgements, compared, made, judge)
    sweep = comparison.sweep(evaluation.scales if tuned else (), spaced(len(prompts), evaluation.subset))
    found = tuple(findings(history or (), health or Health()))
    peak = max((row.get("peak_memory") or 0 for row in history or ()), default=0)
    metrics = {
        "prompts": len(prompts),
        "rewards": {verdict.name: verdict.record() for verdict in verdicts},
        **({"steering": steering.record()} if steering else {}),
        **({"guard": looks.record()} if looks else {}),
        **({"health": {finding.key: finding.record() for finding in found}} if found else {}),
        **({"peak_memory": peak} if peak else {}),
        "seconds": round(time.perf_counter() - started, 3),
        "package_versions": versions(),
        "seed": seed,
    }
    page = Page(
        model=generator.name,
        prompts=len(prompts),
        subset=evaluation.subset,
        subsets=evaluation.subsets,
        seed=seed,
        optimised=target.label,
        optimised_distance=target.distance,
        stand_in=rewards[name] is not target,
        verdicts=tuple(sorted(verdicts, key=lambda verdict: not verdict.target)),
        players=comparison.players(heard),
        sweep=sweep,
        history=tuple(history or ()),
        looks=looks,
        costs=sum((side.costs for side in made), sweep.costs),
        seconds=metrics["seconds"],
        change=comparison.change(),
        versions=metrics["package_versions"],
        recipe=recipe,
        after=TUNED if tuned else STEERED,
        steering=steering,
        findings=found,
    )
    out.mkdir(parents=True, exist_ok=True)
    write(out / "index.html", render(page))
    write(out / "metrics.json", json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return metrics


def asked(file: str, count: int) -> tuple[str, ...]:
    """The prompts in a text file, one a line: all if there are no more than `count`, else evenly spaced ones.

    Raises:
        InputError: it cannot be read, or has fewer than two.
    """
    path = locate(file)
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"expected a text file of prompts, one a line, got {path}: {error}") from error
    found = [line for line in lines if line]
    if len(found) < 2:
        raise InputError(f"expected at least 2 prompts, one a line, got {len(found)} in {path}: add some")
    return tuple(found[row] for row in spaced(len(found), count))


def named(rewards: Mapping[str, Reward], target: Reward) -> tuple[str, dict[str, Reward]]:
    """The target's name, and every reward by name, the target first unless it is listed."""
    if TARGET in rewards:
        return TARGET, dict(rewards)
    listed = next((name for name, reward in rewards.items() if reward is target), None)
    return (listed, dict(rewards)) if listed else (TARGET, {TARGET: target, **rewards})


def judged(rewards: Mapping[str, Reward], steering: Reward) -> dict[str, Reward]:
    """The rewards, with the one that steers if it is none of them."""
    if any(arms.same(reward, steering) for reward in rewards.values()):
        return dict(rewards)
    return {**rewards, STEERING_REWARD: steering}


def spaced(total: int, count: int) -> list[int]:
    """At most `count` positions, evenly spaced over `total`."""
    count = min(count, total)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide the numbers."""
    return {"python": python_version(), **dict(_installed())}


def _installed() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


def silent(phase: str, done: int, total: int) -> None:
    """Progress that is not told."""
