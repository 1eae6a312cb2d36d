"""YAML that is read before anything is believed: bounded in size, depth and repetition, each field said once.

Anchors and aliases may be used; what they stand for counts as if it were written out. Tags of other languages' objects
are refused by the loader, which knows plain values only.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import yaml

from dragontune.errors import InputError

Loader: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MOST_BYTES = 1 << 20
MOST_DEPTH = 50
MOST_VALUES = 20_000
LARGEST = 1 << 63
"""Whole numbers are below."""
MERGE = "<<"


def load(content: str | bytes, where: str) -> Any:  # noqa: ANN401 - any YAML
    """The value that a text says; `where` names it in messages.

    Raises:
        InputError: it is too large or too deep, a field is there twice, it is no YAML, or it has a number or a
            character that nothing here can mean.
    """
    try:
        raw = content if isinstance(content, bytes) else content.encode()
        if len(raw) > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES:,} bytes")
        text = raw.decode("utf-8-sig")
        _check(text)
        value = yaml.load(text, Loader)
        _check_numbers(value)
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        ArithmeticError,
        RecursionError,
    ) as error:
        got = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"expected YAML in {where}, got {got[:300]}; correct it") from error
    return value


@dataclass
class _Open:
    """A list, or with `names` a mapping, that is being read."""

    names: set[Hashable] | None
    anchor: str | None
    values: int = 1
    members: int = 0


@dataclass
class _Sizes:
    """How many values there are, aliases written out."""

    inside: list[_Open] = field(default_factory=list)
    anchored: dict[str, int] = field(default_factory=dict)

    def count(self, values: int, anchor: str | None = None) -> None:
        if anchor is not None:
            self.anchored[anchor] = values
        if self.inside:
            self.inside[-1].values += values
            self.inside[-1].members += 1
            if self.inside[-1].values > MOST_VALUES:
                raise ValueError(f"more than {MOST_VALUES:,} values, aliases written out")


def _check(text: str) -> None:
    """ValueError for what is too deep, too much, said twice, or cannot be written again."""
    sizes = _Sizes()
    for event in yaml.parse(text, Loader):
        match event:
            case yaml.ScalarEvent():
                _check_text(event.value)
                _check_name(sizes, event)
                sizes.count(1, event.anchor)
            case yaml.AliasEvent():
                if event.anchor not in sizes.anchored:
                    raise ValueError(f"an alias *{event.anchor} of nothing before it, or within itself")
                sizes.count(sizes.anchored[event.anchor])
            case yaml.CollectionStartEvent():
                if len(sizes.inside) >= MOST_DEPTH:
                    raise ValueError(f"more than {MOST_DEPTH} levels of values within values")
                names = set() if isinstance(event, yaml.MappingStartEvent) else None
                sizes.anchored.pop(event.anchor or "", None)
                sizes.inside.append(_Open(names, event.anchor))
            case yaml.CollectionEndEvent():
                closed = sizes.inside.pop()
                sizes.count(closed.values, closed.anchor)
            case _:
                pass


def _check_name(sizes: _Sizes, event: yaml.ScalarEvent) -> None:
    names = sizes.inside[-1].names if sizes.inside else None
    if names is None or sizes.inside[-1].members % 2 or event.value == MERGE:
        return
    if event.value in names:
        raise ValueError(f"the field {event.value[:60]} twice (line {event.start_mark.line + 1})")
    names.add(event.value)


def _check_text(text: str) -> None:
    text.encode()  # half of a pair of surrogates is no character
    if odd := next((letter for letter in text if (letter < " " and letter not in "\t\n\r") or letter == "\x7f"), None):
        raise ValueError(f"the control character {ord(odd):#04x} in a text")


def _check_numbers(value: object) -> None:
    level = [value]
    while level:
        part = level.pop()
        if isinstance(part, dict):
            level += [*part.keys(), *part.values()]
        elif isinstance(part, list | tuple | set):
            level += part
        elif isinstance(part, int) and not -LARGEST <= part < LARGEST:
            raise ValueError("a whole number of more than 64 bits")
