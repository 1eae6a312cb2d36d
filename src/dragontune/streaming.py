"""Many files, or captions, to embeddings: read ahead, embedded in order, looked up first if there is a cache.

The embeddings come one item at a time and in the order of the files, so what is made of them does not depend on how
many threads read, nor on what the cache held. Left out: several devices at once.
"""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from dragontune import embedding_cache
from dragontune.data import Rows
from dragontune.embedding_cache import EmbeddingCache
from dragontune.encoders.base import Embeddings, Encoder, TextEncoder
from dragontune.errors import InputError
from dragontune.media import decoding
from dragontune.media.kinds import Kind
from dragontune.plain_text import line

NAMED = 5
"""Unreadable files that are named in warnings of their own."""
NUMBERS = 1 << 24
"""In a batch, at most: samples or pixels."""

QUIET = 3.0
"""Seconds without a word."""
LOOKED_UP = 16
"""Files that are looked up in the cache at once."""

Progress = Callable[[int, int, str], None]
"""Called with how many are done, how many there are, and how fast it goes."""


class Unreadable:
    """The files that could not be read, with the reason; the first few are named in warnings at once."""

    def __init__(self, said: str = "left out") -> None:
        self.said = said
        self.files: list[tuple[Path, str]] = []

    def __len__(self) -> int:
        return len(self.files)

    def add(self, path: Path, error: InputError) -> None:
        """One more."""
        self.files.append((path, str(error)))
        if len(self) <= NAMED:
            warnings.warn(f"{self.said}: {error}", stacklevel=1)

    def conclude(self) -> None:
        """Warn of how many were not named."""
        if len(self) > NAMED:
            warnings.warn(f"{self.said}: {len(self) - NAMED} more files that cannot be read", stacklevel=1)

    def text(self) -> str:
        """One line a file: its path, a tab, the reason; characters that are not printed are escaped."""
        return "".join(f"{line(str(path))}\t{line(reason)}\n" for path, reason in self.files)


@dataclass(frozen=True, eq=False)
class Reading:
    """How files are read and embedded.

    `batch` files of one shape that follow each other go through the encoder together: faster, but the last digits of an
    embedding then depend on its neighbours, so they are kept apart from others in the cache.

    Raises:
        InputError: there are no threads, or a batch is empty.
    """

    workers: int | None = None
    """Threads that decode; None: one for each processor."""
    batch: int = 1
    cache: EmbeddingCache | None = None
    progress: Progress | None = None
    unreadable: Unreadable = field(default_factory=lambda: Unreadable("left out of the exemplars"))

    def __post_init__(self) -> None:
        for name, value in (("workers", self.workers), ("batch", self.batch)):
            if value is not None and value < 1:
                raise InputError(f"expected {name} of 1 or more, got {value}; leave it out for the default")

    @property
    def threads(self) -> int:
        """How many."""
        return self.workers or decoding.workers()


class Pace:
    """Passes on how much is done, ten times a second at most, with the speed and the time that is left.

    What is over within `QUIET` seconds is not told of. The speed is that since the start of this pace: what was skipped
    at once makes the estimate kinder than it is.
    """

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total, self.progress, self.done = total, progress, 0
        self._start = self._said = time.monotonic()

    def step(self) -> None:
        """One more is done."""
        self.done += 1
        now = time.monotonic()
        if now - self._start >= QUIET and (self.done == self.total or now - self._said >= 0.1):
            self._say(now)

    def _say(self, now: float) -> None:
        self._said = now
        if self.progress is None:
            return
        rate = self.done / (now - self._start)
        left = _duration((self.total - self.done) / rate)
        self.progress(self.done, self.total, f"{rate:.3g} a second, {left} left")


@dataclass(frozen=True, eq=False)
class _Job:
    """A file, the key of its embeddings if they may be kept, themselves if they are known, and its media if not."""

    path: Path
    key: bytes | None = None
    stamp: tuple[int, int] | None = None
    found: Embeddings | None = None
    media: Rows | None = None
    error: InputError | None = None


def embed_files(encoder: Encoder, kind: Kind, paths: Sequence[Path], reading: Reading) -> Iterator[Embeddings]:
    """The embeddings of every file that can be read, one item each, on the CPU.

    Raises:
        InputError: the encoder refuses a file, or its embeddings are not finite; the message names the file.
    """
    pace, batch = Pace(len(paths), reading.progress), list[_Job]()
    with decoding.pool(reading.threads) as threads:
        found = _looked_up(encoder, kind, paths, reading, threads)
        for job in decoding.ahead(threads, lambda job: _decoded(job, kind), found):
            pace.step()
            if batch and not (job.media is not None and len(batch) < reading.batch and _together(batch, job)):
                yield from _embedded(encoder, batch, reading.cache)
                batch = []
            if job.found is not None:
                yield job.found
            elif job.error is not None:
                reading.unreadable.add(job.path, job.error)
            else:
                batch.append(job)
        yield from _embedded(encoder, batch, reading.cache)
    reading.unreadable.conclude()


def embed_texts(encoder: TextEncoder, texts: Sequence[str], reading: Reading) -> Iterator[Embeddings]:
    """The embeddings of every text, one item each, on the CPU."""
    pace, cache = Pace(len(texts), reading.progress), reading.cache
    owner = b"" if cache is None else embedding_cache.identity(encoder)
    for text in texts:
        key = embedding_cache.key(owner, embedding_cache.text_content(text))
        found = None if cache is None else cache.get(key)
        if found is None:
            found = alone(encoder.embed_text([text]), 0)
            if cache is not None:
                cache.put([(key, found)])
        pace.step()
        yield found


def alone(embeddings: Embeddings, row: int) -> Embeddings:
    """One item without padding, on the CPU; in one order in memory, since the last digits of sums depend on it."""
    frames = embeddings.frames[row, : int(embeddings.count[row])].detach().cpu()
    return Embeddings.of(frames.clone(memory_format=torch.contiguous_format)[None])


def _looked_up(
    encoder: Encoder, kind: Kind, paths: Sequence[Path], reading: Reading, threads: decoding.Threads
) -> Iterable[_Job]:
    """Every file with what the cache knows of it."""
    cache = reading.cache
    if cache is None:
        yield from (_Job(path) for path in paths)
        return
    owner = embedding_cache.identity(encoder) + f"{kind.name} {reading.batch} ".encode()
    contents = decoding.ahead(threads, lambda path: (path, _stamp(path), decoding.content(path)), paths)
    while some := list(islice(contents, LOOKED_UP)):
        keys = [embedding_cache.key(owner + path.suffix.lower().encode(), what or b"") for path, _, what in some]
        for (path, stamp, content), key, found in zip(some, keys, cache.find(keys), strict=True):
            yield _Job(path) if content is None else _Job(path, key, stamp, found)


def _decoded(job: _Job, kind: Kind) -> _Job:
    """With its media, where they are needed; a file that changed since it was looked up is not kept."""
    if job.found is not None:
        return job
    decoded = decoding.decode(job.path, kind.read)
    key = job.key if _stamp(job.path) == job.stamp else None
    return _Job(job.path, key, job.stamp, None, decoded.media, decoded.error)


def _embedded(encoder: Encoder, batch: Sequence[_Job], cache: EmbeddingCache | None) -> Iterator[Embeddings]:
    """Of a batch of files of one shape; they are kept all together or not at all."""
    media = [job.media for job in batch if job.media is not None]
    if not media:
        return
    try:
        embeddings = encoder.embed(type(media[0]).join(media))
    except InputError as error:
        raise InputError(f"{error} (while embedding {batch[0].path})") from error
    found = [alone(embeddings, row) for row in range(len(batch))]
    for job, one in zip(batch, found, strict=True):
        if not one.frames.isfinite().all():
            raise InputError(
                f"expected finite embeddings, got NaN or infinity for {job.path} by {encoder.name}, they are not "
                "finite; replace or remove the file"
            )
    if cache is not None:
        cache.put([(job.key, one) for job, one in zip(batch, found, strict=True) if job.key is not None])
    yield from found


def _together(batch: Sequence[_Job], job: _Job) -> bool:
    """Whether a file has the shape of those in the batch, and there is room."""
    media = job.media
    if media is None or batch[0].media is None or _shape(media) != _shape(batch[0].media):
        return False
    return (len(batch) + 1) * _numbers(media) <= NUMBERS


def _shape(media: Rows) -> tuple[object, ...]:
    columns = (getattr(media, each.name) for each in fields(media))
    return (type(media), *(column.shape if isinstance(column, Tensor) else column for column in columns))


def _numbers(media: Rows) -> int:
    columns = (getattr(media, each.name) for each in fields(media))
    return sum(column.numel() for column in columns if isinstance(column, Tensor))


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
