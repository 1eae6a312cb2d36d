"""The checker of types that the tests put on the package: as beartype's own, with an int where a float is asked.

Checking takes longer than most of what is checked. So within each test the first calls of every function are checked,
and of the later ones every twentieth: loops of thousands of steps do the same to types in each.
"""

from collections.abc import Callable
from dataclasses import is_dataclass
from functools import wraps
from types import CodeType, FunctionType
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

FIRST, EVERY = 5, 20
"""Calls of a function in a test that are all checked; of the later ones each so many-th is."""

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
every_call = jaxtyping.jaxtyped
_test = 0
_made: dict[CodeType, int] = {}


def begin_test() -> None:
    """From now on first calls are checked again."""
    global _test
    _test += 1
    _made.clear()


def some_calls(**options: Any) -> Callable[[Any], Any]:
    """In place of `jaxtyping.jaxtyped`: functions, and the making of records, whose calls are checked at times."""
    decorate = every_call(**options)

    def decorated(thing: Any) -> Any:
        if isinstance(thing, FunctionType):
            if "<locals>" in thing.__qualname__:  # made anew in every call of another function
                _made[thing.__code__] = _made.get(thing.__code__, 0) + 1
                if _made[thing.__code__] > FIRST:
                    return thing
            return _at_times(thing, decorate(thing))
        if is_dataclass(thing) and isinstance(thing, type):
            plain: Any = thing.__init__
            if not hasattr(plain, "at_times"):
                made: Any = decorate(thing)
                made.__init__ = _at_times(plain, made.__init__)
            return thing
        return decorate(thing)

    return decorated


def _at_times(plain: Callable[..., Any], strict: Callable[..., Any]) -> Callable[..., Any]:
    calls, test = 0, 0

    @wraps(plain)
    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal calls, test
        if test != _test:
            calls, test = 0, _test
        calls += 1
        return (strict if calls <= FIRST or calls % EVERY == 0 else plain)(*arguments, **named)

    vars(call)["at_times"] = True
    return call
