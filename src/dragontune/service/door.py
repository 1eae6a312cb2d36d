"""Who may come in: the check of the token and of the host, before anything of a request is looked at.

Without the right token every path but /healthz is answered with an empty 401, whether or not it exists. A service
without a token, which listens on this machine only, answers only to names of this machine, so that a page in a browser
cannot reach it under a name of its own (DNS rebinding).
"""

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = "/healthz"
LOCAL = ("localhost", "127.0.0.1", "::1")
"""Hosts that are this machine and nobody else."""


@dataclass(frozen=True)
class Door:
    """An ASGI application in front of another. `token` is empty where none is needed."""

    inside: App
    token: str = field(repr=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let through, or refuse."""
        if scope["type"] != "http" or scope["path"] == OPEN or self._welcome(scope["headers"]):
            await self.inside(scope, receive, send)
            return
        status, more = (401, [(b"www-authenticate", b"Bearer")]) if self.token else (403, [])
        headers = [*more, (b"content-length", b"0"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    def _welcome(self, headers: list[tuple[bytes, bytes]]) -> bool:
        if self.token:
            given = [value for name, value in headers if name == b"authorization"]
            wanted = b"Bearer " + self.token.encode()
            return hmac.compare_digest(given[0] if len(given) == 1 else b"", wanted)
        hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
        return len(hosts) == 1 and _name(hosts[0]) in LOCAL


def _name(host: str) -> str:
    """Without the port."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
