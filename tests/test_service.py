"""A reward service on this machine: what it answers, and what it refuses, to whom."""

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

import pytest
import torch

from dragontune.cli import run
from dragontune.encoders.log_mel import LogMel
from dragontune.errors import InputError
from dragontune.reference import Reference
from dragontune.rewards import identity
from dragontune.rewards.combine import Sum
from dragontune.rewards.diversity import Vendi
from dragontune.rewards.frechet import SetFrechet
from dragontune.rewards.function import Function
from dragontune.rewards.link import KIND, digest_field
from dragontune.rewards.pareto import Pareto
from dragontune.rewards.served import Work
from dragontune.rewards.signal import Loudness
from dragontune.service import server
from dragontune.wire import VERSION, Message, pack
from services import TOKEN, audio, clips, in_thread, serving


def loudness(media, prompts):
    if "defect" in prompts:
        raise ZeroDivisionError
    if "slow" in prompts:
        time.sleep(0.4)
    return [float(x) for x in media.waveform.square().mean((1, 2))]


class Broken(Function):
    def encode(self, samples):
        raise KeyError("a defect of ours")


REWARD = Function(loudness)


@pytest.fixture(scope="module")
def address():
    with in_thread(REWARD) as address:
        yield address


@pytest.fixture(scope="module")
def guarded():
    with in_thread(REWARD, TOKEN) as address:
        yield address


def request(count=2, seed=0, prompts=None, **header):
    samples, tensors = clips(count, seed), {}
    said = {
        "version": VERSION,
        "reward": Work(REWARD).digest,
        "key": "0" * 32,
        "ids": [str(i) for i in range(count)],
        "prompts": list(prompts or samples.prompts),
        "latents": pack(samples.latents, "latents", tensors),
        "media": pack(samples.media, "media", tensors),
    }
    return Message(said | header, tensors).dump()


def ask(address, body=None, path="/v1/encode", method=None, **headers):
    host = address.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=20)
    usual = {} if body is None else {"Content-Type": KIND, "Content-Digest": digest_field(body)}
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method or ("GET" if body is None else "POST"), path, body, usual | given)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer, content


def raw(address, *parts, wait=0.0, timeout=5.0):
    """Bytes to a socket, with pauses between, and all that comes back."""
    host, _, port = address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout) as connection:
        back = b""
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(wait)
            while piece := connection.recv(65536):
                back += piece
        except (ConnectionResetError, BrokenPipeError):
            pass
        return back


def test_scores_come_back(address):
    answer, content = ask(address, request())
    reply = Message.load(content)
    assert (answer.status, answer.getheader("Content-Digest")) == (200, digest_field(content))
    expected = audio(clips(2)).waveform.square().mean((1, 2))
    assert torch.allclose(reply.tensors["scores"], expected.double(), atol=1e-7)
    assert reply.header == {"version": VERSION, "reward": Work(REWARD).digest, "key": "0" * 32, "ids": ["0", "1"]}


def test_what_is_served(address):
    said = json.loads(ask(address, path="/v1/info")[1])
    assert said["digest"] == Work(REWARD).digest
    assert (said["scope"], said["label"], said["minimum"], said["needs_media"]) == ("instance", "loudness", 1, True)
    assert ask(address, path="/healthz")[1] == b"ok\n"


WRONG = {
    "another version": ({"version": 2}, 400),
    "no key": ({"key": 3}, 400),
    "another reward": ({"reward": "0" * 64}, 412),
    "an id twice": ({"ids": ["0", "0"]}, 400),
    "an id too few": ({"ids": ["0"]}, 400),
    "ids of numbers": ({"ids": [0, 1]}, 400),
    "a prompt too few": ({"prompts": ["a"]}, 400),
    "no media": ({"media": {"value": None}}, 400),
    "media of no kind": ({"media": {"value": 3}}, 400),
    "media that are another record": ({"media": {"rows": "dragontune.data.Samples", "columns": {}}}, 400),
    "media of another count": ({"media": {"tensor": "none"}}, 400),
    "latents that are none": ({"latents": {"value": None}}, 400),
    "a defect of the function": ({"prompts": ["defect", "b"]}, 422),
}


@pytest.mark.parametrize(("header", "status"), WRONG.values(), ids=WRONG)
def test_requests_that_are_wrong(address, header, status):
    answer, content = ask(address, request(**header))
    assert answer.status == status
    assert set(json.loads(content)) == {"kind", "error"}


def test_audio_that_is_none(address):
    for columns in (
        {"waveform": {"tensor": "latents"}, "sample_rate": {"value": 16000}},
        {"waveform": {"tensor": "media.waveform"}, "sample_rate": {"value": 0}},
        {"waveform": {"tensor": "media.waveform"}, "sample_rate": {"value": True}},
    ):
        assert (
            ask(address, request(media={"rows": "dragontune.media.audio.Audio", "columns": columns}))[0].status == 400
        )


def test_bodies_that_are_wrong(address):
    body = request()
    assert ask(address, b"\x80\x04N.")[0].status == 400
    assert ask(address, body, Content_Digest=digest_field(b"other"))[0].status == 400
    assert ask(address, body, Content_Type="text/plain")[0].status == 415
    assert ask(address, body, path="/v1/nothing")[0].status == 404
    assert ask(address, method="GET")[0].status == 405
    assert ask(address, request(), path="/v1/score")[0].status == 400
    assert ask(address, request(), path="/v1/swaps")[0].status == 400


def test_our_own_defects_are_500_and_counted():
    with in_thread(Broken(loudness)) as address:
        body = request(reward=Work(Broken(loudness)).digest)
        answer, content = ask(address, body)
        assert (answer.status, content) == (500, b"")
        assert b"dragontune_service_errors_total 1.0" in ask(address, path="/metrics")[1]


def test_without_the_token_nothing_is_learnt(guarded):
    body = request()
    answers = [
        ask(guarded, *given, **more)
        for given in ((None, "/v1/info"), (None, "/metrics"), (None, "/"), (None, "/nothing"), (body, "/v1/encode"))
        for more in (
            {},
            {"Authorization": "Bearer "},
            {"Authorization": f"Bearer {TOKEN[:-1]}"},
            {"Authorization": f"Bearer {TOKEN}x"},
            {"Authorization": f"Basic {TOKEN}"},
            {"Authorization": TOKEN},
            {"authorization": "Bearer é"},
        )
    ]
    assert {(answer.status, content) for answer, content in answers} == {(401, b"")}
    assert {tuple(sorted(answer.headers.keys())) for answer, _ in answers} == {
        ("connection", "content-length", "www-authenticate")
    }
    right = f"Bearer {TOKEN}"
    assert ask(guarded, path="/healthz")[1] == b"ok\n"
    assert ask(guarded, path="/v1/info", Authorization=right)[0].status == 200
    assert ask(guarded, body, Authorization=right)[0].status == 200
    metrics = ask(guarded, path="/metrics", Authorization=right)[1]
    assert b"dragontune_service_items_total 2.0" in metrics


def test_two_tokens_are_no_token(guarded):
    head = f"GET /v1/info HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer no\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    assert raw(guarded, head.encode()).startswith(b"HTTP/1.1 401")


def test_a_page_in_a_browser_cannot_come_in_by_another_name(address):
    for host in ("evil.example", "evil.example:80", "localhost.evil.example", ""):
        assert raw(address, f"GET /v1/info HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()).startswith(b"HTTP/1.1 403")
    for host in ("localhost", "127.0.0.1:1", "[::1]:80"):
        text = f"GET /v1/info HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        assert raw(address, text.encode()).startswith(b"HTTP/1.1 200")


def head(length="Content-Length: 10", path="/v1/encode"):
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {KIND}\r\n{length}\r\n\r\n".encode()


def test_large_bodies_are_not_read():
    with in_thread(REWARD, bytes=100_000) as address:
        assert ask(address, request())[0].status == 200
        assert raw(address, head("Content-Length: 100001")).startswith(b"HTTP/1.1 413")
        assert raw(address, head("Content-Length: 9" + "9" * 15)).startswith(b"HTTP/1.1 413")
        assert raw(address, head("Content-Length: 9" + "9" * 30)).startswith(b"HTTP/1.1 400")
        chunk = b"%x\r\n" % 65536 + bytes(65536) + b"\r\n"
        assert raw(address, head("Transfer-Encoding: chunked"), chunk, chunk, wait=0.05).startswith(b"HTTP/1.1 413")


def test_slow_bodies_and_slow_headers_end(monkeypatch):
    monkeypatch.setattr(server, "HEADERS", 0.3)
    with in_thread(REWARD, seconds=0.3) as address:
        start = time.monotonic()
        assert raw(address, head(), b"abc").startswith(b"HTTP/1.1 408")
        assert raw(address, b"POST /v1/enc") == b""
        assert raw(address) == b""
        assert raw(address, *[b"POST /v1/encode HTTP/1.1\r\n", *[b"X-a: b\r\n"] * 20], wait=0.05) == b""
        assert time.monotonic() - start < 5
        assert raw(address, b"X" * 100_000).startswith(b"HTTP/1.1 400")
        assert ask(address, request())[0].status == 200
        twice = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
        assert raw(address, twice, twice, wait=0.1).count(b"HTTP/1.1 200") == 2


def test_a_full_queue_says_so():
    with in_thread(REWARD, queue=2) as address, ThreadPoolExecutor(6) as pool:
        bodies = [request(1, seed, ["slow"], key=f"{seed:032x}") for seed in range(6)]
        answers = list(pool.map(lambda body: ask(address, body)[0], bodies))
        statuses = sorted(answer.status for answer in answers)
        assert statuses == [200, 200, 429, 429, 429, 429]
        assert {answer.getheader("Retry-After") for answer in answers if answer.status == 429} == {"1"}


def test_a_request_that_comes_again_is_computed_once(tmp_path):
    journal = tmp_path / "journal"
    with in_thread(REWARD, journal=str(journal)) as address, ThreadPoolExecutor(4) as pool:
        body = request(1, 0, ["slow"])
        key = {"Idempotency_Key": "k1"}
        contents = list(pool.map(lambda _: ask(address, body, **key)[1], range(4)))
        assert len(set(contents)) == 1
        assert ask(address, body, **key)[1] == contents[0]
        assert len(journal.read_text().splitlines()) == 1
        assert ask(address, request(1, 1, ["slow"]), **key)[1] != contents[0]
        assert ask(address, body, Idempotency_Key="k2")[0].status == 200
        lines = [json.loads(line) for line in journal.read_text().splitlines()]
        assert [(line["key"], line["items"]) for line in lines] == [("k1", 1), ("k1", 1), ("k2", 1)]
        assert b"dragontune_service_replays_total 4.0" in ask(address, path="/metrics")[1]


def test_a_client_that_leaves_costs_no_reply(address):
    host, _, port = address.removeprefix("http://").partition(":")
    for _ in range(5):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head("Content-Length: 500") + b"abc")
    assert ask(address, request())[0].status == 200


def exemplars(tmp_path, seed=0):
    encoder = LogMel()
    return encoder, Reference.build(encoder, [audio(clips(6, seed, 4000))], "here")


def test_the_digest_is_of_what_decides_the_score(tmp_path):
    (tmp_path / "a.py").write_text("def f(media, prompts): return [0.0] * len(prompts)\n")
    (tmp_path / "b.py").write_text("def f(media, prompts): return [1.0] * len(prompts)\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.py").write_text((tmp_path / "a.py").read_text())
    encoder, reference = exemplars(tmp_path)
    rewards = [
        Loudness(-20.0),
        Loudness(-21.0),
        Vendi(encoder),
        Vendi(encoder, order=2.0),
        SetFrechet(encoder, reference),
        SetFrechet(encoder, exemplars(tmp_path, 1)[1]),
        Sum({"a": Vendi(encoder)}),
        Sum({"b": Vendi(encoder)}),
        Sum({"b": Vendi(encoder)}, weights={"b": 2.0}),
        Function(f"{tmp_path}/a.py:f"),
        Function(f"{tmp_path}/b.py:f"),
        Function(loudness),
    ]
    digests = [identity.digest(reward) for reward in rewards]
    assert len(set(digests)) == len(digests)
    assert identity.digest(Function(f"{tmp_path}/sub/c.py:f")) == digests[9]
    assert identity.digest(SetFrechet(LogMel(), exemplars(tmp_path)[1])) == digests[4]


def test_rewards_that_cannot_be_served(tmp_path):
    vendi = Vendi(LogMel())
    with pytest.raises(InputError, match="does not change while it is served"):
        Work(Sum({"a": vendi}, standardise="running"))
    with pytest.raises(InputError, match="works only outermost"):
        Work(Pareto({"a": vendi, "b": Vendi(LogMel(), 2.0)}))


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
    right = {"Authorization": f"Bearer {TOKEN}"}
    with serving(tmp_path, "own_rewards.py:slow", *more, env={"A_TOKEN": TOKEN}) as service:
        said = json.loads(patiently(service.address, path="/v1/info", **right))
        done: list[dict[str, int]] = []
        deadline = time.monotonic() + 60
        while len({line["process"] for line in done}) < 2 and time.monotonic() < deadline:  # until both are there
            bodies = [request(1, 0, ["four"], reward=said["digest"], key=f"{len(done) + i:032x}") for i in range(2)]
            with ThreadPoolExecutor(2) as pool:
                for answer, content in pool.map(lambda body: ask(service.address, body, **right), bodies):
                    assert answer.status == 200
                    assert Message.load(content).tensors["scores"].tolist() == [4.0]
            done = [json.loads(line) for line in (tmp_path / "journal").read_text().splitlines()]
        assert len({line["process"] for line in done}) == 2
        text = ask(service.address, path="/metrics", **right)[1].decode()
        assert f"dragontune_service_items_total {len(done)}.0" in text
        late: list[int] = []
        body = request(1, 0, ["last"], reward=said["digest"], key="f" * 32)
        thread = threading.Thread(target=lambda: late.append(ask(service.address, body, **right)[0].status))
        thread.start()
        time.sleep(0.3)
        assert service.end(signal.SIGTERM) == 0
        thread.join()
        assert late == [200]
        assert TOKEN not in "".join(service.lines)
        with pytest.raises(OSError):  # noqa: PT011 - whatever the system says
            ask(service.address, path="/healthz")


def patiently(address, **more):
    """What a service says that is only starting."""
    deadline = time.monotonic() + 120
    while True:
        try:
            return ask(address, **more)[1]
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
