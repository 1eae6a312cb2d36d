"""Exact resume on the embedded model: a run killed with SIGKILL at ten random moments against one left alone."""

import random
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path

RECIPE = "recipes/smoke.yaml"
KILLS, ROUNDS = 10, 24
LONG = ["--loop.rounds", str(ROUNDS), "--loop.sample_every", "6", "--evaluation", "null"]


def start(out: Path, *more: str) -> subprocess.Popen[str]:
    """`dragontune tune` in a process of its own."""
    command = [sys.executable, "-m", "dragontune.cli", "tune", RECIPE, "--out", str(out), *LONG, *more]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def adapter(out: Path) -> str:
    """SHA-256 of the weights."""
    return sha256((out / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def newest(out: Path) -> int:
    """The last round that has a checkpoint."""
    return max((int(path.stem.removeprefix("round-")) for path in out.glob("checkpoints/round-*.json")), default=0)


def main() -> None:
    """Print both digests; exit 1 if they differ."""
    moments = random.Random(0)
    with tempfile.TemporaryDirectory() as scratch:
        whole, killed = Path(scratch, "whole"), Path(scratch, "killed")
        began = time.monotonic()
        assert start(whole).wait() == 0
        length = (time.monotonic() - began) / ROUNDS
        for number, after in enumerate(sorted(moments.choices(range(ROUNDS - 1), k=KILLS))):
            process = start(killed, "--resume")
            while newest(killed) < after and process.poll() is None:
                time.sleep(0.02)
            time.sleep(moments.uniform(0, 1.5 * length))
            assert process.poll() is None, "it ended before it could be killed"
            process.kill()
            process.wait()
            print(f"kill {number + 1}: after round {newest(killed)}", flush=True)
        assert start(killed, "--resume").wait() == 0
        a, b = adapter(whole), adapter(killed)
    print(f"uninterrupted {a}\nkilled {KILLS}x   {b}\n{'the same bytes' if a == b else 'DIFFERENT'}")
    sys.exit(a != b)


if __name__ == "__main__":
    main()
