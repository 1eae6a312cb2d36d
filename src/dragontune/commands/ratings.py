"""Ratings of audio files by people: read from a table, brought to one scale, averaged, split by prompt.

Raters differ in where their middle is and how far they reach, so each one's ratings are standardised first. Left out:
weights for raters who disagree with the rest, and ordinal models.
"""

import csv
import math
import statistics
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dragontune.embedded import locate
from dragontune.errors import InputError
from dragontune.seeding import Key

COLUMNS = ("file", "rating", "rater", "prompt")
FEWEST_FILES, FEWEST_PROMPTS = 10, 2
LARGEST = 1e12
"""A rating beyond this is a slip of the pen, and its square could overflow."""
PRIOR = 4
"""Ratings' worth of what all raters do together that is mixed into what is known of each one."""
LEAST = 0.5
"""The smallest standard deviation of a rater, in everybody's."""
HELD_OUT = 0.15


@dataclass(frozen=True)
class Rating:
    """One line of a table: what one rater gave one file, on any scale, higher being better."""

    file: str
    rating: float
    rater: str
    prompt: str


def read(path: str | Path) -> list[Rating]:
    """A .csv in UTF-8 with the columns file, rating, rater and prompt, in any order; other columns are ignored.

    Sorted by file and rater, so that the order of the lines makes no difference.

    Raises:
        InputError: it is not such a table, a cell is empty or no number, or a rater rated a file twice.
    """
    try:
        with locate(path).open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (table.fieldnames or [])]
            if missing:
                raise InputError(
                    f"expected the columns {', '.join(COLUMNS)} in {path}, got none named {', '.join(missing)}; "
                    "name them in its first line, separated by commas"
                )
            rows = [_row(path, table.line_num, cells) for cells in table]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"expected a table of ratings, .csv in UTF-8, got {path} ({error}); check it") from error
    _check(path, rows)
    return sorted(rows, key=lambda row: (row.file, row.rater))


def keep(rows: Sequence[Rating], left_out: Sequence[str]) -> list[Rating]:
    """Without the files `left_out`.

    Raises:
        InputError: fewer than 10 files or 2 prompts are left, or all ratings are the same.
    """
    rows = [row for row in rows if row.file not in set(left_out)]
    files, prompts = {row.file for row in rows}, {row.prompt for row in rows}
    if len(files) < FEWEST_FILES:
        raise InputError(
            f"expected ratings of {FEWEST_FILES} readable files or more, got {len(files)}; add "
            "some, and check that the files are named relative to the table"
        )
    if len(prompts) < FEWEST_PROMPTS:
        raise InputError(
            f"expected {FEWEST_PROMPTS} prompts or more, since they are split into known and held-out ones, "
            f"got {len(prompts)}; add ratings for other prompts"
        )
    if len({row.rating for row in rows}) < 2:
        raise InputError(f"expected ratings that differ, got {rows[0].rating:g} for every file; nothing can be learned")
    return rows


@dataclass(frozen=True, eq=False)
class Labels:
    """One number a file, mean 0 and standard deviation 1 over the known files."""

    files: tuple[str, ...]
    prompts: tuple[str, ...]
    values: Float[Tensor, " n"]


def standardise(rows: Sequence[Rating], known: Collection[str] | None = None) -> Labels:
    """The z-score (rating - m) / s by rater, averaged for each file, then brought to mean 0 and standard deviation 1.

    A rater's mean m and variance s^2 are those of the rater's n ratings, mixed with 4 ratings' worth of everybody's:
    m = (n own + 4 all) / (n + 4), and s^2 likewise, but s is half of everybody's at least; so a rater with two ratings,
    or with one number for nearly everything, neither decides much nor divides by 0. With one rater this is the plain
    z-score. All of these are of the ratings for the prompts `known` (None: all) and are applied to the others as they
    are; a rater of whom nothing is known counts as everybody.

    Raises:
        InputError: the known files' numbers are all the same, before it or after.
    """
    seen = [row for row in rows if known is None or row.prompt in known]
    _warn(seen)
    everybody = [row.rating for row in seen]
    middle, spread = statistics.fmean(everybody), statistics.pvariance(everybody)
    if not spread > 0:
        raise InputError(f"expected known ratings that differ, got {middle:g} for every file; add ratings")
    by_rater, by_file = dict[str, list[float]](), dict[str, list[float]]()
    for row in seen:
        by_rater.setdefault(row.rater, []).append(row.rating)
    scale = dict[str, tuple[float, float]]()
    for rater, own in by_rater.items():
        total = len(own) + PRIOR
        variance = (len(own) * statistics.pvariance(own) + PRIOR * spread) / total
        scale[rater] = (sum(own) + PRIOR * middle) / total, math.sqrt(max(variance, spread * LEAST**2))
    for row in rows:
        mean, deviation = scale.get(row.rater, (middle, math.sqrt(spread)))
        by_file.setdefault(row.file, []).append((row.rating - mean) / deviation)
    values = torch.tensor([statistics.fmean(some) for some in by_file.values()], dtype=torch.float64)
    prompt = {row.file: row.prompt for row in rows}
    of_known = values[torch.tensor([known is None or prompt[file] in known for file in by_file])]
    if of_known.std(correction=0) < 1e-9:
        raise InputError("expected files that are rated differently, got the same for all on average; add ratings")
    normal = (values - of_known.mean()) / of_known.std(correction=0)
    return Labels(tuple(by_file), tuple(prompt[file] for file in by_file), normal)


def split(prompts: Sequence[str], key: Key, share: float = HELD_OUT) -> tuple[Int[Tensor, " k"], Int[Tensor, " m"]]:
    """The rows to learn from and the held-out rows: all rows of `share` of the prompts, at least of one."""
    names = list(dict.fromkeys(prompts))
    held = {names[i] for i in key.permutation(len(names))[: max(1, round(share * len(names)))].tolist()}
    rows = torch.tensor([prompt in held for prompt in prompts])
    return (~rows).nonzero()[:, 0], rows.nonzero()[:, 0]


def _warn(rows: Sequence[Rating]) -> None:
    """One rater, or raters that cannot be told from their prompts."""
    raters = {row.rater for row in rows}
    if len(raters) == 1:
        warnings.warn(
            f"all ratings are by one rater ({rows[0].rater}), so they are standardised together", stacklevel=1
        )
    elif len({(row.prompt, row.rater) for row in rows}) == len({row.prompt for row in rows}):
        warnings.warn(
            "no prompt was rated by two raters, so what sets prompts apart is taken for what sets raters apart, and "
            "is lost; let raters share prompts, or give all of them one name",
            stacklevel=1,
        )


def _row(path: str | Path, line: int, cells: dict[str, str | None]) -> Rating:
    values = {name: (cells[name] or "").strip() for name in COLUMNS}
    for name, value in values.items():
        if not value:
            raise InputError(f"expected a {name} in line {line} of {path}, got an empty cell; fill it or drop the line")
    try:
        rating = float(values["rating"])
    except ValueError:
        rating = math.nan
    if not abs(rating) < LARGEST:
        raise InputError(f"expected a number as rating in line {line} of {path}, got {values['rating']}; correct it")
    return Rating(values["file"], rating, values["rater"], values["prompt"])


def _check(path: str | Path, rows: Sequence[Rating]) -> None:
    """No rater rates a file twice, and a file has one prompt."""
    if not rows:
        raise InputError(f"expected ratings in {path}, got a table without lines; add some")
    seen, prompts = set[tuple[str, str]](), dict[str, str]()
    for row in rows:
        if (row.file, row.rater) in seen:
            raise InputError(
                f"expected one rating of {row.file} by {row.rater} in {path}, got two; drop one of the lines"
            )
        seen.add((row.file, row.rater))
        if prompts.setdefault(row.file, row.prompt) != row.prompt:
            raise InputError(f"expected one prompt for {row.file} in {path}, got two different ones; correct a line")
