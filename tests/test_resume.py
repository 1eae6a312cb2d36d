"""Runs are killed at random moments and resumed; what they end with must be the same bits."""

import os
import random
import signal
import subprocess
import sys
import time
import traceback

import pytest

from dragontune.training.loop import Loop
from dragontune.training.run_folder import RunFolder
from small_runs import make_workplace, run_toy

LOOP = Loop(rounds=30, pairs=4, updates=2, batch=4, lr=1e-3, max_norm=1.0)


def in_child(work):
    """Fork, do `work` in the child (it never returns into pytest), give its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


@pytest.mark.parametrize("every", [1, 4])
def test_killed_at_random_moments(tmp_path, every):
    loop = Loop(**{**vars(LOOP), "checkpoint_every": every})
    start = time.monotonic()
    whole = run_toy(RunFolder(tmp_path / "whole"), loop)
    length = time.monotonic() - start
    folder = RunFolder(tmp_path / "killed")
    moments, killed = random.Random(every), 0
    for _ in range(10):
        child = in_child(lambda: run_toy(folder, loop))
        time.sleep(moments.uniform(0, 0.3 * length))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(status)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    assert killed >= 3
    assert run_toy(folder, loop) == whole
    assert [record["round"] for record in folder.history()] == list(range(1, loop.rounds + 1))
    left = [path for path in (tmp_path / "killed").rglob(".*") if "partial" not in path.name]
    assert left == []


def start(folder, *arguments):
    command = [sys.executable, "-m", "dragontune.cli", "tune", "recipe.yaml", "--out", "run", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for(folder, name, process):
    end = time.monotonic() + 120
    while not (folder / name).exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, f"{name} did not appear"
        time.sleep(0.01)


def test_the_command_interrupted_and_killed(tmp_path, monkeypatch):
    """SIGTERM saves and says how to resume (75); SIGKILL loses at most a round; the end is the same."""
    folder = make_workplace(tmp_path)
    long = ["--loop.rounds", "12", "--evaluation", "null"]
    whole = start(folder, *long, "--out", "whole")
    said = whole.communicate(timeout=120)[1]
    assert whole.returncode == 0, said

    stopped = start(folder, *long)
    wait_for(folder, "run/checkpoints/round-000002.json", stopped)
    stopped.send_signal(signal.SIGTERM)
    said = stopped.communicate(timeout=60)[1]
    assert stopped.returncode == 75, said
    assert "resume with: dragontune tune recipe.yaml --out run --resume" in said
    assert "Traceback" not in said

    killed = start(folder, *long, "--resume")
    wait_for(folder, "run/checkpoints/round-000006.json", killed)
    killed.kill()
    killed.communicate(timeout=60)

    last = start(folder, *long, "--resume")
    said = last.communicate(timeout=120)[1]
    assert last.returncode == 0, said
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (folder / "run/adapter" / name).read_bytes() == (folder / "whole/adapter" / name).read_bytes()
    samples = [path.relative_to(folder / "whole") for path in sorted((folder / "whole/samples").rglob("*.flac"))]
    assert samples
    assert all((folder / "run" / name).read_bytes() == (folder / "whole" / name).read_bytes() for name in samples)
