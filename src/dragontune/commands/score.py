"""Any reward on a folder of files."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from dragontune.commands import media
from dragontune.data import Samples, join_columns
from dragontune.errors import InputError, NonFiniteError
from dragontune.rewards.base import Features, InstanceReward, Reward


def score(folder: Path, reward: Reward, prompts: str | None, as_json: bool) -> None:
    """Print what `reward` says of the files: one number for a set reward, one a file for an instance reward."""
    result = measure(folder, reward, prompts)
    if as_json:
        print(json.dumps(result, indent=2))
        return
    title = f"{result['reward']} of {result['count']} files (higher is better)"
    table = Table(title=title, min_width=len(title))
    table.add_column("files" if result["scope"] == "set" else "file", overflow="fold")
    table.add_column("score", justify="right")
    for row in result.get("files", []):
        table.add_row(row["file"], f"{row['score']:.6g}")
    table.add_row("all together" if result["scope"] == "set" else "mean", f"{result['score']:.6g}", style="bold")
    Console().print(table)


@torch.no_grad()
def measure(folder: Path, reward: Reward, prompts: str | None) -> dict[str, Any]:
    """The same as a record: reward, scope, count, score, and for an instance reward the score of every file.

    Raises:
        InputError: nothing can be read, or there are too few files for the reward.
        NonFiniteError: a score is NaN or infinite.
    """
    found = media.items(folder, prompts)
    read = [(item, _encode(reward, item, samples)) for item, samples in media.readable(found)]
    if reward.needs_prompts and (bare := [item.path.name for item, _ in read if not item.prompt]):
        raise InputError(
            f"expected a prompt for every file, which {reward.label} compares it with, got none for {bare[0]}; add "
            "--prompts"
        )
    if len(read) < reward.minimum:
        raise InputError(
            f"expected at least {reward.minimum} {found[0].kind.many} for {reward.label}, got {len(read)} in {folder}; "
            "add some"
        )
    scores = reward.score(join_columns([features for _, features in read])).double().cpu()
    names = [item.path.relative_to(folder).as_posix() for item, _ in read]
    result = {"reward": reward.label, "count": len(read), "score": scores.mean().item()}
    if not isinstance(reward, InstanceReward):
        return {**_finite(result), "scope": "set"}
    files = [{"file": name, "score": value} for name, value in zip(names, scores.tolist(), strict=True)]
    return {**_finite(result), "scope": "instance", "files": [_finite(row) for row in files]}


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
