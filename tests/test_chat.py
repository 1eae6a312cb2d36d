"""Questions to a real HTTP server that misbehaves in every way."""

import json
import socket
import ssl
import subprocess
import threading
import time

import pytest

from dragontune.errors import InputError
from dragontune.rewards.chat import LARGEST, Chat
from judges import drips, gives, hangs, raw, reply, resets, says, serving

KEY = "sk-test-6f1d-do-not-show"
QUESTION = {"model": "m", "seed": 42, "messages": [{"role": "user", "content": "how many?"}]}


@pytest.fixture
def server():
    with serving() as server:
        yield server


def chat(endpoint, **more):
    return Chat(endpoint, **{"retries": 2, "backoff": 0.0, "timeout": 5.0} | more)


def number(text):
    return int(text) if text.isdecimal() else None


def ask(endpoint, **more):
    return chat(endpoint, **more).ask(QUESTION, number, threading.Event())


def test_an_answer(server):
    outcome = ask(server.endpoint)
    assert (outcome.value, outcome.requests, outcome.reached, outcome.trouble) == (7, 1, True, "")
    assert server.seen == [QUESTION]
    assert server.paths == ["/v1/chat/completions"]
    assert "Authorization" not in server.headers[0]
    assert server.headers[0]["Content-Type"] == "application/json"


def test_a_slash_at_the_end_makes_no_difference(server):
    assert ask(server.endpoint + "/").value == 7
    assert server.paths == ["/v1/chat/completions"]


def test_the_key_is_sent(server, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY + "\n")
    assert ask(server.endpoint, key_variable="JUDGE_KEY").value == 7
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


PASSING = {
    "500": (gives(b"oops", 500), "status 500"),
    "503": (gives(b"", 503), "status 503"),
    "408": (gives(b"", 408), "status 408"),
    "429": (gives(b"{}", 429, Retry_After="0"), "status 429"),
    "429 with nonsense": (gives(b"{}", 429, Retry_After="soon"), "status 429"),
    "429 with NaN": (gives(b"{}", 429, Retry_After="nan"), "status 429"),
    "429 with a date gone by": (gives(b"{}", 429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"), "status 429"),
    "html": (gives(b"<html><body>Welcome 7</body></html>", Content_Type="text/html"), "not JSON"),
    "torn JSON": (gives(reply("7")[:-3]), "not JSON"),
    "not UTF-8": (gives(b'{"choices": "\xff\xfe"}'), "not JSON"),
    "deep": (gives(b"[" * 100_000), "not JSON"),
    "empty": (gives(b""), "not JSON"),
    "truncated": (gives(reply("7"), Content_Length="9999"), "torn"),
    "truncated chunks": (
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40\r\n" + reply("7")[:20]),
        "no answer (IncompleteRead)",
    ),
    "empty choices": (gives(b'{"choices": []}'), "without a reply"),
    "no choices": (gives(b'{"error": {"message": "busy"}}'), "without a reply"),
    "a list": (gives(b"[7]"), "without a reply"),
    "a number": (gives(b"7"), "without a reply"),
    "no text": (says(None), "without a reply"),
    "a choice of another shape": (gives(b'{"choices": ["7"]}'), "without a reply"),
    "message null": (gives(b'{"choices": [{"message": null}]}'), "without a reply"),
    "cut": (says("I count 3", finish_reason="length"), "cut (length)"),
    "filtered": (says("7", finish_reason="content_filter"), "cut (content_filter)"),
    "no number": (says("many"), "without what was asked for"),
    "huge": (gives(b'{"choices": "' + b"7" * (LARGEST + 100) + b'"}'), "more than 4 MiB"),
    "reset": (resets, "no answer"),
    "closed": (raw(b""), "no answer"),
    "not HTTP": (raw(b"SSH-2.0-OpenSSH_9.2\r\n"), "no answer"),
    "endless header": (raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000), "no answer (LineTooLong)"),
}


@pytest.mark.parametrize(("act", "trouble"), PASSING.values(), ids=PASSING)
def test_what_may_pass_is_tried_again(server, act, trouble):
    server.script = [act]
    outcome = ask(server.endpoint)
    assert (outcome.value, outcome.requests) == (7, 2)
    server.script = [act] * 3
    outcome = ask(server.endpoint)
    assert (outcome.value, outcome.requests) == (None, 3)
    assert trouble in outcome.trouble
    assert len(server.seen) == 5


@pytest.mark.parametrize("kind", ["text/html", "image/png", ""])
def test_what_the_content_is_called_does_not_matter(server, kind):
    server.script = [gives(reply("7"), Content_Type=kind)]
    assert ask(server.endpoint).requests == 1


def test_text_in_parts(server):
    server.script = [says([{"type": "text", "text": "1"}, {"type": "other"}, {"type": "text", "text": "2"}])]
    assert ask(server.endpoint).value == 12


def test_an_unreadable_reply_is_asked_for_with_another_seed_and_a_lost_one_with_the_same(server):
    server.script = [gives(b"", 500), says("many"), gives(b"", 500), says("few"), says("3")]
    assert ask(server.endpoint, retries=4).value == 3
    assert [body["seed"] for body in server.seen] == [42, 42, 43, 43, 44]


@pytest.mark.parametrize("when", ["silent", "headers", "body"])
def test_one_deadline_for_a_whole_answer(server, when):
    slow = reply("7")
    act = {
        "silent": hangs(server),
        "headers": drips(server, b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1000, 0.05),
        "body": drips(server, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(slow) + slow, 0.05),
    }[when]
    server.script = [act]
    start = time.monotonic()
    outcome = ask(server.endpoint, timeout=0.4, retries=0)
    assert 0.35 < time.monotonic() - start < 10
    assert (outcome.value, outcome.trouble) == (None, "no complete answer within 0.4 s")
    server.script = [act]
    assert ask(server.endpoint, timeout=0.4).value == 7


def test_a_slow_answer_in_time(server):
    content = reply("7")
    server.script = [drips(server, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content, 0.002)]
    assert ask(server.endpoint, retries=0).value == 7


def test_nobody_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    outcome = ask(f"http://127.0.0.1:{port}/v1")
    assert (outcome.value, outcome.requests, outcome.reached) == (None, 3, False)
    assert outcome.trouble == "no answer (ConnectionRefusedError)"


def test_no_such_host():
    outcome = ask("http://no-such-host.invalid/v1", retries=0)
    assert not outcome.reached
    assert outcome.trouble == "no answer (gaierror)"


def test_waits_double_differ_and_end(server):
    patient = chat(server.endpoint, backoff=1.0, longest_wait=5.0)
    waits = [patient._pause(attempt, 0.0, "a") for attempt in range(8)]
    for attempt, wait in enumerate(waits):
        assert min(0.5 * 2**attempt, 5) <= wait <= min(2**attempt, 5)
    assert waits[5:] == [5.0] * 3
    assert waits == [patient._pause(attempt, 0.0, "a") for attempt in range(8)]
    assert waits[:2] != [patient._pause(attempt, 0.0, "b") for attempt in range(2)]
    assert patient._pause(0, 3.0, "a") == 3.0
    assert patient._pause(0, 1e9, "a") == 5.0


def test_retry_after_is_honoured_up_to_a_bound(server):
    server.script = [gives(b"", 429, Retry_After="0.3")]
    start = time.monotonic()
    assert ask(server.endpoint).value == 7
    assert 0.3 <= time.monotonic() - start < 10
    server.script = [gives(b"", 503, Retry_After="86400"), gives(b"", 429, Retry_After="Fri, 01 Jan 2100 00:00:00 GMT")]
    start = time.monotonic()
    assert ask(server.endpoint, longest_wait=0.2).value == 7
    assert 0.4 <= time.monotonic() - start < 10


def test_stopped_questions_wait_no_longer(server):
    server.always = gives(b"", 503)
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    start = time.monotonic()
    outcome = chat(server.endpoint, backoff=30.0).ask(QUESTION, number, stop)
    assert time.monotonic() - start < 15
    assert (outcome.value, outcome.requests) == (None, 1)
    assert chat(server.endpoint).ask(QUESTION, number, stop).requests == 0


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (400, "takes images"),
        (401, "JUDGE_KEY"),
        (403, "JUDGE_KEY"),
        (404, "/v1"),
        (413, "takes images"),
        (422, "takes images"),
        (301, "redirects are not followed"),
        (307, "redirects are not followed"),
    ],
)
def test_what_will_not_pass_stops_at_once(server, monkeypatch, status, remedy):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    echo = json.dumps({"error": {"message": f"no \x1b[31m luck\nwith {KEY} " + "x" * 999}}).encode()
    server.always = gives(echo, status)
    with pytest.raises(InputError) as caught:
        ask(server.endpoint, key_variable="JUDGE_KEY")
    sentence = str(caught.value)
    assert f"status {status}" in sentence
    assert remedy in sentence
    assert KEY not in sentence
    assert sentence.isprintable()
    assert len(sentence) < 500
    assert ("luck with [key]" in sentence.replace("[31m ", "")) == (status not in (401, 403))
    assert len(server.seen) == 1
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_never_takes_the_key_elsewhere(server, monkeypatch, status):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with serving() as other:
        server.always = gives(b"", status, Location=f"{other.endpoint}/chat/completions")
        with pytest.raises(InputError, match="redirects are not followed"):
            ask(server.endpoint, key_variable="JUDGE_KEY")
        assert (len(server.seen), other.seen) == (1, [])


def test_a_401_without_a_key_asks_for_one(server):
    server.always = gives(b"", 401)
    with pytest.raises(InputError, match="name the environment variable with the key as key_variable"):
        ask(server.endpoint)


@pytest.mark.parametrize("value", ["", "  \n", "two words", "line\nbreak: injected", "schlüssel"])
def test_keys_that_cannot_be(server, monkeypatch, value):
    monkeypatch.setenv("JUDGE_KEY", value)
    with pytest.raises(InputError, match="in the environment variable JUDGE_KEY, got") as caught:
        ask(server.endpoint, key_variable="JUDGE_KEY")
    assert server.seen == []
    assert not value.strip() or value not in str(caught.value)


def test_a_variable_that_is_not_set(server, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(InputError, match="JUDGE_KEY, got nothing; export JUDGE_KEY"):
        ask(server.endpoint, key_variable="JUDGE_KEY")


@pytest.mark.parametrize("mistake", [KEY, "gsk_abcDEF123", "hf_secretSECRET", "MY KEY", "$JUDGE_KEY"])
def test_a_key_in_place_of_its_name_is_not_shown(mistake):
    with pytest.raises(InputError, match="expected the name of an environment variable") as caught:
        chat("http://localhost:1/v1", key_variable=mistake)
    assert mistake not in str(caught.value)


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "localhost:8000/v1",
        "ftp://localhost/v1",
        "file:///etc/passwd",
        "http://",
        "http:///v1",
        "http://host:port/v1",
        "http://host:99999/v1",
        "http://[::1/v1",
        "http://a b/v1",
        "http://host/v1\r\nX: y",
        "http://hôte/v1",
        f"http://user:{KEY}@host/v1",
        f"http://host/v1?key={KEY}",
        f"http://host/v1?a#{KEY}",
    ],
)
def test_endpoints_that_cannot_be(endpoint):
    with pytest.raises(InputError, match="expected an endpoint like http://localhost:8000/v1") as caught:
        chat(endpoint)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [{"timeout": 0.0}, {"timeout": float("nan")}, {"longest_wait": 0.0}, {"backoff": -1.0}, {"retries": -1}],
)
def test_numbers_that_cannot_be(wrong):
    with pytest.raises(InputError, match=r"expected .*, got "):
        chat("http://localhost:1/v1", **wrong)


def test_ipv6(server):
    if not socket.has_ipv6:
        pytest.skip("no IPv6")
    assert ask("http://[::1]:1/v1", retries=0).trouble.startswith("no answer (")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=judge -addext subjectAltName=IP:127.0.0.1"
    try:
        files = ["-keyout", folder / "key.pem", "-out", folder / "cert.pem"]
        subprocess.run([*command.split(), *files], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("openssl makes the certificate")
    return folder


def test_certificates_are_verified(certificate, monkeypatch):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with serving(context) as server:
        with pytest.raises(InputError, match="expected a trusted certificate") as caught:
            ask(server.endpoint, key_variable="JUDGE_KEY")
        assert KEY not in str(caught.value)
        assert server.seen == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
        assert ask(server.endpoint, key_variable="JUDGE_KEY").value == 7
        assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
        server.script = [drips(server, b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1000, 0.05)]
        assert ask(server.endpoint, timeout=0.5, retries=0).trouble == "no complete answer within 0.5 s"


def test_https_to_a_plain_server(server):
    outcome = ask(server.endpoint.replace("http", "https"), retries=0)
    assert not outcome.reached
    assert outcome.trouble == "no answer (SSLError)"


def test_a_handshake_that_never_ends():
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        endpoint = f"https://127.0.0.1:{deaf.getsockname()[1]}/v1"
        start = time.monotonic()
        assert ask(endpoint, timeout=0.3, retries=0).trouble == "no complete answer within 0.3 s"
        assert time.monotonic() - start < 10
