"""One HTTP request, whatever the other side does: for chat models and for rewards that are served.

An attempt may take so long to connect, and so long for all the rest, however steadily a slow answer drips. Redirects
are not followed, so that a key goes to the host that was named and nowhere else. Left out: streaming, proxies, and more
than one request in a connection.
"""

import http.client
import math
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import SplitResult, urlsplit

from dragontune.errors import InputError

PASSING = (408, 409, 425, 429)
"""What may pass by itself, beside 5xx."""


class Trouble(Exception):  # noqa: N818 - it may pass
    """An attempt came to nothing, and another may not.

    `reached`: whether the other side answered at all. `busy`: whether it answered that it is well, but has no time.
    `wait`: seconds that it asks to be left alone.
    """

    def __init__(self, what: str, *, reached: bool = True, busy: bool = False, wait: float = 0.0) -> None:
        super().__init__(what)
        self.reached = reached
        self.busy = busy
        self.wait = wait


class Stop(threading.Event):
    """An event that, once set, also ends the exchanges that are under way."""

    def __init__(self) -> None:
        super().__init__()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    def set(self) -> None:
        """Let no exchange go on."""
        super().set()
        with self._lock:
            for connected in self._open:
                _shut(connected)

    @contextmanager
    def ends(self, connected: socket.socket) -> Iterator[None]:
        """Within it the connection is ended when the event is set."""
        with self._lock:
            self._open.add(connected)
        try:
            if self.is_set():
                _shut(connected)
            yield
        finally:
            with self._lock:
                self._open.discard(connected)


@dataclass(frozen=True)
class Answer:
    """What came back, whole."""

    status: int
    headers: Mapping[str, str]
    content: bytes


def address(text: str, name: str, example: str) -> SplitResult:
    """An address in parts; `name` and `example` are for the message.

    Raises:
        InputError: it is not one of http or https, or has a user, a query or a fragment, which are not shown.
    """
    shown = text if "@" not in text and "?" not in text else "one with more in it"
    wrong = InputError(
        f"expected {name} like {example} (http or https, no user, query or fragment), got {shown}; correct it"
    )
    try:
        parts = urlsplit(text)
        _ = parts.port, (parts.hostname or "").encode("idna")
    except ValueError:
        raise wrong from None
    plain = re.fullmatch(r"[!-~]+", text) and not {"@", "?", "#"} & set(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or not plain:
        raise wrong
    return parts


def check_variable(name: str, field: str, what: str = "key") -> None:
    """InputError unless `name` can be an environment variable's; a key that stands there by mistake is not shown."""
    if name and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
        raise InputError(
            f"expected the name of an environment variable (A to Z, 0 to 9 and _) as {field}, got something else, "
            f"which is not shown in case it is the {what}; export the {what} and name its variable"
        )


def secret(variable: str, what: str = "key") -> str:
    """What an environment variable holds, or nothing where none is named.

    Raises:
        InputError: the variable is not set, or holds what cannot be a key.
    """
    if not variable:
        return ""
    value = os.environ.get(variable, "").strip()
    if not re.fullmatch(r"[!-~]+", value):
        got = "something with other characters in it" if value else "nothing"
        raise InputError(
            f"expected a {what} of printable ASCII in the environment variable {variable}, got {got}; export {variable}"
        )
    return value


def exchange(
    parts: SplitResult,
    method: str,
    path: str,
    body: bytes | None,
    headers: Mapping[str, str],
    *,
    timeout: float,
    largest: int,
    connect: float | None = None,
    stop: Stop | None = None,
) -> Answer:
    """The whole answer, of any status that cannot pass by itself.

    `timeout` is in seconds, from the connection to the end of the answer; `connect` (default: the same) to each address
    that the host has. `largest` is the most bytes of an answer that are read.

    Raises:
        Trouble: no answer, a torn or too large one, or one that says to come back.
        InputError: an untrusted certificate.
    """
    expired, stop = threading.Event(), stop or Stop()
    late = f"no complete answer within {timeout:g} s"
    plain = http.client.HTTPConnection if parts.scheme == "http" else http.client.HTTPSConnection
    connection = plain(parts.hostname or "", parts.port or plain.default_port)
    reached = False
    try:
        connected = _connect(connection, timeout if connect is None else connect)

        def expire() -> None:
            expired.set()
            _shut(connected)

        watch = threading.Timer(timeout, expire)
        watch.daemon = True
        watch.start()
        try:
            with stop.ends(connected):
                connected.settimeout(timeout)
                if isinstance(connected, ssl.SSLSocket):
                    connected.do_handshake()
                with suppress(BrokenPipeError, ConnectionResetError):  # an answer may come before all was sent
                    connection.request(method, path, body, dict(headers))
                answer = connection.getresponse()
                reached = True
                content = answer.read(largest + 1)
        finally:
            watch.cancel()
    except ssl.SSLCertVerificationError as error:
        raise InputError(
            f"expected a trusted certificate of {parts.geturl()}, got one that is not ({error.verify_message}); "
            "correct the endpoint, or name the file of its authority in the environment variable SSL_CERT_FILE"
        ) from None
    except TimeoutError:
        raise Trouble(late, reached=reached) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        what = late if expired.is_set() else f"no answer ({type(error).__name__})"
        raise Trouble(what, reached=reached) from None
    finally:
        connection.close()
    if expired.is_set():
        raise Trouble(late)
    return _whole(answer, content, largest)


def _whole(answer: http.client.HTTPResponse, content: bytes, largest: int) -> Answer:
    status = answer.status
    if status in PASSING or status >= 500:
        wait = _seconds(answer.headers.get("Retry-After"))
        raise Trouble(f"status {status}", busy=status == 429, wait=wait)
    if 200 <= status < 300:
        if len(content) > largest:
            raise Trouble(f"an answer of more than {largest >> 20} MiB")
        if answer.length:
            raise Trouble("a torn answer")
    return Answer(status, {name.lower(): value for name, value in answer.headers.items()}, content)


def _shut(connected: socket.socket) -> None:
    with suppress(OSError):  # closed already
        socket.socket.shutdown(connected, socket.SHUT_RDWR)


def _connect(connection: http.client.HTTPConnection, timeout: float) -> socket.socket:
    """A connection whose handshake, if it is to have one, is still to come."""
    connected = socket.create_connection((connection.host, connection.port), timeout)
    if isinstance(connection, http.client.HTTPSConnection):
        context = ssl.create_default_context()
        try:
            connected = context.wrap_socket(connected, server_hostname=connection.host, do_handshake_on_connect=False)
        except BaseException:
            connected.close()
            raise
    connection.sock = connected
    return connected


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
