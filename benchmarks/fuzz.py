"""Hostile inputs through every door: no traceback, no hang, no file written elsewhere, no pickle, no process started.

    python benchmarks/fuzz.py [--count 60000] [--only audio,recipes] [--jobs 2] [--out benchmarks/results/fuzz.json]

Every input ends in a value, an InputError or a NonFiniteError (of whole verbs: exit code 0, 2 or 5 and one line),
within 5 seconds of processor time. Each target (`fuzz_targets.py`) runs in a process of its own with bounded memory, so
that a crash is a failure, too. The same count gives the same inputs (Hypothesis, derandomised). Exit code 1 on any
failure, or below 50,000 inputs of a full run. For the readers under atheris, which follows coverage: `fuzz_readers.py`.
"""

import argparse
import collections
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SECONDS = 5.0
"""Of the processor, for one input."""
WAITING = 60.0
"""Of the clock: what waits for something uses no processor."""
MEMORY = 6 << 30
"""Bytes of address space that a target may take beyond what it has when its parts are imported."""
FEWEST = 50_000
SHOWN = 5
STORAGE = "HYPOTHESIS_STORAGE_DIRECTORY"
"""Where Hypothesis keeps what it learns of the code that it tries."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGING = (
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "shutil.rmtree",
)
FORBIDDEN = (
    "os.system",
    "subprocess.Popen",
    "os.posix_spawn",
    "os.fork",
    "os.exec",
    "pickle.find_class",
    "socket.connect",
)


class Hang(BaseException):
    """An input took too long."""


@dataclass
class Watch:
    """What happened outside of the scratch folder while an input was read: an audit hook, which stays."""

    scratch: tuple[str, ...]
    on: bool = False
    seen: list[str] = field(default_factory=list)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Told of every file that is opened, process that is started, and class that a pickle names."""
        if not self.on:
            return
        if event in FORBIDDEN:
            self.seen.append(f"{event} {arguments!r:.200}")
        elif event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            mode, flags = arguments[1], arguments[2]
            if (isinstance(mode, str) and set(mode) & set("wax+")) or (isinstance(flags, int) and flags & WRITING):
                self._note(event, arguments[0])
        elif event in CHANGING:
            self._note(event, arguments[0])

    def _note(self, event: str, path: Any) -> None:
        place = os.path.realpath(os.fsdecode(path))
        if not place.startswith((*self.scratch, "/dev/")):
            self.seen.append(f"{event} {place}")


@dataclass
class Tally:
    """What became of the inputs of one target."""

    target: str
    inputs: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    failed: int = 0
    slowest: float = 0.0
    seconds: float = 0.0


def attempt(once: Any, draw: Any, also: tuple[type[BaseException], ...], watch: Watch, tally: Tally) -> None:
    """One input."""
    from dragontune.errors import InputError, NonFiniteError

    watch.seen.clear()
    problem, start = None, time.process_time()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WAITING)
    watch.on = True
    try:
        once(draw)
        outcome = "value"
    except (InputError, NonFiniteError, *also) as error:
        outcome = type(error).__name__
    except Hang:
        outcome, problem = "hang", f"more than {SECONDS:g} s: {traceback.format_exc(limit=-12)[-2500:]}"
    except Exception as error:
        outcome = type(error).__name__
        problem = f"{outcome}: {str(error)[:200]}\n{''.join(traceback.format_tb(error.__traceback__)[-4:])}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        watch.on = False
    tally.inputs += 1
    tally.slowest = max(tally.slowest, time.process_time() - start)
    if watch.seen:
        problem = f"{problem or ''} {watch.seen[:3]}"
    tally.outcomes[outcome] = tally.outcomes.get(outcome, 0) + 1
    if problem:
        tally.failed += 1
        key = problem.splitlines()[-1]
        if len(tally.failures) < SHOWN and not any(key in known for known in tally.failures):
            tally.failures.append(problem)


def run_target(name: str, count: int, scratch: Path, hooked: bool = True) -> Tally:
    """`count` inputs for one target, in this process; an audit hook stays for as long as the process lives."""
    from fuzz_targets import TARGETS
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st

    target, tally = TARGETS[name], Tally(name)
    watch = Watch((os.path.realpath(scratch), os.environ.get(STORAGE, "/dev/")))
    if hooked:
        sys.addaudithook(watch.hook)
    before = {number: signal.signal(number, _hang) for number in (signal.SIGALRM, signal.SIGPROF)}
    scratch.mkdir(parents=True, exist_ok=True)
    once = target.start(scratch)
    start = time.monotonic()

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data(), st.integers(0, 2**64))
    def inputs(data: Any, _: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            attempt(once, data.draw, target.also, watch, tally)

    try:
        inputs()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    tally.seconds = time.monotonic() - start
    return tally


def _hang(*_: object) -> None:
    raise Hang


def child(name: str, count: int, out: Path) -> None:
    """A target in this process, its tally as JSON in `out`."""
    sys.dont_write_bytecode = True
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        import fuzz_targets  # noqa: F401 - what it takes is not what the inputs take

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        os.chdir(folder)
        tally = run_target(name, count, Path(folder) / "scratch")
    out.write_text(json.dumps(asdict(tally)))


def start_child(name: str, count: int, folder: Path) -> Tally:
    """A target in a process of its own; one that dies has failed."""
    out = folder / f"{name}.json"
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hf"),
        "MPLCONFIGDIR": str(folder / "mpl"),
        STORAGE: str(folder / "hypothesis"),
        "DRAGONTUNE_MOST_SAMPLES": str(1 << 26),
        "DRAGONTUNE_MOST_PIXELS": "16000000",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, __file__, "--child", name, "--count", str(count), "--out", str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode or not out.exists():
        last = "\n".join(done.stderr.splitlines()[-12:])
        return Tally(name, failed=1, failures=[f"the process ended with {done.returncode}: {last}"])
    return Tally(**json.loads(out.read_text()))


def main() -> int:
    """All targets; print the table and return the exit code."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--count", type=int, default=60_000, help="inputs in all (default: 60,000)")
    options.add_argument("--only", default="", help="these targets, separated by commas")
    options.add_argument("--jobs", type=int, default=2, help="targets at a time (default: 2)")
    options.add_argument("--out", type=Path, help="the figures as JSON")
    options.add_argument("--child", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.child:
        child(given.child, given.count, given.out)
        return 0
    from fuzz_targets import TARGETS

    names = [name for name in given.only.split(",") if name] or list(TARGETS)
    total, start = sum(TARGETS[name].share for name in TARGETS), time.monotonic()
    counts = {name: max(10, given.count * TARGETS[name].share // total) for name in names}
    order = sorted(names, key=lambda name: name not in ("recipes", "commands", "models"))  # the slow ones first
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(given.jobs) as pool:
        tallies = list(pool.map(lambda name: start_child(name, counts[name], Path(folder)), order))
    inputs, failed, seconds = sum(t.inputs for t in tallies), sum(t.failed for t in tallies), time.monotonic() - start
    print(f"{'target':12} {'inputs':>7} {'failed':>6} {'slowest':>8} {'seconds':>8}  outcomes")
    for tally in tallies:
        said = ", ".join(f"{name} {count}" for name, count in collections.Counter(tally.outcomes).most_common(4))
        print(
            f"{tally.target:12} {tally.inputs:7} {tally.failed:6} {tally.slowest:7.2f}s {tally.seconds:7.1f}s  {said}"
        )
    print(f"{'all':12} {inputs:7} {failed:6} {max(t.slowest for t in tallies):7.2f}s {seconds:7.1f}s")
    for tally in tallies:
        for failure in tally.failures:
            print(f"\n--- {tally.target}\n{failure}")
    if given.out:
        record = {
            "inputs": inputs,
            "failed": failed,
            "seconds": round(seconds, 1),
            "targets": [asdict(t) for t in tallies],
        }
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(record, indent=2) + "\n")
    whole = not given.only and given.count >= FEWEST
    return int(failed > 0 or (whole and inputs < FEWEST))


if __name__ == "__main__":
    sys.exit(main())
