"""Many files read ahead of their use, in threads: in order, and never more at a time than fit into little memory.

Codecs (libsndfile, Pillow, FFmpeg) and hashes work outside of Python's lock, so threads read as fast as processes
would and cost no second copy of the program. Left out: reading parts of one long file.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from dragontune.data import Rows
from dragontune.errors import InputError

AHEAD = 32
"""Files that are read before they are asked for."""
BYTES_AHEAD = 1 << 26
"""In memory, of what was read and is not yet asked for."""

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


class Threads(ThreadPoolExecutor):
    """`count` of them."""

    def __init__(self, count: int) -> None:
        super().__init__(count, "dragontune-read")
        self.count = count


@contextmanager
def pool(count: int) -> Iterator[Threads]:
    """Threads, which are let go at the end, done or not."""
    threads = Threads(count)
    try:
        yield threads
    finally:
        threads.shutdown(wait=True, cancel_futures=True)


def ahead(threads: Threads, work: Callable[[J], R], jobs: Iterable[J]) -> Iterator[R]:
    """`work` of every job, in their order, some done before they are asked for.

    How much a job leaves in memory is known only when it is done, so one more than there are threads are under way at
    most; another begins where fewer than `AHEAD` results wait, of `BYTES_AHEAD` together.
    """
    waiting: deque[Future[tuple[int, R]]] = deque()

    def weighed(job: J) -> tuple[int, R]:
        result = work(job)
        return weight(result), result

    def full() -> bool:
        done = [future for future in waiting if future.done()]
        held = sum(future.result()[0] for future in done if not future.exception())
        return len(waiting) >= AHEAD or len(waiting) - len(done) > threads.count or held > BYTES_AHEAD

    for job in jobs:
        while waiting and full():
            yield waiting.popleft().result()[1]
        waiting.append(threads.submit(weighed, job))
    while waiting:
        yield waiting.popleft().result()[1]


def weight(value: object) -> int:
    """Bytes of the tensors in rows, and in tuples of rows."""
    match value:
        case Tensor():
            return value.numel() * value.element_size()
        case tuple():
            return sum(map(weight, value))
        case _ if is_dataclass(value) and not isinstance(value, type):
            return sum(weight(getattr(value, field.name)) for field in fields(value))
        case _:
            return 0


def decode(path: Path, read: Callable[[Path], Rows]) -> Decoded:
    """A file as one row, or the error that names it."""
    try:
        return Decoded(path, read(path))
    except InputError as error:
        return Decoded(path, None, error)


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
