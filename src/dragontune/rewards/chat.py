"""Questions to a chat model behind an OpenAI-compatible HTTP endpoint, whatever the endpoint does.

What may pass by itself (no connection, 408, 409, 425, 429, 5xx, a torn or unreadable answer, one that does not say what
was asked for) is tried again, after a wait that doubles; what will not (another status, an untrusted certificate) is an
InputError. A single attempt is `http.exchange`. Left out: streaming, proxies, and more than one request in a
connection.
"""

import json
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult

from dragontune.errors import InputError
from dragontune.rewards.http import Trouble, address, check_variable, exchange, secret
from dragontune.seeding import Key

LARGEST = 4 << 20
"""Bytes of an answer; more is not read."""


@dataclass(frozen=True)
class Outcome:
    """What came of a question: the value (None: nothing that could be used) and what it took."""

    value: int | None
    requests: int
    reached: bool
    """Whether the endpoint ever answered, whatever it said."""
    trouble: str
    """What was wrong with the last attempt, in a few words; empty if nothing was."""


@dataclass(frozen=True)
class Chat:
    """An endpoint and how patiently it is asked.

    `endpoint` is the address up to `/chat/completions`. `key_variable` names the environment variable that holds the
    key, if there is one; the key is read when a question is asked and is never kept. `timeout` is in seconds, to
    connect (to each address that the host has) and again from then to the end of the answer. After a failed attempt
    `retries` more follow; before the i-th (from 0) it waits between a half and one times `backoff` 2^i seconds, or as
    long as the endpoint asks for, but `longest_wait` at most.

    >>> Chat("http://localhost:8000/v1").ask({"model": "m", "messages": [...]}, read, threading.Event()).value
    7

    Raises:
        InputError: an endpoint, a name or a number that cannot be.
    """

    endpoint: str
    key_variable: str = ""
    timeout: float = 60.0
    retries: int = 4
    backoff: float = 1.0
    longest_wait: float = 60.0

    def __post_init__(self) -> None:
        _ = self.address
        check_variable(self.key_variable, "key_variable")
        for name in ("timeout", "longest_wait"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise InputError(f"expected a positive {name} in seconds, got {getattr(self, name)}; 60 is usual")
        if not (math.isfinite(self.backoff) and self.backoff >= 0):
            raise InputError(f"expected a backoff of 0 seconds or more, got {self.backoff}; 1 is usual")
        if not 0 <= self.retries <= 100:
            raise InputError(f"expected 0 to 100 retries, got {self.retries}; 4 are usual")

    @property
    def address(self) -> SplitResult:
        """The endpoint in parts."""
        return address(self.endpoint, "an endpoint", "http://localhost:8000/v1")

    def key(self) -> str:
        """The key, or nothing where none is named.

        Raises:
            InputError: the variable is not set, or holds what cannot be a key.
        """
        return secret(self.key_variable)

    def ask(
        self, question: Mapping[str, Any], read: Callable[[str], int | None], stop: threading.Event, item: str = ""
    ) -> Outcome:
        """What `read` makes of the answer; where that is None, the question is asked again with the next seed.

        `item` makes the waits of different questions differ. Once `stop` is set there are no more attempts.

        Raises:
            InputError: asking again would not help; the message holds the status and the remedy, never the key.
        """
        key, requests, reached, trouble, unread = self.key(), 0, False, "stopped", 0
        for attempt in range(self.retries + 1):
            if stop.is_set():
                break
            body, requests = dict(question), requests + 1
            if unread and isinstance(body.get("seed"), int):
                body["seed"] += unread  # the same seed would give the same answer
            wait = 0.0
            try:
                text = _text(self._post(json.dumps(body).encode(), key))
                reached = True
                value = read(text)
                if value is not None:
                    return Outcome(value, requests, True, "")
                trouble, unread = "a reply without what was asked for", unread + 1
            except Trouble as error:
                trouble, wait, reached = str(error), error.wait, reached or error.reached
            if attempt < self.retries:
                stop.wait(self._pause(attempt, wait, item))
        return Outcome(None, requests, reached, trouble)

    def _pause(self, attempt: int, wait: float, item: str) -> float:
        jitter = Key(0).fold("wait", item, attempt).uniform([0]).item()
        return min(self.longest_wait, max(wait, self.backoff * 2**attempt * (0.5 + jitter / 2)))

    def _post(self, body: bytes, key: str) -> bytes:
        """The body of a good answer."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        path = f"{self.address.path.rstrip('/')}/chat/completions"
        answer = exchange(self.address, "POST", path, body, headers, timeout=self.timeout, largest=LARGEST)
        if not 200 <= answer.status < 300:
            said = "" if answer.status in (401, 403) else _said(answer.content, key)
            raise InputError(
                f"expected an answer of {self.endpoint}, got status {answer.status}{said}; "
                f"{self._remedy(answer.status)}"
            )
        return answer.content

    def _remedy(self, status: int) -> str:
        if status < 400:
            return "redirects are not followed, so name the address it leads to as endpoint"
        if status in (401, 403):
            named = f"check the key in the environment variable {self.key_variable}"
            return named if self.key_variable else "name the environment variable with the key as key_variable"
        if status == 404:
            return "check endpoint (it often ends in /v1) and model"
        return "check that the model takes images, and the fields of the reward"


def _text(content: bytes) -> str:
    """What the first choice says."""
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        raise Trouble("an answer that is not JSON") from None
    match answer:
        case {"choices": [{"finish_reason": "length" | "content_filter" as reason}, *_]}:
            raise Trouble(f"a reply that was cut ({reason})")
        case {"choices": [{"message": {"content": str(text)}}, *_]}:
            return text
        case {"choices": [{"message": {"content": [*parts]}}, *_]}:
            return "".join(part["text"] for part in parts if isinstance(part, dict) and type(part.get("text")) is str)
        case _:
            raise Trouble("an answer without a reply")


def _said(content: bytes, key: str) -> str:
    """The endpoint's own words for an error, on one line, if there are any; without the key, should it repeat it."""
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        return ""
    match answer:
        case {"error": {"message": str(message)}} | {"error": str(message)} | {"message": str(message)}:
            message = message.replace(key, "[key]") if key else message
            return f" ({' '.join(''.join(c if c.isprintable() else ' ' for c in message).split())[:200]})"
        case _:
            return ""
