"""What a reward service computes: one message in, one message out. It knows nothing of HTTP."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dragontune.data import Samples, join_columns
from dragontune.errors import InputError
from dragontune.media.audio import Audio
from dragontune.media.image import Images
from dragontune.media.sequences import Sequences
from dragontune.media.video import Video
from dragontune.rewards import identity, standardise
from dragontune.rewards.base import DistributionReward, Features, InstanceReward, Reward
from dragontune.rewards.remote_swaps import Items
from dragontune.wire import VERSION, Message, WireError, pack, unpack

MEDIA = (Audio, Images, Video, Sequences)
"""What may come as media, beside plain tensors."""


class AnotherReward(Exception):  # noqa: N818 - the caller's mistake
    """The caller expects another reward than is served here."""


@dataclass(frozen=True, eq=False)
class Work:
    """A reward and how many items a request may have.

    Raises:
        InputError: it is none that can be served.
    """

    reward: Reward
    items: int = 4096

    def __post_init__(self) -> None:
        if standardise.learns(self.reward):
            raise InputError(
                f"expected a reward that does not change while it is served, got {self.reward.label} with "
                "standardise: running; serve its members and combine them in the recipe"
            )
        if getattr(self.reward, "outermost", False):
            raise InputError(
                f"expected a reward that can be served, got {type(self.reward).__name__}, which works only outermost; "
                "serve its members"
            )

    @cached_property
    def digest(self) -> str:
        """Of the reward (identity.py)."""
        return identity.digest(self.reward)

    def info(self, most: int) -> dict[str, Any]:
        """What clients must know; `most` are the bytes that a request may have."""
        return {
            "version": VERSION,
            "label": self.reward.label,
            "scope": "instance" if isinstance(self.reward, InstanceReward) else "set",
            "digest": self.digest,
            "needs_media": self.reward.needs_media,
            "needs_prompts": self.reward.needs_prompts,
            "distance": self.reward.distance,
            "minimum": self.reward.minimum,
            "bytes": most,
            "items": self.items,
        }

    @torch.no_grad()
    def do(self, path: str, content: bytes) -> tuple[bytes, int]:
        """The reply to a body that was sent to a path, and how many items it was about.

        Raises:
            WireError: the body is not what it must be.
            AnotherReward: it is for another reward.
            InputError, NonFiniteError: the reward's own verdict.
        """
        message = Message.load(content)
        if message.get("version", int) != VERSION:
            raise WireError(f"another version than {VERSION}")
        if message.get("reward", str) != self.digest:
            raise AnotherReward
        key = message.get("key", str)
        header, tensors, count = {"/v1/encode": self._encode, "/v1/score": self._score, "/v1/swaps": self._swaps}[path](
            message
        )
        return Message(header | {"version": VERSION, "reward": self.digest, "key": key}, tensors).dump(), count

    def _encode(self, message: Message) -> tuple[dict[str, Any], dict[str, Tensor], int]:
        prompts, ids = message.texts("prompts"), message.texts("ids")
        count = len(prompts)
        if not 1 <= count <= self.items or len(ids) != count or len(set(ids)) != count:
            raise WireError(f"not 1 to {self.items} items with a prompt and an id of its own each")
        latents = unpack(message.header.get("latents"), message.tensors, ())
        if not isinstance(latents, Tensor) or latents.ndim < 1 or len(latents) != count:
            raise WireError("latents that are not one row an item")
        media = unpack(message.header.get("media"), message.tensors, MEDIA)
        if media is None and self.reward.needs_media:
            raise WireError("no media, which this reward looks at")
        if media is not None:
            _check(media, count)
        features = self.reward.encode(Samples(prompts, latents, media))
        if len(features) != count:
            raise InputError(
                f"expected one row an item from the features of {self.reward.label}, got {len(features)} for {count} "
                "items; correct its encode"
            )
        if isinstance(self.reward, InstanceReward):
            scores = self.reward.score(features).cpu()
            exact = scores if scores.dtype in (torch.float32, torch.float64) else scores.double()
            return {"ids": list(ids)}, {"scores": exact}, count
        rows = tuple(_packed(features[torch.tensor([row])]) for row in range(count))
        return {"ids": list(ids)}, Items(rows).tensors(), count

    def _score(self, message: Message) -> tuple[dict[str, Any], dict[str, Tensor], int]:
        _, features = self._set(message)
        score = self.reward.score(features).cpu()
        return {}, {"score": score if score.dtype == torch.float32 else score.double()}, 0

    def _swaps(self, message: Message) -> tuple[dict[str, Any], dict[str, Tensor], int]:
        reward, features = self._set(message)
        members, candidates = (_rows(message, name, len(features)) for name in ("members", "candidates"))
        if not len(members) or len(set(torch.cat([members, candidates]).tolist())) != len(members) + len(candidates):
            raise WireError("members and candidates that are not different items")
        swaps = reward.swaps(features[members], features[candidates])
        match message.get("ask", str):
            case "pairs":
                i, j = _rows(message, "i", len(members)), _rows(message, "j", len(candidates))
                if len(i) != len(j):
                    raise WireError("not as many members as candidates in pairs")
                empty = torch.zeros(0)
                values, allowed = (swaps.pairs(i, j), swaps.allowed(i, j)) if len(i) else (empty, empty)
            case "table":
                values, allowed = swaps.table(), swaps.allowed_table()
            case "screen":
                values, allowed = swaps.screen(), swaps.allowed_screen()
            case _:
                raise WireError("a question about exchanges that is none")
        numbers = {name: torch.tensor(getattr(swaps, name), dtype=torch.float64) for name in ("value", "rounding")}
        tensors = {"values": values.cpu().double(), "allowed": allowed.cpu().bool(), **numbers}
        return {"approximate": bool(swaps.approximate), "steep": bool(swaps.steep)}, tensors, 0

    def _set(self, message: Message) -> tuple[DistributionReward, Features]:
        """The reward, which must be one of a set, and the features that were sent."""
        if not isinstance(self.reward, DistributionReward):
            raise WireError("a set, for a reward of single items")
        count = message.get("items", int)
        if not 1 <= count <= 1 << 20:
            raise WireError("no items")
        rows = [_unpacked(packed) for packed in Items.read(message, count).packed]
        if len({type(row) for row in rows}) != 1:
            raise WireError("features of different kinds")
        try:
            return self.reward, join_columns(rows)
        except (ValueError, RuntimeError, AttributeError, KeyError):
            raise WireError("features that cannot be joined") from None


def _packed(row: Features) -> Tensor:
    tensors: dict[str, Tensor] = {}
    try:
        spec = pack(row, "f", tensors)
    except WireError as error:
        raise InputError(f"expected features that can be sent, got {error}; keep tensors, texts and numbers") from error
    content = bytearray(Message({"features": spec}, tensors).dump())
    return torch.frombuffer(content, dtype=torch.uint8)


def _unpacked(packed: Tensor) -> Features:
    message = Message.load(packed.numpy().tobytes())
    row = unpack(message.header.get("features"), message.tensors)
    if not isinstance(row, Features) or len(row) != 1:
        raise WireError("features that are not one row an item")
    return row


def _rows(message: Message, name: str, count: int) -> Tensor:
    """Row numbers below `count`."""
    found: Mapping[str, Tensor] = message.tensors
    rows = found.get(name)
    if rows is None or rows.dtype != torch.int64 or rows.ndim != 1 or ((rows < 0) | (rows >= count)).any():
        raise WireError(f"no row numbers as {name}")
    return rows


def _check(media: object, count: int) -> None:
    """WireError unless it is media of `count` items; the classes themselves check a part of it."""
    match media:
        case Audio(waveform, rate):
            good = _numbers(waveform, 3) and type(rate) is int and 1 <= rate <= 10**7
        case Images(pixels):
            good = _numbers(pixels, 4) and pixels.shape[1] == 3
        case Video(frames, fps):
            good = _numbers(frames, 5) and frames.shape[2] == 3 and isinstance(fps, float | int) and 0 < fps < 1e4
        case Sequences(tokens, alphabet):
            good = isinstance(alphabet, str) and isinstance(tokens, Tensor) and tokens.dtype == torch.int64
            good = good and tokens.ndim == 2 and bool(((tokens >= 0) & (tokens < len(alphabet))).all())
        case Tensor():
            good = media.ndim >= 1
        case _:
            good = False
    if not good or len(media) != count:  # pyright: ignore[reportArgumentType]
        raise WireError("media of another shape than their kind has, or of another count")


def _numbers(tensor: object, axes: int) -> bool:
    return isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.ndim == axes and tensor.numel() > 0
