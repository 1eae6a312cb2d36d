"""The HTTP side of a reward service (Starlette): limits, queue, replies, errors. What is computed: rewards/served.py.

POST /v1/encode, /v1/score and /v1/swaps take and give safetensors; GET /v1/info says what reward this is; GET /metrics
is Prometheus' text; GET /healthz is `ok` once the reward is loaded. A request is admitted before its body is read, so
memory is bounded by the queue; one is computed at a time in each process. A reply is kept for a while under its
idempotency key, and a request that comes again, because its reply was lost, is answered with it, not computed again.
"""

import asyncio
import json
import logging
import os
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from dragontune.errors import InputError, NonFiniteError
from dragontune.rewards.link import KIND, agrees, digest_field
from dragontune.rewards.served import AnotherReward, Work
from dragontune.service.door import Door
from dragontune.service.lone import Lone
from dragontune.service.metrics import Metrics
from dragontune.wire import WireError

LOG = logging.getLogger("dragontune.service")
PATHS = ("/v1/encode", "/v1/score", "/v1/swaps")
EACH = 1 << 10
"""Bytes that even the smallest reply counts, for its key and its place."""
PATIENCE = 5.0
"""Seconds for a reward that hangs, when everything else has ended."""


@dataclass(frozen=True)
class Limits:
    """What one process takes. `bytes` of a body, `queue` requests at a time, `seconds` for a body to arrive."""

    bytes: int = 256 << 20
    queue: int = 16
    seconds: float = 60.0
    kept: int = 64 << 20
    """Bytes of replies that are kept for requests that come again."""


class Refusal(Exception):  # noqa: N818 - not an error of ours
    """A request ends with this status; `said` is for the user at the other end, where it may know."""

    def __init__(self, status: int, kind: str = "", said: str = "", **headers: str) -> None:
        super().__init__(status)
        self.status, self.kind, self.said, self.headers = status, kind, said, headers

    def response(self) -> Response:
        """As an answer; the connection ends, for a body may be under way still."""
        headers = {name.replace("_", "-"): value for name, value in self.headers.items()} | {"connection": "close"}
        body = json.dumps({"kind": self.kind, "error": self.said}) if self.said else ""
        return Response(body, self.status, headers, "application/json" if body else None)


@dataclass(eq=False)
class Desk:
    """Where requests to one process wait for each other."""

    work: Work
    limits: Limits
    metrics: Metrics
    journal: str = ""
    """A file for a line of JSON about every request that was computed."""
    admitted: int = 0
    running: dict[str, asyncio.Future[bytes]] = field(default_factory=dict)
    replies: OrderedDict[str, bytes] = field(default_factory=OrderedDict)
    held: int = 0
    """Bytes of `replies`."""
    thread: Lone = field(default_factory=lambda: Lone("reward", PATIENCE))

    async def answer(self, request: Request) -> Response:
        """A message for a message."""
        start, path, status = time.monotonic(), request.url.path, 500
        try:
            reply = await self._reply(request)
            status = 200
            return Response(reply, media_type=KIND, headers={"content-digest": digest_field(reply)})
        except ClientDisconnect:
            status = 499  # nobody reads it
            return Response(status_code=408)
        except Refusal as refusal:
            status = refusal.status
            return refusal.response()
        except Exception:
            self.metrics.errors.inc()
            LOG.exception("a request to %s failed", path)
            return Refusal(500).response()
        finally:
            self.metrics.requests.labels(path, status).inc()
            self.metrics.seconds.labels(path).observe(time.monotonic() - start)

    async def _reply(self, request: Request) -> bytes:
        if request.headers.get("content-type", "").partition(";")[0].strip() != KIND:
            raise Refusal(415)
        if self.admitted >= self.limits.queue:
            raise Refusal(429, retry_after="1")
        self.admitted += 1
        try:
            with self.metrics.waiting():
                body = await self._body(request)
                if not agrees(request.headers.get("content-digest"), body):
                    raise Refusal(400, "body", "the body does not agree with its digest")
                return await self._once(request, body)
        finally:
            self.admitted -= 1

    async def _body(self, request: Request) -> bytes:
        length = request.headers.get("content-length", "")
        if length and (not length.isdecimal() or int(length[:20]) > self.limits.bytes):
            raise Refusal(413)
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.limits.seconds):
                async for part in request.stream():
                    size += len(part)
                    if size > self.limits.bytes:
                        raise Refusal(413)
                    parts.append(part)
        except TimeoutError:
            raise Refusal(408) from None
        return b"".join(parts)

    async def _once(self, request: Request, body: bytes) -> bytes:
        """What is computed for a body, once for all requests with the same key and the same body."""
        key = f"{request.url.path} {request.headers.get('idempotency-key', '')[:80]} {sha256(body).hexdigest()}"
        if (reply := self.replies.get(key)) is not None:
            self.metrics.replays.inc()
            return reply
        if (running := self.running.get(key)) is not None:
            self.metrics.replays.inc()
            return await asyncio.shield(running)
        running = asyncio.ensure_future(self._computed(request.url.path, body, key))
        self.running[key] = running
        running.add_done_callback(lambda done: (self.running.pop(key, None), done.cancelled() or done.exception()))
        return await asyncio.shield(running)

    async def _computed(self, path: str, body: bytes, key: str) -> bytes:
        loop, start = asyncio.get_running_loop(), time.monotonic()
        try:
            reply, items = await loop.run_in_executor(self.thread, self.work.do, path, body)
        except WireError as error:
            raise Refusal(400, "body", str(error)) from None
        except AnotherReward:
            said = (
                f"expected requests for the reward that is served here ({self.work.digest[:12]}), got one for another; "
                "serve the reward that the run began with"
            )
            raise Refusal(412, "reward", said) from None
        except NonFiniteError as error:
            raise Refusal(422, "not finite", str(error)) from None
        except InputError as error:
            raise Refusal(422, "input", str(error)) from None
        self.metrics.items.inc(items)
        self._note(path, key, items, time.monotonic() - start)
        self.replies[key] = reply
        self.held += len(reply) + EACH
        while self.held > self.limits.kept:
            self.held -= len(self.replies.popitem(last=False)[1]) + EACH
        return reply

    def _note(self, path: str, key: str, items: int, seconds: float) -> None:
        if not self.journal:
            return
        line = {
            "time": time.time(),
            "path": path,
            "key": key.split(" ")[1],
            "items": items,
            "seconds": round(seconds, 4),
        }
        try:
            file = os.open(self.journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                os.write(file, json.dumps(line | {"process": os.getpid()}).encode() + b"\n")
            finally:
                os.close(file)
        except OSError as error:  # a full disk costs lines, not replies
            LOG.warning("a line of the journal was lost (%s)", error.strerror)


def create(
    work: Work, token: str, limits: Limits, journal: str = "", ready: Callable[[str], None] | None = None
) -> Door:
    """The whole application; `ready` is called with the reward's digest once everything is loaded."""
    desk = Desk(work, limits, Metrics(), journal)

    @asynccontextmanager
    async def life(_: Starlette) -> AsyncIterator[None]:
        digest = await asyncio.to_thread(lambda: work.digest)
        if ready:
            ready(digest)
        yield
        desk.thread.shutdown(cancel_futures=True)

    async def info(_: Request) -> Response:
        content = json.dumps(work.info(limits.bytes)).encode()
        headers = {"content-digest": digest_field(content)}
        return Response(content, media_type="application/json", headers=headers)

    async def metrics(_: Request) -> Response:
        return Response(await asyncio.to_thread(desk.metrics.text), media_type="text/plain; version=0.0.4")

    async def health(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    routes = [
        *(Route(path, desk.answer, methods=["POST"]) for path in PATHS),
        Route("/v1/info", info),
        Route("/metrics", metrics),
        Route("/healthz", health),
    ]
    return Door(Starlette(routes=routes, lifespan=life), token)
