"""Embeddings that were computed before, found again by what was embedded and by what embedded it.

One SQLite file, which several processes may use at once and which a crash leaves as it was before the last write. An
entry is safetensors with a digest: what is damaged counts as not there. Left out: a secret, so who may write the file
decides what is in it; embeddings on other machines.
"""

import hashlib
import sqlite3
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import fields, is_dataclass
from functools import cache
from hashlib import blake2b
from importlib import metadata
from pathlib import Path
from types import TracebackType

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dragontune import own_code
from dragontune.data import Media, Rows
from dragontune.encoders.base import Embeddings, Encoder
from dragontune.errors import InputError

FILE = "embeddings-1.sqlite"
LIMIT = 10 << 30
"""Bytes; beyond them the oldest quarter of the entries is dropped."""
PAUSE = 2.0
"""Seconds of work that a crash may lose."""
HELD = 8 << 20
"""Bytes that wait to be written."""
PACKAGES = ("dragontune", "torch", "numpy", "soundfile", "soxr", "pillow", "av", "transformers", "diffusers")
"""Another version of what decodes or embeds may give other numbers."""


class EmbeddingCache(AbstractContextManager["EmbeddingCache"]):
    """A store of embeddings in a folder; a context manager, so that what waits is written at the end.

    Trouble with the store (a full or read-only disk, a damaged file) is a warning, and work goes on without it.

    >>> with EmbeddingCache(folder) as cache: cache.get(key(identity(encoder), content))

    Raises:
        InputError: the folder cannot be one.
    """

    def __init__(self, folder: Path, limit: int = LIMIT, pause: float = PAUSE) -> None:
        self.path, self.limit, self.pause = folder / FILE, limit, pause
        self.found = self.added = 0
        self._waiting: dict[bytes, bytes] = {}
        self._held = 0
        self._renewed = False
        self._written = time.monotonic()
        self._store: sqlite3.Connection | None = None
        if folder.exists() and not folder.is_dir():
            raise InputError(f"expected a folder for the cache, got {folder}, which is a file; choose another --cache")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._store = self._open()
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)

    def get(self, key: bytes) -> Embeddings | None:
        """One item's embeddings; None where they are not there, or not whole."""
        return self.find([key])[0]

    def find(self, keys: Sequence[bytes]) -> list[Embeddings | None]:
        """The same for up to 500 items at once, which is faster."""
        stored, wanted = dict[bytes, object](), [key for key in keys if key not in self._waiting]
        if self._store is not None and wanted:
            places = ", ".join("?" * len(wanted))
            try:
                rows = self._store.execute(f"SELECT key, value FROM embeddings WHERE key IN ({places})", wanted)
                stored = dict(rows.fetchall())
            except sqlite3.Error as error:
                self._renew(error)
        known = [self._waiting.get(key, stored.get(key)) for key in keys]
        found = [_unpacked(key, value) for key, value in zip(keys, known, strict=True)]
        self.found += sum(each is not None for each in found)
        return found

    def put(self, entries: Sequence[tuple[bytes, Embeddings]]) -> None:
        """Keep the embeddings of some items under their keys, all or none of them.

        They are on the disk at a later call, within `pause` seconds if there is one.
        """
        if self._store is None:
            return
        for key, embeddings in entries:
            self._waiting[key] = packed = _packed(key, embeddings)
            self._held += len(packed)
        self.added += len(entries)
        if time.monotonic() - self._written >= self.pause or self._held >= HELD:
            self.flush()

    def flush(self) -> None:
        """Write what waits, all or nothing."""
        waiting, self._waiting, self._held = self._waiting, {}, 0
        self._written = time.monotonic()
        if self._store is None or not waiting:
            return
        try:
            with self._store:
                self._store.execute("BEGIN IMMEDIATE")
                self._store.executemany("INSERT OR REPLACE INTO embeddings (key, value) VALUES (?, ?)", waiting.items())
                self._trim(self._store)
        except sqlite3.Error as error:
            self._renew(error)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what waits, whatever happened."""
        self.flush()
        if self._store is not None:
            self._store.close()
            self._store = None

    def _open(self) -> sqlite3.Connection:
        """The store; a file that is none is put aside."""
        try:
            return _connected(self.path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            self._put_aside(error)
            return _connected(self.path)

    def _renew(self, error: sqlite3.Error) -> None:
        """Go on with an empty store where the old one is damaged, else with none."""
        damaged = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
        if not damaged or self._renewed or self._store is None:
            self._give_up(error)
            return
        self._renewed = True
        try:
            self._store.close()
            self._put_aside(error)
            self._store = _connected(self.path)
        except (sqlite3.Error, OSError) as another:
            self._give_up(another)

    def _put_aside(self, error: Exception) -> None:
        aside = self.path.with_suffix(".damaged")
        self.path.replace(aside)
        self.path.with_name(f"{self.path.name}-journal").unlink(missing_ok=True)
        warnings.warn(f"the cache {self.path} was damaged ({error}) and is now {aside.name}", stacklevel=1)

    def _trim(self, store: sqlite3.Connection) -> None:
        pages, free, size = (
            store.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        if (pages - free) * size > self.limit:
            first, last = store.execute("SELECT min(number), max(number) FROM embeddings").fetchone()
            store.execute("DELETE FROM embeddings WHERE number < ?", (first + (last - first + 4) // 4,))

    def _give_up(self, error: Exception) -> None:
        warnings.warn(f"going on without the cache {self.path} ({error}); see --cache", stacklevel=1)
        if self._store is not None:
            with suppress(sqlite3.Error):
                self._store.close()
        self._store, self._waiting = None, {}


def key(identity: bytes, content: bytes) -> bytes:
    """What an entry is found by: who embedded, and what."""
    return blake2b(identity + content, digest_size=32).digest()


def identity(encoder: Encoder) -> bytes:
    """Of what embeds: the encoder's digest, the code of it and of all that decodes, and their packages' versions.

    So a changed encoder finds nothing, even while its author forgets to change its digest.
    """
    kind = type(encoder)
    words = (kind.__module__, kind.__qualname__, encoder.digest, _code(kind.__module__), _installed())
    return blake2b(repr(words).encode(), digest_size=32).digest()


def text_content(text: str) -> bytes:
    """A digest of a caption."""
    return blake2b(b"text:" + text.encode("utf-8", "surrogatepass"), digest_size=32).digest()


def media_content(media: Media) -> bytes:
    """A digest of decoded media: every number of every column, and what is constant."""
    total = blake2b(f"media:{type(media).__qualname__}".encode(), digest_size=32)
    columns = [media] if isinstance(media, Tensor) else [getattr(media, field.name) for field in fields(media)]
    for column in columns:
        if isinstance(column, Tensor):
            total.update(f"{column.dtype}{tuple(column.shape)}".encode())
            total.update(column.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        elif isinstance(column, Rows) and is_dataclass(column):
            total.update(media_content(column))
        else:
            total.update(repr(column).encode())
    return total.digest()


def _connected(path: Path) -> sqlite3.Connection:
    """An open store; what the file says of itself is not trusted."""
    store = sqlite3.connect(path, timeout=60, isolation_level=None)
    try:
        store.execute("PRAGMA trusted_schema = OFF")
        store.execute("PRAGMA cell_size_check = ON")
        store.execute("PRAGMA synchronous = NORMAL")
        store.execute(
            "CREATE TABLE IF NOT EXISTS embeddings (number INTEGER PRIMARY KEY, key BLOB UNIQUE NOT NULL, value BLOB)"
        )
        kinds = store.execute("SELECT type, name FROM sqlite_schema WHERE sql IS NOT NULL").fetchall()
        if kinds != [("table", "embeddings")]:
            raise sqlite3.DatabaseError("it holds something else")
        store.execute("SELECT number, key, value FROM embeddings LIMIT 1").fetchall()
    except sqlite3.Error:
        store.close()
        raise
    return store


def _packed(key: bytes, embeddings: Embeddings) -> bytes:
    content = save({"frames": embeddings.frames[0, : int(embeddings.count[0])].contiguous()})
    return blake2b(key + content, digest_size=16).digest() + content


def _unpacked(key: bytes, value: object) -> Embeddings | None:
    if (
        not isinstance(value, bytes)
        or len(value) < 16
        or blake2b(key + value[16:], digest_size=16).digest() != value[:16]
    ):
        return None
    try:
        frames = load(value[16:]).get("frames")
    except (SafetensorError, ValueError, KeyError):
        return None
    if frames is None or frames.ndim != 2 or not len(frames) or not frames.isfinite().all():
        return None
    return Embeddings.of(frames[None])


@cache
def _code(module: str) -> str:
    """A digest of the source of everything in the package that decodes or embeds, and of `module` with its imports."""
    package = Path(__file__).parent
    files = [path for part in ("encoders", "media", "generators") for path in sorted((package / part).rglob("*.py"))]
    own = getattr(sys.modules.get(module), "__file__", None)
    total = hashlib.sha256()
    ours = own is None or Path(own).is_relative_to(package)
    for path in [*files, *([Path(own)] if own and ours else [])]:
        with suppress(OSError):
            total.update(hashlib.sha256(path.read_bytes()).digest())
    if own and not ours:
        with suppress(OSError):
            total.update(own_code.digest(Path(own)).encode())
    return total.hexdigest()


@cache
def _installed() -> tuple[str, ...]:
    found = []
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return tuple(found)
