"""Fit the head of an aesthetics reward to ratings (after DRAGON, Bai et al. 2025: CLAP embedding, kernel regression).

Left out: a search over encoders (fit one head each and compare their figures), and fitting again on everything once the
held-out figures are known: the head that is saved is the one that was measured.
"""

import itertools
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from rich.console import Console
from torch import Tensor

from dragontune.commands import ratings
from dragontune.embedded import locate
from dragontune.encoders.base import Embeddings, Encoder
from dragontune.errors import InputError, NonFiniteError
from dragontune.evaluation.correlation import Correlation, mean_srcc, overall, srcc, within_prompts
from dragontune.media import audio
from dragontune.rewards.aesthetics import Head, Pooling, pool
from dragontune.rewards.regression import KernelRidge, NadarayaWatson, Regression
from dragontune.seeding import Key
from dragontune.training import files

Kind = Literal["ridge", "nadaraya-watson"]
POOLINGS: tuple[Pooling, ...] = ("mean", "mean-std")
BANDWIDTHS = {"ridge": (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 4.0), "nadaraya-watson": (0.05, 0.1, 0.15, 0.2, 0.3, 0.5)}
"""In median distances between the points."""
RIDGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
FOLDS = 5
FEW = 10
"""Held-out prompts below which an interval from resampling them means little."""


@dataclass(frozen=True)
class Choice:
    """What is chosen on validation; `ridge` is None for Nadaraya-Watson."""

    pooling: Pooling
    bandwidth: float
    ridge: float | None


@dataclass(frozen=True, eq=False)
class Fit:
    """A head and how well it predicts ratings for prompts that it never saw."""

    head: Head
    plcc: Correlation
    srcc: Correlation
    """Within prompts, averaged over them."""


def fit_aesthetics(
    table: str, encoder: Encoder, out: Path, kind: Kind, pooling: Pooling | None, seed: int, as_json: bool
) -> None:
    """Fit, write `out`, print the figures."""
    if out.suffix != ".safetensors":
        raise InputError(f"expected --out to end in .safetensors, got {out}; rename it")
    found = fit(table, encoder, kind, pooling, seed)
    files.make_folder(out.parent)
    files.make(out, found.head.save)
    if as_json:
        print(json.dumps({"head": str(out), "digest": found.head.digest, **found.head.about}, indent=2))
        return
    about, console = found.head.about, Console(highlight=False, soft_wrap=True)
    console.print(
        f"{out}: {about['kind']} on {about['encoder']}, {about['pooling']}, from {about['ratings']} ratings of "
        f"{about['files']} files by {about['raters']} raters.",
        f"Held out: {about['held_out']['files']} files of {about['held_out']['prompts']} prompts.",
        _line("PLCC over all of them", found.plcc),
        _line("SRCC within a prompt, averaged", found.srcc),
        sep="\n",
        markup=False,
    )
    if about["held_out"]["prompts"] < FEW:
        warnings.warn(
            f"the intervals are of {about['held_out']['prompts']} held-out prompts and mean little below {FEW}; rate "
            "clips of more prompts",
            stacklevel=1,
        )


def fit(
    table: str | Path, encoder: Encoder, kind: Kind = "ridge", pooling: Pooling | None = None, seed: int = 0
) -> Fit:
    """Learn from 85 % of the prompts, choose what is to be chosen by validation among them, measure on the rest.

    `table` is what `ratings.read` reads; its files are relative to its folder. Bandwidth, ridge and (if None) pooling
    are chosen by five folds of whole prompts, each predicted from the others: what counts is the mean of the rank
    correlations of these predictions over all files and within prompts.

    Raises:
        InputError: whatever is wrong with the table, or too few of its files can be read.
        NonFiniteError: an embedding is NaN or infinite; the file is named.
    """
    rows = ratings.read(table)
    embedded = embed(locate(table).parent, list(dict.fromkeys(row.file for row in rows)), encoder)
    kept = ratings.keep(rows, [file for file, value in embedded.items() if value is None])
    prompt = {row.file: row.prompt for row in kept}
    key = Key(seed).fold("fit-aesthetics")
    known, held = ratings.split(list(prompt.values()), key.fold("held out"))
    prompts = [list(prompt.values())[i] for i in known.tolist()]
    labels = ratings.standardise(kept, set(prompts))
    some = [value for file in labels.files if (value := embedded[file]) is not None]
    poolings = POOLINGS if pooling is None else (pooling,)
    points: dict[Pooling, Tensor] = {name: torch.cat([pool(one, name) for one in some]) for name in poolings}
    choice, score = choose(
        {name: rows[known] for name, rows in points.items()}, labels.values[known], prompts, kind, key
    )
    regression = regress(points[choice.pooling][known], labels.values[known], choice)
    predicted, truth = regression.predict(points[choice.pooling][held]), labels.values[held]
    names = [labels.prompts[i] for i in held.tolist()]
    linear = overall(predicted, truth, names, key.fold("bootstrap", "plcc"))
    ranked = within_prompts(predicted, truth, names, key.fold("bootstrap", "srcc"))
    about: dict[str, Any] = {
        "kind": kind,
        "encoder": encoder.name,
        **asdict(choice),
        "validation_srcc": score,
        "files": len(labels.files),
        "prompts": len(set(labels.prompts)),
        "ratings": len(kept),
        "raters": len({row.rater for row in kept}),
        "held_out": {"files": len(held), "prompts": len(set(names))},
        "seed": seed,
        "plcc": asdict(linear),
        "srcc": asdict(ranked),
    }
    head = Head(regression, choice.pooling, encoder.name, encoder.digest, Path(table).as_posix(), about)
    return Fit(head, linear, ranked)


@torch.no_grad()
def embed(folder: Path, names: Sequence[str], encoder: Encoder) -> dict[str, Embeddings | None]:
    """Each file's embedding; None, with a warning, where it cannot be read."""
    found = dict[str, Embeddings | None]()
    for name in names:
        try:
            clip = audio.read(folder / name)
        except InputError as error:
            warnings.warn(f"left out of the ratings: {error}", stacklevel=1)
            found[name] = None
            continue
        embeddings = encoder.embed(clip).double_on_cpu()
        if not embeddings.frames.isfinite().all():
            raise NonFiniteError(f"the embedding of {folder / name} by {encoder.name} is not finite; look at that file")
        found[name] = embeddings
    return found


def choose(
    points: dict[Pooling, Tensor],
    labels: Float[Tensor, " n"],
    prompts: Sequence[str],
    kind: Kind,
    key: Key,
) -> tuple[Choice, float]:
    """The best choice by validation, and the rank correlation that it had there.

    Of equal ones the smoothest wins. With a single prompt to learn from, folds are of items instead of prompts.
    """
    units = prompts if len(set(prompts)) > 1 else [str(i) for i in range(len(prompts))]
    folds = _folds(units, key.fold("folds"))
    best: tuple[Choice, float] | None = None
    ridges = sorted(RIDGES, reverse=True) if kind == "ridge" else (None,)
    for pooling, known in points.items():
        size = float(_median_distance(known))
        for factor, ridge in itertools.product(sorted(BANDWIDTHS[kind], reverse=True), ridges):
            choice = Choice(pooling, factor * size, ridge)
            predicted = torch.empty_like(labels)
            for fold in folds:
                predicted[fold] = regress(known[~fold], labels[~fold], choice).predict(known[fold])
            score = _agreement(predicted, labels, prompts)
            if best is None or score > best[1] + 1e-9:
                best = choice, score
    assert best is not None
    return best


def regress(points: Float[Tensor, " n dim"], labels: Float[Tensor, " n"], choice: Choice) -> Regression:
    """The regression of a choice."""
    if choice.ridge is None:
        return NadarayaWatson.fit(points, labels, choice.bandwidth)
    return KernelRidge.fit(points, labels, choice.bandwidth, choice.ridge)


def _agreement(predicted: Float[Tensor, " n"], labels: Float[Tensor, " n"], prompts: Sequence[str]) -> float:
    """The mean of the rank correlations over all items and within prompts, of those that are defined; else -1."""
    found = [srcc(predicted, labels), mean_srcc(predicted, labels, prompts)]
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known else -1.0


def _folds(units: Sequence[str], key: Key) -> list[Tensor]:
    names = list(dict.fromkeys(units))
    count = min(FOLDS, len(names))
    order = key.permutation(len(names)).tolist()
    place = {names[unit]: i % count for i, unit in enumerate(order)}
    fold = torch.tensor([place[unit] for unit in units])
    return [fold == i for i in range(count)]


def _median_distance(points: Float[Tensor, " n dim"]) -> Float[Tensor, ""]:
    distance = torch.pdist(points).median()
    if not distance > 0:
        raise InputError("expected files that sound different, got equal embeddings for most; check the files")
    return distance


def _line(name: str, found: Correlation) -> str:
    if found.value is None:
        return f"{name}: undefined, since something is constant or no prompt has three files held out"
    return f"{name}: {found.value:.3f} (95 % interval {found.low:.3f} to {found.high:.3f})"
