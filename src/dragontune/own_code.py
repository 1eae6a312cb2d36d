"""What a user's own code says, as one digest: a file of Python, and what it imports from beside it.

Imports are read from the source, also those within functions, so the digest does not depend on what a process has
loaded. Left out: modules that are imported by a name made at run time, and all but the named file of what is installed.
"""

import ast
import sys
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path

INSTALLED = (sys.prefix, sys.base_prefix)


def digest(path: Path) -> str:
    """SHA-256 (hex). Where the folder lies and what the file itself is called make no difference.

    Raises:
        OSError: a file cannot be read.
    """
    first = path.resolve()
    contents, waiting = dict[Path, bytes](), [first]
    roots = [] if any(map(first.is_relative_to, INSTALLED)) else _roots(first)
    while waiting:
        file = waiting.pop()
        if file not in contents:
            contents[file] = file.read_bytes()
            waiting += _beside(contents[file], file, roots) if roots else []
    own = sha256(contents.pop(first))
    for name, content in sorted((file.relative_to(roots[-1]).as_posix(), each) for file, each in contents.items()):
        own.update(f"\0{name}\0{sha256(content).hexdigest()}".encode())
    return own.hexdigest()


def _roots(file: Path) -> list[Path]:
    """The folders in which a file's imports may lie, the outermost last: its own, and that of the package it is in."""
    found = [file.parent]
    while (found[-1] / "__init__.py").is_file():
        found.append(found[-1].parent)
    return found


def _beside(content: bytes, file: Path, roots: Sequence[Path]) -> Iterator[Path]:
    try:
        nodes = ast.walk(ast.parse(content))
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # it is not run then either
        return
    for node in nodes:
        match node:
            case ast.Import(names):
                yield from (path for name in names for path in _files(name.name, roots))
            case ast.ImportFrom(module, names, level):
                where = [file.parents[level - 1]] if 0 < level <= len(file.parents) else roots
                within = [f"{module}.{name.name}" if module else name.name for name in names]
                yield from (path for name in within for path in _files(name, where))
            case _:
                pass


def _files(name: str, roots: Sequence[Path]) -> Iterator[Path]:
    """The source of a module and of the packages it is in, where they are there."""
    parts = name.split(".")
    for root in roots:
        for place in (root.joinpath(*parts[:count]) for count in range(1, len(parts) + 1)):
            yield from (path for path in (place.with_name(f"{place.name}.py"), place / "__init__.py") if path.is_file())
