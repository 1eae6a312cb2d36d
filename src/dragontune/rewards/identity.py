"""What a reward is, as one digest: two services, or a run and its continuation, have the same reward or they have not.

It covers class names, every field, the encoders' and references' own digests, the content (not the place) of files that
fields name, the source files of the user's own classes and functions with what they import from beside them, and the
version of dragontune. Left out: what a function that was made in another function remembers of it.
"""

import hashlib
import inspect
import json
import sys
from dataclasses import fields, is_dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from dragontune import own_code
from dragontune.encoders.base import Encoder
from dragontune.errors import InputError
from dragontune.reference import Reference
from dragontune.rewards import source
from dragontune.rewards.base import Reward
from dragontune.rewards.exemplar import ExemplarReward
from dragontune.wire import VERSION


def digest(reward: Reward) -> str:
    """SHA-256 (hex) of everything that decides what a reward says. Loads encoders and reads exemplars.

    Raises:
        InputError: a part that cannot be told from another.
    """
    whole = {"reward": described(reward), "dragontune": version("dragontune"), "protocol": VERSION}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def described(value: object) -> Any:  # noqa: ANN401 - JSON
    """A part of a reward as JSON, in which what is the same looks the same."""
    match value:
        case None | bool() | int():
            return value
        case float():
            return value.hex()
        case str() | Path():
            return _text(str(value))
        case Encoder():
            return {"encoder": value.name, "digest": value.digest}
        case Reference():
            return {"reference": value.digest}
        case Tensor():
            return {"tensor": [str(value.dtype), list(value.shape), _sha(_bytes(value))]}
        case nn.Module():
            weights = {name: described(tensor) for name, tensor in value.state_dict().items()}
            return {"module": _kind(type(value)), "weights": weights}
        case dict():
            return {"dict": [[described(key), described(member)] for key, member in value.items()]}
        case list() | tuple():
            return [described(member) for member in value]
        case type():
            return _kind(value)
        case _ if is_dataclass(value):
            return {"class": _kind(type(value)), "fields": _fields(value)}
        case Reward():
            return {"class": _kind(type(value)), "fields": described(vars(value))}
        case partial():
            return {"partial": described(value.func), "given": described([value.args, value.keywords])}
        case _ if callable(value) and (file := source.file_of(value)):
            name = getattr(value, "__qualname__", type(value).__qualname__)
            return {"function": name, "file": own_code.digest(Path(file)), "state": _state(value)}
        case torch.device():
            return "device"  # where something is computed is not what is computed
        case _:
            raise InputError(
                f"expected rewards made of settings, encoders and functions to serve, got one that holds a "
                f"{type(value).__name__}, which cannot be told from another; make it a dataclass"
            )


def _fields(value: Any) -> dict[str, Any]:  # noqa: ANN401 - a dataclass
    found = {entry.name: getattr(value, entry.name) for entry in fields(value) if entry.init}
    if isinstance(value, ExemplarReward):
        found["exemplars"] = value.reference
    return {name: described(member) for name, member in found.items()}


def _text(text: str) -> object:
    """A text, with the content of the file that it names, if it names one, in place of the path."""
    try:
        if (parts := source.NAMED.fullmatch(text)) and (file := _source(parts["file"], parts["module"])):
            return {"source": own_code.digest(file), "name": text.rpartition(":")[2]}
        path = Path(text).expanduser()
        return {"file": _content(path)} if path.is_file() else text
    except (OSError, ValueError):
        return text


def _source(file: str | None, module: str | None) -> Path | None:
    """The source of what a text names, where it is there; of a module that was never imported nothing is known."""
    known = file or getattr(sys.modules.get(module or ""), "__file__", None)
    path = Path(known).expanduser() if known else None
    return path if path is not None and path.suffix == ".py" and path.is_file() else None


def _state(value: Any) -> Any:  # noqa: ANN401 - a callable, and JSON
    """What an object that can be called, or the object of a method, holds."""
    owner: Any = value.__self__ if isinstance(value, MethodType) else value
    plain = isinstance(owner, type) or inspect.isroutine(inspect.unwrap(owner))
    return None if plain else described(getattr(owner, "__dict__", {}))


def _kind(kind: type) -> object:
    """A class: where it is, or what stands in the file of the user's that it is from."""
    if kind.__module__.startswith("dragontune."):
        return f"{kind.__module__}.{kind.__qualname__}"
    try:
        return {"class": kind.__qualname__, "file": own_code.digest(Path(inspect.getfile(kind)))}
    except (TypeError, OSError):
        return f"{kind.__module__}.{kind.__qualname__}"


def _content(path: Path) -> str:
    return _sha(path.read_bytes())


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
