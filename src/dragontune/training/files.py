"""Files that are either whole or not there: written beside, flushed to the disk, then renamed."""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from dragontune.errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
PARTIAL = ".partial"
"""What the hidden name of a file or folder ends with that is being written, before its suffix."""


def write(path: Path, content: bytes) -> None:
    """Give `path` this content at once: a reader, or a crash, sees the old file or the new one and nothing between."""
    make(path, lambda beside: beside.write_bytes(content))


def make(path: Path, fill: Callable[[Path], object]) -> None:
    """Give `path` at once what `fill` writes into the file it is called with, which has the same suffix."""
    beside = path.with_name(f".{path.stem}{PARTIAL}{path.suffix}")
    try:
        beside.unlink(missing_ok=True)  # a link that lay there would be written through
        fill(beside)
        _flush(beside)
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def write_folder(path: Path, fill: Callable[[Path], object]) -> None:
    """Give `path` at once what `fill` writes into the folder it is called with; an older `path` is replaced whole."""
    beside, old = path.with_name(f".{path.name}{PARTIAL}"), path.with_name(f".{path.name}.old")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        fill(beside)
        for entry in [*beside.rglob("*"), beside]:
            if entry.is_file():
                _flush(entry)
            elif entry.is_dir():
                flush_folder(entry)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    beside.rename(path)
    flush_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(path: Path) -> None:
    """Undo a replacement by `write_folder` that was killed between its two renames, and remove what it left."""
    beside, old = path.with_name(f".{path.name}{PARTIAL}"), path.with_name(f".{path.name}.old")
    if old.exists() and not path.exists():
        old.rename(path)
    for folder in (beside, old):
        shutil.rmtree(folder, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what a killed process had begun to write directly in `folder`."""
    for entry in folder.glob(f".*{PARTIAL}*"):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder, unless it is there.

    Raises:
        InputError: something else is there or on the way, or a folder cannot be made there.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"expected a folder, got {path}, which is or lies in a file; choose another --out") from error
    except OSError as error:
        if error.errno in FULL:
            raise
        raise InputError(
            f"expected a place where a folder can be made, got {path} ({error.strerror}); choose another --out or its "
            "permissions"
        ) from error


def flush_folder(path: Path) -> None:
    """Make renames in `path` survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        _flush(path)


def storage_trouble(error: BaseException) -> str | None:
    """One sentence if `error`, or what it came from, is a full or read-only disk, or a full GPU; else None."""
    for cause in _causes(error):
        if type(cause).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(cause):
            return (
                f"expected enough memory, got too little ({str(cause).partition('. ')[0]}); `dragontune doctor` says "
                "what to change in a recipe, and what was complete is still there (tune: --resume)"
            )
        code, text = getattr(cause, "errno", None), str(cause)
        if code in FULL or any(words in text for words in ("No space left", "StorageFull", "File too large")):
            return (
                f"expected room on the disk, got none left ({text}); what was complete is still there: "
                "free some space and run again (tune: with --resume)"
            )
        if code == errno.EIO:
            return (
                f"expected a disk that works, got an error of it ({text}); what was complete is still there: see to "
                "the disk and run again (tune: with --resume)"
            )
        if isinstance(cause, OSError) and code in READ_ONLY:
            place = cause.filename or "a file"
            return f"expected a place that can be written, got {place} ({cause.strerror}); change it or its permissions"
        if "Read-only file system" in text or "Permission denied" in text:  # as safetensors tells it
            return f"expected a place that can be written, got one that cannot ({text}); change it or its permissions"
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
