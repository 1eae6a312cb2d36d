"""How a reward service is asked: attempts with time limits, waits that grow, several addresses, and one deadline.

What may pass by itself (no connection, 400, 408, 409, 425, 429, 5xx, a torn or invalid reply) is tried again, after a
wait that doubles, with jitter, and at another address where there is one. The service's own verdict on the input (422)
is passed on; any other status is an InputError. What does not pass in time is a `LostService`.
"""

import json
import time
import warnings
from abc import ABC, abstractmethod
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import TypeVar
from urllib.parse import SplitResult

from dragontune.errors import InputError, LostService, NonFiniteError
from dragontune.rewards.circuits import Circuits
from dragontune.rewards.http import Answer, Stop, Trouble, address, check_variable, exchange, secret
from dragontune.seeding import Key
from dragontune.wire import WireError

T = TypeVar("T")

KIND = "application/x-safetensors"
"""What a message is called in HTTP."""

LARGEST = 1 << 30
"""Bytes of a reply."""
QUIET = 5.0
"""Seconds of trouble that nobody is told of."""


def digest_field(content: bytes) -> str:
    """A body's `Content-Digest` (RFC 9530)."""
    return f"sha-256=:{b64encode(sha256(content).digest()).decode()}:"


def agrees(field: str | None, content: bytes) -> bool:
    """Whether a `Content-Digest` is there and is the body's."""
    if field is None or not field.startswith("sha-256=:") or not field.endswith(":"):
        return False
    try:
        return b64decode(field[9:-1], validate=True) == sha256(content).digest()
    except ValueError:
        return False


@dataclass(frozen=True, eq=False)
class Patience:
    """`timeout` seconds an attempt, `retries` more after the first, and the waits between them.

    Before the i-th (from 0) it waits between a half and one times `backoff` 2^i seconds, or as long as it is asked to,
    `longest_wait` at most. After 5 failures in a row a place rests for `rest` seconds.
    """

    timeout: float = 120.0
    retries: int = 10
    backoff: float = 0.5
    longest_wait: float = 30.0
    rest: float = 30.0

    def __post_init__(self) -> None:
        for name in ("timeout", "longest_wait"):
            if not 0 < getattr(self, name) < 1e6:
                raise InputError(f"expected a positive {name} in seconds, got {getattr(self, name)}; leave it out")
        for name in ("backoff", "rest"):
            if not 0 <= getattr(self, name) < 1e6:
                raise InputError(f"expected 0 seconds or more as {name}, got {getattr(self, name)}; leave it out")
        if not 0 <= self.retries <= 1000:
            raise InputError(f"expected 0 to 1000 retries, got {self.retries}; 10 are usual")

    def pause(self, attempt: int, wait: float, key: str) -> float:
        """Seconds after an attempt that failed; `key` makes those of different requests differ."""
        jitter = Key(0).fold("wait", key, attempt).uniform([0]).item()
        growing = self.backoff * 2 ** min(attempt, 30) * (0.5 + jitter / 2)
        return min(self.longest_wait, max(wait * (1 + jitter / 2), growing))


class Line(ABC):
    """A way to places that all answer the same questions."""

    patience: Patience

    @property
    @abstractmethod
    def places(self) -> tuple[str, ...]:
        """What messages call each place."""

    @property
    @abstractmethod
    def circuits(self) -> Circuits:
        """What is known of each place."""

    @abstractmethod
    def once(
        self, number: int, method: str, path: str, body: bytes | None, key: str, timeout: float, stop: Stop
    ) -> Answer:
        """One attempt at one place.

        Raises:
            Trouble, WireError: another attempt may do better.
            InputError, NonFiniteError: no other would.
        """

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None,
        read: Callable[[Answer], T],
        stop: Stop,
        key: str,
        until: float,
    ) -> T:
        """What `read` makes of the answer; a `WireError` from it is a reason to ask again.

        `key` names the request, the same in every attempt; `until` is a time of `time.monotonic()`.

        Raises:
            LostService: no answer in time, or in as many attempts as are allowed.
            InputError, NonFiniteError: the service's verdict on what it was asked.
        """
        attempts, trouble, started, most = 0, "no attempt", time.monotonic(), self.patience.retries + 1
        while attempts < most and (left := until - time.monotonic()) > 0 and not stop.is_set():
            number = self.circuits.take()
            if number is None:
                self._tell(trouble, time.monotonic() - started, until)
                stop.wait(min(self.circuits.wait(), left))
                continue
            attempts, well, wait = attempts + 1, None, 0.0
            try:
                answer = self.once(number, method, path, body, key, min(self.patience.timeout, left), stop)
                value = read(answer)
                well = True
                return value
            except (InputError, NonFiniteError):
                well = True
                raise
            except Trouble as error:
                trouble, wait, well = f"{error} from {self.places[number]}", error.wait, None if error.busy else False
            except WireError as error:
                trouble, well = f"{error} from {self.places[number]}", False
            finally:
                self.circuits.give(number, well)
            self._tell(trouble, time.monotonic() - started, until)
            if attempts < most:
                stop.wait(self.patience.pause(attempts - 1, wait, key))
        raise LostService(
            f"expected an answer of the reward service at {', '.join(self.places)}, got {trouble} ({attempts} "
            f"attempts in {time.monotonic() - started:.0f} s); see to the service"
        )

    def _tell(self, trouble: str, passed: float, until: float) -> None:
        """Warn, now and then, of what has lasted for a while."""
        if passed >= QUIET and self.circuits.may_tell():
            left = max(0.0, until - time.monotonic())
            warnings.warn(
                f"no answer of the reward service for {passed:.0f} s ({trouble}); asking on for {left:.0f} s at most",
                stacklevel=1,
            )


@dataclass(frozen=True, eq=False)
class Link(Line):
    """A line over HTTP to the addresses of one service. `connect`: seconds until there is a connection.

    Raises:
        InputError: an address, a name or a number that cannot be.
    """

    addresses: tuple[str, ...]
    token_variable: str = ""
    connect: float = 10.0
    patience: Patience = field(default_factory=Patience)

    def __post_init__(self) -> None:
        if not self.addresses or len(set(self.addresses)) < len(self.addresses):
            raise InputError(f"expected one address or more, each once, got {list(self.addresses)}; correct addresses")
        _ = self.parts
        check_variable(self.token_variable, "token_variable", "token")
        if not 0 < self.connect < 1e6:
            raise InputError(f"expected a positive connect in seconds, got {self.connect}; leave it out")

    @property
    def places(self) -> tuple[str, ...]:
        """The addresses."""
        return self.addresses

    @cached_property
    def parts(self) -> tuple[SplitResult, ...]:
        """The addresses taken apart."""
        return tuple(address(text, "an address of a reward service", "http://gpu-box:8750") for text in self.addresses)

    @property
    def circuits(self) -> Circuits:
        """Of each address."""
        return self._circuits

    @cached_property
    def _circuits(self) -> Circuits:
        return Circuits(len(self.addresses), rest=self.patience.rest)

    def once(
        self, number: int, method: str, path: str, body: bytes | None, key: str, timeout: float, stop: Stop
    ) -> Answer:
        """One exchange."""
        parts, token = self.parts[number], secret(self.token_variable, "token")
        headers = {"Accept": f"{KIND}, application/json", "Idempotency-Key": key}
        if body is not None:
            headers |= {"Content-Type": KIND, "Content-Digest": digest_field(body)}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        answer = exchange(
            parts,
            method,
            f"{parts.path.rstrip('/')}{path}",
            body,
            headers,
            timeout=timeout,
            connect=min(self.connect, timeout),
            largest=LARGEST,
            stop=stop,
        )
        return self._good(answer, self.addresses[number], token)

    def _good(self, answer: Answer, where: str, token: str) -> Answer:
        """The answer, if its status is good and all of it is there."""
        status = answer.status
        if 200 <= status < 300:
            if not agrees(answer.headers.get("content-digest"), answer.content):
                raise WireError("a reply that does not agree with its digest")
            return answer
        if status == 400:
            raise WireError("word that the request arrived damaged")
        kind, said = _verdict(answer.content, token)
        if status == 422 and kind == "not finite":
            raise NonFiniteError(f"{said} (the reward service at {where})")
        if status in (412, 422) and said:
            raise InputError(f"{said} (the reward service at {where})")
        raise InputError(f"expected an answer of the reward service at {where}, got {self._remedy(status)}")

    def _remedy(self, status: int) -> str:
        match status:
            case 401 | 403:
                named = f"check the token in the environment variable {self.token_variable}"
                return f"status {status}; " + (
                    named if self.token_variable else "name the environment variable with its token as token_variable"
                )
            case 404 | 405:
                return f"status {status}, so it is none; check the address (`dragontune serve-reward` prints it)"
            case 413:
                return "status 413, so the items are too large for it; raise its --max-mib, or lower chunk_mib"
            case _ if status < 400:
                return f"status {status}; redirects are not followed, so name the address it leads to"
            case _:
                return f"status {status}; check the address and the versions of dragontune at both ends"


def _verdict(content: bytes, token: str) -> tuple[str, str]:
    """What a service says of its input: of which kind, and a sentence; empty texts where it says nothing readable."""
    try:
        match json.loads(content):
            case {"kind": str(kind), "error": str(said)}:
                said = said.replace(token, "[token]") if token else said
                return kind, " ".join("".join(c if c.isprintable() else " " for c in said).split())[:1000]
    except (ValueError, RecursionError):
        pass
    return "", ""
