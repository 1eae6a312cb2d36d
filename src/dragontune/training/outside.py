"""What decides a run beside the text of its recipe: the content of the files and folders that the recipe names.

A digest of each is kept with the run, so that one that was changed between the parts of a run is found when it is
resumed: prompts, exemplars, references, heads, a local model, a user's code. Left out: what a hub name stands for, what
a user's own class is given (it may be a file that it writes), a cache, and what a module imports from other folders.
"""

import importlib.util
import sys
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from dragontune.embedded import locate
from dragontune.errors import InputError
from dragontune.rewards.source import NAMED, shown

START = "start"
"""The field of a recipe with the LoRA that a run is begun from, and the folder of the run that keeps a copy of it."""
KEPT = f"RUN/{START}"
"""What that copy is called here, wherever the run lies."""
WRITTEN = ("cache", START)
"""Fields whose files a run writes itself, or keeps a copy of."""
WHOLE, PIECE, PIECES = 2**28, 2**20, 64
"""A file of more than `WHOLE` bytes is known by its length and so many evenly spaced pieces of so many bytes."""
OURS = "dragontune."
INSTALLED = (sys.prefix, sys.base_prefix)


def digests(recipe: Mapping[str, Any], run: Path, known: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 (hex) of what the fields of a resolved recipe name, by these names; those `known` are taken as they are.

    `run` is the folder of the run.
    """
    names = dict.fromkeys([*_named(recipe), KEPT])
    found = {name: known[name] if name in known else _digest(name, run) for name in names}
    return {**known, **{name: digest for name, digest in found.items() if digest is not None}}


def changed(before: Mapping[str, str], run: Path) -> list[str]:
    """Which of these are not what they were, in words."""
    found: list[str] = []
    for name, digest in before.items():
        now = _digest(name, run)
        if now != digest:
            found.append(f"{name} {'is no longer there' if now is None else 'has other content than before'}")
    return found


def _named(value: object, ours: bool = True) -> Iterator[str]:
    """The texts that may name a file, also what a user's file of code has imported from its own folder."""
    match value:
        case {"class_path": str(kind), **rest}:
            yield from _code(kind)
            yield from _named(rest, kind.startswith(OURS))
        case dict():
            for key, member in value.items():
                if key not in WRITTEN:
                    yield from _named(member, ours)
        case list() | tuple():
            for member in value:
                yield from _named(member, ours)
        case str() if NAMED.fullmatch(value) or value.endswith(".py"):
            yield from _code(value)
        case str() if ours:
            yield value


def _code(text: str) -> Iterator[str]:
    """`text`, where it names code of the user's, and the modules beside it that are loaded."""
    parts = NAMED.fullmatch(text)
    if parts is None and not text.endswith(".py"):
        return
    yield text
    place = _place(text)
    if place is None or (parts is not None and parts["module"]):
        return
    for module in list(sys.modules.values()):
        file, name = getattr(module, "__file__", None), getattr(module, "__name__", "")
        if file and not f"{name}.".startswith(OURS) and not any(map(Path(file).is_relative_to, INSTALLED)):
            path = Path(file).resolve()
            if path.is_relative_to(place.parent) and path != place:
                yield shown(path)


def _place(name: str, run: Path = Path()) -> Path | None:
    """The file or folder behind a name."""
    if name == KEPT:
        return run / START
    parts = NAMED.fullmatch(name)
    if parts is not None and parts["module"]:
        try:
            spec = importlib.util.find_spec(parts["module"])
        except (ImportError, ValueError):
            return None
        return Path(spec.origin) if spec and spec.origin else None
    try:
        return locate(parts["file"] if parts is not None else name).resolve()
    except (InputError, OSError, ValueError, RuntimeError):
        return None


def _digest(name: str, run: Path) -> str | None:
    """None where there is nothing, or a folder that holds the run or the work: it changes with them."""
    place = _place(name, run)
    if place is not None and place.is_file():
        return _content(place)
    if place is None or not place.is_dir() or any(each.is_relative_to(place) for each in (run.resolve(), Path.cwd())):
        return None
    total = sha256()
    for path in sorted(path for path in place.rglob("*") if path.is_file()):
        if not any(part.startswith((".", "__pycache__")) for part in path.relative_to(place).parts):
            total.update(f"{path.relative_to(place).as_posix()}\0{_content(path)}\n".encode())
    return total.hexdigest()


def _content(path: Path) -> str:
    size = path.stat().st_size
    total = sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= WHOLE:
            while piece := file.read(PIECE):
                total.update(piece)
        else:
            for number in range(PIECES):
                file.seek(number * (size - PIECE) // (PIECES - 1))
                total.update(file.read(PIECE))
    return total.hexdigest()
