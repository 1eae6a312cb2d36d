"""Files of media with their prompts: what `score` reads and `generate` writes."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from dragontune.commands.recipe import read_prompts
from dragontune.data import Samples
from dragontune.errors import InputError
from dragontune.media import decoding, kinds
from dragontune.media.kinds import AUDIO, Kind
from dragontune.plain_text import cell, uncell
from dragontune.streaming import Pace, Reading, Unreadable

TABLE = "prompts.csv"


@dataclass(frozen=True)
class Item:
    """A file and what it was made for ("" if nobody says)."""

    path: Path
    prompt: str
    kind: Kind = AUDIO

    def samples(self) -> Samples:
        """The file as one sample that never had latents.

        Raises:
            InputError: it cannot be read.
        """
        return Samples((self.prompt,), torch.empty(1, 0), self.kind.read(self.path))


def items(folder: Path, prompts: str | None) -> list[Item]:
    """Every file of media in a folder, sorted, with its prompt.

    Prompts come from `prompts` (a .csv with the columns file and prompt, or a text file with one line a file, in sorted
    order), else from `prompts.csv` in the folder, else from a text file beside each clip (`clip.txt` for `clip.flac`).

    Raises:
        InputError: there are no media, or of several kinds, or the prompts do not fit the files.
    """
    kind, paths = kinds.folder(folder)
    table = Path(prompts) if prompts else folder / TABLE
    if prompts is None and not table.exists():
        return [Item(path, _beside(path), kind) for path in paths]
    if table.suffix.lower() == ".csv":
        named = _table(table)
        missing = [path.name for path in paths if path.relative_to(folder).as_posix() not in named]
        if missing and prompts:
            raise InputError(f"expected a prompt for every file, got none for {missing[0]} in {table}; add a row")
        return [Item(path, named.get(path.relative_to(folder).as_posix(), ""), kind) for path in paths]
    lines = read_prompts(str(table))
    if len(lines) != len(paths):
        raise InputError(
            f"expected one prompt for each of the {len(paths)} {kind.many} in {folder}, got {len(lines)} in {table}; "
            "make them equally many"
        )
    return [Item(path, line, kind) for path, line in zip(paths, lines, strict=True)]


def readable(found: list[Item], reading: Reading | None = None) -> Iterator[tuple[Item, Samples]]:
    """Those that can be read, in order; `reading.unreadable` has the others, and warnings name the first of them.

    Raises:
        InputError: none can.
    """
    reading = reading or Reading(unreadable=Unreadable())
    pace, count = Pace(len(found), reading.progress), 0
    with decoding.pool(reading.threads) as threads:
        for item, samples in decoding.ahead(threads, _decoded, found):
            pace.step()
            if isinstance(samples, InputError):
                reading.unreadable.add(item.path, samples)
                continue
            count += 1
            yield item, samples
    reading.unreadable.conclude()
    if not count:
        _, _, noun = (found[0].kind if found else AUDIO).one.partition(" ")
        raise InputError(f"expected at least one readable {noun}, got none; give a folder with a good one")


def _decoded(item: Item) -> tuple[Item, Samples | InputError]:
    try:
        return item, item.samples()
    except InputError as error:
        return item, error


def write_table(folder: Path, found: list[Item]) -> None:
    """`prompts.csv`, which `items` reads."""
    with (folder / TABLE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "prompt"))
        writer.writerows((cell(item.path.relative_to(folder).as_posix()), cell(item.prompt)) for item in found)


def _table(path: Path) -> dict[str, str]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {uncell(row["file"] or ""): uncell(row["prompt"] or "") for row in csv.DictReader(file)}
    except FileNotFoundError as error:
        raise InputError(f"expected a table of prompts, got {path}, which is not there; check the path") from error
    except (KeyError, OSError, ValueError, csv.Error) as error:
        raise InputError(f"expected a table with the columns file and prompt, got {path} ({error}); fix it") from error


def _beside(path: Path) -> str:
    text = path.with_suffix(".txt")
    try:
        return text.read_text("utf-8").strip() if text.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"expected a prompt in UTF-8, got {text} ({error}); correct or remove it") from error
