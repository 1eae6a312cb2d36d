"""A reward service on this machine: what it answers, and what it refuses, to whom."""

import asyncio
import json
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch

import services
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
from dragontune.service.app import Desk, Limits
from dragontune.service.metrics import Metrics
from dragontune.wire import VERSION, Message
from services import TOKEN, ask, audio, clips, in_thread


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


def request(*given, reward=REWARD, **more):
    return services.request(Work(reward).digest, *given, **more)


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
    "another reward": ({"digest": "0" * 64}, 412),
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
    answer, content = ask(address, services.request(**{"digest": Work(REWARD).digest} | header))
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
        body = request(reward=Broken(loudness))
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


def test_strangers_fill_no_log(capfd):
    with in_thread(REWARD, TOKEN) as address:
        assert raw(address, b"\x16\x03\x01 no HTTP\r\n\r\n").startswith(b"HTTP/1.1 400")
        upgrade = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        assert raw(address, upgrade).startswith(b"HTTP/1.1 401")
    assert capfd.readouterr().err == ""


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


def test_a_full_disk_costs_lines_of_the_journal_and_no_reply():
    with in_thread(REWARD, journal="/dev/full") as address:
        assert ask(address, request())[0].status == 200


def test_replies_that_are_kept_take_no_more_than_they_may():
    desk = Desk(Work(REWARD), Limits(kept=5000), Metrics())
    for number in range(20):
        asyncio.run(desk._computed("/v1/encode", request(1, number), f"/v1/encode k{number} d"))
        assert sum(len(reply) + len(key) for key, reply in desk.replies.items()) < 5000
    assert list(desk.replies)[-1] == "/v1/encode k19 d"
    assert 1 < len(desk.replies) < 5
    desk.thread.shutdown()


def test_a_reward_that_hangs_does_not_keep_the_process():
    code = "import threading, time\nfrom dragontune.service.lone import Lone\nlone = Lone('x', 0.2)\n"
    waits = "begun = threading.Event()\nlone.submit(lambda: (begun.set(), time.sleep(60)))\nbegun.wait()\n"
    ends = "late = lone.submit(print, 'late')\nlone.shutdown(cancel_futures=True)\nprint(late.cancelled())"
    done = subprocess.run([sys.executable, "-c", code + waits + ends], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


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


def of_files(folder, name, **files):
    """The digest of a function in a folder with these files, found by a fresh process."""
    for file, content in files.items():
        path = folder / f"{file.replace('__', '/')}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    code = "import sys; from dragontune.rewards import identity; from dragontune.rewards.function import Function\n"
    code += f"print(identity.digest(Function({name!r})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


def test_the_digest_is_also_of_what_own_code_imports(tmp_path):
    body = "def f(media, prompts):\n    from parts.deep import K\n    import json\n    return [K] * len(prompts)\n"
    first = of_files(
        tmp_path, "rw.py:f", rw=body, parts__deep="from .deeper import K", parts__deeper="K = 1.0", other=""
    )
    assert first != of_files(tmp_path, "rw.py:f", parts__deeper="K = 2.0")
    moved = of_files(tmp_path, "rw:f")
    assert moved != of_files(tmp_path, "rw:f", parts__deeper="K = 1.0")
    assert first == of_files(tmp_path, "rw.py:f", other="nobody = 'imports it'")


class Constant:
    def __init__(self, score):
        self.score = score

    def __call__(self, media, prompts):
        return [self.score] * len(prompts)

    def method(self, media, prompts):
        return self(media, prompts)


def constant(score, media, prompts):
    return [score] * len(prompts)


def test_the_digest_is_also_of_what_a_callable_holds():
    made = [Constant, lambda score: Constant(score).method, lambda score: partial(constant, score)]
    digests = {identity.digest(Function(make(score))) for make in made for score in (1.0, 2.0)}
    assert len(digests) == 6
    assert identity.digest(Function(Constant(1.0))) in digests


def test_rewards_that_cannot_be_served(tmp_path):
    vendi = Vendi(LogMel())
    with pytest.raises(InputError, match="does not change while it is served"):
        Work(Sum({"a": vendi}, standardise="running"))
    with pytest.raises(InputError, match="works only outermost"):
        Work(Pareto({"a": vendi, "b": Vendi(LogMel(), 2.0)}))
