"""How much memory a run will take at most, from a round in small that is measured and extrapolated.

What a stage of a round needs grows linearly with the rows that are in the network at once and with the items of a
round; both slopes are measured by the algorithm's own code on the recipe's own model and rewards. On a GPU it is what
PyTorch has allocated, elsewhere the bytes of all tensors. Left out: what operations need inside of themselves on a CPU,
fragmentation, other programs, and rewards whose memory grows faster than the number of items.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from dragontune.algorithms.base import Algorithm
from dragontune.alive import Alive, everything, together
from dragontune.evaluation.generations import Making
from dragontune.process import ReverseProcess
from dragontune.rewards.base import Reward
from dragontune.seeding import Key
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


def forecast(
    algorithm: Algorithm[Any, Any],
    loop: Loop,
    prompts: Sequence[str],
    making: Sequence[tuple[str, int, Sequence[Reward]]],
) -> Forecast:
    """Rehearse a round three times, in different sizes, and look at each evaluation: its name, rows and rewards.

    The weights and the algorithm's memory are not to be used afterwards: they have been trained a little.
    """
    meter = Meter(algorithm.generator.device)
    few, more = (min(rows, loop.pairs) for rows in (FEW, MORE))
    least = max(more, algorithm.reward.minimum)
    _round(algorithm, loop, prompts, meter, rows=1, items=least)  # warms up: what is made once and kept is resident
    meter = Meter(algorithm.generator.device)
    small = _round(algorithm, loop, prompts, meter, few, least)
    wide = _round(algorithm, loop, prompts, meter, more, least)
    long = _round(algorithm, loop, prompts, meter, more, 2 * least)
    at_once = {"generating": algorithm.micro_batch, "preparing": algorithm.micro_batch, "training": loop.micro_batch}
    items = {"generating": loop.pairs, "preparing": loop.batch, "training": loop.batch}
    held = (long["preparing"].before - wide["preparing"].before) / least  # bytes of an item that was collected
    stages = []
    for name, rows in at_once.items():
        by_row = (_grown(wide[name]) - _grown(small[name])) / max(more - few, 1)
        by_item = (_grown(long[name]) - _grown(wide[name])) / least
        before = (long[name].before - wide[name].before) / least - (held if name != "generating" else 0)
        collected = 0 if name == "generating" else held * (loop.pairs - least)
        rest = (by_item + before) * (items[name] - least) + by_row * (min(rows, items[name]) - more)
        stages.append(Stage(name, round(wide[name].peak + collected + rest)))
    for name, rows, rewards in making:
        stages.append(Stage(name, _made(algorithm, prompts, meter, rows, rewards)))
    return Forecast(meter.resident, tuple(stages))


def _round(
    algorithm: Algorithm[Any, Any], loop: Loop, prompts: Sequence[str], meter: Meter, rows: int, items: int
) -> dict[str, Use]:
    """One round of so many items with so many rows at once, one step of Adam in it."""
    small, key = algorithm.rehearsal(rows, items / loop.pairs), Key(0).fold("memory")
    asked, weights = [prompts[i % len(prompts)] for i in range(items)], list(algorithm.parameters())
    small.memory().clear()
    with torch.no_grad():
        (experience, _), generating = meter.measure(lambda: small.collect(asked, key))
        batch = torch.arange(min(items, len(experience)))
        prepared, preparing = meter.measure(lambda: small.prepare(experience[batch], key))

    def step() -> None:
        optimizer = torch.optim.Adam(weights, lr=1e-12)
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        for part in torch.arange(len(prepared)).split(rows)[:2]:
            small.loss(prepared[part])[0].backward()
        optimizer.step()

    _, training = meter.measure(step)
    for weight in weights:
        weight.grad = None
    return {"generating": generating, "preparing": preparing, "training": training}


def _made(
    algorithm: Algorithm[Any, Any], prompts: Sequence[str], meter: Meter, rows: int, rewards: Sequence[Reward]
) -> int:
    """Bytes at most while `rows` items are made and encoded at once."""

    def use(count: int) -> int:
        asked = [prompts[i % len(prompts)] for i in range(count)]
        named = {str(i): reward for i, reward in enumerate(rewards)}
        sampler: ReverseProcess = algorithm.rehearsal(count, 1.0).sampler
        work = Making(algorithm.generator, sampler, asked, named, count, Key(0), lambda *_: None)
        return meter.measure(lambda: work.make("memory", range(count)))[1].peak

    more = min(MORE, rows)
    few = min(FEW, more)
    at_more = use(more)
    return at_more if more in (rows, few) else round(at_more + (at_more - use(few)) / (more - few) * (rows - more))


def _grown(use: Use) -> int:
    return use.peak - use.before
