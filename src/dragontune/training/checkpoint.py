"""Where a run stands, on disk: atomic, checked by digest, the last few kept; safetensors and JSON, never pickle.

A checkpoint is two files, `round-000012.safetensors` and then `round-000012.json`, which holds the digest of the first
and of itself: without a valid second file there is no checkpoint. Random state is not part of it, since all noise
belongs to (seed, round, item).
"""

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from dragontune.errors import InputError
from dragontune.training import files

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
    """The last `keep` states of a run in `folder`.

    >>> Checkpoints(Path("runs/demo/checkpoints")).latest()  # doctest: +SKIP
    """

    folder: Path
    keep: int = 2

    def save(self, state: TrainingState) -> None:
        """Write one, then drop the oldest beyond `keep`, and later ones: a run goes on from the newest whole one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = safetensors.torch.save(dict(state.tensors))
        body = {"round": state.round, "tensors_sha256": hashlib.sha256(content).hexdigest(), "history": state.history}
        files.write(self._tensors(state.round), content)
        files.write(self._record(state.round), json.dumps({"sha256": _digest(body), **body}).encode())
        numbers = self.rounds()
        later = [number for number in numbers if number > state.round]
        for number in [*numbers[: len(numbers) - len(later)][: -self.keep], *later]:
            self._record(number).unlink(missing_ok=True)
            self._tensors(number).unlink(missing_ok=True)

    def latest(self) -> TrainingState | None:
        """The newest whole one; each damaged one on the way is named in a warning."""
        for number in reversed(self.rounds()):
            try:
                return self._load(number)
            except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
                warnings.warn(
                    f"the checkpoint {self._record(number)} is damaged ({error}); the one before it is used instead",
                    stacklevel=2,
                )
        return None

    def rounds(self) -> list[int]:
        """The rounds that have a checkpoint, damaged or not."""
        return sorted(int(path.stem.removeprefix("round-")) for path in self.folder.glob("round-*.json"))

    def _load(self, number: int) -> TrainingState:
        content = self._tensors(number).read_bytes()
        record = json.loads(self._record(number).read_bytes())
        body = {name: record[name] for name in ("round", "tensors_sha256", "history")}
        if record["sha256"] != _digest(body) or body["tensors_sha256"] != hashlib.sha256(content).hexdigest():
            raise ValueError("its digest does not match its content")
        return TrainingState(body["round"], safetensors.torch.load(content), tuple(body["history"]))

    def _tensors(self, number: int) -> Path:
        return self.folder / f"round-{number:06d}.safetensors"

    def _record(self, number: int) -> Path:
        return self.folder / f"round-{number:06d}.json"


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
