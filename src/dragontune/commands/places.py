"""Which classes and fields may stand where in a recipe or a file of steering, for what messages suggest."""

import dataclasses
import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any, get_args, get_type_hints

from dragontune.algorithms.base import Algorithm
from dragontune.commands.recipe import Recipe
from dragontune.commands.steer import Steer
from dragontune.encoders.base import Encoder

GIVEN = ("generator", "reward")
"""Fields of algorithms that the recipe's other parts fill."""
STEP = re.compile(r"""Parser key "([\w.]+)"|[Gg]roup '([\w.]+)'|class_path '([^']+)'""")


def kinds() -> set[type]:
    """Every class of ours that a recipe or a file of steering can lead to."""
    found: set[type] = set()
    waiting: list[Any] = [Recipe, Steer]
    while waiting:
        kind = waiting.pop()
        if not isinstance(kind, type) or get_args(kind):
            waiting += kind if isinstance(kind, list) else get_args(kind)
        elif kind.__module__.startswith("dragontune.") and kind not in found:
            found.add(kind)
            waiting += [*kind.__subclasses__(), *hints([kind]).values()]
    return found


def hints(places: Iterable[type]) -> dict[str, Any]:
    """The types of the fields of dataclasses, by name."""
    return {
        name: hint
        for kind in places
        if dataclasses.is_dataclass(kind)
        for name, hint in get_type_hints(kind).items()
        if any(field.name == name for field in dataclasses.fields(kind))
    }


def within(text: str, steer: bool = False) -> set[type]:
    """The classes whose fields the end of a message of jsonargparse's is about, followed from the whole inwards."""
    now: set[type] = {Steer if steer else Recipe}
    for found in STEP.finditer(text):
        if found[3]:
            now = {kind for kind in kinds() if kind.__name__ == re.split(r"[.:]", found[3])[-1]}
        else:
            now = inside(now, found[1] or found[2])
    return now


def inside(places: set[type], path: str) -> set[type]:
    """The classes that may stand in a field of those, by its dotted path; a name that is no field changes nothing."""
    for name in path.split("."):
        known: Mapping[str, Any] = {"encoder": Encoder} if places == {Recipe} else {}
        known = {**known, **hints(places)}
        places = _classes(known[name]) if name in known else places
    return places


def fields(places: Iterable[type]) -> list[str]:
    """The names of the fields that a user may set, in their order."""
    names = [
        field.name
        for kind in places
        if dataclasses.is_dataclass(kind)
        for field in dataclasses.fields(kind)
        if field.init and not (issubclass(kind, Algorithm) and field.name in GIVEN)
    ]
    return list(dict.fromkeys(names))


def options() -> dict[str, str]:
    """The fields of a recipe, and those of its sections by their last names, in full."""
    sections = {name: inside({Recipe}, name) for name in fields([Recipe])}
    short = {field: f"{name}.{field}" for name, of in sections.items() if len(of) == 1 for field in fields(of)}
    return short | {name: name for name in sections}


def names(places: Iterable[type]) -> list[str]:
    """The classes that can be made, by name."""
    return sorted(kind.__name__ for kind in places if not inspect.isabstract(kind) and dataclasses.is_dataclass(kind))


def _classes(hint: Any) -> set[type]:  # noqa: ANN401 - any annotation
    """Ours in an annotation, with their subclasses; of a function the ones it returns."""
    if isinstance(hint, list):
        return set()
    if not isinstance(hint, type) or get_args(hint):
        return {kind for part in (*get_args(hint), getattr(hint, "__origin__", None)) for kind in _ours(part)}
    return _ours(hint)


def _ours(kind: Any) -> set[type]:  # noqa: ANN401 - any part of an annotation
    if kind is None or isinstance(kind, list):
        return set()
    if not isinstance(kind, type) or get_args(kind):
        return _classes(kind)
    if not kind.__module__.startswith("dragontune."):
        return set()
    return {kind, *(found for each in kind.__subclasses__() for found in _ours(each))}
