"""What is wrong with arguments and files of arguments, in one sentence: expected, got, remedy."""

import dataclasses
import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from dragontune.commands.recipe import Recipe
from dragontune.commands.steer import Steer
from dragontune.errors import InputError
from dragontune.rewards import source


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        InputError: there is none.
    """
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise InputError(f"expected a YAML file, got {path}, a folder or not there; check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"expected YAML in {path}, got {' '.join(str(error).split())}; correct it") from error
    if not isinstance(content, dict):
        got = "nothing" if content is None else str(content)[:40]
        raise InputError(f"expected fields with values in {path}, got {got}; correct it")
    return content


def sentence(text: str, whole: str = "the recipe") -> str:
    """What jsonargparse found wrong in a file, or in `whole`, in one sentence."""
    text = source.restored(text)
    if found := re.search(r"Expected an? typing\.Literal\[(.*?)\]\. Got value: ([^\s)]*)", text):
        return f"expected one of {found[1]}, got {found[2]}; choose one"
    place = ".".join(dict.fromkeys(re.findall(r'Parser key "([\w.]+)"', text))) or whole
    if found := re.search(r"Option '([^']+)' is not accepted|does not accept option '([^']+)'", text):
        name = found[1] or found[2]
        return f"expected a known field in {place}, got {name}{near(name, _fields())}"
    if found := re.search(r"unrecognized arguments: (\S+)", text):
        name = found[1].lstrip("-").split("=")[0]
        return f"expected a known option or field, got --{name}{near(name.split('.')[-1], _fields())}"
    if found := re.search(r"arguments are required: ([\w.]+(?:, [\w.]+)*)", text):
        return f"expected {found[1].strip()} in {place}, got nothing; add it"
    if found := re.search(r"Expected a dot import path string: (\S+)", text):
        if found[1] in _classes():
            which = f"another kind of class in {place}{_wanted(text)}"
            return f"expected {which}, got {found[1]}; look up which classes fit there"
        return f"expected the name of a class in {place}, got {found[1]}{near(found[1], _classes())}"
    if found := re.search(r"argument --(\S+): expected one argument", text):
        return f"expected a value after --{found[1]}, got nothing; add it"
    if found := re.search(r"Import path (\S+) does not correspond to a subclass of (\w+)", text):
        return f"expected the name of a kind of {found[2]} in {place}, got {found[1]}, which is none; correct it"
    if found := re.search(r'Parser key "([\w.]+)": Expected an? <class \'(\w+)\'>\. Got value: ([^\s)]*)', text):
        inside = f"{place}.{found[1]}" if not place.endswith(found[1]) else place
        return f"expected a value of type {found[2]} in {inside}, got {found[3]}; correct it"
    if found := re.search(r"Problem with given class_path '([^']+)': (.*)", text):
        name, cause = found[1], found[2]
        return f"expected the name of a class in {place}, got {name}, which cannot be imported ({cause}); correct it"
    if re.search(r"Expected an instantiatable class, but \S+ is abstract", text):
        return f"expected the name of a class in {place}, got none; add class_path: and the name"
    if found := re.search(r"argument after \*\* must be a mapping, not (\w+)", text):
        return f"expected fields with values in every part of {place}, got a value of type {found[1]}; correct it"
    if found := re.search(r"Unable to load config ['\"](.*?)['\"]", text):
        return f"expected fields with values in {place}, got {found[1]}; correct it"
    if found := re.search(r"Expected an? <class '(\w+)'>\. Got value: (.*?)(?:\. Got value|$)", text):
        return f"expected a value of type {found[1]} in {place}, got {found[2]}; correct it"
    return f"expected a valid value in {place}, got another: {text[:300]}; correct it"


def near(name: str, known: Iterable[str]) -> str:
    """What was probably meant."""
    close = [word for word in difflib.get_close_matches(name, list(known), 2, 0.5) if word != name]
    return f"; did you mean {close[0]}?" if close else f"; remove or correct it ({name} is not known)"


def _wanted(text: str) -> str:
    """In brackets, what may stand where jsonargparse found another class of ours, if the annotation is one class."""
    for name, field in re.findall(r"""class_path '[\w.]*?(\w+)': Parser key "(\w+)": Expected a dot""", text):
        for kind in _kinds():
            wanted = get_type_hints(kind).get(field) if kind.__name__ == name else None
            if isinstance(wanted, type) and not get_args(wanted):
                return f" ({'an' if wanted.__name__[0] in 'AEIOU' else 'a'} {wanted.__name__} for {name})"
    return ""


def _fields() -> set[str]:
    return {field.name for kind in _kinds() if dataclasses.is_dataclass(kind) for field in dataclasses.fields(kind)}


def _classes() -> set[str]:
    return {kind.__name__ for kind in _kinds()}


def _kinds() -> set[type]:
    """Every class of ours that a recipe or a file of steering can lead to."""
    found: set[type] = set()
    waiting: list[Any] = [Recipe, Steer]
    while waiting:
        kind = waiting.pop()
        if not isinstance(kind, type) or get_args(kind):
            waiting += kind if isinstance(kind, list) else get_args(kind)
        elif kind.__module__.startswith("dragontune.") and kind not in found:
            found.add(kind)
            hints = get_type_hints(kind).values() if dataclasses.is_dataclass(kind) else ()
            waiting += [*kind.__subclasses__(), *hints]
    return found
