"""What rewards that are computed elsewhere have in common: what they send, and what they make of what comes back.

No reply is used unless it answers this request (key, item ids in order), comes from the same reward as all others (its
digest) and has the right shape.
"""

import json
import secrets
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from dragontune.data import Rows, Samples, join_columns
from dragontune.distances.swaps import Swaps
from dragontune.errors import InputError, NonFiniteError
from dragontune.rewards.base import DistributionReward, Features, InstanceReward, Reward
from dragontune.rewards.http import Answer, Stop
from dragontune.rewards.link import Line, Patience
from dragontune.rewards.remote_swaps import Items, RemoteSwaps
from dragontune.wire import VERSION, Message, WireError, not_finite, pack

F = TypeVar("F", bound=Features)
T = TypeVar("T")


@dataclass(frozen=True)
class Info:
    """What a service says of its reward."""

    label: str
    scope: str
    """`instance` or `set`."""
    digest: str
    """SHA-256 (hex) of all that decides its scores."""
    needs_media: bool
    needs_prompts: bool
    distance: bool
    minimum: int
    bytes: int
    """The largest request."""
    items: int
    """The most items in a request."""

    @classmethod
    def read(cls, answer: Answer) -> "Info":
        """WireError for anything else."""
        try:
            said = json.loads(answer.content)
        except (ValueError, RecursionError):
            raise WireError("an answer that is not JSON") from None
        if not isinstance(said, dict) or said.pop("version", None) != VERSION:
            raise WireError(f"an answer that is not of version {VERSION} of the protocol")
        wanted = {entry.name: entry.type for entry in fields(cls)}
        if set(said) != set(wanted) or any(type(said[name]) is not kind for name, kind in wanted.items()):
            raise WireError("an answer that does not describe a reward")
        if (
            said["scope"] not in ("instance", "set")
            or said["bytes"] < 1 << 12
            or min(said["items"], said["minimum"]) < 1
        ):
            raise WireError("an answer that describes no reward that can be")
        return cls(**said)


@dataclass(frozen=True, eq=False, kw_only=True)
class Elsewhere(Reward[F]):
    """A reward that is computed elsewhere.

    `timeout` is in seconds, for an answer; what may pass by itself is tried `retries` times more, before the i-th (from
    0) after a wait of a half to one times `backoff` 2^i seconds, `longest_wait` at most. After 5 failures in a row a
    place rests for `rest` seconds. Items are sent in chunks of `chunk` and `chunk_mib` MiB at most, of which
    `concurrency` are under way at once. What is not answered in `deadline` seconds is lost: the run stops with its
    state saved. `digest`, if given, is the reward that must be there.

    Raises:
        InputError: settings that cannot be, or whatever the reward says of its input.
        NonFiniteError: a score or feature is NaN or infinite; the message names the item and its prompt.
        LostService: no valid reply in time.
    """

    timeout: float = 120.0
    retries: int = 10
    backoff: float = 0.5
    longest_wait: float = 30.0
    rest: float = 30.0
    deadline: float = 900.0
    chunk: int = 16
    chunk_mib: float = 16.0
    concurrency: int = 4
    digest: str = ""

    def __post_init__(self) -> None:
        _ = self.line
        for name, least, most in (
            ("chunk", 1, 4096),
            ("chunk_mib", 0.01, 1024),
            ("concurrency", 1, 256),
            ("deadline", 1e-3, 1e6),
        ):
            if not least <= getattr(self, name) <= most:
                raise InputError(f"expected {name} from {least} to {most}, got {getattr(self, name)}; leave it out")

    @property
    @abstractmethod
    def line(self) -> Line:
        """The way there."""

    @property
    def patience(self) -> Patience:
        """As the fields say."""
        return Patience(self.timeout, self.retries, self.backoff, self.longest_wait, self.rest)

    @property
    def place(self) -> str:
        """Where that is, in messages."""
        return ", ".join(self.line.places)

    @property
    def scope(self) -> Literal["instance", "set"]:
        """What the reward there must be of."""
        return "set" if isinstance(self, DistributionReward) else "instance"

    @cached_property
    def info(self) -> Info:
        """What a service says of its reward; asked once."""
        info = self.line.ask(
            "GET", "/v1/info", None, Info.read, Stop(), secrets.token_hex(16), time.monotonic() + self.deadline
        )
        if info.scope != self.scope:
            other = "RemoteSetReward or RaySetReward" if info.scope == "set" else "RemoteReward or RayReward"
            raise InputError(
                f"expected a reward of {'sets' if self.scope == 'set' else 'single items'} at "
                f"{self.place} for {type(self).__name__}, got {info.label}; use {other}"
            )
        if self.digest and info.digest != self.digest:
            raise InputError(_another(self.digest, info.digest, self.place))
        return info

    @property
    def needs_media(self) -> bool:
        """As the services' reward."""
        return self.info.needs_media

    @property
    def needs_prompts(self) -> bool:
        """As the services' reward."""
        return self.info.needs_prompts

    @property
    def label(self) -> str:
        """The services' reward's."""
        return self.info.label

    @property
    def distance(self) -> bool:
        """As the services' reward."""
        return self.info.distance

    @property
    def minimum(self) -> int:
        """As the services' reward."""
        return self.info.minimum

    def ask(
        self,
        path: str,
        header: dict[str, object],
        tensors: dict[str, Tensor],
        read: Callable[[Message], T],
        stop: Stop,
        until: float,
    ) -> T:
        """What `read` makes of a reply that belongs to this request, to this reward, and is whole."""
        key = secrets.token_hex(16)
        common = {"version": VERSION, "reward": self.info.digest, "key": key}
        body = Message(common | header, tensors).dump()
        if len(body) > self.info.bytes:
            raise InputError(
                f"expected at most {self.info.bytes >> 20} MiB in a request to the reward service at "
                f"{self.place}, got {len(body) / 2**20:.1f}; raise its --max-mib, or lower chunk or chunk_mib"
            )

        def checked(answer: Answer) -> T:
            reply = Message.load(answer.content)
            if reply.header.get("version") != VERSION or reply.header.get("key") != key:
                raise WireError("a reply to another request")
            if reply.header.get("reward") != self.info.digest:
                raise InputError(_another(self.info.digest, str(reply.header.get("reward")), self.place))
            return read(reply)

        return self.line.ask("POST", path, body, checked, stop, key, until)

    def _encoded(self, samples: Samples, read: Callable[[Message, Samples, int], T]) -> list[T]:
        """What `read` makes of each chunk's reply (with the chunk and the number of its first item), in order."""
        if samples.media is None and self.needs_media:
            raise ValueError(f"{self.label} looks at media, but these samples were not decoded")
        sent = samples if self.needs_media else Samples(samples.prompts, samples.latents, None)
        size, until = self._chunk(sent), time.monotonic() + self.deadline
        with _threads(self.concurrency) as (pool, stop):

            def one(start: int) -> T:
                part = sent[torch.arange(start, min(start + size, len(sent)))]
                tensors: dict[str, Tensor] = {}
                ids = [secrets.token_hex(8) for _ in part.prompts]
                header: dict[str, object] = {"ids": ids, "prompts": part.prompts}
                header["latents"] = pack(part.latents, "latents", tensors)
                header["media"] = pack(part.media, "media", tensors)

                def checked(reply: Message) -> T:
                    if reply.texts("ids") != tuple(ids):
                        raise WireError("a reply with other items, or in another order")
                    return read(reply, part, start)

                try:
                    return self.ask("/v1/encode", header, tensors, checked, stop, until)
                except (InputError, NonFiniteError) as error:
                    if len(part) == len(sent):
                        raise
                    of = f"items {start + 1} to {start + len(part)} of {len(sent)}"
                    raise type(error)(f"{error} (among {of})") from error

            futures = [pool.submit(one, start) for start in range(0, len(sent), size)]
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
            return [future.result() for future in futures]

    def _chunk(self, samples: Samples) -> int:
        """Items in a request."""
        each = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(samples)) / max(len(samples), 1)
        room = min(self.chunk_mib * 2**20, 0.9 * self.info.bytes)
        return max(1, min(self.chunk, self.info.items, int(room / max(each, 1))))


@dataclass(frozen=True, eq=False, kw_only=True)
class ItemsElsewhere(Elsewhere[Tensor], InstanceReward[Tensor]):
    """Of single items: scores come back."""

    def encode(self, samples: Samples) -> Float[Tensor, " n"]:
        """The scores, on the CPU, in the precision of the services' reward (float32 or float64)."""
        if not len(samples):
            return torch.zeros(0, dtype=torch.float64)
        return torch.cat(self._encoded(samples, self._scores))

    def score(self, features: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The scores as they are."""
        return features

    def _scores(self, reply: Message, part: Samples, start: int) -> Tensor:
        scores = reply.tensor("scores", (len(part),), torch.float32, torch.float64)
        for row in (~scores.isfinite()).nonzero()[:1, 0].tolist():
            raise NonFiniteError(
                f"{self.label} gave {scores[row].item()} for item {start + row + 1} (prompt {part.prompts[row]!r})"
            )
        return scores


@dataclass(frozen=True, eq=False, kw_only=True)
class SetElsewhere(Elsewhere[Items], DistributionReward[Items]):
    """Of a set: features come back, and are sent again when a set is to be scored.

    An exchange of items is asked for together with all others of the same composition, so that `contrast` makes one
    request more than it accepts exchanges.
    """

    def encode(self, samples: Samples) -> Items:
        """What the services' reward made of each item."""
        return Items(tuple(packed for part in self._encoded(samples, self._items) for packed in part))

    def score(self, features: Items) -> Float[Tensor, ""]:
        """What the services' reward says of the items together."""

        def read(reply: Message) -> Tensor:
            return reply.tensor("score", (), torch.float32, torch.float64)

        return self.ask("/v1/score", {"items": len(features)}, features.tensors(), read, Stop(), self._until)

    def swaps(self, first: Items, second: Items) -> Swaps:
        """Those of the services' reward."""
        both: Items = join_columns([first, second])

        def ask(header: dict[str, object], tensors: dict[str, Tensor], read: Callable[[Message], T]) -> T:
            header |= {"items": len(both)}
            return self.ask("/v1/swaps", header, both.tensors() | tensors, read, Stop(), self._until)

        return RemoteSwaps(ask, len(first), len(second))

    @property
    def _until(self) -> float:
        return time.monotonic() + self.deadline

    def _items(self, reply: Message, part: Samples, start: int) -> tuple[Tensor, ...]:
        items = Items.read(reply, len(part)).packed
        for row, packed in enumerate(items):
            if not_finite(Message.load(packed.numpy().tobytes())):
                raise NonFiniteError(
                    f"the features of {self.label} are not finite for item {start + row + 1} (prompt "
                    f"{part.prompts[row]!r})"
                )
        return items


def services(value: object, name: str = "reward") -> dict[str, str]:
    """The digest of every service's reward in a reward, by its place: another digest is another reward."""
    match value:
        case Elsewhere():
            return {name: value.info.digest}
        case dict():
            return {
                at: digest for key, member in value.items() for at, digest in services(member, f"{name}.{key}").items()
            }
        case list() | tuple():
            return services(dict(enumerate(value)), name)
        case _ if is_dataclass(value) and not isinstance(value, type | Rows):
            return services({entry.name: getattr(value, entry.name) for entry in fields(value)}, name)
        case _:
            return {}


def _another(wanted: str, got: str, where: str) -> str:
    return (
        f"expected the same reward (digest {wanted[:12]}) from every service at {where}, got another "
        f"({got[:12]}); serve the same reward, by the same version of dragontune, at every address"
    )


def _tensors(value: object) -> Iterator[Tensor]:
    match value:
        case Tensor():
            yield value
        case Rows():
            for entry in fields(value):
                yield from _tensors(getattr(value, entry.name))


@contextmanager
def _threads(count: int) -> Iterator[tuple[ThreadPoolExecutor, Stop]]:
    """Threads whose work ends at once where something goes wrong, a signal included."""
    stop, pool = Stop(), ThreadPoolExecutor(count, "remote-reward")
    try:
        yield pool, stop
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
