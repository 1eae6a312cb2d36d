"""`dragontune tune` under a launcher: two nodes without a common disk, a signal, a mistake."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from small_runs import make_workplace

SHORT = ["--evaluation", "null", "--loop.sample_every", "0"]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def start(folder: Path, launch: list[str], *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", *launch, "-m", "dragontune", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True, env=environment)


def adapter(run: Path) -> torch.Tensor:
    weights = load_file(run / "adapter/adapter_model.safetensors")
    return torch.cat([weights[name].flatten() for name in sorted(weights)])


def test_two_nodes_without_a_common_disk(tmp_path: Path):
    """Only the first node's folder gets a run, which one process can go on with."""
    port = free_port()
    nodes = [make_workplace(folder) for folder in (tmp_path / "0", tmp_path / "1") if not folder.mkdir()]
    agents = [
        start(
            folder,
            ["--nnodes=2", f"--node-rank={rank}", "--master-addr=localhost", f"--master-port={port}"],
            *["tune", "recipe.yaml", "--out", "run", "--loop.rounds", "2", "--plan.shard", "true", *SHORT],
        )
        for rank, folder in enumerate(nodes)
    ]
    said = [agent.communicate(timeout=240) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    assert (nodes[0] / "run/adapter").is_dir()
    assert not (nodes[1] / "run").exists()
    assert "The adapter is in run/adapter." in said[0][0]
    assert said[1][0] == ""

    alone = [sys.executable, "-m", "dragontune", "tune", "recipe.yaml", *SHORT]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for extra in (["--out", "run", "--resume"], ["--out", "whole"]):
        subprocess.run([*alone, *extra], cwd=nodes[0], env=environment, check=True, capture_output=True)
    assert (adapter(nodes[0] / "run") - adapter(nodes[0] / "whole")).abs().max() <= 1e-5


def test_machines_with_other_prompts_are_refused(tmp_path: Path):
    port = free_port()
    nodes = [make_workplace(folder) for folder in (tmp_path / "0", tmp_path / "1") if not folder.mkdir()]
    prompts = nodes[1] / "prompts.txt"
    prompts.write_text(prompts.read_text() + "one more\n")
    agents = [
        start(
            folder,
            ["--nnodes=2", f"--node-rank={rank}", "--master-addr=localhost", f"--master-port={port}"],
            *["tune", "recipe.yaml", "--out", "run", *SHORT],
        )
        for rank, folder in enumerate(nodes)
    ]
    said = "".join(agent.communicate(timeout=240)[1] for agent in agents)
    assert said.count("expected the same prompts on all machines, got others at process 1") == 1, said
    assert said.count("exitcode  : 2") == 2
    assert not any((folder / "run").exists() for folder in nodes)


def test_a_signal_to_the_launcher_saves(tmp_path: Path):
    folder = make_workplace(tmp_path)
    launcher = start(folder, ["--nproc-per-node=2"], "tune", "recipe.yaml", "--loop.rounds", "5000", *SHORT)
    end = time.monotonic() + 200
    while not list((folder / "runs/recipe/checkpoints").glob("round-*.json")):
        assert launcher.poll() is None, launcher.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    launcher.send_signal(signal.SIGTERM)
    _, said = launcher.communicate(timeout=60)
    assert launcher.returncode != 0
    assert said.count("the state is saved, resume with: dragontune tune recipe.yaml") == 1, said
    assert (folder / "runs/recipe/log.jsonl").read_text().count("\n") >= 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["tune", "recipe.yaml", "--loop.lr", "7"], "expected loop.lr between"),
        (["score", "real", "--reward", "reward.yaml"], "expected one process for score, got 2 from a launcher"),
    ],
)
def test_a_mistake_is_told_once(tmp_path: Path, arguments: list[str], sentence: str):
    launcher = start(make_workplace(tmp_path), ["--nproc-per-node=2"], *arguments)
    _, said = launcher.communicate(timeout=200)
    assert said.count(sentence) == 1, said
    assert "exitcode  : 2" in said
    assert "exitcode  : 1" not in said
    assert not (tmp_path / "runs/recipe").exists()


LONE = """
import sys, time
from datetime import timedelta

from dragontune import cli, parallel
from dragontune.errors import InputError
from dragontune.training.processes import joined


def tune(arguments):
    with joined():
        rank = parallel.everyone(0) and parallel.dist.get_rank()
        if rank == 1:
            raise {error}("expected a voice, got none; sing")
        time.sleep(60)


parallel.PATIENCE, cli._tune = timedelta(seconds=1), tune
sys.exit(cli.main())
"""


@pytest.mark.parametrize(("error", "code"), [("InputError", 2), ("ZeroDivisionError", 1)])
def test_one_that_failed_says_so_and_leaves_though_nobody_listens(error: str, code: int):
    """The first process is busy for a minute; the second does not wait for it."""
    port, pipe = free_port(), subprocess.PIPE
    told = {"MASTER_ADDR": "localhost", "MASTER_PORT": f"{port}", "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LONE.replace("{error}", error), "tune"]
    both = [
        subprocess.Popen(command, stderr=pipe, text=True, env=os.environ | told | {"RANK": rank, "LOCAL_RANK": rank})
        for rank in ("0", "1")
    ]
    try:
        said = both[1].communicate(timeout=200)[1]
        assert both[0].poll() is None
        assert both[1].returncode == code
        assert f"process 1 failed ({error}: expected a voice, got none; sing)" in said
    finally:
        both[0].kill()
        both[0].communicate()
