"""A proxy between a client and a reward service that does to a reply whatever can be done to one."""

import json
import random
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import torch

from dragontune.rewards.link import KIND, digest_field
from dragontune.rewards.remote_swaps import Items
from dragontune.wire import Message

FAULTS = (
    "killed before the reply",
    "killed in the request",
    "hangs",
    "status 500",
    "status 503",
    "status 429",
    "wrong shape",
    "wrong type",
    "other ids",
    "another order",
    "an item too few",
    "another request's key",
    "NaN",
    "slow drip",
    "cut in the body",
    "cut in the headers",
    "bits flipped",
    "wrong JSON",
    "not safetensors",
    "huge header",
    "an earlier reply again",
    "asked twice",
    "damaged request",
    "connection refused",
)


@dataclass
class Proxy:
    """`choose` names the fault of the next request, or none. `done` counts them."""

    target: tuple[str, int]
    choose: Callable[[], str | None]
    hang: float = 2.0
    """Seconds: longer than the client waits."""
    done: Counter[str] = field(default_factory=Counter)
    earlier: bytes = b""
    closing: threading.Event = field(default_factory=threading.Event)
    address: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def serve(self, client: socket.socket) -> None:
        with client, suppress(OSError, ValueError):
            client.settimeout(20)
            request = read(client)
            posted = request.startswith(b"POST")
            with self.lock:
                fault = self.choose() if posted else None
                if fault:
                    self.done[fault] += 1
            self.act(client, request, fault)

    def act(self, client: socket.socket, request: bytes, fault: str | None) -> None:
        if fault in ("killed in the request", "connection refused"):
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            return
        if fault in ("status 500", "status 503", "status 429"):
            client.sendall(f"HTTP/1.1 {fault[7:]} x\r\nContent-Length: 4\r\nRetry-After: 0\r\n\r\nbusy".encode())
            return
        if fault == "damaged request":
            head, _, body = request.partition(b"\r\n\r\n")
            where = len(body) // 2
            request = head + b"\r\n\r\n" + body[:where] + bytes([body[where] ^ 1]) + body[where + 1 :]
        if fault == "hangs":
            self.closing.wait(self.hang)
            return
        reply = self.asked(request)
        if fault == "asked twice":
            reply = self.asked(request)
        with self.lock:
            earlier, self.earlier = self.earlier or b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", reply
        match fault:
            case "killed before the reply":
                return
            case "an earlier reply again":
                client.sendall(earlier)
            case "cut in the body":
                client.sendall(reply[: -max(1, (len(reply) - reply.index(b"\r\n\r\n")) // 2)])
            case "cut in the headers":
                client.sendall(reply[:20])
            case "slow drip":
                for byte in reply:
                    client.sendall(bytes([byte]))
                    if self.closing.wait(self.hang / 40):
                        return
            case "bits flipped":
                client.sendall(reply[:-3] + bytes([reply[-3] ^ 0x10]) + reply[-2:])
            case "wrong JSON":
                client.sendall(whole(json.dumps({"scores": [1.0]}).encode()))
            case "not safetensors":
                client.sendall(whole(b"\x80\x04K\x01." * 20))
            case "huge header":
                client.sendall(whole((1 << 40).to_bytes(8, "little") + b"{}"))
            case None | "asked twice" | "damaged request":
                client.sendall(reply)
            case _:
                client.sendall(whole(altered(reply, fault)))

    def asked(self, request: bytes) -> bytes:
        """The service's own reply."""
        with socket.create_connection(self.target, 20) as service:
            service.sendall(request)
            return read(service)


def altered(reply: bytes, fault: str) -> bytes:
    """A well-formed reply that says something else."""
    head, _, body = reply.partition(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n")[0] + b" ":
        return body
    message = Message.load(body)
    header, tensors = dict(message.header), dict(message.tensors)
    name = next(name for name in ("scores", "items", "score", "values") if name in tensors)
    match fault:
        case "wrong shape":
            tensors[name] = torch.cat([tensors[name].reshape(-1)] * 2)
        case "wrong type":
            tensors[name] = tensors[name].to(torch.int32)
        case "other ids":
            header["ids"] = [f"{i}" for i in range(len(header.get("ids", [])))] or ["1"]
            header["key"] = header["key"] if "ids" in message.header else "0"
        case "another order":
            order = torch.arange(tensors[name].numel()).flip(0)
            tensors[name] = tensors[name].reshape(-1)[order].reshape(tensors[name].shape)
            header["ids"] = header["ids"][::-1] if len(header.get("ids", [])) > 1 else ["1"]
            header["key"] = header["key"] if "ids" in message.header else "0"
        case "an item too few":
            tensors[name] = tensors[name].reshape(-1)[:-1]
        case "another request's key":
            header["key"] = "0" * 32
        case "NaN":
            if name == "items":
                return Message(header, Items(spoilt(Items.read(message, len(header["ids"])))).tensors()).dump()
            tensors[name] = torch.full_like(tensors[name], torch.nan)
        case _:
            raise AssertionError(fault)
    return Message(header, tensors).dump()


def spoilt(items: Items) -> tuple[torch.Tensor, ...]:
    """The first item's features as NaN."""
    first = Message.load(items.packed[0].numpy().tobytes())
    tensors = {
        name: torch.full_like(tensor, torch.nan) if tensor.is_floating_point() else tensor
        for name, tensor in first.tensors.items()
    }
    content = bytearray(Message(first.header, tensors).dump())
    return (torch.frombuffer(content, dtype=torch.uint8), *items.packed[1:])


def whole(body: bytes) -> bytes:
    """An HTTP reply whose length and digest are right."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {KIND}\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Content-Digest: {digest_field(body)}\r\n\r\n".encode() + body


def read(connection: socket.socket) -> bytes:
    """A request or reply, to the end of its body."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (part := connection.recv(65536)):
            raise ValueError("torn")
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
    )
    parts, size = [body], len(body)
    while size < length:
        if not (part := connection.recv(1 << 20)):
            raise ValueError("torn")
        parts.append(part)
        size += len(part)
    return head + b"\r\n\r\n" + b"".join(parts)


def at_random(share: float, seed: int, faults: tuple[str, ...] = FAULTS) -> Callable[[], str | None]:
    """A fault in that share of requests; each kind comes before any comes again."""
    chance, left = random.Random(seed), list[str]()

    def choose() -> str | None:
        if chance.random() >= share:
            return None
        if not left:
            left.extend(chance.sample(faults, len(faults)))
        return left.pop()

    return choose


@contextmanager
def between(address: str, choose: Callable[[], str | None], hang: float = 2.0) -> Iterator[Proxy]:
    """A proxy in front of a service; its own address is another."""
    host, _, port = address.removeprefix("http://").rpartition(":")
    proxy = Proxy((host, int(port)), choose, hang)
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    listener.settimeout(0.2)
    proxy.address = f"http://127.0.0.1:{listener.getsockname()[1]}"

    def accept() -> None:
        while not proxy.closing.is_set():
            with suppress(TimeoutError):
                client, _ = listener.accept()
                threading.Thread(target=proxy.serve, args=(client,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.closing.set()
        thread.join()
        listener.close()
