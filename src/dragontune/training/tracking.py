"""Where the numbers of a run go: always log.jsonl; TensorBoard, wandb or trackio if the recipe lists them."""

import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from dragontune.errors import InputError
from dragontune.training import files
from dragontune.training.checkpoint import Record


@dataclass(frozen=True)
class Log:
    """log.jsonl: one JSON object a round, always consistent with the checkpoint that a run was resumed from."""

    path: Path

    def restart(self, history: Sequence[Record]) -> None:
        """Hold these rounds and no others: later lines, of rounds that will be done again, and torn ones go."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        files.write(self.path, "".join(f"{json.dumps(record)}\n" for record in history).encode())

    def append(self, record: Record) -> None:
        """One round more."""
        with self.path.open("a") as file:
            file.write(f"{json.dumps(record)}\n")


class Tracker(ABC):
    """Another place for the numbers. Off unless the recipe names one under `trackers`."""

    @abstractmethod
    def log(self, round: int, values: Mapping[str, float], folder: Path) -> None:
        """The numbers of one round of the run in `folder`."""


@dataclass(frozen=True)
class TensorBoard(Tracker):
    """Event files in RUN/tensorboard. Needs the `tensorboard` package."""

    def log(self, round: int, values: Mapping[str, float], folder: Path) -> None:
        """Write and close: a killed run has lost nothing."""
        with _door("torch.utils.tensorboard", "tensorboard").SummaryWriter(str(folder / "tensorboard")) as writer:
            for name, value in values.items():
                writer.add_scalar(name, value, round)


@dataclass(frozen=True)
class Wandb(Tracker):
    """Weights & Biases: sends the numbers to its service. Needs the `wandb` package."""

    project: str = "dragontune"

    def log(self, round: int, values: Mapping[str, float], folder: Path) -> None:
        """The run is named after its folder and goes on under the same id when resumed."""
        wandb = _door("wandb", "wandb")
        if wandb.run is None:
            wandb.init(project=self.project, name=folder.name, id=folder.name, resume="allow", dir=str(folder))
        wandb.log(dict(values), step=round)


@dataclass(frozen=True)
class Trackio(Tracker):
    """Trackio: a local dashboard. Needs the `trackio` package."""

    project: str = "dragontune"

    def log(self, round: int, values: Mapping[str, float], folder: Path) -> None:
        """The run is named after its folder and goes on under the same name when resumed."""
        trackio = _door("trackio", "trackio")
        if _door("trackio.context_vars", "trackio").current_run.get() is None:
            trackio.init(project=self.project, name=folder.name, resume="allow")
        trackio.log(dict(values), step=round)


def _door(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"expected the package {package} for this tracker, got none; run `pip install {package}` or leave it out"
        ) from error
