"""Safetensors that somebody else wrote: the one door, where a header is believed only after it was held to the file.

Format: 8 bytes of length, a JSON header of names, types, shapes and offsets, then the data (safetensors 0.8). Beyond
what the library checks, the header may be no larger than `MOST_HEADER`, name a tensor once, and have shapes of a
bearable size even where they hold nothing. Left out: sub-byte types, which nothing here reads.
"""

import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from dragontune import json_files

MOST_HEADER = 32 << 20
"""Bytes of a header; a model of 50,000 tensors has about 6 MiB."""
MOST_TENSORS = 100_000
MOST_AXES = 16
MOST_NUMBERS = 1 << 48
"""Of one tensor, counted as if no axis were empty."""
BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"), 1),
}
METADATA = "__metadata__"


@dataclass(frozen=True, eq=False)
class Tensors:
    """What a file holds: tensors by name, on the CPU, and the texts of its header."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def read(path: str | Path) -> Tensors:
    """Every tensor of a file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no sound safetensors file; the message does not name it.
    """
    metadata = check(path)
    return Tensors(_sound(lambda: safetensors.torch.load_file(path)), metadata)


def loads(content: bytes) -> Tensors:
    """Every tensor of a file's content.

    Raises:
        ValueError: as `read`.
    """
    length = _length(content[:8], len(content))
    metadata = _check(content[8 : 8 + length], len(content) - 8 - length)
    return Tensors(_sound(lambda: safetensors.torch.load(content)), metadata)


def check(path: str | Path) -> dict[str, str]:
    """The texts of a file's header, which agrees with the file; no tensor is read.

    Raises:
        OSError: the file cannot be read.
        ValueError: as `read`.
    """
    with Path(path).open("rb") as file:
        return _check_file(file)


def check_folder(folder: str | Path) -> None:
    """`check` of every `.safetensors` in a folder and its sub-folders.

    Raises:
        OSError: a file cannot be read.
        ValueError: one is not sound; the message names it.
    """
    for path in sorted(Path(folder).rglob("*.safetensors")):
        try:
            check(path)
        except ValueError as error:
            raise ValueError(f"{path.relative_to(folder).as_posix()}: {error}") from error


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """ValueError that names the first tensor with NaN or infinity in it."""
    for name, tensor in tensors.items():
        if (tensor.is_floating_point() or tensor.is_complex()) and not bool(torch.isfinite(tensor.float()).all()):
            raise ValueError(f"NaN or infinity in {name}")


def _check_file(file: BinaryIO) -> dict[str, str]:
    size = os.fstat(file.fileno()).st_size
    length = _length(file.read(8), size)
    return _check(file.read(length), size - 8 - length)


def _length(start: bytes, size: int) -> int:
    if len(start) < 8:
        raise ValueError(f"{size} bytes, too few for a header")
    (length,) = struct.unpack("<Q", start)
    if length > MOST_HEADER:
        raise ValueError(f"a header of {length:,} bytes, more than {MOST_HEADER:,}")
    if 8 + length > size:
        raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
    return length


def _check(header: bytes, room: int) -> dict[str, str]:
    """The metadata of a header whose tensors fill `room` bytes exactly, each byte once."""
    try:
        said = json.loads(header.decode("utf-8"), object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("a header nested too deeply") from None
    if not isinstance(said, dict):
        raise ValueError("a header without names")
    json_files.check_depth(said)
    metadata = said.pop(METADATA, {})
    texts = isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values())
    if not texts:
        raise ValueError("metadata that are no texts")
    if len(said) > MOST_TENSORS:
        raise ValueError(f"{len(said):,} tensors, more than {MOST_TENSORS:,}")
    end = 0
    for start, stop in sorted(_span(name, entry) for name, entry in said.items()):
        if start != end:
            raise ValueError(f"data that {'overlap' if start < end else 'are missing'} at byte {min(start, end):,}")
        end = stop
    if end != room:
        raise ValueError(f"{end:,} bytes of data declared, {room:,} there")
    return metadata


def _span(name: str, entry: object) -> tuple[int, int]:
    """From where to where a tensor's data lie."""
    match entry:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [int(start), int(stop)], **rest} if not rest:
            pass
        case _:
            raise ValueError(f"no type, shape and offsets for {name[:80]}")
    if kind not in BYTES:
        raise ValueError(f"numbers of type {kind[:20]} in {name[:80]}")
    if len(shape) > MOST_AXES or not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError(f"an impossible shape of {name[:80]}")
    if math.prod(max(length, 1) for length in shape) > MOST_NUMBERS:
        raise ValueError(f"a shape of {name[:80]} that nothing can hold")
    if not 0 <= start <= stop or stop - start != math.prod(shape) * BYTES[kind]:
        raise ValueError(f"{stop - start:,} bytes for {name[:80]}, which its shape does not fill")
    return start, stop


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name that is there twice in the header")
    return found


def _sound(load: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    try:
        return load()
    except (SafetensorError, RuntimeError, KeyError) as error:
        raise ValueError(str(error).strip().partition("\n")[0]) from error
