"""Where a run stands, on disk: atomic, checked by digest, the last few and the best kept; safetensors and JSON only.

A checkpoint is two files, `round-000012.safetensors` and then `round-000012.json`, which holds the digest of the first
and of itself: without a valid second file there is no checkpoint. Which is the newest is told by these numbers, never
by the time of a file. Random state is not part of it, since all noise belongs to (seed, round, item).
"""

import hashlib
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from dragontune import tensor_files
from dragontune.errors import InputError
from dragontune.training import files

DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, safetensors.SafetensorError)
"""What reading a damaged checkpoint may raise."""
Record = dict[str, Any]
"""One line of log.jsonl: round, seconds, reward, loss, metrics; of a guarded run also look and stopped (`watch`)."""


@dataclass(frozen=True, eq=False)
class TrainingState:
    """Everything the next round depends on, as copies.

    What is trained, what Adam and the algorithm remember, the rounds behind it, and the best weights a guard has found.
    """

    round: int
    tensors: Mapping[str, Tensor]
    history: tuple[Record, ...]

    @classmethod
    def of(
        cls,
        weights: Sequence[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        history: Sequence[Record],
        memory: Mapping[str, Tensor] | None = None,
        best: Sequence[Tensor] = (),
    ) -> "TrainingState":
        """A copy of the state after `len(history)` rounds; `memory` is the algorithm's, `best` a guard's weights."""
        tensors = {f"weight.{i:04d}": weight for i, weight in enumerate(weights)}
        for i, remembered in optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{i:04d}.{name}": torch.as_tensor(value) for name, value in remembered.items()}
        tensors |= {f"memory.{name}": value for name, value in (memory or {}).items()}
        tensors |= {f"best.{i:04d}": weight for i, weight in enumerate(best)}
        copies = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
        return cls(len(history), copies, tuple(history))

    def restore(
        self,
        weights: Sequence[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        memory: dict[str, Tensor] | None = None,
    ) -> None:
        """Put the copies back; `memory`, the algorithm's, is changed in place.

        Raises:
            InputError: the checkpoint is of an adapter of another shape.
        """
        expected = {f"weight.{i:04d}": tuple(weight.shape) for i, weight in enumerate(weights)}
        got = {name: tuple(value.shape) for name, value in self.tensors.items() if name.startswith("weight.")}
        if expected != got:
            raise InputError(
                f"expected a checkpoint of this adapter ({len(expected)} weights), got one of another "
                f"({len(got)} weights or other shapes); resume with the recipe that the run was started with"
            )
        with torch.no_grad():
            for name, weight in zip(expected, weights, strict=True):
                weight.copy_(self.tensors[name])
        memories: dict[int, dict[str, Tensor]] = {}
        for name, value in self.tensors.items():
            if name.startswith("adam."):
                _, number, field = name.split(".", 2)
                memories.setdefault(int(number), {})[field] = value.clone()
        optimizer.load_state_dict({"state": memories, "param_groups": optimizer.state_dict()["param_groups"]})
        if memory is not None:
            self.recall(memory)

    def best(self) -> list[Tensor]:
        """The weights that a guard would hand over; none in a run without one."""
        return [self.tensors[name].clone() for name in sorted(self.tensors) if name.startswith("best.")]

    def recall(self, memory: dict[str, Tensor]) -> None:
        """Put back what the algorithm remembered, in place."""
        found = {name: value for name, value in self.tensors.items() if name.startswith("memory.")}
        memory.clear()
        memory.update({name.removeprefix("memory."): value.clone() for name, value in found.items()})


@dataclass(frozen=True)
class Checkpoints:
    """The last `keep` states of a run in `folder`, and the best.

    The best is the one at whose round the guard found its best candidate; without a guard the one with the highest
    reward, which is measured in the round that follows (on the prompts of that round).

    >>> Checkpoints(Path("runs/demo/checkpoints")).latest()  # doctest: +SKIP
    """

    folder: Path
    keep: int = 2

    def save(self, state: TrainingState) -> None:
        """Write one, then drop the others but the best and the last, and later ones: a run goes on from the newest.

        One that is there already with the same content stays as it is, so that at no moment is there one less.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        content = safetensors.torch.save(dict(state.tensors))
        body = {
            "round": state.round,
            "tensors_sha256": hashlib.sha256(content).hexdigest(),
            "tensors_bytes": len(content),
            "history": state.history,
        }
        if not self._is_there(state.round, digest := _digest(body)):
            files.write(self._tensors(state.round), content)
            files.write(self._record(state.round), json.dumps({"sha256": digest, **body}).encode())
        earlier = [number for number in self.rounds() if number <= state.round]
        best = _best([number for number in earlier if number < state.round], state.history)
        self._prune({*earlier[-self.keep :], *([] if best is None else [best])})

    def latest(self) -> TrainingState | None:
        """The newest whole one; each damaged one on the way is named in a warning.

        Raises:
            InputError: one may not be read, which is no damage: what it holds would be lost by going on without it.
        """
        numbers = sorted({*self.rounds(), *self._halves()})
        while numbers:
            number = numbers.pop()
            try:
                return self._load(number)
            except PermissionError as error:
                raise InputError(
                    f"expected a checkpoint that can be read, got {error.filename} ({error.strerror}); change its "
                    "permissions, or remove it to go on from the one before"
                ) from error
            except DAMAGE as error:
                instead = "the one before it is used" if numbers else "there is none before it, so the run starts again"
                warnings.warn(f"the checkpoint {self._record(number)} is damaged ({error}); {instead}", stacklevel=1)
        return None

    def rounds(self) -> list[int]:
        """The rounds that have a checkpoint, damaged or not."""
        return _numbers(self.folder, ".json")

    def _halves(self) -> set[int]:
        """The rounds with tensors only: the run was killed before it wrote the record, or that was lost."""
        return set(_numbers(self.folder, ".safetensors")) - set(self.rounds())

    def _prune(self, kept: set[int]) -> None:
        """The record goes first, so that a kill in between leaves no checkpoint that looks whole."""
        for number in {*self.rounds(), *self._halves()} - kept:
            self._record(number).unlink(missing_ok=True)
            self._tensors(number).unlink(missing_ok=True)

    def _is_there(self, number: int, digest: str) -> bool:
        try:
            body = self._body(number)
            return _digest(body) == digest and _file_digest(self._tensors(number)) == body["tensors_sha256"]
        except DAMAGE:
            return False

    def _body(self, number: int) -> dict[str, Any]:
        if not self._record(number).exists():
            raise ValueError("it is not there: the run was killed while saving it, or it was removed")
        record = json.loads(self._record(number).read_bytes())
        body = {name: value for name, value in record.items() if name != "sha256"}
        if record["sha256"] != _digest(body):
            raise ValueError("its digest does not match its content")
        if not body["round"] == len(body["history"]) == number:
            raise ValueError(f"it is of round {body['round']}")
        return body

    def _load(self, number: int) -> TrainingState:
        body, path = self._body(number), self._tensors(number)
        size = path.stat().st_size
        if size != body.get("tensors_bytes", size):  # older ones do not say
            raise ValueError(f"{path.name} has {size} bytes where {body['tensors_bytes']} were written")
        content = path.read_bytes()
        if body["tensors_sha256"] != hashlib.sha256(content).hexdigest():
            raise ValueError(f"the digest of {path.name} does not match its content")
        return TrainingState(number, tensor_files.loads(content).tensors, tuple(body["history"]))

    def _tensors(self, number: int) -> Path:
        return self.folder / f"round-{number:06d}.safetensors"

    def _record(self, number: int) -> Path:
        return self.folder / f"round-{number:06d}.json"


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _numbers(folder: Path, suffix: str) -> list[int]:
    stems = (path.stem.removeprefix("round-") for path in folder.glob(f"round-*{suffix}"))
    return sorted(int(stem) for stem in stems if stem.isdecimal())


def _best(numbers: Sequence[int], history: Sequence[Record]) -> int | None:
    """The best of the rounds `numbers`, all before the last: what a look found after them, else the reward after."""
    if any("look" in record for record in history):
        looks = [record["look"]["best"]["round"] for record in history if "look" in record]
        return looks[-1] if looks[-1] in numbers else None
    rewards = {number: history[number].get("reward") for number in numbers}
    known = {number: value for number, value in rewards.items() if value is not None and math.isfinite(value)}
    return max(known, key=lambda number: (known[number], -number), default=None)
