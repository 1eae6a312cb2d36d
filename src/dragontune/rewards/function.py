"""A plain function as a reward: of each item, or of a whole set.

Any code will do: another program, a table of human votes, a network. Nothing is known of it but its scores, so no
gradients pass. Functions written for the DDPOTrainer of Hugging Face's TRL, which TRL no longer has, work unchanged.
Left out: functions of latents alone, and functions that run elsewhere.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from dragontune.data import Media, Rows, Samples, join_columns
from dragontune.errors import InputError, InterruptedRun, NonFiniteError
from dragontune.media.audio import Audio
from dragontune.media.image import Images
from dragontune.media.video import Video
from dragontune.rewards import returned, source
from dragontune.rewards.base import DistributionReward, InstanceReward

Signature = Literal["auto", "plain", "trl"]
FORMS = {"plain": ("media", "prompts"), "trl": ("samples", "prompts", "metadata")}


@dataclass(frozen=True, eq=False)
class Function(InstanceReward[Tensor]):
    """The scores that a function gives to items.

    `function` is a callable, `path/to/file.py:name` or `package.module:name`, and is looked up at once. It is called as
    `f(media, prompts) -> scores` (`plain`), or as `f(samples, prompts, metadata) -> (scores, metadata)` (`trl`); how,
    decides the number of parameters it must be given, unless `signature` does. `media` is a copy of what the generator
    decodes, on its device (`Audio`, `Images`, `Video` or a tensor, n rows); `samples` its tensor: (n, channels,
    samples) of audio, (n, 3, height, width) of images, (n, frames, 3, height, width) of video; `prompts` a tuple;
    `metadata` a tuple of one dict an item, with the `sample_rate` in hertz of audio or the `fps` of video. Scores are n
    numbers: a list, tuple, NumPy array or tensor. The metadata that come back are ignored.

    >>> Function(lambda media, prompts: media.loudness())(samples)
    tensor([-20.3, -17.9], dtype=torch.float64)

    Raises:
        InputError: there is no such function, it cannot be called so, it fails, or what it returns are not n numbers.
        NonFiniteError: a score is NaN or infinite; the message names the item and its prompt.
    """

    function: str | Callable[..., Any]
    signature: Signature = "auto"

    def __post_init__(self) -> None:
        _ = self.form

    @property
    def label(self) -> str:
        """The function's name."""
        return _name(self.function)

    @cached_property
    def call(self) -> Callable[..., Any]:
        """The function itself."""
        return _callable(self.function)

    @cached_property
    def form(self) -> str:
        """`plain` or `trl`."""
        allowed = list(FORMS) if self.signature == "auto" else [self.signature]
        return _form(self.call, _name(self.function), allowed)

    def encode(self, samples: Samples) -> Float[Tensor, " n"]:
        """The scores, float64 on the CPU."""
        name, media = _name(self.function), _copy(_decoded(samples))
        if self.form == "plain":
            scores = _called(name, self.call, media, samples.prompts)
        else:
            tensor, known = _plain(media)
            metadata = tuple(dict(known) for _ in samples.prompts)
            pair = _called(name, self.call, tensor, samples.prompts, metadata)
            if not (isinstance(pair, tuple) and len(pair) == 2):
                raise InputError(
                    f"expected a pair (scores, metadata) from {name}, got {returned.shown(pair)}; return "
                    "both, as in TRL, or write it as a function of (media, prompts)"
                )
            scores = pair[0]
        return returned.finite(returned.numbers(scores, len(samples), name), samples.prompts, name)

    def score(self, features: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The scores as they are."""
        return features


@dataclass(frozen=True, eq=False)
class Material(Rows):
    """What a function of a set looks at, kept on the CPU."""

    prompts: tuple[str, ...]
    media: Media

    @classmethod
    def join(cls, parts: "Sequence[Material]") -> "Material":  # pyright: ignore[reportIncompatibleMethodOverride]
        """Stack the rows.

        Raises:
            InputError: the media differ in kind, length, channels, size or rate.
        """
        kinds = dict.fromkeys(_kind(part.media) for part in parts)
        if len(kinds) > 1:
            raise InputError(
                f"expected media of one kind for a function of a whole set, got {' and '.join(list(kinds)[:2])}; cut "
                "and convert them"
            )
        return cls(*(join_columns([getattr(part, name) for part in parts]) for name in ("prompts", "media")))


@dataclass(frozen=True, eq=False)
class SetFunction(DistributionReward[Material]):
    """The one number that a function gives to a whole set.

    `function` as in `Function`, called as `f(media, prompts) -> number`, on the CPU, with any number of items from
    `least` on. It should not depend on their order. Dragon calls it once for every exchange of two items it considers.

    Raises:
        InputError: there is no such function, it cannot be called so, it fails, or what it returns is not one number.
        NonFiniteError: the score is NaN or infinite.
    """

    function: str | Callable[..., Any]
    least: int = 1

    def __post_init__(self) -> None:
        if self.least < 1:
            raise InputError(f"expected a least number of items of 1 or more, got {self.least}; raise it")
        _form(self.call, _name(self.function), ["plain"])

    @property
    def label(self) -> str:
        """The function's name."""
        return _name(self.function)

    @property
    def minimum(self) -> int:
        """As `least` says."""
        return self.least

    @cached_property
    def call(self) -> Callable[..., Any]:
        """The function itself."""
        return _callable(self.function)

    def encode(self, samples: Samples) -> Material:
        """The media and prompts themselves."""
        return Material(samples.prompts, _copy(_decoded(samples), "cpu"))

    def score(self, features: Material) -> Float[Tensor, ""]:
        """What the function says."""
        name, count = _name(self.function), len(features)
        if count < self.least:
            raise InputError(f"{name} needs at least {self.least} items in a set, got {count}")
        result = _called(name, self.call, _copy(features.media), features.prompts)
        value = returned.number(result)
        if value is None:
            raise InputError(
                f"expected one number for the whole set from {name}, got {returned.shown(result)}; return a float"
            )
        if not math.isfinite(value):
            raise NonFiniteError(f"{name} gave {value} for a set of {count} items; look at what it divides by")
        return torch.tensor(value, dtype=torch.float64)


def _name(function: str | Callable[..., Any]) -> str:
    if isinstance(function, str):
        return function
    return getattr(function, "__qualname__", None) or f"a {type(function).__name__} object"


def _callable(function: str | Callable[..., Any]) -> Callable[..., Any]:
    found = source.find(function) if isinstance(function, str) else function
    if isinstance(found, type):
        raise InputError(
            f"expected a function, got the class {_name(function)}; name a function or an object that can be called, "
            "and a class of rewards by class_path"
        )
    if not callable(found):
        raise InputError(
            f"expected a function, got {_name(function)}, which is {returned.shown(found)}; name a function"
        )
    return found


def _form(function: Callable[..., Any], name: str, allowed: list[str]) -> str:
    """The first way of `allowed` in which the function can be called."""
    try:
        parameters = inspect.signature(function)
    except (TypeError, ValueError) as error:
        if len(allowed) == 1:
            return allowed[0]
        raise InputError(
            f"expected a function that shows its parameters, got {name}; set signature to {' or '.join(FORMS)}"
        ) from error
    for form in allowed:
        try:
            parameters.bind(*FORMS[form])
        except TypeError:
            continue
        return form
    forms = " or ".join(f"({', '.join(FORMS[form])})" for form in allowed)
    raise InputError(f"expected a function of {forms}, got {name}{parameters}; change its parameters")


def _called(name: str, function: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401 - it is the user's
    """What the user's function returns; what goes wrong in it as one sentence, with the exception as its cause."""
    try:
        with torch.no_grad():
            return function(*arguments)
    except (InterruptedRun, NonFiniteError):
        raise
    except (Exception, SystemExit) as error:
        raise InputError(
            f"expected scores from {name}, got {source.blame(error, source.file_of(function))}; correct it"
        ) from error


def _decoded(samples: Samples) -> Media:
    if samples.media is None:
        raise ValueError("a function looks at media, but these samples were not decoded")
    return samples.media


def _copy(media: Any, device: str | None = None) -> Any:  # noqa: ANN401 - a column is of any kind
    """The same without gradients, in memory of its own: whatever the function does to it, no other reward sees."""
    match media:
        case Tensor():
            return media.detach().to(device or media.device, copy=True)
        case Rows():
            return type(media)(*(_copy(getattr(media, field.name), device) for field in fields(media)))
        case _:
            return media


def _plain(media: Media) -> tuple[Media, dict[str, Any]]:
    """The media's tensor, and what else is known of each item."""
    match media:
        case Audio():
            return media.waveform, {"sample_rate": media.sample_rate}
        case Images():
            return media.pixels, {}
        case Video():
            return media.frames, {"fps": media.fps}
        case _:
            return media, {}


def _kind(media: Media) -> str:
    match media:
        case Audio():
            channels, length = media.waveform.shape[1:]
            return f"{length} samples in {channels} channels at {media.sample_rate} Hz"
        case Images():
            height, width = media.size
            return f"images of {height} x {width}"
        case Video():
            frames, _, height, width = media.frames.shape[1:]
            return f"video of {frames} frames of {height} x {width} at {media.fps:g} a second"
        case Tensor():
            return f"shape {tuple(media.shape[1:])}"
        case _:
            return type(media).__name__
