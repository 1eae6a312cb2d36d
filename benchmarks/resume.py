"""Exact resume on the embedded model: a run killed with SIGKILL at ten random moments against one left alone."""

import random
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path

RECIPE = "recipes/smoke.yaml"
LONG = ["--loop.rounds", "8", "--loop.sample_every", "4", "--evaluation", "null"]
KILLS = 10


def start(out: Path, *more: str) -> subprocess.Popen[str]:
    """`dragontune tune` in a process of its own."""
    command = [sys.executable, "-m", "dragontune.cli", "tune", RECIPE, "--out", str(out), *LONG, *more]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def adapter(out: Path) -> str:
    """SHA-256 of the weights."""
    return sha256((out / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def main() -> None:
    """Print both digests; exit 1 if they differ."""
    moments = random.Random(0)
    with tempfile.TemporaryDirectory() as scratch:
        whole, killed = Path(scratch, "whole"), Path(scratch, "killed")
        began = time.monotonic()
        assert start(whole).wait() == 0
        length = time.monotonic() - began
        done, kills = False, 0
        while kills < KILLS:
            process = start(killed, *(["--resume"] if killed.exists() else []))
            time.sleep(moments.uniform(0.25, 0.75) * length)
            if process.poll() is None:
                process.kill()
                kills += 1
                states = sorted(path.stem for path in killed.glob("checkpoints/round-*.json"))
                print(f"kill {kills}: states {states}", flush=True)
            elif process.returncode == 0 and not done:
                done = True
                print("the killed run is complete; further kills hit a finished run", flush=True)
            process.wait()
        assert start(killed, "--resume").wait() == 0
        a, b = adapter(whole), adapter(killed)
    print(f"uninterrupted {a}\nkilled {KILLS}x   {b}\n{'the same bytes' if a == b else 'DIFFERENT'}")
    sys.exit(a != b)


if __name__ == "__main__":
    main()
