"""What a user names as `path/to/file.py:name` or `package.module:name`: found, run once, looked up.

A file is run as a module of a name of its own, made from its path and content, so that it can hide no other module and
a file that was edited is read again. Its folder joins the end of `sys.path`: what lies beside it can be imported. Left
out: anything that is not Python source.
"""

import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

from dragontune.errors import InputError

PREFIX = "user_file_"
"""How the names of modules made from files begin."""
NAMED = re.compile(r"(?P<file>.*\.py):(?P<name>[^:]*)|(?P<module>[A-Za-z_][\w.]*):(?P<member>[A-Za-z_][\w.]*)")


def named(text: str) -> bool:
    """Whether a text has the form `path/to/file.py:name` or `package.module:name`, or names a file alone."""
    return NAMED.fullmatch(text) is not None or text.endswith(".py")


def find(text: str) -> object:
    """What a text of that form names. A file or module is run at most once for the same content.

    Raises:
        InputError: the form, the file, the code in it or the name is wrong; the message names file and line.
    """
    parts = NAMED.fullmatch(text)
    if parts is None:
        raise InputError(f"expected path/to/file.py:name or package.module:name, got {text!r}; add what is missing")
    found: object = _run(Path(parts["file"])) if parts["file"] else _imported(parts["module"])
    for name in (parts["name"] or parts["member"] or "").split("."):
        try:
            found = getattr(found, name)
        except AttributeError as error:
            there = ", ".join(_own(found)) or "nothing"
            place = parts["file"] or parts["module"]
            raise InputError(f"expected a name that is in {place}, got {text!r}; there is {there}") from error
    return found


def located(text: str, folder: Path) -> str:
    """The same with a file that is not in the working directory, but in `folder`, by its path there."""
    parts = NAMED.fullmatch(text)
    if parts is None or not parts["file"] or Path(parts["file"]).expanduser().is_file():
        return text
    beside = folder / parts["file"]
    return f"{shown(beside)}:{parts['name']}" if beside.is_file() else text


def digests(value: object) -> dict[str, str]:
    """The SHA-256 of the user's files that a part of a recipe names, by name: other content is another reward."""
    match value:
        case dict():
            return {name: digest for member in value.values() for name, digest in digests(member).items()}
        case list() | tuple():
            return {name: digest for member in value for name, digest in digests(member).items()}
        case str() if (parts := NAMED.fullmatch(value)) and parts["file"]:
            path = Path(parts["file"]).expanduser()
            return {parts["file"]: sha256(path.read_bytes()).hexdigest()} if path.is_file() else {}
        case _:
            return {}


def import_path(text: str) -> str:
    """The dotted path under which what `text` names can be imported, in this process."""
    found = find(text)
    return f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"


def restored(text: str) -> str:
    """`text` with every name of a module made from a file turned back into the path of that file."""

    def path(match: re.Match[str]) -> str:
        module = sys.modules.get(match[1])
        return f"{shown(Path(module.__file__ or ''))}:" if module else match[0]

    return re.sub(rf"({PREFIX}[0-9a-f]+)\.", path, text)


def file_of(function: Callable[..., Any]) -> str | None:
    """Where a function, or the `__call__` of an object, was written, beneath decorators that say what they wrap."""
    while isinstance(function, partial):
        function = function.func
    code = getattr(inspect.unwrap(function), "__code__", None)
    return getattr(code or getattr(inspect.unwrap(type(function).__call__), "__code__", None), "co_filename", None)


def blame(error: BaseException, file: str | None = None) -> str:
    """What an exception says and where: the last line in `file` that it passed through, else the last line of all."""
    said = " ".join(str(error).split())
    what = f"{type(error).__name__}: {said}" if said else type(error).__name__
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _ours(frame.filename)]
    mine = [frame for frame in frames if frame.filename == file] or frames
    return f"{what} ({shown(Path(mine[-1].filename))}, line {mine[-1].lineno})" if mine else what


def shown(path: Path) -> str:
    """A path as seen from the working directory, if it is inside it."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _run(path: Path) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise InputError(f"expected a Python file, got {path}, which is not there; check the path")
    content = path.read_bytes()
    name = PREFIX + sha256(str(path).encode() + b"\0" + content).hexdigest()[:16]
    if name in sys.modules:
        return sys.modules[name]
    try:
        code = compile(content, str(path), "exec")
    except (SyntaxError, ValueError) as error:
        line = f" in line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise InputError(f"expected Python in {shown(path)}, got {_said(error)}{line}; correct it") from error
    module = ModuleType(name)
    module.__file__ = str(path)
    _open(path.parent)
    sys.modules[name] = module
    try:
        exec(code, module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise InputError(f"expected {shown(path)} to run, got {blame(error, str(path))}; correct it") from error
    return module


def _imported(name: str) -> ModuleType:
    _open(Path.cwd())
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise InputError(
            f"expected a module {name} to import, got {blame(error)}; install it, or name a file (path/to/file.py:name)"
        ) from error


def _open(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _own(found: object) -> list[str]:
    """The public functions and classes that were defined there."""
    home = getattr(found, "__name__", None)
    members = {name: getattr(found, name, None) for name in dir(found) if not name.startswith("_")}
    return [name for name, member in members.items() if callable(member) and getattr(member, "__module__", 0) == home]


def _said(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {' '.join(text.split())}"


def _ours(filename: str) -> bool:
    return Path(filename).parent == Path(__file__).parent or filename.startswith("<frozen importlib")
