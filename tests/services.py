"""Real reward services, in processes of their own, and rewards to serve."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import uvicorn

from dragontune.data import Samples
from dragontune.media.audio import Audio
from dragontune.rewards.base import Reward
from dragontune.rewards.link import KIND, digest_field
from dragontune.rewards.served import Work
from dragontune.service.app import Limits, create
from dragontune.service.server import configured
from dragontune.wire import VERSION, Message, pack

TOKEN = "f3a9c0ffee0123456789abcdef-do-not-show"

REWARDS = '''
"""Rewards that need no model: of items, of a set, one that fails as its prompt says, one that is slow."""

import time
from dataclasses import dataclass

import torch

from dragontune.data import Rows, Samples
from dragontune.rewards.base import DistributionReward, InstanceReward


def loudness(media, prompts):
    for prompt in prompts:
        if prompt == "defect":
            raise KeyError("a defect")
    return [float(x) if p != "nan" else float("nan") for x, p in zip(media.waveform.square().mean((1, 2)), prompts)]


def slow(media, prompts):
    time.sleep(0.7)
    return [float(len(prompt)) for prompt in prompts]


@dataclass(frozen=True, eq=False)
class Frames(Rows):
    """Features of a kind of their own, whose rows have different lengths."""

    values: torch.Tensor
    count: torch.Tensor
    name: str

    @classmethod
    def join(cls, parts):
        longest = max(part.values.shape[1] for part in parts)
        padded = [torch.nn.functional.pad(part.values, (0, longest - part.values.shape[1])) for part in parts]
        return cls(torch.cat(padded), torch.cat([part.count for part in parts]), parts[0].name)


@dataclass(frozen=True, eq=False)
class Spread(DistributionReward[Frames]):
    """How different the loudness of the items is from a target; features that only this file knows."""

    target: float = 0.1

    def encode(self, samples: Samples) -> Frames:
        wave = samples.media.waveform.mean(1)
        longest = 3 + int(1000 * wave[0, 0].abs()) % 3
        values = torch.nn.functional.pad(wave[:, :3].double().abs(), (0, longest - 3))
        return Frames(values, torch.full((len(wave),), 3), "spread")

    def score(self, features: Frames):
        kept = torch.cat([row[:count] for row, count in zip(features.values, features.count.tolist())])
        return -(kept.std() - self.target).abs()


@dataclass(frozen=True, eq=False)
class LatentNorm(InstanceReward[torch.Tensor]):
    """Looks at no media."""

    @property
    def needs_media(self) -> bool:
        return False

    def encode(self, samples: Samples):
        return samples.latents.flatten(1).norm(dim=1)

    def score(self, features):
        return -features
'''


def clips(count: int, seed: int = 0, length: int = 400) -> Samples:
    random = torch.Generator().manual_seed(seed)
    waves = torch.rand(count, 1, length, generator=random) - 0.5
    return Samples(tuple(f"prompt {i}" for i in range(count)), waves[:, 0, :4].clone(), Audio(waves, 16000))


def request(
    digest: str, count: int = 2, seed: int = 0, prompts: Sequence[str] | None = None, **header: object
) -> bytes:
    samples = clips(count, seed)
    tensors: dict[str, torch.Tensor] = {}
    said = {
        "version": VERSION,
        "reward": digest,
        "key": "0" * 32,
        "ids": [str(i) for i in range(count)],
        "prompts": list(prompts or samples.prompts),
        "latents": pack(samples.latents, "latents", tensors),
        "media": pack(samples.media, "media", tensors),
    }
    return Message(said | header, tensors).dump()


def ask(
    address: str, body: bytes | None = None, path: str = "/v1/encode", method: str | None = None, **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    host = address.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=20)
    usual = {} if body is None else {"Content-Type": KIND, "Content-Digest": digest_field(body)}
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method or ("GET" if body is None else "POST"), path, body, usual | given)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer, content


def audio(samples: Samples) -> Audio:
    assert isinstance(samples.media, Audio)
    return samples.media


@contextmanager
def in_thread(reward: Reward, token: str = "", journal: str = "", **limits: float) -> Iterator[str]:
    """The address of the application in a thread of this process."""
    door = create(Work(reward), token, Limits(**limits), journal)  # pyright: ignore[reportArgumentType]
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    config = configured(lambda: door)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
        assert thread.is_alive()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)


@dataclass
class Service:
    address: str
    process: subprocess.Popen[str]
    lines: list[str]

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


@contextmanager
def serving(folder: Path, name: str, *more: str, env: Mapping[str, str] | None = None) -> Iterator[Service]:
    """`dragontune serve-reward` on a free port, or the one that `more` names; ready once it prints its address."""
    if not (folder / "own_rewards.py").exists():
        (folder / "own_rewards.py").write_text(REWARDS)
    port = [] if "--port" in more else ["--port", "0"]
    command = [sys.executable, "-m", "dragontune", "serve-reward", name, *port, *more]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | dict(env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines: list[str] = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if found := re.search(r"http://\S+:\d+", line):
                threading.Thread(target=lines.extend, args=(process.stdout,), daemon=True).start()
                yield Service(found[0], process, lines)
                break
        else:
            raise AssertionError(f"no service: {''.join(lines)}")
    finally:
        process.kill()
        process.wait()
