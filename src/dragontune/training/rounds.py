"""One round of training: collect on-policy, then a few steps of Adam on what was collected."""

import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from torch import nn

from dragontune.algorithms.base import COUNTS, Algorithm
from dragontune.data import Rows
from dragontune.errors import InputError
from dragontune.parallel import add_up, processes, share
from dragontune.seeding import Key
from dragontune.training import guard
from dragontune.training.checkpoint import Record


def plain() -> Accelerator:
    """One that leaves gradients as they are, whatever ACCELERATE_* variables or a launcher's defaults say."""
    return Accelerator(mixed_precision="no", gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1))


@dataclass(frozen=True, eq=False)
class Rounds:
    """What every round needs; what differs between rounds is their number and the weights."""

    algorithm: Algorithm[Any, Any]
    prompts: Sequence[str]
    weights: Sequence[nn.Parameter]
    optimizer: torch.optim.Optimizer
    key: Key
    pairs: int
    updates: int
    batch: int
    micro_batch: int
    max_norm: float
    rate: Callable[[int], float]
    accelerator: Accelerator = field(default_factory=plain)

    def __call__(self, number: int) -> Record:
        """Do round `number` (from 0; its record counts from 1) and say how it went.

        Raises:
            NonFiniteError: a reward, a loss or a gradient is.
        """
        start, key = time.monotonic(), self.key.fold("round", number)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(number)
        _enough("prompts a round", self.pairs)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        with torch.no_grad():
            experience, collected = self.algorithm.collect(self.chosen(number), key.fold("collect"))
        if "reward" in collected:
            guard.finite("reward", collected["reward"], number + 1)
        size = min(self.batch, len(experience))
        _enough("rows in a batch", size)
        steps: list[Mapping[str, float]] = []
        for update in range(self.updates):
            rows = torch.tensor(deal(key.fold("rows"), len(experience), update * size, size))
            steps.append(self.update(experience[rows], key.fold("update", update), number))
        totals = {name: sum(step[name] for step in steps) for name in steps[0]}
        means = {name: total / len(steps) for name, total in totals.items() if name not in COUNTS}
        counts = {name: collected.get(name, 0.0) + totals.get(name, 0.0) for name in COUNTS if name in totals}
        metrics = {**collected, **means, **counts}
        return {
            "round": number + 1,
            "seconds": round(time.monotonic() - start, 3),
            "peak_memory": peak_memory(),
            "reward": metrics.pop("reward"),
            "loss": metrics.pop("loss"),
            "metrics": metrics,
        }

    def chosen(self, number: int) -> list[str]:
        """The prompts of a round: each is used once before any is used again, in an order that is new every time."""
        rows = deal(self.key.fold("prompts"), len(self.prompts), number * self.pairs, self.pairs)
        return [self.prompts[row] for row in rows]

    def update(self, batch: Rows, key: Key, number: int) -> Mapping[str, float]:
        """One step of Adam on the mean loss over the batch, whatever the micro-batches and the processes."""
        with torch.no_grad():
            prepared = self.algorithm.prepare(batch, key)
        totals: dict[str, float] = {}
        for weight in self.weights:
            weight.grad = torch.zeros_like(weight)
        for rows in share(len(prepared)).split(self.micro_batch):
            part, part_of_all = prepared[rows], len(rows) / len(prepared)
            loss, metrics = self.algorithm.loss(part)
            self.accelerator.backward(loss * part_of_all)
            for name, value in {**metrics, "loss": loss.item()}.items():
                totals[name] = totals.get(name, 0.0) + part_of_all * value
        add_up(weight.grad for weight in self.weights if weight.grad is not None)
        totals = _summed(totals)
        guard.finite("loss", totals["loss"], number + 1)
        norm = torch.nn.utils.clip_grad_norm_(self.weights, self.max_norm)
        totals["grad_norm"] = guard.finite("gradient norm", norm.item(), number + 1)
        self.optimizer.step()
        return totals


def _enough(what: str, count: int) -> None:
    if count < processes():
        raise InputError(
            f"expected at least as many {what} as there are processes ({processes()}), got {count}; raise loop.pairs "
            "and loop.batch, or start fewer processes"
        )


def _summed(numbers: Mapping[str, float]) -> dict[str, float]:
    """Over all processes."""
    values = torch.tensor(list(numbers.values()), dtype=torch.float64)
    add_up([values])
    return dict(zip(numbers, values.tolist(), strict=True))


def peak_memory() -> int:
    """Bytes: the most that PyTorch held on the GPU this round, or that the process has held so far on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def deal(key: Key, count: int, start: int, size: int) -> list[int]:
    """Positions `start` to `start + size` of an endless row of decks of `count` cards, each shuffled by its number.

    >>> sorted(deal(Key(0), 4, 0, 4))
    [0, 1, 2, 3]
    """
    decks = {deck: key.fold(deck).permutation(count) for deck in range(start // count, (start + size - 1) // count + 1)}
    return [int(decks[position // count][position % count]) for position in range(start, start + size)]
