"""How much memory a run will take at most, from a round in small that is measured and extrapolated.

What a stage of a round needs grows linearly with the rows that are in the network at once and with the items of a
round; both slopes are measured by the algorithm's own code on the recipe's own model and rewards. On a GPU it is what
PyTorch has allocated, elsewhere the bytes of all tensors. Left out: what operations need inside of themselves on a CPU,
fragmentation, other programs, and rewards whose memory grows faster than the number of items.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from dragontune.algorithms.base import Algorithm
from dragontune.alive import Alive, everything, together
from dragontune.evaluation.generations import Making
from dragontune.rewards.base import Reward
from dragontune.seeding import Key
from dragontune.training.gradients import GradientSum
from dragontune.training.loop import Loop

FEW, MORE = 2, 4
"""Rows that are tried; up to the larger nothing is extrapolated."""


@dataclass(frozen=True)
class Use:
    """Bytes that were alive before a piece of work, and at most during it."""

    before: int
    peak: int


@dataclass(frozen=True)
class Stage:
    """A part of a run and the most bytes that are alive in it, the model's own among them."""

    name: str
    bytes: int


@dataclass(frozen=True, eq=False)
class Judging:
    """An evaluation or a guard's look: `rows` at once of `items` that are kept, and so many players beside them."""

    name: str
    rows: int
    items: int
    players: int
    rewards: Sequence[Reward]


@dataclass(frozen=True)
class Forecast:
    """What a run is expected to take."""

    resident: int
    """Bytes of what is loaded: the model, the adapter, the rewards' encoders."""
    stages: tuple[Stage, ...]

    @property
    def worst(self) -> Stage:
        """The stage that takes most."""
        return max(self.stages, key=lambda stage: stage.bytes)


class Meter:
    """Measures pieces of work on a device, one after another."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        there = [] if self.cuda else everything()
        self.alive = Alive(there)
        self.resident = torch.cuda.memory_allocated(device) if self.cuda else together(there)

    def measure(self, work: Callable[[], Any]) -> tuple[Any, Use]:
        """What the work returns, and what it used."""
        if self.cuda:
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            result = work()
            return result, Use(before, torch.cuda.max_memory_allocated())
        before = self.alive.peak = self.alive.now
        with self.alive:
            result = work()
        return result, Use(self.resident + before, self.resident + self.alive.peak)


def available(device: torch.device) -> int:
    """Bytes that this process may take on a device, what it holds already included."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    limit = Path("/sys/fs/cgroup/memory.max")
    ours = psutil.Process().memory_info().rss
    free = psutil.virtual_memory().available + ours
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(free, int(text)) if text.isdigit() else free


@dataclass(frozen=True)
class Round:
    """A round in small: what its stages used, and how many rows its parts had."""

    uses: Mapping[str, Use]
    collected: int
    batch: int
    prepared: int


def forecast(algorithm: Algorithm[Any, Any], loop: Loop, prompts: Sequence[str], judged: Sequence[Judging]) -> Forecast:
    """Rehearse a round three times, in different sizes, and a little of each evaluation.

    The weights and the algorithm's memory are not to be used afterwards: they have been trained a little.
    """
    items = max(MORE, algorithm.reward.minimum)
    # the first warms up, so that what is made once and kept is resident
    first = _round(algorithm, loop, prompts, Meter(algorithm.generator.device), items, 1, 1)
    batch = min(loop.batch, first.collected * loop.pairs // items)
    together = min(algorithm.micro_batch, max(algorithm.together(loop.pairs), batch))
    training = min(loop.micro_batch, batch * first.prepared // first.batch)
    more = min(MORE, together), min(MORE, training)
    few = min(FEW, together), min(FEW, training)
    meter = Meter(algorithm.generator.device)
    small = _round(algorithm, loop, prompts, meter, items, *few)
    wide = _round(algorithm, loop, prompts, meter, items, *more)
    flat = _flat(small, wide, meter.resident)
    while more[0] < together and flat:
        flat = _flat(small, wide, meter.resident)  # once more after it was, so that both points lie behind the bend
        items, few, more = max(items, 2 * more[0]), (more[0], few[1]), (min(2 * more[0], together), more[1])
        small = _round(algorithm, loop, prompts, meter, items, *few)
        wide = _round(algorithm, loop, prompts, meter, items, *more)
    long = _round(algorithm, loop, prompts, meter, 2 * items, *more)
    of_prompt = (long.uses["preparing"].before - wide.uses["preparing"].before) / items  # what is kept of it
    kept = long.uses["training"].before - wide.uses["training"].before - of_prompt * items
    of_row = kept / (long.batch - wide.batch) if long.batch > wide.batch else 0.0  # of a batch
    stages = []
    for name, rows, tried in (
        ("generating", min(together, algorithm.together(loop.pairs)), (few[0], more[0])),
        ("preparing", min(together, batch), (few[0], more[0])),
        ("training", training, (few[1], more[1])),
    ):
        less, same, longer = (each.uses[name] for each in (small, wide, long))
        by_row = (_grown(same) - _grown(less)) / (tried[1] - tried[0]) if tried[1] > tried[0] else 0.0
        generating = name == "generating"
        count, tested = (loop.pairs, (items, 2 * items)) if generating else (batch, (wide.batch, long.batch))
        by_item = (_grown(longer) - _grown(same)) / max(tested[1] - tested[0], 1)
        before = 0.0 if generating else of_prompt * (loop.pairs - items)
        before += of_row * (batch - wide.batch) if name == "training" else 0.0
        grown = _grown(same) + by_row * (rows - tried[1]) + by_item * (count - tested[0])
        stages.append(Stage(name, round(same.before + before + max(grown, 0.0))))
    stages += [Stage(each.name, _judged(algorithm, prompts, meter, each)) for each in judged]
    return Forecast(meter.resident, tuple(stages))


def _flat(small: Round, wide: Round, resident: int) -> bool:
    """Whether a stage without gradients takes as much with more rows, because something else in it takes more."""
    stages = [(_grown(small.uses[name]), _grown(wide.uses[name])) for name in ("generating", "preparing")]
    return any(more > resident / 100 and more < 1.02 * less for less, more in stages)


def _round(
    algorithm: Algorithm[Any, Any],
    loop: Loop,
    prompts: Sequence[str],
    meter: Meter,
    items: int,
    together: int,
    training: int,
) -> Round:
    """One round for so many prompts with so many rows at once, one step of Adam in it."""
    small, key = algorithm.rehearsal(together, items / loop.pairs), Key(0).fold("memory")
    asked, weights = [prompts[i % len(prompts)] for i in range(items)], list(algorithm.parameters())
    small.memory().clear()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what so small a round finds of the reward means nothing
        (experience, _), generating = meter.measure(lambda: small.collect(asked, key))
        batch = torch.arange(min(items, len(experience)))
        prepared, preparing = meter.measure(lambda: small.prepare(experience[batch], key))

    def step() -> None:
        optimizer = torch.optim.Adam(weights, lr=1e-12)
        parts = torch.arange(len(prepared)).split(training)[:2]
        gradients = GradientSum(weights, len(parts))
        for part in parts:
            small.loss(prepared[part])[0].backward()
            gradients.take()
        gradients.hand_over()
        optimizer.step()

    _, trained = meter.measure(step)
    for weight in weights:
        weight.grad = None
    uses = {"generating": generating, "preparing": preparing, "training": trained}
    return Round(uses, len(experience), len(batch), len(prepared))


def _judged(algorithm: Algorithm[Any, Any], prompts: Sequence[str], meter: Meter, judging: Judging) -> int:
    """Bytes at most while items are made, encoded and kept, of the untuned and of the tuned model."""
    rewards = {str(i): reward for i, reward in enumerate(judging.rewards)}

    def make(count: int, shown: bool) -> tuple[int, Use]:
        """What is kept of so many items, which may be shown, and what it took to make them at once."""
        asked = [prompts[i % len(prompts)] for i in range(count)]
        sampler = algorithm.rehearsal(count, 1.0).sampler
        making = Making(algorithm.generator, sampler, asked, rewards, count, Key(0), lambda *_: None)
        made, use = meter.measure(lambda: making.make("memory", range(count), range(count) if shown else ()))
        after = meter.measure(lambda: made)[1].before
        return after - use.before, use

    shown = judging.players > 0
    more = min(MORE, judging.rows)
    few = min(FEW, more)
    kept, use = make(more, shown)
    peak = float(use.peak)
    if judging.rows > more > few:
        peak += (use.peak - make(few, shown)[1].peak) / (more - few) * (judging.rows - more)
    of_item = make(more, shown=False)[0] / more
    of_clip = kept / more - of_item
    return round(peak - kept + 2 * (judging.items * of_item + judging.players * of_clip))


def _grown(use: Use) -> int:
    return use.peak - use.before
