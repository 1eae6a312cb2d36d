"""What processes that do not trust each other send: one safetensors body, whose header holds JSON. No pickle, no code.

A message is checked before any tensor is made: the length of its header, the number of its tensors, their types, shapes
and places. `pack` turns records of rows into plain JSON and tensors, `unpack` makes them again, of classes that this
process has already loaded and nothing else. Left out: compression, and tensors of complex numbers.
"""

import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from dragontune.data import Rows
from dragontune.errors import InputError

VERSION = 1
"""Of this format; both sides must have the same."""

LONGEST_HEADER = 4 << 20
"""Bytes of JSON in a message."""

MOST_TENSORS = 4096
MOST_AXES = 12
DEEPEST = 16
"""Records inside records."""

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""Bytes of a number, by the names that safetensors has for the types that may be sent."""


class WireError(ValueError):
    """A body is not a message of this format, or does not say what it must; the reason in a few words."""


@dataclass(frozen=True, eq=False)
class Message:
    """JSON and tensors.

    >>> Message.load(Message({"hello": 1}, {"x": torch.zeros(2)}).dump()).header
    {'hello': 1}
    """

    header: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def dump(self) -> bytes:
        """As one body.

        Raises:
            InputError: `load` would refuse it, as it does texts of megabytes and numbers of rare types.
        """
        copies = {name: _plain(tensor) for name, tensor in self.tensors.items()}
        content = safetensors.torch.save(copies, {"json": json.dumps(self.header, allow_nan=False)})
        try:
            _checked(content)
        except WireError as error:
            raise InputError(
                f"expected texts of {LONGEST_HEADER >> 20} MiB at most and numbers of usual types in what is sent, got "
                f"{error}; send fewer items at once, or convert the tensors"
            ) from None
        return content

    @classmethod
    def load(cls, content: bytes) -> "Message":
        """The inverse.

        Raises:
            WireError: it is no such body.
        """
        header = _checked(content)
        try:
            return cls(header, safetensors.torch.load(content))
        except (safetensors.SafetensorError, ValueError, RuntimeError, KeyError) as error:
            raise WireError(f"tensors that cannot be read ({type(error).__name__})") from None

    def get(self, name: str, kind: type) -> Any:  # noqa: ANN401 - `kind` says which
        """A field of the JSON, of that type; WireError if it is not there or of another (a bool is no int)."""
        value = self.header.get(name)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise WireError(f"no {name} ({kind.__name__}) in the header")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts."""
        value = self.get(name, list)
        if not all(isinstance(text, str) for text in value):
            raise WireError(f"something in {name} that is no text")
        return tuple(value)

    def tensor(self, name: str, shape: tuple[int, ...], *dtypes: torch.dtype) -> Tensor:
        """A tensor of that shape and of one of these types; WireError for any other."""
        found = self.tensors.get(name)
        if found is None or tuple(found.shape) != shape or found.dtype not in dtypes:
            raise WireError(f"no {name} of shape {shape} and the right type")
        return found


def pack(value: object, name: str, tensors: dict[str, Tensor]) -> object:
    """A record as JSON; its tensors are put into `tensors` under names that begin with `name`.

    Raises:
        WireError: it holds something that is none of rows, tensors, tuples, dicts by names, texts and numbers.
    """
    match value:
        case Tensor():
            tensors[name] = value.detach()
            return {"tensor": name}
        case Rows():
            columns = [entry.name for entry in fields(value)]
            return {
                "rows": _path(type(value)),
                "columns": {key: pack(getattr(value, key), f"{name}.{key}", tensors) for key in columns},
            }
        case dict() if all(isinstance(key, str) for key in value):
            return {
                "dict": {key: pack(member, f"{name}.{i}", tensors) for i, (key, member) in enumerate(value.items())}
            }
        case tuple() | list():
            return {"list": [pack(member, f"{name}.{i}", tensors) for i, member in enumerate(value)]}
        case bool() | int() | str() | None:
            return {"value": value}
        case float():
            return {"float": value.hex()}
        case _:
            raise WireError(f"something that cannot be sent, of type {type(value).__name__}")


def unpack(
    spec: object, tensors: Mapping[str, Tensor], allowed: Collection[type[Rows]] | None = None, depth: int = 0
) -> Any:  # noqa: ANN401 - whatever was packed
    """The inverse of `pack`. Records are of the classes in `allowed` (default: any `Rows` that is loaded already).

    Raises:
        WireError: it does not say anything of that kind, or a class refuses its columns.
    """
    if depth > DEEPEST:
        raise WireError("records too deep inside each other")
    match spec:
        case {"tensor": str(name), **rest} if name in tensors and not rest:
            return tensors[name]
        case {"rows": str(path), "columns": dict(columns), **rest} if not rest:
            kind = next((kind for kind in (_loaded() if allowed is None else allowed) if _path(kind) == path), None)
            if kind is None:
                raise WireError(f"a record of a kind that is not known here ({path[:80]!r})")
            if list(columns) != [entry.name for entry in fields(kind)]:
                raise WireError(f"other columns than {kind.__name__} has")
            made = {name: unpack(column, tensors, allowed, depth + 1) for name, column in columns.items()}
            return _built(kind, made)
        case {"dict": dict(members), **rest} if not rest:
            return {name: unpack(member, tensors, allowed, depth + 1) for name, member in members.items()}
        case {"list": list(members), **rest} if not rest:
            return tuple(unpack(member, tensors, allowed, depth + 1) for member in members)
        case {"value": bool() | int() | str() | None as value, **rest} if not rest:
            return value
        case {"float": str(text), **rest} if not rest:
            try:
                return float.fromhex(text)
            except (ValueError, OverflowError):
                raise WireError("a number that is none") from None
        case _:
            raise WireError("a record that cannot be read")


def not_finite(value: object) -> bool:
    """Whether a real number anywhere in a message's tensors or a record's is NaN or infinite."""
    match value:
        case Tensor():
            return value.is_floating_point() and not bool(value.isfinite().all())
        case Message():
            return any(map(not_finite, value.tensors.values()))
        case Rows():
            return any(not_finite(getattr(value, entry.name)) for entry in fields(value))
        case dict():
            return any(map(not_finite, value.values()))
        case _:
            return False


def _checked(content: bytes) -> Mapping[str, Any]:
    """The JSON, if every length in the header agrees with the body."""
    if len(content) < 8:
        raise WireError("a body without a header")
    length = int.from_bytes(content[:8], "little")
    if length > min(LONGEST_HEADER, len(content) - 8):
        raise WireError("a header longer than may be")
    header = _json(content[8 : 8 + length])
    match header.pop("__metadata__", None):
        case {"json": str(text), **rest} if not rest:
            said = _json(text.encode("utf-8", "surrogatepass"))
        case _:
            raise WireError("a header without JSON")
    if len(header) > MOST_TENSORS:
        raise WireError(f"more than {MOST_TENSORS} tensors")
    ends = sorted(_place(entry) for entry in header.values())
    starts = [0, *(end for _, end in ends)]
    if [start for start, _ in ends] != starts[:-1] or starts[-1] != len(content) - 8 - length:
        raise WireError("tensors that overlap or leave gaps")
    return said


def _place(entry: object) -> tuple[int, int]:
    match entry:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [int(start), int(end)], **rest} if not rest:
            axes = [axis for axis in shape if type(axis) is int and 0 <= axis < 2**40]
            if kind in SIZES and len(axes) == len(shape) <= MOST_AXES and end - start == math.prod(axes) * SIZES[kind]:
                return start, end
    raise WireError("a tensor of a shape or type that cannot be")


def _json(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content, object_pairs_hook=_unique, parse_constant=_refused)
    except (ValueError, RecursionError):
        raise WireError("a header that is not JSON") from None
    if not isinstance(found, dict):
        raise WireError("a header that is no object")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise WireError("a name that is there twice")
    return found


def _refused(constant: str) -> None:
    raise WireError(f"{constant}, which is not JSON")


def _built(kind: type[Rows], columns: dict[str, Any]) -> Rows:
    try:
        made = kind(**columns)
        size = len(made)
    except Exception as error:  # whatever a class says of columns that it was not made for
        raise WireError(f"columns that {kind.__name__} refuses ({type(error).__name__})") from None
    if any(_count(column) not in (None, size) for column in columns.values()):
        raise WireError(f"columns of different length in {kind.__name__}")
    return made


def _count(column: object) -> int | None:
    """The rows of a column; None for a constant."""
    if isinstance(column, Tensor):
        return column.shape[0] if column.ndim else -1
    return len(column) if isinstance(column, Rows | tuple) else None


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _loaded(kind: type[Rows] = Rows) -> Iterator[type[Rows]]:
    for child in kind.__subclasses__():
        yield child
        yield from _loaded(child)


def _plain(tensor: Tensor) -> Tensor:
    """In memory of its own, dense, on the CPU."""
    return tensor.detach().to("cpu", copy=True).contiguous()
