"""A reward service as a program (uvicorn): its socket, its worker processes, its patience with slow clients, its end.

SIGTERM and Ctrl-C let requests that are under way be answered, for `GRACE` seconds at most. Left out: TLS; put a proxy
that speaks it in front where the network is not your own.
"""

import asyncio
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.supervisors import Multiprocess

from dragontune.errors import InputError
from dragontune.rewards.http import check_variable, secret
from dragontune.service.door import LOCAL, App
from dragontune.service.metrics import SHARED

GRACE = 60
"""Seconds for requests that are under way when the service is to end."""

HEADERS = 10.0
"""Seconds for a request's headers to arrive."""

CONNECTIONS = 1024
"""At a time, in one process."""

SHORTEST = 16
"""Characters of a token."""


class Patient(H11Protocol):
    """uvicorn's protocol, which ends connections whose headers take too long: it waits for them for ever."""

    waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Go on waiting, unless the headers are there."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._unwait()
        elif self.waiting is None:
            self._wait()

    def on_response_complete(self) -> None:
        """The next request's headers are waited for from its first byte, which keep-alive has a limit for."""
        self._unwait()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for."""
        self._unwait()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self.waiting = self.loop.call_later(HEADERS, self.transport.close)

    def _unwait(self) -> None:
        if self.waiting is not None:
            self.waiting.cancel()
            self.waiting = None


@dataclass(frozen=True)
class Listening:
    """Where a service listens, with how many processes, and who may ask.

    `token_variable` names the environment variable with the token; without one only this machine is listened to.

    Raises:
        InputError: numbers that cannot be, or no token where one is needed.
    """

    host: str = "127.0.0.1"
    port: int = 8750
    workers: int = 1
    token_variable: str = ""

    def __post_init__(self) -> None:
        check_variable(self.token_variable, "--token-variable", "token")
        if not 0 <= self.port <= 65535:
            raise InputError(f"expected a port from 0 (any that is free) to 65535, got {self.port}; choose another")
        if not 1 <= self.workers <= 256:
            raise InputError(f"expected 1 to 256 workers, got {self.workers}; 1 or 2 a GPU are usual")
        if self.host not in LOCAL and not self.token_variable:
            raise InputError(
                f"expected a token for a service that others can reach ({self.host}), got none; export one, as in "
                "REWARD_TOKEN=$(openssl rand -hex 32), and add --token-variable REWARD_TOKEN"
            )
        if self.token_variable and len(self.token) < SHORTEST:
            raise InputError(
                f"expected a token of at least {SHORTEST} characters in {self.token_variable}, got a shorter one; make "
                "one with `openssl rand -hex 32`"
            )

    @property
    def token(self) -> str:
        """From the environment; empty where none is needed."""
        return secret(self.token_variable, "token")

    @contextmanager
    def socket(self) -> Iterator[socket.socket]:
        """Bound, so that it is known beforehand whether it can be.

        Raises:
            InputError: the port is in use, or the host is no address of this machine.
        """
        try:
            where = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[0]
            bound = socket.socket(where[0], where[1])
        except OSError as error:
            raise InputError(f"expected a host to listen on, got {self.host} ({error.strerror}); correct it") from None
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(where[4])
            bound.listen(2048)
            bound.set_inheritable(True)
        except (OSError, OverflowError) as error:
            bound.close()
            raise InputError(
                f"expected a free port to listen on, got {self.host}:{self.port} ({error}); choose another --port"
            ) from None
        try:
            yield bound
        finally:
            bound.close()

    def serve(self, factory: Callable[[], App], say: Callable[[str], None]) -> int:
        """Until SIGTERM or Ctrl-C; 1 if the application could not start. `factory` is pickled for several processes."""
        with self.socket() as bound:
            host = f"[{self.host}]" if ":" in self.host else self.host
            say(f"http://{host}:{bound.getsockname()[1]}")
            config = configured(factory, self.workers)
            try:
                if self.workers == 1:
                    server = uvicorn.Server(config)
                    server.run(sockets=[bound])
                    return 0 if server.started else 1
                with _shared():
                    several = Multiprocess(config, sockets=[bound])
                    several.run()
                    return int(any(process.exitcode not in (0, None, -15) for process in several.processes))
            except KeyboardInterrupt:  # how uvicorn passes on the signal that ended it
                return 0


def configured(factory: Callable[[], App], workers: int = 1) -> uvicorn.Config:
    """How uvicorn is to run an application."""
    return uvicorn.Config(
        factory,  # pyright: ignore[reportArgumentType] - an application of ours
        factory=True,
        http=Patient,
        ws="none",
        lifespan="on",
        workers=workers,
        log_level="error",  # strangers can cause as many warnings as they like
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=GRACE,
        timeout_worker_healthcheck=60,
        h11_max_incomplete_event_size=16 << 10,
    )


@contextmanager
def _shared() -> Iterator[None]:
    """A folder in which worker processes keep their counts."""
    before, folder = os.environ.get(SHARED), tempfile.mkdtemp(prefix="dragontune-metrics-")
    os.environ[SHARED] = folder
    try:
        yield
    finally:
        os.environ.pop(SHARED)
        if before is not None:
            os.environ[SHARED] = before
        shutil.rmtree(folder, ignore_errors=True)
