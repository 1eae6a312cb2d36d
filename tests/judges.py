"""A chat server on this machine that misbehaves as a test asks it to."""

import base64
import io
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

Act = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


@dataclass
class Server:
    """Acts in `script` are used up one a request; then `always` answers. `seen` are the requests' bodies."""

    script: list[Act] = field(default_factory=list)
    always: Act = field(default_factory=lambda: says("7"))
    seen: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    endpoint: str = ""


def picture(body: dict[str, Any]) -> np.ndarray:
    """The picture in a request."""
    url = body["messages"][1]["content"][1]["image_url"]["url"]
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    return np.array(Image.open(io.BytesIO(base64.b64decode(data))))


def send(handler: BaseHTTPRequestHandler, content: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    usual = {"Content_Type": "application/json", "Content_Length": str(len(content))}
    for name, value in (usual | headers).items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(content)


def reply(text: object, **more: object) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}, **more}]}).encode()


def says(text: object, **more: object) -> Act:
    return lambda handler, body: send(handler, reply(text, **more))


def gives(content: bytes, status: int = 200, **headers: str) -> Act:
    return lambda handler, body: send(handler, content, status, **headers)


def raw(content: bytes) -> Act:
    """Bytes on the wire, then the end of the connection."""

    def act(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        handler.wfile.write(content)
        handler.close_connection = True

    return act


def resets(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    handler.connection.close()


@contextmanager
def serving(tls: Any = None) -> Iterator[Server]:
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            body = json.loads(self.rfile.read(length))
            with server.lock:
                server.seen.append(body)
                server.headers.append(dict(self.headers))
                server.paths.append(self.path)
                act = server.script.pop(0) if server.script else server.always
            with suppress(OSError, ValueError):
                act(self, body)

        def log_message(self, format: str, *args: object) -> None: ...

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, request: object, client_address: object) -> None: ...

    http = Quiet(("127.0.0.1", 0), Handler)
    if tls is not None:
        http.socket = tls.wrap_socket(http.socket, server_side=True)
    server.endpoint = f"{'http' if tls is None else 'https'}://127.0.0.1:{http.server_port}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        http.shutdown()
        http.server_close()
        thread.join()


def hangs(server: Server) -> Act:
    def act(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        server.closing.wait(20)

    return act


def drips(server: Server, content: bytes, every: float) -> Act:
    """A byte at a time."""

    def act(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        for i in range(len(content)):
            handler.wfile.write(content[i : i + 1])
            handler.wfile.flush()
            if server.closing.wait(every):
                return

    return act
