"""Many files read ahead of their use, in threads: in order, and never more at a time than fit into little memory.

Codecs (libsndfile, Pillow, FFmpeg) and hashes work outside of Python's lock, so threads read as fast as processes
would and cost no second copy of the program. Left out: reading parts of one long file.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

from dragontune.data import Rows
from dragontune.errors import InputError

AHEAD = 32
"""Files that are read before they are asked for."""
BYTES_AHEAD = 1 << 24
"""Of files: compressed audio takes up to 25 times as much in memory."""
LEAST = 1 << 10
"""Bytes that even the smallest file counts."""

J = TypeVar("J")
R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class Decoded:
    """What became of a file: one row of media, or why there is none."""

    path: Path
    media: Rows | None
    error: InputError | None = None


def workers() -> int:
    """Threads that read files where nobody says: one for each processor this process may use, at most 8."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return max(1, min(8, len(usable)))


@contextmanager
def pool(count: int) -> Iterator[Executor]:
    """Threads, which are let go at the end, done or not."""
    threads = ThreadPoolExecutor(count, "dragontune-read")
    try:
        yield threads
    finally:
        threads.shutdown(wait=True, cancel_futures=True)


def ahead(
    threads: Executor, work: Callable[[J], R], jobs: Iterable[J], size: Callable[[J], int] = lambda _: LEAST
) -> Iterator[R]:
    """`work` of every job, in their order, some done before they are asked for.

    At most `AHEAD` jobs wait, and no more than one where their `size` together exceeds `BYTES_AHEAD`.
    """
    waiting: deque[tuple[Future[R], int]] = deque()
    held = 0
    for job in jobs:
        weight = max(LEAST, size(job))
        while waiting and (len(waiting) >= AHEAD or held + weight > BYTES_AHEAD):
            future, done = waiting.popleft()
            held -= done
            yield future.result()
        waiting.append((threads.submit(work, job), weight))
        held += weight
    while waiting:
        yield waiting.popleft()[0].result()


def decode(path: Path, read: Callable[[Path], Rows]) -> Decoded:
    """A file as one row, or the error that names it."""
    try:
        return Decoded(path, read(path))
    except InputError as error:
        return Decoded(path, None, error)


def size(path: Path) -> int:
    """Bytes; 0 where there is no such file."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def content(path: Path) -> bytes | None:
    """A digest of a file's bytes (32, BLAKE2b); None where it cannot be read."""
    total = blake2b(b"file:", digest_size=32)
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    except OSError:
        return None
    return total.digest()
