"""The command line in forked children: real processes that can be killed, without the seconds that importing takes."""

import json
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

for library in ("OMP", "MKL"):  # threads do not live on in a forked child, which would wait for them for ever
    os.environ[f"{library}_NUM_THREADS"] = "1"

import torch  # noqa: E402

import dragontune.commands.tune  # noqa: E402
from dragontune import cli  # noqa: E402
from dragontune.commands import parsing  # noqa: E402

ANY = ("seconds", "peak_memory")
"""Fields of the log that differ from one time to the next."""


@dataclass
class Child:
    """A process that runs `dragontune ARGUMENTS`; what it says goes to a file."""

    process: int
    said: Path
    status: int | None = None

    def poll(self) -> int | None:
        """The exit code; minus the signal that ended it; None while it runs."""
        if self.status is None:
            process, status = os.waitpid(self.process, os.WNOHANG)
            if process:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def wait(self, limit: float = 600.0) -> int:
        """The same, once it has ended; it is killed after `limit` seconds."""
        end = time.monotonic() + limit
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                self.send(signal.SIGKILL)
            time.sleep(0.005)
        return code

    def send(self, number: int) -> None:
        """A signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.process, number)


def warm() -> None:
    """Import all that a run needs, once, before the first child."""
    torch.set_num_threads(1)
    parsing.import_parts()
    assert dragontune.commands.tune


def start(arguments: list[str], said: Path) -> Child:
    """Fork; the child never returns into the caller."""
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return Child(process, said)
    code = 1
    try:
        with said.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.argv = ["dragontune", *arguments]
        code = cli.main()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def newest(run: Path) -> int:
    """The last round that has a checkpoint; -1 where none has."""
    return max((int(path.stem.removeprefix("round-")) for path in run.glob("checkpoints/round-*.json")), default=-1)


def results(run: Path) -> dict[str, str]:
    """SHA-256 of all that a run ends with, without what a clock or an allocator says."""
    found = {
        path.relative_to(run).as_posix(): sha256(path.read_bytes()).hexdigest()
        for part in ("adapter", "samples")
        for path in sorted((run / part).rglob("*"))
        if path.is_file()
    }
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    found["log.jsonl"] = sha256(json.dumps(_timeless(lines)).encode()).hexdigest()
    report = run / "report" / "metrics.json"
    if report.exists():
        found["report rewards"] = sha256(json.dumps(json.loads(report.read_text())["rewards"]).encode()).hexdigest()
    left = [path.name for path in run.rglob(".*")]
    return found | ({"left over": ", ".join(left)} if left else {})


def _timeless(value: object) -> object:
    match value:
        case dict():
            return {name: _timeless(member) for name, member in value.items() if name not in ANY}
        case list():
            return [_timeless(member) for member in value]
        case _:
            return value
