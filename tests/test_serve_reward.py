"""`dragontune serve-reward`: its options, what it refuses, and real services with their processes."""

import http.client
import importlib.util
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from dragontune.cli import run
from dragontune.wire import Message
from services import TOKEN, ask, request, serving

BAD = {
    "no token": (["--host", "0.0.0.0"], "expected a token for a service that others can reach"),
    "a token on the command line": (["--token-variable", "secret-abc"], "something else, which is not shown"),
    "a variable that is not there": (["--token-variable", "NOT_THERE_X"], "got nothing; export NOT_THERE_X"),
    "a short token": (["--token-variable", "SHORT_TOKEN"], "at least 16 characters"),
    "no port": (["--port", "70000"], "a port from 0"),
    "no workers": (["--workers", "0"], "1 to 256 workers"),
    "no size": (["--max-mib", "0"], "--max-mib from 1"),
    "no host": (["--host", "no.such.host.invalid", "--token-variable", "LONG_TOKEN"], "a host to listen on"),
}


@pytest.mark.parametrize(("more", "said"), BAD.values(), ids=BAD)
def test_bad_options_are_one_sentence(more, said, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("SHORT_TOKEN", "abc")
    monkeypatch.setenv("LONG_TOKEN", TOKEN)
    (tmp_path / "r.py").write_text("def f(media, prompts): return [0.0] * len(prompts)\n")
    assert run(["serve-reward", f"{tmp_path}/r.py:f", *more]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert "secret-abc" not in captured.err + captured.out


def test_a_port_in_use_and_a_reward_that_is_not_there(capsys, tmp_path):
    (tmp_path / "r.py").write_text("def f(media, prompts): return [0.0] * len(prompts)\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert run(["serve-reward", f"{tmp_path}/r.py:f", "--port", port]) == 2
    assert f"expected a free port to listen on, got 127.0.0.1:{port}" in capsys.readouterr().err
    assert run(["serve-reward", f"{tmp_path}/none.yaml"]) == 2
    assert run(["serve-reward", f"{tmp_path}/r.py:g"]) == 2


def test_without_the_extra(capsys, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "uvicorn" else found(name, *more)
    )
    assert run(["serve-reward", "r.yaml"]) == 2
    assert "pip install 'dragontune[serve]'" in capsys.readouterr().err


def test_a_real_one_with_two_workers_ends_with_what_is_under_way_answered(tmp_path):
    more = ["--workers", "2", "--token-variable", "A_TOKEN", "--journal", str(tmp_path / "journal")]
    right: Any = {"Authorization": f"Bearer {TOKEN}"}
    with serving(tmp_path, "own_rewards.py:slow", *more, env={"A_TOKEN": TOKEN}) as service:
        said = json.loads(patiently(service.address, path="/v1/info", **right))
        done: list[dict[str, int]] = []
        deadline = time.monotonic() + 60
        while len({line["process"] for line in done}) < 2 and time.monotonic() < deadline:  # until both are there
            bodies = [request(said["digest"], 1, 0, ["four"], key=f"{len(done) + i:032x}") for i in range(2)]
            with ThreadPoolExecutor(2) as pool:
                for answer, content in pool.map(lambda body: ask(service.address, body, **right), bodies):
                    assert answer.status == 200
                    assert Message.load(content).tensors["scores"].tolist() == [4.0]
            done = [json.loads(line) for line in (tmp_path / "journal").read_text().splitlines()]
        assert len({line["process"] for line in done}) == 2
        text = ask(service.address, path="/metrics", **right)[1].decode()
        assert f"dragontune_service_items_total {len(done)}.0" in text
        late: list[int] = []
        body = request(said["digest"], 1, 0, ["last"], key="f" * 32)
        thread = threading.Thread(target=lambda: late.append(ask(service.address, body, **right)[0].status))
        thread.start()
        time.sleep(0.3)
        assert service.end(signal.SIGTERM) == 0
        thread.join()
        assert late == [200]
        assert TOKEN not in "".join(service.lines)
        with pytest.raises(OSError):  # noqa: PT011 - whatever the system says
            ask(service.address, path="/healthz")


def patiently(address: str, path: str, **more: Any) -> bytes:
    """What a service says that is only starting."""
    deadline = time.monotonic() + 120
    while True:
        try:
            return ask(address, path=path, **more)[1]
        except (OSError, http.client.HTTPException):
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_a_reward_that_cannot_be_loaded_ends_it(tmp_path, capsys, monkeypatch):
    (tmp_path / "bad.yaml").write_text(
        "class_path: SetFrechet\ninit_args: {encoder: {class_path: LogMel}, exemplars: nowhere.safetensors}\n"
    )
    monkeypatch.chdir(tmp_path)
    assert run(["serve-reward", "bad.yaml", "--port", "0"]) == 2
    assert "nowhere.safetensors" in capsys.readouterr().err
    command = [sys.executable, "-m", "dragontune", "serve-reward", "bad.yaml", "--port", "0", "--workers", "2"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert "nowhere.safetensors" in ended.stderr
