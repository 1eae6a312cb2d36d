"""Does a reward service lose, double or change anything? Faults, load, and callers without the token.

    python benchmarks/service.py --faults 1000 --requests 10000 --concurrency 64 --out benchmarks/results/service.json

(a) Faults: a run of DRAGON-like rounds (encode two sets, divide them) against two real services of two processes each,
with a proxy in front of each that spoils replies in every way it knows, while one service is killed (SIGKILL) and
started again now and then. Every verdict is compared with the same reward computed here. A NaN or a lost service stops
the run as `dragontune tune` would stop; it then goes on from that round, as `--resume` would.
(b) Load: that many requests with a concurrency, each of one item of its own; every answer must be that item's.
(c) Without the token: every path, method and wrong token must give an empty 401 with the same headers.

Prints a table; exit code 1 where a bar is missed.
"""

import argparse
import http.client
import json
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from dragontune.commands import parsing
from dragontune.data import Samples
from dragontune.demonstrations import divide
from dragontune.errors import LostService, NonFiniteError
from dragontune.rewards import link
from dragontune.rewards.link import KIND, digest_field
from dragontune.rewards.remote import RemoteReward, RemoteSetReward
from dragontune.seeding import Key
from dragontune.wire import VERSION, Message, pack
from fault_proxy import FAULTS, at_random, between
from services import REWARDS, TOKEN, Service, clips, serving

ENV = {"BENCH_TOKEN": TOKEN}
QUICK = {"timeout": 2.0, "connect": 5.0, "backoff": 0.02, "longest_wait": 0.5, "rest": 0.3, "deadline": 120.0}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def patiently(address: str, token: str = TOKEN) -> dict:
    """What a service says of its reward, once it is there."""
    deadline = time.monotonic() + 180
    while True:
        try:
            connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=10)
            connection.request("GET", "/v1/info", headers={"Authorization": f"Bearer {token}"})
            return json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        finally:
            connection.close()


class Killer:
    """Kills a service now and then, and starts it again on the same port."""

    def __init__(self, folder: Path, name: str, port: int, more: list[str]) -> None:
        self.folder, self.name, self.more = folder, name, ["--port", str(port), *more]
        self.kills, self.stack = 0, ExitStack()
        self.service = self.start()

    def start(self) -> Service:
        return self.stack.enter_context(serving(self.folder, self.name, *self.more, env=ENV))

    def kill(self) -> None:
        for child in _children(self.service.process.pid):
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self.service.end(signal.SIGKILL)
        self.kills += 1
        self.service = self.start()


def _children(process: int) -> list[int]:
    found = Path(f"/proc/{process}/task/{process}/children")
    return [int(child) for child in found.read_text().split()]


def faults(args: argparse.Namespace, folder: Path, name: str) -> dict:
    """Rounds until so many faults were injected."""
    local = parsing.reward(f"{folder}/own_rewards.py:{name}")
    remote_kind = RemoteReward if name == "loudness" else RemoteSetReward
    journals = [folder / f"{name}-{i}.jsonl" for i in range(2)]
    ports = [free_port(), free_port()]
    count, sent = Counter(), Counter()
    original = link.Line.ask

    def counted(self, method, path, body, read, stop, key, until):  # every message that a client uses, by its key
        value = original(self, method, path, body, read, stop, key, until)
        if method == "POST":
            with lock:
                sent[key] += 1
        return value

    lock = threading.Lock()
    os.environ |= ENV
    with ExitStack() as stack:
        killers = []
        for port, journal in zip(ports, journals, strict=True):
            more = ["--workers", "2", "--token-variable", "BENCH_TOKEN", "--journal", str(journal)]
            killers.append(Killer(folder, f"own_rewards.py:{name}", port, more))
            stack.callback(killers[-1].stack.close)
        for port in ports:
            patiently(f"http://127.0.0.1:{port}")
        proxies = [
            stack.enter_context(between(f"http://127.0.0.1:{port}", at_random(args.share, seed), hang=4.0))
            for seed, port in enumerate(ports)
        ]
        addresses = [proxy.address for proxy in proxies]
        remote = remote_kind(addresses, token_variable="BENCH_TOKEN", retries=200, chunk=3, **QUICK)
        stack.callback(setattr, link.Line, "ask", original)
        link.Line.ask = counted
        kills, number, started = 0, 0, time.monotonic()
        thread: threading.Thread | None = None
        while sum(sum(proxy.done.values()) for proxy in proxies) < args.faults:
            first, second = clips(args.pairs, 2 * number), clips(args.pairs, 2 * number + 1)
            both = Samples.join([first, second])
            here = divide(local, local.encode(both), both.prompts, Key(number))
            injected = sum(sum(proxy.done.values()) for proxy in proxies)
            if injected >= (kills + 1) * args.kill_every and (thread is None or not thread.is_alive()):
                thread = threading.Thread(target=killers[kills % 2].kill)
                thread.start()
                kills += 1
            while True:  # a run that stopped is resumed
                try:
                    features = remote.encode(both)
                    there = divide(remote, features, both.prompts, Key(number))
                    break
                except (NonFiniteError, LostService) as stop:
                    count[f"stopped: {type(stop).__name__}"] += 1
            count["rounds"] += 1
            count["items"] += len(both)
            count["wrong"] += not torch.equal(here.positive, there.positive)
            if name == "loudness":
                count["wrong"] += not torch.allclose(features, local.encode(both), atol=1e-6)
            number += 1
        if thread is not None:
            thread.join()
        done = sum((proxy.done for proxy in proxies), Counter())
        seconds = time.monotonic() - started
    computed = Counter[str]()
    for journal in journals:
        for line in journal.read_text().splitlines():
            computed[json.loads(line)["key"]] += 1
    return {
        "reward": name,
        "faults": sum(done.values()),
        "by kind": dict(sorted(done.items())),
        "kinds": len(done),
        "services killed": sum(killer.kills for killer in killers),
        **count,
        "replies used": sum(sent.values()),
        "used twice": sum(times > 1 for times in sent.values()),
        "used but never computed": len(set(sent) - set(computed)),
        "computed again after a loss": sum(times - 1 for times in computed.values()),
        "seconds": round(seconds, 1),
    }


def load(args: argparse.Namespace, folder: Path) -> dict:
    """Many requests at once; half of the callers keep their connection."""
    local = parsing.reward(f"{folder}/own_rewards.py:loudness")
    os.environ |= ENV
    more = ["--workers", "2", "--token-variable", "BENCH_TOKEN", "--journal", str(folder / "load.jsonl")]
    with serving(folder, "own_rewards.py:loudness", *more, env=ENV) as service:
        patiently(service.address)
        digest = patiently(service.address)["digest"]
        given = clips(args.requests, 7, 64)
        expected = local.encode(given)
        remote = RemoteReward(
            [service.address], token_variable="BENCH_TOKEN", chunk=1, concurrency=args.concurrency, retries=100
        )
        start = time.monotonic()
        half = args.requests // 2
        scores = remote.encode(given[torch.arange(half)])
        client = time.monotonic() - start
        found = torch.full((args.requests - half,), torch.nan, dtype=torch.float64)
        answered, busy, lock = Counter[int](), Counter[str](), threading.Lock()

        def caller(number: int) -> None:
            connection = http.client.HTTPConnection(service.address.removeprefix("http://"), timeout=60)
            for row in range(half + number, args.requests, args.concurrency):
                one, tensors = given[torch.tensor([row])], {}
                header = {
                    "version": VERSION,
                    "reward": digest,
                    "key": secrets.token_hex(16),
                    "ids": [str(row)],
                    "prompts": list(one.prompts),
                    "latents": pack(one.latents, "latents", tensors),
                    "media": pack(one.media, "media", tensors),
                }
                body = Message(header, tensors).dump()
                headers = {
                    "Content-Type": KIND,
                    "Content-Digest": digest_field(body),
                    "Authorization": f"Bearer {TOKEN}",
                    "Idempotency-Key": header["key"],
                }
                while True:
                    try:
                        connection.request("POST", "/v1/encode", body, headers)
                        answer = connection.getresponse()
                        content = answer.read()
                    except (OSError, http.client.HTTPException):
                        busy["connection"] += 1
                        connection.close()
                        continue
                    if answer.status != 429:
                        break
                    with lock:
                        busy["429"] += 1
                    time.sleep(0.05)
                reply = Message.load(content)
                with lock:
                    answered[int(reply.header["ids"][0])] += 1
                    found[row - half] = reply.tensors["scores"].double().item()
            connection.close()

        start = time.monotonic()
        with ThreadPoolExecutor(args.concurrency) as pool:
            list(pool.map(caller, range(args.concurrency)))
        kept = time.monotonic() - start
    lines = [json.loads(line) for line in (folder / "load.jsonl").read_text().splitlines()]
    everything = torch.cat([scores.double(), found])
    return {
        "requests": args.requests,
        "concurrency": args.concurrency,
        "lost": int((~everything.isfinite()).sum()) + (args.requests - half - len(answered)),
        "doubled": sum(times > 1 for times in answered.values()),
        "wrong": int((everything - expected).abs().gt(1e-6).sum()),
        "computed": len(lines),
        "workers": len({line["process"] for line in lines}),
        "came back later (429)": busy["429"],
        "a second, a connection each": round(half / client, 1),
        "a second, connections kept": round((args.requests - half) / kept, 1),
    }


def strangers(folder: Path) -> dict:
    """What callers without the token learn."""
    more = ["--workers", "1", "--token-variable", "BENCH_TOKEN"]
    with serving(folder, "own_rewards.py:loudness", *more, env=ENV) as service:
        patiently(service.address)
        paths = (
            "/",
            "/v1/info",
            "/v1/encode",
            "/v1/score",
            "/v1/swaps",
            "/metrics",
            "/docs",
            "/openapi.json",
            "/..",
            "/x",
        )
        tokens = (
            "",
            "Bearer ",
            f"Bearer {TOKEN[:-1]}",
            f"Bearer {TOKEN}x",
            f"bearer  {TOKEN}x",
            f"Basic {TOKEN}",
            TOKEN,
        )
        seen: set[tuple] = set()
        asked = 0
        for path in paths:
            for token in tokens:
                for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "TRACE"):
                    connection = http.client.HTTPConnection(service.address.removeprefix("http://"), timeout=20)
                    headers = {"Authorization": token} if token else {}
                    connection.request(method, path, b"x" * 10 if method in ("POST", "PUT") else None, headers)
                    answer = connection.getresponse()
                    seen.add((answer.status, answer.read(), tuple(answer.getheaders())))
                    connection.close()
                    asked += 1
        service.end()
        output = "".join(service.lines)
    only = len(seen) == 1 and next(iter(seen))[:2] == (401, b"")
    return {
        "requests": asked,
        "different answers": len(seen),
        "all an empty 401": only,
        "token in the output": TOKEN in output,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=10, help="of a round")
    parser.add_argument("--share", type=float, default=0.3, help="of requests that meet a fault")
    parser.add_argument("--kill-every", type=int, default=100, help="so many faults a service is killed, too")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "own_rewards.py").write_text(REWARDS)
        parsing.import_parts()
        halves = argparse.Namespace(**vars(args) | {"faults": (args.faults + 1) // 2})
        results = {
            "faults, a reward of items": faults(halves, folder, "loudness"),
            "faults, a reward of a set": faults(halves, folder, "Spread"),
            "load": load(args, folder),
            "without the token": strangers(folder),
        }
    for title, result in results.items():
        print(f"\n{title}")
        for key, value in result.items():
            print(f"  {key:32} {value}")
    bars = {
        "faults injected": sum(results[f"faults, a reward of {of}"]["faults"] for of in ("items", "a set"))
        >= args.faults,
        "every kind of fault": args.faults < 10 * len(FAULTS)
        or all(results[f"faults, a reward of {of}"]["kinds"] == len(FAULTS) for of in ("items", "a set")),
        "no wrong reward": not any(results[f"faults, a reward of {of}"]["wrong"] for of in ("items", "a set")),
        "no item lost or doubled": not any(
            results[f"faults, a reward of {of}"][what]
            for of in ("items", "a set")
            for what in ("used twice", "used but never computed")
        ),
        "load: nothing lost, doubled or wrong": not any(results["load"][what] for what in ("lost", "doubled", "wrong")),
        "an empty 401 and nothing else": results["without the token"]["all an empty 401"]
        and not results["without the token"]["token in the output"],
    }
    print()
    for bar, kept in bars.items():
        print(f"{'kept  ' if kept else 'MISSED'}  {bar}")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(
            json.dumps({"arguments": vars(args) | {"out": str(args.out)}, **results, "bars": bars}, indent=1)
        )
    return 0 if all(bars.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
