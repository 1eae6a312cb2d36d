"""One round of training: collect on-policy, then a few steps of Adam on what was collected."""

import resource
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from math import ceil, fsum
from typing import Any

import torch
from torch import nn

from dragontune.algorithms.base import COUNTS, Algorithm
from dragontune.data import Rows
from dragontune.errors import InputError
from dragontune.health import Health
from dragontune.parallel import everyone, portions, processes
from dragontune.seeding import Key
from dragontune.training import guard
from dragontune.training.checkpoint import Record
from dragontune.training.gradients import GradientSum
from dragontune.training.health import Tally, Update, unsound


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
    health: Health = field(default_factory=Health)

    def __call__(self, number: int, skipped: int = 0) -> Record:
        """Do round `number` (from 0; its record counts from 1) and say how it went.

        `skipped` updates in a row, right before this round, were skipped.

        Raises:
            NonFiniteError: a reward or a weight is, or the loss or gradient of too many updates in a row.
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
        tally = Tally(self.health, number + 1, skipped)
        for update in range(self.updates):
            rows = torch.tensor(deal(key.fold("rows"), len(experience), update * size, size))
            tally.add(self.update(experience[rows], key.fold("update", update)))
        logged = {name: value for name, value in collected.items() if not isinstance(value, tuple)}
        texts = {name: list(value) for name, value in collected.items() if isinstance(value, tuple)}
        means = tally.metrics()
        counts = {name: logged.get(name, 0.0) + means[name] for name in COUNTS if name in means}
        metrics = {**logged, **means, **counts}
        norm = torch.nn.utils.get_total_norm(self.weights).item()
        metrics["adapter_norm"] = guard.finite("norm of the weights", norm, number + 1)
        return {
            "round": number + 1,
            "seconds": round(time.monotonic() - start, 3),
            "peak_memory": peak_memory(),
            "reward": metrics.pop("reward", None),
            "loss": metrics.pop("loss", None),
            "metrics": {sys.intern(name): value for name, value in metrics.items()},  # one copy for all rounds
            **texts,
            **({"skips": tally.skips} if tally.skips else {}),
        }

    def chosen(self, number: int) -> list[str]:
        """The prompts of a round: each is used once before any is used again, in an order that is new every time."""
        rows = deal(self.key.fold("prompts"), len(self.prompts), number * self.pairs, self.pairs)
        return [self.prompts[row] for row in rows]

    def update(self, batch: Rows, key: Key) -> Update:
        """One step of Adam on the mean loss over the batch, whatever the micro-batches and the processes.

        It is skipped where the loss or the gradient is not finite: weights and Adam's memory stay as they were.
        """
        with torch.no_grad():
            prepared = self.algorithm.prepare(batch, key)
        parts: dict[str, list[float]] = {}
        columns: dict[str, list[torch.Tensor]] = {}
        total = sum(everyone(len(prepared)))
        gradients = GradientSum(self.weights, ceil(len(prepared) / self.micro_batch))
        for portion in portions(torch.arange(len(prepared)), self.micro_batch, self.algorithm.generator.sharded):
            part, part_of_all = prepared[portion.rows], len(portion.rows) / total
            loss, metrics = self.algorithm.loss(part)
            (loss * part_of_all).backward()
            if not portion.real:
                gradients.drop()
                continue
            gradients.take()
            for name, value in {**metrics, "loss": loss.item()}.items():
                if isinstance(value, torch.Tensor):
                    columns.setdefault(name, []).append(value.detach().cpu())
                else:
                    parts.setdefault(name, []).append(part_of_all * value)
        summed = gradients.hand_over()
        every = everyone((parts, {name: torch.cat(column) for name, column in columns.items()}))
        totals = {name: total_of(chain.from_iterable(numbers[name] for numbers, _ in every)) for name in parts}
        rows = {name: torch.cat([by_row[name] for _, by_row in every]) for name in columns}
        norm = torch.nn.utils.get_total_norm(summed)
        totals["grad_norm"] = norm.item()
        totals["clipped_updates"] = float(totals["grad_norm"] > self.max_norm)
        if found := unsound(totals["loss"], totals["grad_norm"]):
            self.optimizer.zero_grad()
        else:
            torch.nn.utils.clip_grads_with_norm_(self.weights, self.max_norm, norm)
            self.optimizer.step()
        return Update(totals, rows, found)


def _enough(what: str, count: int) -> None:
    if count < processes():
        raise InputError(
            f"expected at least as many {what} as there are processes ({processes()}), got {count}; raise loop.pairs "
            "and loop.batch, or start fewer processes"
        )


def total_of(numbers: Iterable[float]) -> float:
    """Their sum, in whatever order they come; not finite where one of them is not, or where it is too large."""
    listed = list(numbers)
    try:
        return fsum(listed)
    except (OverflowError, ValueError):
        return sum(listed)


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
