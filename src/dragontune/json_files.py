"""JSON that somebody else wrote: bounded in size and depth, so that a hostile file ends in one error, not in a crash.

Left out: what the content means; whoever reads it checks that.
"""

import json
from pathlib import Path
from typing import Any

MOST_BYTES = 64 << 20
"""Of a file; the largest settings of published models have a few MiB."""
MOST_PARSED = 4 << 20
"""Bytes of a file that is looked into in passing; only vocabularies are larger."""
MOST_DEPTH = 64
"""Of values within values."""


def read(path: str | Path, most: int = MOST_BYTES) -> Any:  # noqa: ANN401 - any JSON
    """The value in a file of at most `most` bytes.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is too large, no JSON in UTF-8, or nested too deeply; the message does not name the file.
    """
    with Path(path).open("rb") as file:
        return loads(file.read(most + 1), most)


def loads(content: str | bytes, most: int = MOST_BYTES) -> Any:  # noqa: ANN401 - any JSON
    """The value that a text says.

    Raises:
        ValueError: as `read`.
    """
    if len(content) > most:
        raise ValueError(f"more than {most:,} bytes of JSON")
    try:
        value = json.loads(content)
    except RecursionError:
        raise ValueError(f"more than {MOST_DEPTH} levels of JSON") from None
    check_depth(value)
    return value


def check_folder(folder: str | Path) -> None:
    """ValueError that names a `.json` in a folder or its sub-folders which is too large, or no sound settings.

    Raises:
        OSError: a file cannot be read.
        ValueError: see above.
    """
    for path in sorted(Path(folder).rglob("*.json")):
        try:
            if path.stat().st_size > MOST_BYTES:
                raise ValueError(f"more than {MOST_BYTES:,} bytes of JSON")
            if path.stat().st_size <= MOST_PARSED:
                read(path)
        except ValueError as error:
            raise ValueError(f"{path.relative_to(folder).as_posix()}: {error}") from error


def check_depth(value: object) -> None:
    """ValueError where lists and mappings are nested more than `MOST_DEPTH` deep, or contain themselves."""
    level, depth = [value], 0
    while level:
        if depth > MOST_DEPTH:
            raise ValueError(f"more than {MOST_DEPTH} levels of values within values")
        level = [
            inside
            for part in level
            if isinstance(part, dict | list)
            for inside in (part.values() if isinstance(part, dict) else part)
            if isinstance(inside, dict | list)
        ]
        depth += 1
