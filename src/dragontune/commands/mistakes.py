"""What is wrong with arguments and files of arguments, in one sentence: expected, got, remedy."""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from dragontune.commands import places, yaml_files
from dragontune.commands.recipe import Recipe
from dragontune.errors import InputError
from dragontune.rewards import source

UNION = re.compile(
    r".*Union subtypes Subtypes: \[(.*?)\] Errors: .*?Given value: (.*?)(?:\.? Got value: Namespace| - Expected|$)"
)
"""The innermost."""
OPTIONS = ("out", "resume")
"""Options of verbs whose other options are fields."""
MANY = 20
"""Fields, which are not listed any more."""
MOST = 60
"""Letters of a value that is quoted."""
WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "NoneType": "nothing",
    "dict": "fields with values",
}
"""What types are called."""
MANY_OF = {"str": "texts", "int": "whole numbers", "float": "numbers"}


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        InputError: there is none, or none that can be taken (`yaml_files`).
    """
    try:
        with path.open("rb") as file:
            raw = file.read(yaml_files.MOST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise InputError(f"expected a YAML file, got {path}, a folder or not there; check the path") from error
    except (OSError, ValueError) as error:
        raise InputError(f"expected a YAML file, got {str(path)[:200]} ({error}); check the path") from error
    content = yaml_files.load(raw, str(path))
    if not isinstance(content, dict):
        got = "nothing" if content is None else str(content)[:40]
        raise InputError(f"expected fields with values in {path}, got {got}; correct it")
    return content


def sentence(text: str, whole: str = "the recipe") -> str:
    """What jsonargparse found wrong in a file, or in `whole`, in one sentence."""
    text = source.restored(text)
    steer = whole != "the recipe"
    steps = re.findall(r"""Parser key "([\w.]+)"|[Gg]roup '([\w.]+)'""", text)
    place = ".".join(dict.fromkeys(name for step in steps for name in step if name)) or whole
    if found := re.search(r"Expected an? typing\.Literal\[(.*?)\]\. Got value: (.*?)(?:\. Got value|$)", text):
        return f"expected one of {found[1]} in {place}, got {found[2]}; choose one"
    if found := re.search(r"Option '([^']+)' is not accepted|does not accept option '([^']+)'", text):
        return _odd_field(found[1] or found[2], place, _meant(text, found.start(), found.end(), steer))
    if found := re.search(r"unrecognized arguments: (\S+)", text):
        return _odd_option(found[1].lstrip("-").split("=")[0])
    if found := re.search(r"arguments are required: ([\w.]+(?:, [\w.]+)*)", text):
        return f"expected {found[1].strip()} in {place}, got nothing; add it"
    if found := re.search(r"Expected a dot import path string: (\S+?)\.?(?:\s|$)", text):
        fitting = places.within(text[: found.start()], steer)
        if found[1] in {kind.__name__ for kind in places.kinds() - fitting}:
            which = f"another kind of class in {place}{_wanted(text)}"
            return f"expected {which}, got {found[1]}; look up which classes fit there"
        known = places.names(fitting)
        close = _close(found[1], known)
        listed = f" ({', '.join(known)})" if known and not close and len(known) < MANY else ""
        return f"expected the name of a class in {place}{listed}, got {found[1]}; {_hint(close)}"
    if found := re.search(r"argument --(\S+): expected one argument", text):
        return f"expected a value after --{found[1]}, got nothing; add it"
    if found := re.search(r"Import path (\S+) does not correspond to a subclass of (\w+)", text):
        return f"expected the name of a kind of {found[2]} in {place}, got {found[1]}, which is none; correct it"
    if found := re.search(r"Expected an? <class '(\w+)'>\. Got value: (.*?)(?:\.? Got value| - Expected|$)", text):
        return f"expected a value of type {found[1]} in {place}, got {_short(found[2])}; correct it"
    if found := UNION.search(text):
        return f"expected {_either(found[1])} in {place}, got {_short(found[2])}; correct it"
    if found := re.search(r"Problem with given class_path '([^']+)': (.*)", text):
        name, cause = found[1], found[2]
        return f"expected the name of a class in {place}, got {name}, which cannot be imported ({cause}); correct it"
    if re.search(r"Expected an instantiatable class, but \S+ is abstract", text):
        return f"expected the name of a class in {place}, got none; add class_path: and the name"
    if found := re.search(r"argument after \*\* must be a mapping, not (\w+)", text):
        return f"expected fields with values in every part of {place}, got a value of type {found[1]}; correct it"
    if found := re.search(r"Unable to load config ['\"](.*?)['\"]", text):
        return f"expected fields with values in {place}, got {found[1]}; correct it"
    return f"expected a valid value in {place}, got another: {text[:300]}; correct it"


def _odd_field(name: str, place: str, kinds: set[type]) -> str:
    """A field that there is not where only these classes can stand."""
    known = places.fields(kinds)
    of = f"a field of {min(kinds, key=str).__name__}" if len(kinds) == 1 else "a known field"
    close = _close(name, known)
    listed = f" ({', '.join(known) or 'it has none'})" if not close and len(kinds) == 1 else ""
    return f"expected {of} in {place}{listed}, got {name}; {_hint(close)}"


def _odd_option(name: str) -> str:
    """An option, or a field on the command line, that there is not."""
    section, _, last = name.rpartition(".")
    if not section:
        known = places.options() | {option: option for option in OPTIONS}
        close = [known[word] for word in _close(last, known)]
        return f"expected a known option or field, got --{name}; {_hint(f'--{each}' for each in close)}"
    known = places.fields(places.inside({Recipe}, section.replace(".init_args", "")))
    close = _close(last, known)
    listed = f" in {section} ({', '.join(known)})" if known and not close and len(known) < MANY else ""
    return f"expected a known option or field{listed}, got --{name}; {_hint(f'--{section}.{each}' for each in close)}"


def _hint(close: Iterable[str]) -> str:
    return next((f"did you mean {word}?" for word in close), "remove or correct it")


def _meant(text: str, start: int, end: int, steer: bool) -> set[type]:
    """The classes, usually one, that a message is about which names a field between `start` and `end`."""
    kinds = places.within(text[:end] if "Group" in text[start:end] else text[:start], steer)
    after = re.search(r"Got value: Namespace\(class_path='([^']+)'", text[end:])
    if len(kinds) > 1 and after:
        kinds = places.within(f"class_path '{after[1]}'")
    return kinds


def _either(subtypes: str) -> str:
    """A union in words, from the list of its members."""
    # commas inside of brackets separate the members' own
    parts = re.findall(r"(?:[^,\[\]]|\[(?:[^\[\]]|\[[^\[\]]*\])*\])+", subtypes)
    said = [_called(part.strip()) for part in parts]
    return " or ".join(dict.fromkeys(said))


def _called(kind: str) -> str:
    """A type in words, from how Python writes it."""
    if found := re.fullmatch(r"<class '([\w.]+)'>", kind):
        kind = found[1]
    if found := re.fullmatch(r"typing\.Literal\[(.*)\]", kind):
        return " or ".join(found[1].split(", "))
    if found := re.fullmatch(r"[\w.]*?(?:tuple|list|Sequence)\[(.*?)(?:, \.\.\.)?\]", kind):
        return f"a list of {MANY_OF.get(found[1], 'values')}"
    name = re.split(r"[.\[]", kind)
    if kind.startswith("dragontune."):
        return f"the fields of {name[-1]}"
    return WORDS.get(name[0], WORDS["dict"] if "apping[" in kind else kind)


def _short(value: str) -> str:
    return value if len(value) <= MOST else f"{value[:MOST]}..."


def _close(name: str, known: Iterable[str]) -> list[str]:
    """What was probably meant, the likeliest first; so short a name as `k` tells nothing."""
    words = list(known) if len(name) > 2 else []
    return difflib.get_close_matches(name, words, 2, 0.65) or [word for word in words if word.startswith(name[:3])]


def _wanted(text: str) -> str:
    """In brackets, what may stand where jsonargparse found another class of ours, if the annotation is one class."""
    for name, field in re.findall(r"""class_path '[\w.]*?(\w+)': Parser key "(\w+)": Expected a dot""", text):
        for kind in places.kinds():
            wanted = places.hints([kind]).get(field) if kind.__name__ == name else None
            if isinstance(wanted, type) and not get_args(wanted):
                return f" ({'an' if wanted.__name__[0] in 'AEIOU' else 'a'} {wanted.__name__} for {name})"
    return ""
