"""Any reward on a folder of files."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dragontune.commands import media
from dragontune.data import Samples
from dragontune.embedding_cache import EmbeddingCache
from dragontune.errors import InputError, NonFiniteError
from dragontune.plain_text import line
from dragontune.remembered import remembering
from dragontune.rewards.base import Features, InstanceReward, Reward
from dragontune.streaming import Reading, Unreadable
from dragontune.training.progress import reporter

SHOWN = 200
"""Rows of the table, at most; of more files the best and the worst are shown."""


def score(
    folder: Path,
    reward: Reward,
    prompts: str | None,
    as_json: bool,
    cache: EmbeddingCache | None = None,
    workers: int | None = None,
) -> None:
    """Print what `reward` says of the files: one number for a set reward, one a file for an instance reward."""
    reward = reward if cache is None else remembering(reward, cache)
    with reporter() as report:
        reading = Reading(workers, 1, cache, partial(report, "scoring"), Unreadable())
        result = measure(folder, reward, prompts, reading)
    if as_json:
        print(json.dumps(result, indent=2))
        return
    title = f"{result['reward']} of {result['count']} files (higher is better)"
    table = Table(title=title, min_width=len(title))
    table.add_column("files" if result["scope"] == "set" else "file", overflow="fold")
    table.add_column("score", justify="right")
    rows = result.get("files", [])
    if len(rows) > SHOWN:
        rows = sorted(rows, key=lambda row: -row["score"])
    for row in rows if len(rows) <= SHOWN else rows[: SHOWN // 2]:
        table.add_row(Text(line(row["file"])), f"{row['score']:.6g}")
    if len(rows) > SHOWN:
        table.add_row(f"... {len(rows) - SHOWN} between these (--json has all) ...", "")
        for row in rows[-(SHOWN // 2) :]:
            table.add_row(Text(line(row["file"])), f"{row['score']:.6g}")
    table.add_row("all together" if result["scope"] == "set" else "mean", f"{result['score']:.6g}", style="bold")
    Console().print(table)
    if missed := result.get("unreadable"):
        print(f"{len(missed)} files could not be read; --json has their names and the reasons.")


@torch.no_grad()
def measure(folder: Path, reward: Reward, prompts: str | None, reading: Reading | None = None) -> dict[str, Any]:
    """The same as a record: reward, scope, count, score, for an instance reward the score of every file.

    Files are read and encoded as a stream: an instance reward keeps their scores only, a set reward what its `running`
    keeps. `unreadable`, if there are such files, has their names and the reasons.

    Raises:
        InputError: nothing can be read, or there are too few files for the reward.
        NonFiniteError: a score is NaN or infinite.
    """
    found = media.items(folder, prompts)
    reading = reading or Reading(unreadable=Unreadable())
    scored = reward.running()
    names = list[str]()
    for item, samples in media.readable(found, reading):
        if reward.needs_prompts and not item.prompt:
            raise InputError(
                f"expected a prompt for every file, which {reward.label} compares it with, got none for "
                f"{item.path.name}; add --prompts"
            )
        scored.add(_encode(reward, item, samples))
        names.append(item.path.relative_to(folder).as_posix())
    if len(names) < reward.minimum:
        raise InputError(
            f"expected at least {reward.minimum} {found[0].kind.many} for {reward.label}, got {len(names)} in "
            f"{folder}; add some"
        )
    scores = scored.score().double().cpu()
    result = {"reward": reward.label, "count": len(names), "score": scores.mean().item()}
    missed = [
        {"file": path.relative_to(folder).as_posix(), "reason": reason} for path, reason in reading.unreadable.files
    ]
    left_out = {"unreadable": missed} if missed else {}
    if not isinstance(reward, InstanceReward):
        return {**_finite(result), "scope": "set", **left_out}
    files = [{"file": name, "score": value} for name, value in zip(names, scores.tolist(), strict=True)]
    return {**_finite(result), "scope": "instance", "files": [_finite(row) for row in files], **left_out}


def _encode(reward: Reward, item: media.Item, samples: Samples) -> Features:
    """The features of one file; what goes wrong names it."""
    try:
        return reward.encode(samples)
    except (InputError, NonFiniteError) as error:
        raise type(error)(f"{error} (while scoring {item.path})") from error


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    if not math.isfinite(row["score"]):
        raise NonFiniteError(f"the score of {row.get('file', 'the set')} is {row['score']}; look at that input")
    return row
