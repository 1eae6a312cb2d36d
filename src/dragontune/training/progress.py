"""How far a run is: bars on a terminal, a plain line now and then anywhere else, nothing in a script."""

import time
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Reporter(AbstractContextManager["Reporter"], ABC):
    """Told how much of a named phase is done; a context manager, so that bars are cleaned up."""

    @abstractmethod
    def __call__(self, phase: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` steps of `phase`; the note is shown beside it (the current reward)."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to clean up."""
        return


class Silent(Reporter):
    """Says nothing."""

    def __call__(self, phase: str, done: int, total: int, note: str = "") -> None:
        """Nothing."""


class Lines(Reporter):
    """A plain line when a phase starts and ends, and every `pause` seconds between."""

    def __init__(self, console: Console, pause: float = 10.0) -> None:
        self.console, self.pause = console, pause
        self.said: dict[str, float] = {}

    def __call__(self, phase: str, done: int, total: int, note: str = "") -> None:
        """Print, if it is time to."""
        now = time.monotonic()
        if 0 < done < total and now - self.said.get(phase, 0.0) < self.pause:
            return
        self.said[phase] = now
        self.console.print(f"{phase}: {done} of {total}{f', {note}' if note else ''}", highlight=False, markup=False)


class Bars(Reporter):
    """A rich progress bar for each phase."""

    def __init__(self, console: Console) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        times = (TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}", markup=False))
        self.bars = Progress(*columns, *times, console=console)
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "Bars":
        """Start drawing."""
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the bars as they are and give the terminal back."""
        self.bars.stop()

    def __call__(self, phase: str, done: int, total: int, note: str = "") -> None:
        """Move the phase's bar; its first call draws it."""
        if phase not in self.tasks:
            self.tasks[phase] = self.bars.add_task(phase, total=total, note=note)
        self.bars.update(self.tasks[phase], completed=done, total=total, note=note)


def reporter() -> Reporter:
    """Bars if standard error is a terminal, lines if not."""
    console = Console(stderr=True)
    return Bars(console) if console.is_terminal else Lines(console)
