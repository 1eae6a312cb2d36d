"""Questions to a chat model behind an OpenAI-compatible HTTP endpoint, whatever the endpoint does.

An attempt may take so long to connect, and so long for all the rest, however steadily a slow answer drips. What may
pass by itself (no connection, 408, 409, 425, 429, 5xx, a torn or unreadable answer, one that does not say what was
asked for) is tried again, after a wait that doubles; what will not (another status, an untrusted certificate) is an
InputError. Redirects are not followed, so the key goes to the endpoint's host and nowhere else. Left out: streaming,
proxies, and more than one request in a connection.
"""

import http.client
import json
import math
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import SplitResult, urlsplit

from dragontune.errors import InputError
from dragontune.seeding import Key

LARGEST = 4 << 20
"""Bytes of an answer; more is not read."""

PASSING = (408, 409, 425, 429)
"""What may pass by itself, beside 5xx."""


@dataclass(frozen=True)
class Outcome:
    """What came of a question: the value (None: nothing that could be used) and what it took."""

    value: int | None
    requests: int
    reached: bool
    """Whether the endpoint ever answered, whatever it said."""
    trouble: str
    """What was wrong with the last attempt, in a few words; empty if nothing was."""


class _Trouble(Exception):  # noqa: N818 - it may pass
    """An attempt came to nothing, and another may not."""

    def __init__(self, what: str, *, reached: bool = True, wait: float = 0.0) -> None:
        super().__init__(what)
        self.reached = reached
        self.wait = wait


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
        # a key that stands here by mistake is seldom in capitals, and must not be shown
        if self.key_variable and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.key_variable):
            raise InputError(
                "expected the name of an environment variable (A to Z, 0 to 9 and _) as key_variable, got something "
                "else, which is not shown in case it is the key; export the key and name its variable"
            )
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
        shown = self.endpoint if "@" not in self.endpoint and "?" not in self.endpoint else "one with more in it"
        wrong = InputError(
            f"expected an endpoint like http://localhost:8000/v1 (http or https, no user, query or fragment), got "
            f"{shown}; correct it"
        )
        try:
            parts = urlsplit(self.endpoint)
            _ = parts.port, (parts.hostname or "").encode("idna")
        except ValueError:
            raise wrong from None
        plain = re.fullmatch(r"[!-~]+", self.endpoint) and not {"@", "?", "#"} & set(self.endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname or not plain:
            raise wrong
        return parts

    def key(self) -> str:
        """The key, or nothing where none is named.

        Raises:
            InputError: the variable is not set, or holds what cannot be a key.
        """
        if not self.key_variable:
            return ""
        key = os.environ.get(self.key_variable, "").strip()
        if not re.fullmatch(r"[!-~]+", key):
            got = "something with other characters in it" if key else "nothing"
            raise InputError(
                f"expected a key of printable ASCII in the environment variable {self.key_variable}, got {got}; "
                f"export {self.key_variable}"
            )
        return key

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
            except _Trouble as error:
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
        parts, expired = self.address, threading.Event()
        late = f"no complete answer within {self.timeout:g} s"
        plain = http.client.HTTPConnection if parts.scheme == "http" else http.client.HTTPSConnection
        connection = plain(parts.hostname or "", parts.port or plain.default_port)
        reached = False
        try:
            connected = self._connect(connection)

            def expire() -> None:
                expired.set()
                with suppress(OSError):  # closed already
                    socket.socket.shutdown(connected, socket.SHUT_RDWR)

            watch = threading.Timer(self.timeout, expire)
            watch.daemon = True
            watch.start()
            try:
                if isinstance(connected, ssl.SSLSocket):
                    connected.do_handshake()
                path = f"{parts.path.rstrip('/')}/chat/completions"
                connection.request("POST", path, body, headers)
                answer = connection.getresponse()
                reached = True
                content = answer.read(LARGEST + 1)
            finally:
                watch.cancel()
        except ssl.SSLCertVerificationError as error:
            raise InputError(
                f"expected a trusted certificate of {self.endpoint}, got one that is not ({error.verify_message}); "
                "correct the endpoint, or name the file of its authority in the environment variable SSL_CERT_FILE"
            ) from None
        except TimeoutError:
            raise _Trouble(late, reached=reached) from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            what = late if expired.is_set() else f"no answer ({type(error).__name__})"
            raise _Trouble(what, reached=reached) from None
        finally:
            connection.close()
        if expired.is_set():
            raise _Trouble(late)
        return self._good(answer, content, key)

    def _connect(self, connection: http.client.HTTPConnection) -> socket.socket:
        """A connection whose handshake, if it is to have one, is still to come."""
        connected = socket.create_connection((connection.host, connection.port), self.timeout)
        if isinstance(connection, http.client.HTTPSConnection):
            context = ssl.create_default_context()
            try:
                connected = context.wrap_socket(
                    connected, server_hostname=connection.host, do_handshake_on_connect=False
                )
            except BaseException:
                connected.close()
                raise
        connection.sock = connected
        return connected

    def _good(self, answer: http.client.HTTPResponse, content: bytes, key: str) -> bytes:
        """The content, if the status is good and all of it is there."""
        status = answer.status
        if status in PASSING or status >= 500:
            raise _Trouble(f"status {status}", wait=_seconds(answer.headers.get("Retry-After")))
        if not 200 <= status < 300:
            said = "" if status in (401, 403) else _said(content, key)
            raise InputError(
                f"expected an answer of {self.endpoint}, got status {status}{said}; {self._remedy(status)}"
            ) from None
        if len(content) > LARGEST:
            raise _Trouble(f"an answer of more than {LARGEST >> 20} MiB")
        if answer.length:
            raise _Trouble("a torn answer")
        return content

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
        raise _Trouble("an answer that is not JSON") from None
    match answer:
        case {"choices": [{"finish_reason": "length" | "content_filter" as reason}, *_]}:
            raise _Trouble(f"a reply that was cut ({reason})")
        case {"choices": [{"message": {"content": str(text)}}, *_]}:
            return text
        case {"choices": [{"message": {"content": [*parts]}}, *_]}:
            return "".join(part["text"] for part in parts if isinstance(part, dict) and type(part.get("text")) is str)
        case _:
            raise _Trouble("an answer without a reply")


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


def _seconds(retry_after: str | None) -> float:
    """How long the header asks to wait: in seconds or until a date; 0 where it asks for nothing that can be read."""
    if retry_after is None:
        return 0.0
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return max(seconds, 0.0) if math.isfinite(seconds) else 0.0
