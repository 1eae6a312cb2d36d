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
from dragontune.errors import InputError, InterruptedRun
from dragontune.health import Health, findings, in_a_row
from dragontune.parallel import connected, from_main, in_company, is_main, level
from dragontune.seeding import Key
from dragontune.training import guard, signals
from dragontune.training.allocator import give_back
from dragontune.training.checkpoint import Record, TrainingState
from dragontune.training.health import released, watch_over
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

    @in_company()
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
        health: Health | None = None,
    ) -> list[Record]:
        """Tune the algorithm's weights in place and return one record a round; goes on where `folder` stopped.

        Without a `folder` nothing is written. Clips are written if there are a `listening` and a `folder`. With a
        `watch` the weights are those of its best candidate in the end, at that one's LoRA scale. `health` says what is
        no longer well: it warns, and ends the run where it is told to. Of several processes all call this alike, and
        the main one alone reads and writes.

        Raises:
            InterruptedRun: Ctrl-C or SIGTERM, or another process was lost; the state before the unfinished round is
                saved.
            NonFiniteError: a reward is, or the loss or gradient of too many updates in a row; likewise.
        """
        report, health = report or Silent(), health or Health()
        weights = list(algorithm.parameters())
        optimizer = torch.optim.Adam(weights, lr=self.lr)
        rounds = self._rounds(algorithm, prompts, weights, optimizer, health)
        memory = algorithm.memory()
        memory.clear()
        level(weights)
        history, kept = self._resume(folder, weights, optimizer, memory, watch, health)
        mine = folder if is_main() else None
        state = TrainingState.of(weights, optimizer, history, memory, kept)
        told = {finding.key for finding in findings(history, health) if finding.verdict != "fine"}
        try:
            with connected():
                for done in range(len(history), self.rounds + 1):
                    report("tuning", done, self.rounds, _note(history))
                    over = done == self.rounds or stopped(history)
                    if folder and listening and self.listens(done, over):
                        listening.write(folder.samples(done))
                    if over:
                        break
                    record = rounds(done, in_a_row(history))
                    history.append(from_main(lambda record=record: record))
                    level(weights)
                    if watch and due(watch, history):
                        kept = inspect(watch, history, weights, kept, algorithm.generator.sharded)
                    watch_over(history, health, told)
                    state = TrainingState.of(weights, optimizer, history, memory, kept)
                    if mine:
                        self._record(mine, state, trackers)
                    give_back()
                if watch and "look" not in history[-1]:
                    # in no checkpoint: a longer run would not make this look
                    kept = inspect(watch, history, weights, kept, algorithm.generator.sharded)
                    if mine:
                        mine.log.restart(history)
        except BaseException as stop:
            with signals.ignored():
                self._rescue(mine, state, stop)
            if not isinstance(stop, KeyboardInterrupt):
                raise
            raise InterruptedRun(f"interrupted after {state.round} of {self.rounds} rounds") from stop
        if mine and listening and self.sample_every:
            _warn_if_unnoticed(listening, mine, len(history))
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
        health: Health,
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
            health=health,
        )

    def _resume(
        self,
        folder: RunFolder | None,
        weights: Sequence[torch.nn.Parameter],
        optimizer: torch.optim.Optimizer,
        memory: dict[str, torch.Tensor],
        watch: Watch | None,
        health: Health,
    ) -> tuple[list[Record], list[torch.Tensor]]:
        """Put back the newest state, if there is one; the rounds that led to it, and the best weights for a `watch`."""
        if folder is None:
            return [], copies(weights) if watch else []
        found = from_main(lambda: self._stored(folder))
        state = TrainingState(*found) if found else None
        if state is not None:
            state.restore(weights, optimizer, memory)
        history = released(state.history if state else (), health)
        if is_main():
            folder.log.restart(history)
        if not watch:
            return history, []
        kept = state.best() if state else copies(weights)
        if len(kept) != len(weights):
            raise InputError(
                f"expected a run that was started with a guard, got {folder.path}, which was not; choose another --out"
            )
        return history, kept

    def _stored(self, folder: RunFolder) -> tuple[int, dict[str, torch.Tensor], tuple[Record, ...]] | None:
        """The fields of the newest state."""
        state = folder.checkpoints(self.keep).latest()
        if state is None:
            return None
        if state.round > self.rounds:
            raise InputError(
                f"expected loop.rounds of at least {state.round}, which {folder.path} has done already, "
                f"got {self.rounds}; raise it or choose another --out"
            )
        return state.round, dict(state.tensors), state.history

    def _rescue(self, folder: RunFolder | None, state: TrainingState, stop: BaseException) -> None:
        """Save the state before the unfinished round, whatever stopped it.

        A full disk that stopped it is told of once; one that is found now is what there is to tell, since others say
        that the state is saved.
        """
        if folder is None:
            return
        try:
            folder.checkpoints(self.keep).save(state)
        except OSError:
            if not isinstance(stop, OSError):
                raise

    def _record(self, folder: RunFolder, state: TrainingState, trackers: Sequence[Tracker]) -> None:
        """The checkpoint first: a line in the log that no checkpoint stands behind is dropped when resuming."""
        record = state.history[-1]
        if state.round % self.checkpoint_every == 0 or state.round == self.rounds or stopped(state.history):
            folder.checkpoints(self.keep).save(state)
        folder.log.append(record)
        values = {"reward": record["reward"], "loss": record["loss"], **record["metrics"], **numbers(record)}
        known = {name: value for name, value in values.items() if value is not None}
        for tracker in trackers:
            tracker.log(state.round, known, folder.path)


def _note(history: Sequence[Record]) -> str:
    reward = history[-1]["reward"] if history else None
    return "" if reward is None else f"reward {reward:.4g}"


def _warn_if_unnoticed(listening: Listening, folder: RunFolder, rounds: int) -> None:
    before, after = (listening.read(folder.samples(number)) for number in (0, rounds))
    if len(before) == len(after) and (sense := guard.unnoticed(before, after)):
        warnings.warn(
            f"THE TUNING CHANGED NOTHING {sense}: after {rounds} rounds every clip in {folder.samples(rounds)} differs "
            f"from its untuned counterpart by less than {guard.SENSES[sense]}; raise loop.lr or loop.rounds",
            stacklevel=1,
        )
