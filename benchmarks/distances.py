"""The distances against other packages, brute force and 40 digits: time and error, in one process and one thread.

`python benchmarks/distances.py` measures the targets T1 to T12 and exits 1 if one is missed, 2 if none is missed but
some could not be measured (a peer is not installed: `benchmarks/peers.txt`). `python benchmarks/distances.py scaling`
measures how the cost grows. A table of swaps is timed with the refresh that precedes it after an accepted swap. What
depends on the reference alone (its root, its kernel with itself) is made before, for us and for every peer.
"""

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import peers
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from dragontune.distances import (
    FrechetSwaps,
    Gaussian,
    KernelSwaps,
    VendiSwaps,
    frechet_distance,
    frechet_distance_per_item,
)

Array = np.ndarray
SEED = 20260101
MOST = 200
"""Repeats of the fastest calls."""
CONSOLE = Console(width=150)


# What is measured


@dataclass(frozen=True)
class Measurement:
    """One call of one package on one problem: seconds for `answers` values at once, and the worst error of them."""

    target: str
    case: str
    who: str
    answers: int = 1
    best: float | None = None
    median: float | None = None
    repeats: int = 0
    error: float | None = None
    note: str = ""

    @property
    def each(self) -> float | None:
        """Seconds for one value, in the best repeat."""
        return None if self.best is None else self.best / self.answers


@dataclass(frozen=True)
class Claim:
    """A target, and whether the measurement keeps it; None if it could not be measured."""

    target: str
    text: str
    value: float | None
    bound: float
    at_least: bool

    @property
    def met(self) -> bool | None:
        """NaN is not."""
        if self.value is None:
            return None
        return self.value >= self.bound if self.at_least else self.value <= self.bound


@dataclass
class Bench:
    """Collects measurements and claims. Every timing of this file is made by `time`."""

    seconds: float
    least: int
    pairs: int
    rows: list[Measurement] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)

    def time(
        self, target: str, case: str, who: str, call: Callable[[], Any], answers: int = 1, least: int | None = None
    ) -> tuple[Measurement, Any]:
        """The measurement, and what the first call returned, which is a warm-up and not counted."""
        row, result = Measurement(target, case, who, answers), None
        try:
            result, spent = call(), list[float]()
            while len(spent) < (least or self.least) or (sum(spent) < self.seconds and len(spent) < MOST):
                began = time.perf_counter()
                call()
                spent.append(time.perf_counter() - began)
            row = replace(row, best=min(spent), median=statistics.median(spent), repeats=len(spent))
        except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
            if who.startswith("dragontune"):
                raise
            row = replace(row, note=f"{type(error).__name__}: {error}"[:120])
        self.rows.append(row)
        return row, result

    def absent(self, target: str, case: str, who: str, reason: Exception) -> None:
        """A peer that cannot be measured here."""
        self.rows.append(Measurement(target, case, who, note=str(reason)))

    def error(self, found: float) -> None:
        """Of the row that was measured last."""
        self.rows[-1] = replace(self.rows[-1], error=float(found))

    def at_most(self, target: str, text: str, value: float | None, bound: float) -> None:
        """A claim such as an error or a time."""
        self.claims.append(Claim(target, text, None if value is None else float(value), bound, at_least=False))

    def faster(self, target: str, ours: Measurement, who: str, seconds: float | None, bound: float) -> None:
        """The claim that one of our values takes `bound` times less than the peer's `seconds`."""
        ratio = seconds / ours.each if seconds is not None and ours.each else None
        self.claims.append(Claim(target, f"{ours.case}: times as fast as {who}", ratio, bound, at_least=True))

    def frechet(self, target: str, given: "Problem", dtype: type = np.float64) -> dict[str, float | None]:
        """Seconds of every peer for one distance of this problem's set, measured once in a process."""
        return {peer.package: self._peer(peer, target, given, dtype).best for peer in peers.FRECHET}

    def _peer(self, peer: peers.Peer, target: str, given: "Problem", dtype: type) -> Measurement:
        who = peer.package if dtype == np.float64 else f"{peer.package}, {dtype.__name__}"
        for row in self.rows:
            if (row.case, row.who) == (given.name, who):
                return row
        try:
            call, x = peer.load(), given.x.reshape(-1, given.dim)
        except peers.MissingError as reason:
            self.absent(target, given.name, who, reason)
            return self.rows[-1]
        row, value = self.time(target, given.name, who, lambda: call(x, given.mean, given.covariance, dtype))
        if row.best is not None:
            self.error(value / given.truth - 1)
        return row

    def table(
        self, target: str, case: str, swaps: Any, brute: Callable[[Array], Array], who: str = "dragontune, all swaps"
    ) -> Measurement:
        """A whole table after an accepted swap (always the same one, there and back), checked by brute force."""

        def call() -> torch.Tensor:
            swaps.accept(0, 0)
            return swaps.table()

        self.time(target, case, who, call, len(swaps.members) * len(swaps.candidates))
        table = swaps.table().numpy()
        i, j = some_pairs(*table.shape, self.pairs)
        truth = brute(exchanged(swaps, i, j))
        self.error(np.abs(table[i, j] - truth).max() / np.abs(truth).max())
        return self.rows[-1]


def some_pairs(m: int, c: int, count: int) -> tuple[Array, Array]:
    """All swaps if there are no more than `count`, else so many at random."""
    chosen = np.arange(m * c) if m * c <= count else np.random.default_rng(SEED).choice(m * c, count, replace=False)
    return np.divmod(chosen, c)


def exchanged(swaps: Any, i: Array, j: Array) -> Array:
    """The rows of each set after its exchange, one set a row."""
    rows = np.tile(swaps.members.numpy(), (len(i), 1))
    rows[np.arange(len(i)), i] = swaps.candidates.numpy()[j]
    return rows


def fastest(seconds: dict[str, float | None]) -> float | None:
    """The best of all peers; None unless every one of them was measured."""
    found = [value for value in seconds.values() if value is not None]
    return min(found) if len(found) == len(seconds) and found else None


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many for a while."""
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(1)


# Problems


@dataclass(frozen=True, eq=False)
class Problem:
    """A set, candidates for it and a reference: its samples (if there are any), and its mean and covariance."""

    name: str
    x: Array
    candidates: Array
    mean: Array
    covariance: Array
    samples: Array | None = None

    @property
    def dim(self) -> int:
        """Of the embeddings."""
        return len(self.mean)

    @property
    def reference(self) -> Gaussian:
        """As our functions take it."""
        return Gaussian.of_moments(self.mean, self.covariance)

    @property
    def items(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The set and the candidates."""
        return torch.from_numpy(self.x), torch.from_numpy(self.candidates)

    @property
    def pool(self) -> Array:
        """All items; `members` and `candidates` of swaps are rows of it."""
        return np.concatenate([self.x, self.candidates])

    @property
    def truth(self) -> float:
        """The distance of the set: in 40 digits where that takes a minute at most, else by singular values."""
        x = self.x.reshape(-1, self.dim)
        return digits(self) if len(x) <= 100 and len(x) < self.dim else by_singular_values(x, self)


class Embeddings:
    """Unit vectors about a common direction, with variances k^-exponent in a random basis, as audio embeddings have."""

    def __init__(self, dim: int, exponent: float = 0.9) -> None:
        self._random = np.random.default_rng([SEED, dim, int(100 * exponent)])
        spectrum = np.arange(1, dim + 1) ** -exponent
        self._basis = np.linalg.qr(self._random.normal(size=(dim, dim)))[0] * np.sqrt(spectrum / spectrum.sum())
        self._centre, self._away = (self._direction(dim) for _ in range(2))

    def draw(self, *shape: int, shift: float = 0.0) -> Array:
        """Of this shape and the dimension; `shift` moves their middle away from the others'."""
        noise = self._random.normal(size=(*shape, len(self._basis))) @ self._basis.T
        raw = 0.7 * self._centre + shift * self._away + noise
        return raw / np.linalg.norm(raw, axis=-1, keepdims=True)

    def _direction(self, dim: int) -> Array:
        found = self._random.normal(size=dim)
        return found / np.linalg.norm(found)


@cache
def problem(m: int, dim: int, candidates: int = 0, frames: int = 0, references: int = 5000) -> Problem:
    """`m` items (of `frames` vectors each, if any), a little off; the candidates, as many as asked for, are not."""
    source, many = Embeddings(dim), (frames,) if frames else ()
    y = source.draw(references)
    name = f"n={m}{f' x {frames}' if frames else ''} d={dim}"
    x, others = source.draw(m, *many, shift=0.2), source.draw(candidates, *many)
    return Problem(name, x, others, y.mean(0), np.cov(y, rowvar=False), y)


@cache
def music(n: int, embedding: str) -> Problem:
    """Drawn from the Gaussian of real music under an embedding; MissingError without the package that ships it."""
    mean, covariance = peers.shipped_statistics(embedding)
    x = mean + np.random.default_rng(SEED).normal(size=(n, len(mean))) @ root_of(covariance).T
    return Problem(f"n={n} d={len(mean)} ({embedding})", x, x[:0], mean, covariance)


# Truth


@cache
def digits(given: Problem) -> float:
    """The distance of fewer samples than dimensions in 40 digits, from the exact binary values of the inputs.

    The Gram matrix of the centred samples under the covariance is computed in whole numbers, without any rounding;
    its eigenvalues to 50 digits.
    """
    bits, n = 240, len(given.x)
    whole = np.vectorize(
        lambda value: (lambda p, q: (p << bits) // q)(*float(value).as_integer_ratio()), otypes=[object]
    )
    x, mean, covariance = whole(given.x), whole(given.mean), whole(given.covariance)
    centred = n * x - x.sum(0)
    gram = centred.dot(covariance + covariance.T).dot(centred.T)
    with mpmath.workdps(50):
        unit = mpmath.mpf(2) ** bits
        scale = 2 * n**2 * (n - 1) * unit**3
        values = mpmath.mp.eigsy(mpmath.matrix([[entry / scale for entry in row] for row in gram]), eigvals_only=True)
        cross = mpmath.fsum(mpmath.sqrt(value) for value in values if value > mpmath.mpf(10) ** -40 * max(values))
        spread = int((centred**2).sum()) / (n**2 * (n - 1) * unit**2) + int(covariance.trace()) / unit
        apart = int(((x.sum(0) - n * mean) ** 2).sum()) / (n**2 * unit**2)
        return float(apart + spread - 2 * cross)


def root_of(covariance: Array) -> Array:
    """R with R R' = covariance."""
    values, directions = np.linalg.eigh(covariance)
    return directions * np.sqrt(values.clip(min=0))


def by_singular_values(x: Array, given: Problem, root: Array | None = None) -> float:
    """The distance of one set of vectors, the plain way."""
    root = root_of(given.covariance) if root is None else root
    mean = x.mean(0)
    centred = x - mean
    cross = np.linalg.svd(centred @ root, compute_uv=False).sum() / np.sqrt(len(x) - 1)
    traces = (centred**2).sum() / (len(x) - 1) + (root**2).sum()
    return max(float(((mean - given.mean) ** 2).sum() + traces - 2 * cross), 0.0)


def frechet_brute(given: Problem, root: Array | None = None) -> Callable[[Array], Array]:
    """Each set's distance by singular values."""
    pool, root = given.pool, root_of(given.covariance) if root is None else root

    def brute(sets: Array) -> Array:
        return np.array([by_singular_values(pool[rows].reshape(-1, given.dim), given, root) for rows in sets])

    return brute


def vendi_brute(pool: Array, order: float) -> Callable[[Array], Array]:
    """Each set's score by its kernel's eigenvalues."""

    def score(rows: Array) -> float:
        p = np.linalg.eigvalsh(pool[rows] @ pool[rows].T / len(rows))
        p = p[p > 1e-15 * p[-1] * len(p)]
        return float(np.exp(-(p * np.log(p)).sum()) if order == 1 else (p**order).sum() ** (1 / (1 - order)))

    return lambda sets: np.array([score(rows) for rows in sets])


def kernel_brute(given: Problem, bandwidth: float) -> Callable[[Array], Array]:
    """Each set's unbiased squared MMD, every kernel value from its own difference of squares."""
    pool, y = given.pool - given.mean, given.samples - given.mean

    def kernel(a: Array, b: Array) -> Array:
        return np.exp(-((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T).clip(min=0) / (2 * bandwidth**2))

    def apart(a: Array) -> float:
        values = kernel(a, a)
        return (values.sum() - values.trace()) / (len(a) * (len(a) - 1))

    itself = apart(y)
    return lambda sets: np.array([apart(pool[rows]) + itself - 2 * kernel(pool[rows], y).mean() for rows in sets])


def gram(given: Problem) -> peers.PoolGram:
    """The strong baseline for this problem."""
    return peers.PoolGram(given.pool, given.mean, given.covariance)


def baseline(bench: Bench, target: str, case: str, swaps: Any, scores: Any, sets: int) -> Measurement:
    """A batch of subsets by the strong baseline."""
    i, j = some_pairs(len(swaps.members), len(swaps.candidates), sets)
    rows = torch.from_numpy(exchanged(swaps, i, j))
    row, values = bench.time(target, case, f"eigvalsh of the pool's Gram, batch {sets}", lambda: scores(rows), sets)
    bench.error((values - swaps.pairs(i, j)).abs().max() / values.abs().max())
    return row


# Targets


def plain(bench: Bench, target: str, given: Problem, bounds: dict[str, float]) -> None:
    """One distance of a set to a reference whose root is known, against every peer."""
    reference, x = given.reference, given.items[0]
    bench.time(
        target, given.name, "dragontune, with the reference's root", lambda: frechet_distance(x, given.reference)
    )
    ours, value = bench.time(target, given.name, "dragontune", lambda: frechet_distance(x, reference))
    bench.error(value.item() / given.truth - 1)
    seconds = bench.frechet(target, given)
    for who, bound in bounds.items():
        bench.faster(target, ours, who, seconds[who], bound)
    bench.at_most(target, f"{given.name}: relative error against 40 digits", abs(value.item() / given.truth - 1), 1e-12)


def t1(bench: Bench) -> None:
    """Plain distance."""
    plain(bench, "T1", problem(80, 512, 80), {"fadtk": 120, "torchmetrics": 40})


def t2(bench: Bench) -> None:
    """Plain distance to real music under clap-2023."""
    try:
        plain(bench, "T2", music(80, "clap-2023"), {"fadtk": 250})
    except peers.MissingError as reason:
        bench.absent("T2", "clap-2023", "fadtk and its statistics", reason)
        bench.faster("T2", Measurement("T2", "clap-2023", "dragontune"), "fadtk", None, 250)
        bench.at_most("T2", "clap-2023: relative error against 40 digits", None, 1e-12)


def t3(bench: Bench) -> None:
    """One swap."""
    given = problem(80, 512, 80)
    swaps = FrechetSwaps(given.items[0], given.reference, given.items[1])
    ours, value = bench.time("T3", given.name, "dragontune, one swap", lambda: swaps.pairs(5, 7))
    bench.error(value.item() / frechet_brute(given)(exchanged(swaps, np.array([5]), np.array([7])))[0] - 1)
    bench.time("T3", given.name, "dragontune, accept and one swap", lambda: (swaps.accept(0, 0), swaps.pairs(5, 7)))
    baseline(bench, "T3", given.name, swaps, gram(given), 1)
    bench.at_most("T3", f"{given.name}: seconds", ours.best, 1e-3)
    bench.faster("T3", ours, "fadtk", bench.frechet("T3", given)["fadtk"], 500)


def t4(bench: Bench) -> None:
    """All swaps of 80 members with 80 candidates."""
    given = problem(80, 512, 80)
    swaps = FrechetSwaps(given.items[0], given.reference, given.items[1])
    ours = bench.table("T4", given.name, swaps, frechet_brute(given))
    strong = baseline(bench, "T4", given.name, swaps, gram(given), 256)
    seconds = bench.frechet("T4", given)
    bench.at_most("T4", f"{given.name}: seconds of all swaps", ours.best, 0.04)
    bench.at_most("T4", f"{given.name}: error", ours.error, 1e-12)
    bench.faster("T4", ours, "fadtk", seconds["fadtk"], 1e5)
    bench.faster("T4", ours, "any of the five", fastest(seconds), 2e4)
    bench.faster("T4", ours, "batched eigvalsh", strong.each, 50)


def t5(bench: Bench) -> None:
    """All swaps of 800 members with 800 candidates."""
    given = problem(800, 512, 800)
    swaps = FrechetSwaps(given.items[0], given.reference, given.items[1])
    few = replace(bench, pairs=min(bench.pairs, 64), seconds=0.0)
    ours = few.table("T5", given.name, swaps, frechet_brute(given))
    baseline(few, "T5", given.name, swaps, gram(given), 4)
    bench.at_most("T5", f"{given.name}: seconds of all swaps", ours.best, 6)
    bench.at_most("T5", f"{given.name}: error", ours.error, 1e-12)
    bench.faster("T5", ours, "fadtk", bench.frechet("T5", given)["fadtk"], 5e4)
    two = None
    if (os.cpu_count() or 1) > 1:
        with threads(2):
            two = few.table("T5", given.name, swaps, frechet_brute(given), "dragontune, all swaps, 2 threads")
    bench.at_most("T5", f"{given.name}: seconds of all swaps, 2 threads", two.best if two else None, 3)


def t6(bench: Bench) -> None:
    """Steepest descent by 30 swaps from a pool of 800."""
    given, steps = problem(80, 512, 800), 30
    reference, (x, others) = given.reference, given.items

    def descend() -> list[tuple[float, Array]]:
        swaps, path = FrechetSwaps(x, reference, others), []
        for _ in range(steps):
            i, j, value = swaps.best(highest=False)
            swaps.accept(i, j)
            path.append((value, swaps.members.numpy().copy()))
        return path

    case = f"{given.name}, 800 candidates, {steps} swaps"
    ours, path = bench.time("T6", case, "dragontune, greedy", descend, steps * 80 * 800, least=1)
    found, sets = np.array([value for value, _ in path]), np.array([rows for _, rows in path])
    worst = np.abs(found / frechet_brute(given)(sets) - 1).max()
    bench.error(worst)
    bench.at_most("T6", f"{case}: seconds", ours.best, 8)
    bench.at_most("T6", f"{case}: error of every predicted value", worst, 1e-12)
    bench.at_most("T6", f"{case}: last value over the first", found[-1] / found[0], 1)


def t7(bench: Bench) -> None:
    """Songs of many frames."""
    given = problem(80, 128, 80, frames=32)
    reference, (songs, others) = given.reference, given.items
    swaps = FrechetSwaps(songs, reference, others)
    i, j = some_pairs(80, 80, 64)
    exact, values = bench.time("T7", given.name, "dragontune, exact, 64 swaps", lambda: swaps.pairs(i, j), 64)
    truth = frechet_brute(given)(exchanged(swaps, i, j))
    bench.error(np.abs(values.numpy() / truth - 1).max())

    def search() -> tuple[int, int, float]:
        return FrechetSwaps(songs, reference, others).best(highest=False, verify=10)

    ours, best = bench.time("T7", given.name, "dragontune, screen and verify 10", search, 6400)
    least = swaps.table().min().item()
    bench.error(best[2] / least - 1)
    seconds = bench.frechet("T7", given)
    bench.faster("T7", exact, "fadtk", seconds["fadtk"], 12)
    bench.faster("T7", exact, "any of the five", fastest(seconds), 5)
    bench.at_most("T7", f"{given.name}: seconds of screening 6,400 swaps", ours.best, 0.3)
    bench.faster("T7", ours, "fadtk", seconds["fadtk"], 500)
    short = problem(80, 512, 80, frames=4)
    brief = FrechetSwaps(short.items[0], short.reference, short.items[1])
    replace(bench, pairs=min(bench.pairs, 200)).table("T7", short.name, brief, frechet_brute(short))
    bench.at_most("T7", f"{given.name}: the verified optimum over the true one, minus 1", best[2] / least - 1, 1e-12)


def t8(bench: Bench) -> None:
    """Each song by itself."""
    songs = problem(80, 512, frames=30)
    one = replace(songs, name="n=30 d=512", x=songs.x[0])
    frames, reference = songs.items[0], songs.reference
    ours, values = bench.time(
        "T8", one.name, "dragontune, per item", lambda: frechet_distance_per_item(frames, reference), 80
    )
    root = root_of(songs.covariance)
    truth = np.array([by_singular_values(song, songs, root) for song in songs.x])
    worst = max(np.abs(values.numpy() / truth - 1).max(), abs(values[0].item() / one.truth - 1))
    bench.error(worst)
    seconds = bench.frechet("T8", one)
    bench.faster("T8", ours, "fadtk", seconds["fadtk"], 800)
    bench.faster("T8", ours, "torchmetrics", seconds["torchmetrics"], 250)
    bench.at_most("T8", f"{one.name}: relative error, one song against 40 digits", worst, 1e-12)


def t9(bench: Bench) -> None:
    """Vendi scores of all swaps."""
    for m, order, bound in ((80, 1, 300), (800, 1, 5000), (80, 2, 1e4), (800, 2, 1e4)):
        given = problem(m, 512, m)
        case = f"Vendi q={order}, m={m} d=512"
        swaps = VendiSwaps(*given.items, order=float(order))
        few = bench if m == 80 else replace(bench, pairs=min(bench.pairs, 64), seconds=min(bench.seconds, 5.0))
        ours = few.table("T9", case, swaps, vendi_brute(given.pool, order))
        if order == 1:
            baseline(few, "T9", case, swaps, peers.PoolVendi(given.pool), 256 if m == 80 else 4)
        bench.at_most("T9", f"{case}: error", ours.error, 1e-12)
        # both: what a search pays, and what is left once the state of the set is there (its caches are warm)
        alone, _ = few.time("T9", case, "dragontune, all swaps, no refresh", swaps.table, m * m)
        peer = vendi_seconds(few, case, given.x, order)
        bench.faster("T9", alone, "the fastest call of vendi-score, no refresh", peer, bound)
        bench.faster("T9", ours, "the fastest call of vendi-score, with refresh", peer, bound)


def vendi_seconds(bench: Bench, case: str, x: Array, order: float) -> float | None:
    """Of the fastest of the calls that vendi-score has."""
    truth = vendi_brute(x, order)(np.arange(len(x))[None])[0]
    seconds = dict[str, float | None]()
    try:
        for name, call in peers.vendi_calls(x, order).items():
            row, value = bench.time("T9", case, f"vendi-score, {name}", call)
            bench.error(value / truth - 1)
            seconds[name] = row.best
    except peers.MissingError as reason:
        bench.absent("T9", case, "vendi-score", reason)
    return fastest(seconds)


def t10(bench: Bench) -> None:
    """Kernel distances of all swaps."""
    given, bandwidth = problem(80, 512, 80, references=3000), 1.0
    case = "MMD m=80, 3,000 references"
    x, others = given.items
    y = torch.from_numpy(given.samples)

    def make() -> KernelSwaps:
        return KernelSwaps(x, y, others, kernel="gaussian", bandwidth=bandwidth)

    bench.time("T10", case, "dragontune, all swaps, the reference included", lambda: make().table(), 6400)
    brute = kernel_brute(given, bandwidth)
    ours = replace(bench, pairs=min(bench.pairs, 200)).table("T10", case, make(), brute)
    truth, seconds = brute(np.arange(80)[None])[0], None
    try:
        row, value = bench.time("T10", case, "kadtk", peers.kadtk_kernel(given.x, given.samples, bandwidth))
        bench.error(value / truth - 1)
        with tempfile.TemporaryDirectory() as scratch:
            call = peers.kadtk_kernel(given.x, given.samples, bandwidth, Path(scratch) / "kernel")
            stored, value = bench.time("T10", case, "kadtk, reference's distances stored", call)
            bench.error(value / truth - 1)
        seconds = min(row.best, stored.best)
    except peers.MissingError as reason:
        bench.absent("T10", case, "kadtk", reason)
    bench.faster("T10", ours, "kadtk, stored or not", seconds, 2e4)
    bench.at_most("T10", f"{case}: error", ours.error, 1e-12)


def hard_cases() -> Iterator[tuple[str, Array, Array, Array, bool]]:
    """Name, set, reference samples, candidates, and whether we are told no more than the reference's covariance."""
    wide, narrow = Embeddings(64), Embeddings(16)
    x, y, c = wide.draw(24), wide.draw(200), wide.draw(12)
    yield "m < d", x, y, c, False
    yield "m > d", narrow.draw(60), narrow.draw(200), narrow.draw(12), False
    yield "n = 2", x[:2], y, c, False
    yield "n = 3", x[:3], y, c, False
    yield "duplicates", np.concatenate([x[:12], x[:12]]), y, c, False
    yield "collapse", np.repeat(x[:1], 24, 0), y, c, False
    dead = np.arange(64) < 40
    yield "dead dimensions", x * dead, y * dead, c * dead, False
    yield "dead dimensions, the candidates' alive", x * dead, y * dead, c, False
    for scale in (1e3, 1e-3, 1e4):
        yield f"scale {scale:g}", scale * x, scale * y, scale * c, False
    yield "offset 100", x + 100, y + 100, c + 100, False
    yield "rank-deficient reference", x, y[:20], c, False
    yield "rank-deficient reference, as a covariance", x, y[:20], c, True
    yield "reference as a covariance", x, y, c, True
    for exponent in (0.5, 1.0, 1.5, 2.0, 2.5, 3.0):
        source = Embeddings(64, exponent)
        yield f"spectrum k^-{exponent}", source.draw(24), source.draw(200), source.draw(12), False
    yield "candidates are members", x, y, x[:12], False
    yield "far candidates", x, y, 100 * c, False
    yield "neighbours at 1e-9", x, y, x[:12] + 1e-9 * c, False
    yield "rounded to float16", *(values.astype(np.float16).astype(np.float64) for values in (x, y, c)), False
    yield "the same set", x, x, c, False
    yield "the same set, duplicates", np.repeat(x[:8], 3, 0), np.repeat(x[:8], 3, 0), c, False


def t11(bench: Bench) -> None:
    """Hard cases: errors in units of the reference's trace, or of the value where that is larger."""
    for name, x, y, c, as_covariance in hard_cases():
        mean = y.mean(0)
        root = (y - mean).T / np.sqrt(len(y) - 1)
        given = Problem(name, x, c, mean, np.cov(y, rowvar=False), y)
        reference = given.reference if as_covariance else torch.from_numpy(y)
        swaps = FrechetSwaps(given.items[0], reference, given.items[1])
        i, j = some_pairs(len(x), len(c), len(x) * len(c))
        truth = frechet_brute(given, root)(exchanged(swaps, i, j))
        own, trace = by_singular_values(x, given, root), (root**2).sum()
        found = np.array([frechet_distance(given.items[0], reference).item(), swaps.value, *swaps.pairs(i, j).tolist()])
        table = swaps.table().numpy()[i, j]
        truths = np.concatenate([[own, own], truth, truth])
        errors = np.abs(np.concatenate([found, table]) - truths) / np.maximum(truths, trace)
        bench.rows.append(Measurement("T11", name, "dragontune", len(errors), error=float(errors.max())))
        bench.at_most("T11", f"{name}: error", float(errors.max()), 1e-10)
        if name.startswith("the same set"):
            bench.at_most("T11", f"{name}: distance to itself over the trace", found[0] / trace, 1e-12)


def t12(bench: Bench) -> None:
    """Single precision."""
    bound = 2e-5
    for m in (80, 800):
        given = problem(m, 512, m)
        error = single(bench, given)
        bench.at_most("T12", f"{given.name}: relative error in float32", error, bound)
        try:
            _, value = bench.time("T12", given.name, "kadtk, float32", peers.kadtk_frechet(given.x, given.samples))
            bench.error(value / given.truth - 1)
        except peers.MissingError as reason:
            bench.absent("T12", given.name, "kadtk, float32", reason)
        try:
            given = music(m, "clap-laion-music")
            bench.at_most("T12", f"{given.name}: relative error in float32", single(bench, given), bound)
        except peers.MissingError as reason:
            bench.absent("T12", "clap-laion-music", "fadtk and its statistics", reason)


def single(bench: Bench, given: Problem) -> float:
    """Our error in float32; every peer is given float32 statistics."""
    reference, x = given.reference, given.items[0]
    _, value = bench.time(
        "T12", given.name, "dragontune, float32", lambda: frechet_distance(x, reference, dtype=torch.float32)
    )
    error = abs(value.item() / given.truth - 1)
    bench.error(error)
    bench.frechet("T12", given, np.float32)
    return error


TARGETS = {test.__name__.upper(): test for test in (t1, t2, t3, t4, t5, t6, t7, t8, t9, t10, t11, t12)}


# How the cost grows

PROMISED = {"m": 3.0, "d": 1.0}
"""Below d dimensions a table of m x m is nodes of products of m x m matrices; d counts once, in the projections."""


def scaling(bench: Bench, largest: int) -> dict[str, Any]:
    """Seconds of a table, refresh included, over m (and c = m) at d = 512 and over d at m = 80; exponents fitted."""
    sizes = {
        "m": [(m, m, 512) for m in (40, 80, 160, 320, 640, 1280) if m <= largest],
        "d": [(d, 80, d) for d in (64, 128, 256, 512, 1024, 2048)],
    }
    curves = {}
    for name, points in sizes.items():
        seconds = list[float]()
        for size, m, dim in track(points, f"scaling in {name}", console=CONSOLE):
            given = problem(m, dim, m, references=dim + 100)
            swaps = FrechetSwaps(given.items[0], given.reference, given.items[1])
            row = bench.table("scaling", f"{name}={size}", swaps, frechet_brute(given))
            seconds.append(row.best or float("nan"))
        last = slice(-min(3, len(points)), None)
        found = [point[0] for point in points]
        exponent = float(np.polyfit(np.log(found[last]), np.log(seconds[last]), 1)[0])
        curves[name] = {"sizes": found, "seconds": seconds, "fitted over": found[last], "exponent": exponent}
        bench.at_most("scaling", f"exponent of {name}", exponent, PROMISED[name] + 0.15)
    return curves


def draw(curves: dict[str, Any], path: Path) -> None:
    """Both curves with the fitted powers."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "dragontune", "font.size": 10})
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), sharey=False, layout="constrained")
    labels = {"m": "members and candidates (d = 512)", "d": "dimensions (80 members, 80 candidates)"}
    for panel, (name, curve) in zip(panels, curves.items(), strict=True):
        sizes, last = np.array(curve["sizes"]), np.array(curve["fitted over"])
        panel.loglog(sizes, curve["seconds"], "o-", label="all swaps, refresh included")
        fit = curve["seconds"][-1] * (last / last[-1]) ** curve["exponent"]
        panel.loglog(last, fit, "--", color="black", label=f"exponent {curve['exponent']:.2f}")
        panel.set_xticks(sizes, [str(size) for size in sizes])
        panel.minorticks_off()
        panel.set(xlabel=labels[name], ylabel="seconds, 1 thread")
        panel.grid(alpha=0.3)
        panel.legend()
    figure.savefig(path, metadata={"Date": None})


# The report


def surroundings() -> dict[str, Any]:
    """What the figures depend on."""
    names = ["torch", "numpy", "scipy", "mpmath", "scikit-learn", "dragontune", "kadtk", "vendi-score"]
    versions = {}
    for name in sorted({*names, *(peer.package for peer in peers.FRECHET)}):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": platform.processor() or platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "load before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch build": torch.__config__.show().splitlines(),
        "versions": versions,
    }


def show(bench: Bench) -> None:
    """Both tables."""
    table = Table("target", "case", "who", "each: best", "median", "repeats", "error", "note")
    for row in bench.rows:
        best, median = (clock(seconds, row.answers) for seconds in (row.best, row.median))
        error = "" if row.error is None else f"{row.error:.1e}"
        table.add_row(row.target, row.case, row.who, best, median, str(row.repeats or ""), error, row.note)
    CONSOLE.print(table)
    table = Table("target", "what", "measured", "asked for", "met")
    for claim in bench.claims:
        met = {True: "yes", False: "[bold red]NO", None: "[yellow]not measured"}[claim.met]
        value = "" if claim.value is None else f"{claim.value:.4g}"
        table.add_row(claim.target, claim.text, value, f"{'≥' if claim.at_least else '≤'} {claim.bound:g}", met)
    CONSOLE.print(table)


def clock(seconds: float | None, answers: int) -> str:
    """For one of the answers, in units that read well."""
    if seconds is None:
        return ""
    each = seconds / answers
    unit, factor = next(((u, f) for u, f in (("s", 1), ("ms", 1e3), ("µs", 1e6)) if each * f >= 1), ("ns", 1e9))
    return f"{each * factor:.3g} {unit}"


def write(folder: Path | None, name: str, bench: Bench, around: dict[str, Any], **more: Any) -> None:
    """Everything, as JSON."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    claims = [{**asdict(claim), "met": claim.met} for claim in bench.claims]
    result = {**around, **more, "claims": claims, "measurements": [asdict(row) for row in bench.rows]}
    (folder / name).write_text(json.dumps(result, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """0: all targets are met; 1: one is missed; 2: none is missed, but not all could be measured."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("what", nargs="?", choices=("targets", "scaling"), default="targets")
    parser.add_argument("--only", nargs="+", choices=TARGETS, default=list(TARGETS), metavar="T", help="some targets")
    parser.add_argument("--seconds", type=float, default=2.0, help="spent on repeats of each timing")
    parser.add_argument("--least", type=int, default=3, help="repeats of the slowest calls")
    parser.add_argument("--pairs", type=int, default=6400, help="swaps of a table that are checked by brute force")
    parser.add_argument("--largest", type=int, default=1280, help="members in `scaling`")
    parser.add_argument("--results", type=Path, help="folder of the JSON; with --only, nothing is written without it")
    parser.add_argument("--plot", type=Path, default=Path(__file__).parents[1] / "docs" / "distances-scaling.svg")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    bench, around = Bench(given.seconds, given.least, given.pairs), surroundings()
    folder = given.results or (Path(__file__).parent / "results" if given.only == list(TARGETS) else None)
    try:
        if given.what == "scaling":
            curves = scaling(replace(bench, pairs=min(given.pairs, 32)), given.largest)
            draw(curves, given.plot)
            write(folder, "distances-scaling.json", bench, around, curves=curves)
        else:
            for name in track(given.only, "targets", console=CONSOLE):
                TARGETS[name](bench)
            write(folder, "distances.json", bench, around)
    finally:
        show(bench)
    met = [claim.met for claim in bench.claims]
    return 1 if False in met else 2 if None in met else 0


if __name__ == "__main__":
    sys.exit(main())
