"""What may be written short: a reward by the file and name of the user's own function or class, an encoder by name."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from dragontune.errors import InputError
from dragontune.rewards import source

FUNCTION = "dragontune.rewards.function.Function"
TAKE_FUNCTIONS = ("Function", "SetFunction")


def expanded(value: Any, folder: Path) -> Any:  # noqa: ANN401 - any part of a recipe
    """A part of a recipe in full.

    Where a reward may stand (under `reward`, and under each name in `rewards`) the text `file.py:name` or
    `package.module:name` becomes a `Function`, or the class of that name; `class_path: file.py:name` becomes a path
    that can be imported in this process. A file that is not in the working directory is looked for in `folder`.

    Raises:
        InputError: there is no such file or name, or the code cannot be run.
    """
    match value:
        case list():
            return [expanded(member, folder) for member in value]
        case {"class_path": str(kind), **rest}:
            arguments = rest.get("init_args")
            if kind.rpartition(".")[2] in TAKE_FUNCTIONS and isinstance(arguments, dict):
                function = arguments.get("function")
                located = source.located(function, folder) if isinstance(function, str) else function
                rest = rest | {"init_args": arguments | ({"function": located} if "function" in arguments else {})}
            return {"class_path": _class_path(kind, folder)} | {key: _under(key, rest[key], folder) for key in rest}
        case dict():
            return {key: _under(key, member, folder) for key, member in value.items()}
        case _:
            return value


def reward(value: Any, folder: Path) -> Any:  # noqa: ANN401 - any part of a recipe
    """What stands where a reward may stand, in full."""
    if not isinstance(value, str) or not source.named(value):
        return expanded(value, folder)
    text = source.located(value, folder)
    if isinstance(source.find(text), type):
        return {"class_path": source.import_path(text)}
    return {"class_path": FUNCTION, "init_args": {"function": text}}


def encoder(text: str) -> dict[str, Any]:
    """An encoder on the command line: `log-mel`, `LogMel`, `clap:FOLDER`, `mert:owner/model` or `{class_path: ...}`.

    Raises:
        InputError: what is in braces is no YAML.
    """
    if text.startswith("{"):
        try:
            found = yaml.safe_load(text)
        except yaml.YAMLError as error:
            got = " ".join(str(error).split())
            raise InputError(f"expected class_path and init_args in {text}, got no YAML ({got}); correct it") from error
        return found
    name, colon, model = text.partition(":")
    name = "".join(word.capitalize() for word in name.split("-")) if name == name.lower() else name
    return {"class_path": name} | ({"init_args": {"model": model}} if colon else {})


def overrides(words: Sequence[str], folder: Path) -> list[str]:
    """The same for fields that are overridden on the command line."""
    said = list(words)
    for place, word in enumerate(words):
        field, equals, value = word.partition("=")
        name = field.rpartition(".")[2].lstrip("-")
        if not field.startswith("--") or name not in ("reward", "rewards", "class_path", "family"):
            continue
        if equals:
            said[place] = f"{field}={_override(name, value, folder)}"
        elif place + 1 < len(words):
            said[place + 1] = _override(name, words[place + 1], folder)
    return said


def restored(value: Any) -> Any:  # noqa: ANN401 - any part of a recipe
    """A part of a recipe with the classes of the user's files named by file again, so that it can be read again."""
    match value:
        case dict():
            return {
                key: _class_named(member) if key == "class_path" else restored(member) for key, member in value.items()
            }
        case list() | tuple():
            return [restored(member) for member in value]
        case _:
            return value


def _under(key: str, value: Any, folder: Path) -> Any:  # noqa: ANN401 - any part of a recipe
    if key == "reward":
        return reward(value, folder)
    if key == "family" and isinstance(value, str):
        return source.located(value if ":" in value else f"{value}:FAMILY", folder)
    if key == "rewards" and isinstance(value, dict):
        return {name: reward(member, folder) for name, member in value.items()}
    if key == "class_path" and isinstance(value, str):
        return _class_path(value, folder)
    return expanded(value, folder)


def _override(name: str, text: str, folder: Path) -> str:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    full = _under(name, value, folder)
    return text if full == value else full if isinstance(full, str) else json.dumps(full)


def _class_path(text: str, folder: Path) -> str:
    return source.import_path(source.located(text, folder)) if source.named(text) else text


def _class_named(value: Any) -> Any:  # noqa: ANN401 - any part of a recipe
    return source.restored(value) if isinstance(value, str) else value
