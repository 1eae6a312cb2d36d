"""Values as JSON and bytes, and back: what the processes of a run say to each other. No pickle, so no code travels.

What can travel: None, numbers, text, tensors, tuples, lists, mappings with names as keys, `Rows` and `Key`. A record is
found by the name of its class among those that the receiving process has imported. A tensor arrives on a device of the
kind it was on.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from dragontune.data import Rows
from dragontune.errors import InputError
from dragontune.seeding import Key


def pack(value: object) -> tuple[str, UInt8[Tensor, " bytes"]]:
    """JSON, and the bytes of all tensors one after another.

    Raises:
        InputError: something in it cannot travel.
    """
    tensors: list[Tensor] = []
    said = json.dumps(_said(value, tensors))
    return said, torch.cat([torch.empty(0, dtype=torch.uint8), *(_bytes(tensor) for tensor in tensors)])


def unpack(said: str, content: UInt8[Tensor, " bytes"]) -> Any:  # noqa: ANN401 - what was packed
    """What `pack` was given."""
    return _value(json.loads(said), content)


def _said(value: object, tensors: list[Tensor]) -> object:
    """What JSON can hold; the tensors met on the way are appended."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Tensor():
            start = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            tensors.append(value)
            return {
                "tensor": [start, value.numel() * value.element_size()],
                "dtype": str(value.dtype).removeprefix("torch."),
                "shape": list(value.shape),
                "device": value.device.type,
            }
        case tuple():
            return {"tuple": [_said(each, tensors) for each in value]}
        case list():
            return [_said(each, tensors) for each in value]
        case Mapping() if all(isinstance(name, str) for name in value):
            return {"mapping": {name: _said(each, tensors) for name, each in value.items()}}
        case Rows() | Key():
            kind = type(value)
            columns = [_said(getattr(value, field.name), tensors) for field in fields(value)]
            return {"record": [kind.__module__, kind.__qualname__], "columns": columns}
        case _:
            raise InputError(
                "expected features of tensors, text, numbers, tuples, mappings and Rows, which can be sent from one "
                f"process to another, got a {type(value).__name__}; change what the reward's encode returns, or start "
                "one process"
            )


def _value(said: object, content: Tensor) -> object:
    match said:
        case {"tensor": [int(start), int(length)], "dtype": str(dtype), "shape": list(shape), "device": str(device)}:
            flat = content[start : start + length].clone().view(getattr(torch, dtype))
            return flat.reshape(shape).to(device)
        case {"tuple": list(members)}:
            return tuple(_value(each, content) for each in members)
        case list():
            return [_value(each, content) for each in said]
        case {"mapping": dict(members)}:
            return {name: _value(each, content) for name, each in members.items()}
        case {"record": [str(module), str(name)], "columns": list(columns)}:
            return _record(module, name)(*(_value(each, content) for each in columns))
        case _:
            return said


def _bytes(tensor: Tensor) -> UInt8[Tensor, " bytes"]:
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return plain.view(torch.uint8) if plain.numel() else torch.empty(0, dtype=torch.uint8)


def _record(module: str, name: str) -> type:
    """The class of this name; the newest, should a function have made several."""
    found = [kind for kind in _kinds([Rows, Key]) if (kind.__module__, kind.__qualname__) == (module, name)]
    if not found:
        raise InputError(
            f"expected the class {name} of {module} in every process, got none in this one; start all processes with "
            "the same recipe and the same code"
        )
    return found[-1]


def _kinds(kinds: Sequence[type]) -> Iterator[type]:
    for kind in kinds:
        yield kind
        yield from _kinds(kind.__subclasses__())
