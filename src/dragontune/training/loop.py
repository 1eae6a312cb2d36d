"""The training loop. It knows nothing of rewards: an algorithm collects, prepares and gives a loss.

Adam with gradient clipping, at a fixed rate as DRAGON (Bai et al. 2025, arXiv 2504.15217) trains, or at one that falls
to 0; no warm-up, no averaging of weights. What a round does depends on the seed, its number, the weights and the
algorithm's memory only, so a run that was killed and resumed ends with the same bits as one that was not. With a
`watch` the run may stop early and ends with the best model that was looked at, not with the last (`watch.py`).
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from dragontune.algorithms.base import Algorithm
from dragontune.errors import InputError, InterruptedRun, NonFiniteError
from dragontune.seeding import Key
from dragontune.training import guard, signals
from dragontune.training.checkpoint import Record, TrainingState
from dragontune.training.listening import Listening
from dragontune.training.progress import Reporter, Silent
from dragontune.training.rounds import Rounds
from dragontune.training.run_folder import RunFolder
from dragontune.training.tracking import Tracker
from dragontune.training.watch import Watch, copies, due, hand_over, inspect, numbers, stopped


@dataclass(frozen=True)
class Loop:
    """For how long and how hard to tune.

    A round collects on-policy for `pairs` prompts and then takes `updates` steps of Adam, each on `batch` rows of what
    was collected, `micro_batch` at a time (which changes memory and nothing else). Every `checkpoint_every` rounds the
    state is saved, the last `keep` are kept; every `sample_every` rounds (0: never) `sample_count` clips are written.

    `decay: linear` lowers the rate from `lr` in the first round towards 0 after the last: what single rounds push at
    random then averages out (docs/log.md has the trials). A run that is prolonged later is not the longer run then.

    >>> Loop(rounds=16, lr=1e-5).pairs
    40
    """

    rounds: int = 50
    pairs: int = 40
    updates: int = 4
    batch: int = 40
    micro_batch: int = 40
    lr: float = 3e-6
    decay: Literal["none", "linear"] = "none"
    max_norm: float = 45.0
    seed: int = 0
    checkpoint_every: int = 1
    keep: int = 2
    sample_every: int = 5
    sample_count: int = 4

    def __post_init__(self) -> None:
        for name, low, high in (
            ("rounds", 1, 10**6),
            ("pairs", 1, 10**5),
            ("updates", 1, 10**4),
            ("batch", 1, 10**5),
            ("micro_batch", 1, 10**5),
            ("lr", 1e-12, 1.0),
            ("max_norm", 1e-12, 1e12),
            ("seed", 0, 2**63 - 1),
            ("checkpoint_every", 1, 10**6),
            ("keep", 1, 10**4),
            ("sample_every", 0, 10**6),
            ("sample_count", 0, 10**3),
        ):
            if not low <= (value := getattr(self, name)) <= high:
                raise InputError(f"expected loop.{name} between {low} and {high}, got {value}; change it in the recipe")

    def run(
        self,
        algorithm: Algorithm[Any, Any],
        prompts: Sequence[str],
        folder: RunFolder | None = None,
        *,
        listening: Listening | None = None,
        trackers: Sequence[Tracker] = (),
        report: Reporter | None = None,
        watch: Watch | None = None,
    ) -> list[Record]:
        """Tune the algorithm's weights in place and return one record a round; goes on where `folder` stopped.

        Without a `folder` nothing is written. Clips are written if there are a `listening` and a `folder`. With a
        `watch` the weights are those of its best candidate in the end, at that one's LoRA scale.

        Raises:
            InterruptedRun: Ctrl-C or SIGTERM; the state before the unfinished round is saved.
            NonFiniteError: a reward, loss or gradient is; likewise.
        """
        report = report or Silent()
        weights = list(algorithm.parameters())
        optimizer = torch.optim.Adam(weights, lr=self.lr)
        rounds = self._rounds(algorithm, prompts, weights, optimizer)
        memory = algorithm.memory()
        memory.clear()
        history, kept = self._resume(folder, weights, optimizer, memory, watch)
        state = TrainingState.of(weights, optimizer, history, memory, kept)
        try:
            for done in range(len(history), self.rounds + 1):
                report("tuning", done, self.rounds, _note(history))
                over = done == self.rounds or stopped(history)
                if folder and listening and self.listens(done, over):
                    listening.write(folder.samples(done))
                if over:
                    break
                history.append(rounds(done))
                if watch and due(watch, history):
                    kept = inspect(watch, history, weights, kept)
                state = TrainingState.of(weights, optimizer, history, memory, kept)
                if folder:
                    self._record(folder, state, trackers)
            if watch and "look" not in history[-1]:
                # in no checkpoint: a longer run would not make this look
                kept = inspect(watch, history, weights, kept)
                if folder:
                    folder.log.restart(history)
        except (KeyboardInterrupt, NonFiniteError) as stop:
            with signals.ignored():
                if folder:
                    folder.checkpoints(self.keep).save(state)
            if isinstance(stop, NonFiniteError):
                raise
            raise InterruptedRun(f"interrupted after {state.round} of {self.rounds} rounds") from stop
        if folder and listening and self.sample_every:
            _warn_if_unnoticed(listening, folder, len(history))
        if watch:
            hand_over(watch, algorithm.generator, history, weights, kept)
        return history

    def listens(self, done: int, over: bool) -> bool:
        """Whether clips are written after `done` rounds: before the first, after the last, and every few between."""
        return self.sample_every > 0 and (done % self.sample_every == 0 or over)

    def rate(self, number: int) -> float:
        """The learning rate of round `number`, from 0."""
        return self.lr if self.decay == "none" else self.lr * (1 - number / self.rounds)

    def _rounds(
        self,
        algorithm: Algorithm[Any, Any],
        prompts: Sequence[str],
        weights: Sequence[torch.nn.Parameter],
        optimizer: torch.optim.Optimizer,
    ) -> Rounds:
        return Rounds(
            algorithm=algorithm,
            prompts=prompts,
            weights=weights,
            optimizer=optimizer,
            key=Key(self.seed),
            pairs=self.pairs,
            updates=self.updates,
            batch=self.batch,
            micro_batch=self.micro_batch,
            max_norm=self.max_norm,
            rate=self.rate,
        )

    def _resume(
        self,
        folder: RunFolder | None,
        weights: Sequence[torch.nn.Parameter],
        optimizer: torch.optim.Optimizer,
        memory: dict[str, torch.Tensor],
        watch: Watch | None,
    ) -> tuple[list[Record], list[torch.Tensor]]:
        """Put back the newest state, if there is one; the rounds that led to it, and the best weights for a `watch`."""
        if folder is None:
            return [], copies(weights) if watch else []
        state = folder.checkpoints(self.keep).latest()
        if state is not None and state.round > self.rounds:
            raise InputError(
                f"expected loop.rounds of at least {state.round}, which {folder.path} has done already, "
                f"got {self.rounds}; raise it or choose another --out"
            )
        if state is not None:
            state.restore(weights, optimizer, memory)
        history = list(state.history if state else ())
        folder.log.restart(history)
        if not watch:
            return history, []
        kept = state.best() if state else copies(weights)
        if len(kept) != len(weights):
            raise InputError(
                f"expected a run that was started with a guard, got {folder.path}, which was not; choose another --out"
            )
        return history, kept

    def _record(self, folder: RunFolder, state: TrainingState, trackers: Sequence[Tracker]) -> None:
        """The checkpoint first: a line in the log that no checkpoint stands behind is dropped when resuming."""
        record = state.history[-1]
        if state.round % self.checkpoint_every == 0 or state.round == self.rounds or stopped(state.history):
            folder.checkpoints(self.keep).save(state)
        folder.log.append(record)
        values = {"reward": record["reward"], "loss": record["loss"], **record["metrics"], **numbers(record)}
        for tracker in trackers:
            tracker.log(state.round, values, folder.path)


def _note(history: Sequence[Record]) -> str:
    return f"reward {history[-1]['reward']:.4g}" if history else ""


def _warn_if_unnoticed(listening: Listening, folder: RunFolder, rounds: int) -> None:
    before, after = (listening.read(folder.samples(number)) for number in (0, rounds))
    if len(before) == len(after) and (sense := guard.unnoticed(before, after)):
        warnings.warn(
            f"THE TUNING CHANGED NOTHING {sense}: after {rounds} rounds every clip in {folder.samples(rounds)} differs "
            f"from its untuned counterpart by less than {guard.SENSES[sense]}; raise loop.lr or loop.rounds",
            stacklevel=3,
        )
