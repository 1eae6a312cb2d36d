"""The folder of a run: where everything lies, whose it is, and that no other run or process writes into it."""

import contextlib
import fcntl
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dragontune.errors import InputError
from dragontune.generators.base import Generator
from dragontune.training import files, links, outside
from dragontune.training.checkpoint import Checkpoints, Record
from dragontune.training.tracking import Log

CLASS = ".class_path"
_held: set[int] = set()
"""Open folders: a lock goes on in forked processes (which read files for a reward, say) unless they close them."""
os.register_at_fork(after_in_child=lambda: [os.close(_held.pop()) for _ in range(len(_held))] and None)
SHOWN, LETTERS = 3, 60
"""How many changes of a recipe a message names, and how much of each value."""


@dataclass(frozen=True)
class RunFolder:
    """RUN/recipe.yaml, log.jsonl, checkpoints/, samples/, adapter/, report/ and README.md.

    >>> RunFolder(Path("runs/demo")).adapter.as_posix()
    'runs/demo/adapter'
    """

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe: running it again is running this run again."""
        return self.path / "recipe.yaml"

    @property
    def adapter(self) -> Path:
        """The tuned LoRA in peft's format, there once tuning has ended."""
        return self.path / "adapter"

    @property
    def report(self) -> Path:
        """What the evaluation writes."""
        return self.path / "report"

    @property
    def log(self) -> Log:
        """One line a round."""
        return Log(self.path / "log.jsonl")

    def checkpoints(self, keep: int) -> Checkpoints:
        """The last `keep` states."""
        return Checkpoints(self.path / "checkpoints", keep)

    def samples(self, round: int) -> Path:
        """The clips of the model as it was after `round` rounds."""
        return self.path / "samples" / f"round-{round:06d}"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder if need be, and keep other processes out of it meanwhile.

        Raises:
            InputError: it is a file, cannot be written, or is in use.
        """
        new = not self.path.exists()
        files.make_folder(self.path)
        if not os.access(self.path, os.W_OK):
            raise InputError(
                f"expected a folder that can be written, got {self.path}; choose another --out or its permissions"
            )
        handle = os.open(self.path, os.O_RDONLY)
        _held.add(handle)
        try:
            self._lock(handle)
            yield
        finally:
            if handle in _held:  # not in a process that was forked meanwhile
                _held.discard(handle)
                os.close(handle)
            if new:
                with contextlib.suppress(OSError):
                    self.path.rmdir()  # of a recipe that was refused; what holds something stays

    def _lock(self, handle: int) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"expected a run folder of its own, got {self.path}, which another process is writing to; "
                "wait for it or choose another --out"
            ) from error
        except OSError as error:  # file systems over a network often cannot
            warnings.warn(
                f"{self.path} cannot be locked ({error.strerror}), so take care that no other process writes to it",
                stacklevel=1,
            )

    def check(self, fixed: str, resume: bool) -> None:
        """Whether this recipe may be run here; call it within `held`.

        `fixed` is the part of the recipe that must stay the same while one run is interrupted and resumed. So must the
        files that it names (`outside`).

        Raises:
            InputError: the folder holds another run, or anything else that is not ours, or such a file has changed.
        """
        links.refuse(self.path)
        if not self._marker.exists():
            strange = sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith("."))
            if strange and strange not in (["checkpoints"], ["checkpoints", "recipe.yaml"]):
                raise InputError(
                    f"expected an empty or new folder for the run, got {self.path}, which holds {strange[0]}; "
                    "choose another --out"
                )
        elif not resume:
            raise InputError(
                f"expected an empty or new folder for the run, got {self.path}, which holds another run; "
                "add --resume to go on with that one, or choose another --out"
            )
        elif not isinstance(before := _read(self._marker), str):
            warnings.warn(
                f"{self._marker} is damaged, so nobody can tell whether this is the recipe that {self.path} was "
                f"started with; {self.recipe} should be",
                stacklevel=1,
            )
        elif changes := _changes(before, fixed):
            shown, more = "; ".join(changes[:SHOWN]), len(changes) - SHOWN
            raise InputError(
                f"expected the recipe that {self.path} was started with, got another ({shown}"
                f"{f'; and {more} more' if more > 0 else ''}); resume with {self.recipe}, or choose another --out"
            )
        elif changed := outside.changed(self._known(), self.path):
            shown, more = "; ".join(changed[:SHOWN]), len(changed) - SHOWN
            raise InputError(
                f"expected the files that {self.path} was started with, got others ({shown}"
                f"{f'; and {more} more' if more > 0 else ''}); put them back, choose another --out, or delete "
                f"{self._outside} to go on with them all the same"
            )

    def claim(self, recipe: str, fixed: str) -> None:
        """Take the folder, which `check` allowed, for this recipe."""
        files.recover_folder(self.adapter)
        for folder in (self.path, self.path / "samples", self._marker.parent):
            files.sweep(folder)
        self._end.unlink(missing_ok=True)
        self._marker.parent.mkdir(exist_ok=True)
        files.write(self.recipe, recipe.encode())
        if not self._marker.exists():
            self._outside.unlink(missing_ok=True)  # of a start that was killed, maybe with other files
        self.note(fixed)
        files.write(self._marker, json.dumps(fixed).encode())

    def note(self, fixed: str) -> None:
        """Remember what the files that `fixed` names hold, those known already as they were."""
        files.write(
            self._outside, json.dumps(outside.digests(json.loads(fixed), self.path, self._known()), indent=1).encode()
        )

    def _known(self) -> dict[str, str]:
        found = _read(self._outside)  # none in a run that was started before there was such a file
        return found if isinstance(found, dict) else {}

    def finish(self, recipe: str) -> None:
        """Remember that everything this recipe asks for is there."""
        files.write(self._end, json.dumps(recipe).encode())

    def finished(self, recipe: str) -> bool:
        """Whether everything this recipe asks for is there."""
        return _read(self._end) == recipe

    @property
    def _end(self) -> Path:
        return self.path / "checkpoints" / "finished.json"

    @property
    def _marker(self) -> Path:
        return self.path / "checkpoints" / "recipe.json"

    @property
    def _outside(self) -> Path:
        return self.path / "checkpoints" / "outside.json"

    def save_adapter(self, generator: Generator) -> None:
        """Write `adapter`, whole or not at all."""
        files.write_folder(self.adapter, lambda folder: generator.save_adapter(str(folder)))

    def history(self) -> list[Record]:
        """The rounds in log.jsonl."""
        lines = self.log.path.read_text().splitlines() if self.log.path.exists() else []
        return [json.loads(line) for line in lines]


def _read(path: Path) -> object:
    """What stands in one of our own small files; None where it is not there or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None


def _changes(before: str, now: str) -> list[str]:
    """Fields of two recipes in JSON that differ, in order, as in `size.height: 32 before, 16 now`."""
    if before == now:
        return []
    old, new = (_fields(json.loads(text)) for text in (before, now))
    names = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
    others = [name.removesuffix(CLASS) for name in names if name.endswith(CLASS)]  # where all the rest may differ
    names = [name for name in names if not any(name.startswith(o) and name != f"{o}{CLASS}" for o in others)]
    said = [f"{name.removesuffix(CLASS)}: {_value(old, name)} before, {_value(new, name)} now" for name in names]
    return said or ["fields that say nothing"]


def _fields(value: object, name: str = "") -> dict[str, object]:
    """The values of a recipe by their names with their sections."""
    if not isinstance(value, dict):
        return {name: value}
    found: dict[str, object] = {}
    for key, member in value.items():
        found |= _fields(member, name if key == "init_args" else f"{name}.{key}" if name else str(key))
    return found


def _value(fields: dict[str, object], name: str) -> str:
    value = fields.get(name)
    if name.endswith(CLASS) and isinstance(value, str):
        value = value if ".py:" in value else value.rpartition(".")[2]
    said = "nothing" if value is None else value if isinstance(value, str) else json.dumps(value)
    return said if len(said) <= LETTERS else f"{said[:LETTERS]}..."
