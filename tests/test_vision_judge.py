"""A vision-language model as a reward, against a real local HTTP server."""

import json
import logging
import socket
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

from dragontune.data import Samples
from dragontune.errors import InputError, NonFiniteError
from dragontune.media.audio import Audio
from dragontune.media.video import Video
from dragontune.rewards.base import Reward
from dragontune.rewards.combine import InstanceSum
from dragontune.rewards.vision_judge import Tally, VisionJudge, verdict
from dragontune.testing import check_reward
from judges import gives, hangs, picture, raw, reply, says, send, serving

KEY = "sk-test-93ab-do-not-show"


@pytest.fixture
def server():
    with serving() as server:
        yield server


def judge(endpoint, **more):
    return VisionJudge(endpoint, "eye", **{"retries": 1, "backoff": 0.0, "timeout": 5.0} | more)


def samples(count=6, prompts=None):
    """Grey images, each its own grey, which is its number."""
    prompts = prompts or tuple(f"number {i}" for i in range(count))
    return Samples(prompts, torch.zeros(count, 2), greys(count))


def greys(count):
    return (torch.arange(count).view(count, 1, 1, 1) / 255).expand(count, 3, 8, 8).clone()


def number(body):
    """Which of `samples` a request shows."""
    return int(picture(body)[0, 0, 0])


def by_number(handler, body):
    send(handler, reply(f"It is grey {number(body)}.\n\n**Score: {1 + number(body) % 9}**"))


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("7", 7),
        ("Score: 7", 7),
        ("**8**", 8),
        ("_8_", 8),
        ("7/9", 7),
        ("7 / 9", 7),
        ("**7**/9", 7),
        ("9/9", 9),
        ("7 out of 9.", 7),
        ("Final score (1-9): 4", 4),
        ("4 (on a scale from 1 to 9)", 4),
        ("A 1–9 scale: 4.", 4),
        ("I give it a score of 9", 9),
        ("There are 3 dogs, 2 cats; frames 1 and 2 fit.\nScore: 5", 5),
        ("Frame 1: 8, frame 2: 3. Overall 6", 6),
        ("7.0", 7),
        ("07", 7),
        ("+7", 7),
        ("\\boxed{7}", 7),
        ("- 7", 7),
        ("7️⃣", 7),
        ("<think>perhaps 3</think>\n5\n", 5),
        ("At 4K and 512x512, 6, the 2nd try", 6),
        ("1", 1),
        ("9", 9),
        ("I'd say 10", None),
        ("4 at first, but 10 in the end", None),
        ("0", None),
        ("-7", None),
        ("−7", None),
        ("7.5", None),
        ("7,5", None),
        ("7/10", None),
        ("70%", None),
        ("7 out of 10", None),
        ("seven", None),
        ("seven out of 9", None),
        ("", None),
        ("1-9", None),
        ("\u0667", None),
        ("9" * 5000, None),
        ("It is beautiful.", None),
    ],
)
def test_replies(text, score):
    assert verdict(text, 1, 9) == score


def test_replies_on_another_scale():
    assert [verdict(text, 0, 100) for text in ("70/100", "0", "100", "101", "7 out of 9")] == [70, 0, 100, None, 9]


@pytest.mark.parametrize("text", [" " * 200_000, "7 " * 100_000, "1" + " " * 200_000 + "to 8", "7_" * 100_000])
def test_long_replies_are_read_quickly(text):
    start = time.monotonic()
    verdict(text, 1, 9)
    assert time.monotonic() - start < 2


def test_scores_in_order_whatever_order_they_come_in(server):
    def late(handler, body):
        time.sleep(0.03 * (5 - number(body) % 6))
        by_number(handler, body)

    server.always = late
    reward = judge(server.endpoint, workers=6)
    assert reward(samples()).tolist() == [1, 2, 3, 4, 5, 6]
    assert reward(samples()).dtype == torch.float64
    assert len(server.seen) == 6


def test_as_many_questions_at_a_time_as_there_are_workers(server):
    now, most, lock = [0], [0], threading.Lock()

    def counted(handler, body):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.05)
        with lock:
            now[0] -= 1
        by_number(handler, body)

    server.always = counted
    judge(server.endpoint, workers=3)(samples(9))
    assert most == [3]


def test_contract(server):
    server.always = by_number
    reward = judge(server.endpoint)
    assert reward.needs_prompts
    assert reward.needs_media
    check_reward(reward, samples(4))
    check_reward(InstanceSum({"eye": reward}), samples(4))
    clips = greys(4)[:, None].expand(4, 5, 3, 8, 8)
    check_reward(reward, Samples(("a", "b", "c", "d"), torch.zeros(4, 2), Video(clips.clone(), 8.0)))


def test_what_is_asked(server):
    server.always = says("4")
    assert judge(server.endpoint, least=2, most=5)(samples(1, ("a {fox} in the snow",))).tolist() == [4]
    body = server.seen[0]
    assert (body["model"], body["temperature"], body["seed"]) == ("eye", 0.3, 42)
    system, user = body["messages"]
    assert (system["role"], user["role"]) == ("system", "user")
    assert "First reason" in system["content"]
    assert "from 2 (the worst) to 5" in system["content"]
    assert "top left" not in system["content"]
    assert "a {fox} in the snow" in user["content"][0]["text"]
    assert picture(body).shape == (8, 8, 3)
    assert set(body) == {"model", "temperature", "seed", "messages"}


def test_what_is_asked_of_a_video(server):
    grey = torch.arange(16).view(1, 16, 1, 1, 1).expand(2, 16, 3, 32, 32) / 255
    judge(server.endpoint, temperature=None, seed=None)(Samples(("a", "b"), torch.zeros(2, 2), Video(grey, 8.0)))
    body = server.seen[0]
    assert set(body) == {"model", "messages"}
    assert "first is top left, the second top right, the third bottom left" in body["messages"][0]["content"]
    shown = picture(body)
    assert shown.shape == (512, 512, 3)
    assert [int(shown[y, x, 0]) for y in (100, 400) for x in (100, 400)] == [0, 5, 10, 15]


def test_a_question_without_the_prompt(server):
    reward = judge(server.endpoint, question="How sharp is it?")
    assert not reward.needs_prompts
    grey = greys(1).expand(3, 3, 8, 8)
    assert reward(Samples(("a", "b", "c"), torch.zeros(3, 2), grey)).tolist() == [7, 7, 7]
    assert len(server.seen) == 1
    assert server.seen[0]["messages"][1]["content"][0]["text"] == "How sharp is it?"


def test_equal_items_are_asked_about_once(server):
    server.always = by_number
    twice = samples(3)[torch.tensor([0, 1, 0, 2, 2])]
    reward = judge(server.endpoint)
    assert reward(twice).tolist() == [1, 2, 1, 3, 3]
    assert len(server.seen) == 3
    assert reward.tally == Tally(requests=3, hits=2, reached=True)
    assert reward(twice).tolist() == [1, 2, 1, 3, 3]
    assert len(server.seen) == 3
    assert reward.tally.hits == 7


def test_pictures_of_one_prompt_are_told_apart(server):
    server.always = by_number
    reward = judge(server.endpoint)
    assert reward(samples(3, ("same",) * 3)).tolist() == [1, 2, 3]
    reward(Samples(("same",), torch.zeros(1, 2), greys(1).reshape(1, 3, 4, 16)))
    assert len(server.seen) == 4


@pytest.mark.parametrize(
    "other", [{"model": "b"}, {"question": "{prompt}?"}, {"temperature": 0.0}, {"seed": 1}, {"most": 8}]
)
def test_what_a_verdict_depends_on(server, tmp_path, other):
    first = VisionJudge(server.endpoint, "a", cache=str(tmp_path))
    first(samples(2))
    assert len(server.seen) == 2
    VisionJudge(server.endpoint, **{"model": "a", "cache": str(tmp_path)} | other)(samples(2))
    assert len(server.seen) == 4
    VisionJudge(server.endpoint, "a", cache=str(tmp_path), workers=1, timeout=9.0)(samples(2))
    assert len(server.seen) == 4
    first(samples(2, ("x", "number 1")))
    assert len(server.seen) == 5


def test_verdicts_outlive_the_process_in_a_folder(server, tmp_path):
    server.always = by_number
    folder = tmp_path / "new" / "verdicts"
    judge(server.endpoint, cache=str(folder))(samples())
    files = sorted(folder.iterdir())
    assert len(files) == 6
    assert all(file.suffix == ".json" and len(file.stem) == 64 for file in files)
    again = judge(server.endpoint, cache=str(folder))
    assert again(samples()).tolist() == [1, 2, 3, 4, 5, 6]
    assert again.tally == Tally(hits=6)
    for i, torn in enumerate([b"", b'{"score":', b'{"score": 12}', b'{"score": true}', b"[" * 99_999, b"\xff"]):
        files[i].write_bytes(torn)
    assert judge(server.endpoint, cache=str(folder))(samples()).tolist() == [1, 2, 3, 4, 5, 6]
    assert len(server.seen) == 12
    assert [set(json.loads(file.read_bytes())) for file in folder.iterdir()] == [{"score"}] * 6


def test_a_cache_that_is_no_folder(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="expected a folder to keep verdicts in"):
        judge(server.endpoint, cache=str(tmp_path / "file"))(samples(1))


def test_a_single_failure_is_neutral_counted_named_and_not_remembered(server, tmp_path):
    def act(handler, body):
        send(handler, b"", 500) if number(body) in (1, 4) else by_number(handler, body)

    server.always = act
    reward = judge(server.endpoint, cache=str(tmp_path), workers=1)
    with pytest.warns(
        UserWarning, match=r"^2 of 6 items got no verdict of eye \(status 500\) and the neutral score 5 "
    ) as warned:
        assert reward(samples()).tolist() == [1, 5, 3, 4, 5, 6]
    assert len(warned) == 1
    assert warned[0].filename.endswith("dragontune/rewards/vision_judge.py")  # the command line shows our own only
    assert reward.tally == Tally(requests=8, retries=2, failures=2, hits=0, reached=True)
    assert len(list(tmp_path.iterdir())) == 4
    server.always = by_number
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reward(samples()).tolist() == [1, 2, 3, 4, 5, 6]
    assert reward.tally == Tally(requests=10, retries=2, failures=2, hits=4, reached=True)


def test_a_reply_that_says_nothing_is_asked_for_again_and_then_neutral(server):
    server.script = [says("hard to say"), says("I'd say 10"), says("no idea"), says("6")]
    reward = judge(server.endpoint, workers=1)
    with pytest.warns(UserWarning, match="1 of 2 items .*a reply without what was asked for"):
        assert reward(samples(2)).tolist() == [5, 6]
    assert [body["seed"] for body in server.seen] == [42, 43, 42, 43]


@pytest.mark.parametrize(("scale", "neutral"), [({}, 5), ({"least": 0, "most": 9}, 4.5), ({"neutral": 0.0}, 0)])
def test_the_neutral_score(server, scale, neutral):
    server.always = says("nothing")
    with pytest.warns(UserWarning, match=f"the neutral score {neutral:g} "):
        assert judge(server.endpoint, **scale)(samples(1)).tolist() == [neutral]


def test_an_endpoint_that_is_not_there_stops_the_run():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(InputError, match=r"got no answer \(ConnectionRefusedError\) in 2 attempts; start the server"):
        judge(endpoint)(samples())


def test_an_endpoint_that_never_answers_stops_the_run(server):
    server.always = hangs(server)
    start = time.monotonic()
    with pytest.raises(InputError, match=r"no complete answer within 0\.2 s"):
        judge(server.endpoint, timeout=0.2)(samples(20))
    assert time.monotonic() - start < 15
    assert len(server.seen) < 20


def test_an_endpoint_that_comes_up_late_is_waited_for(server):
    server.script = [raw(b"")] * 3
    assert judge(server.endpoint, retries=3)(samples(1)).tolist() == [7]


def test_an_endpoint_that_goes_away_is_neutral_until_there_are_too_many(server):
    reward = judge(server.endpoint, max_failures=3, workers=1)
    assert reward(samples(1)).tolist() == [7]
    server.always = raw(b"")
    with pytest.warns(UserWarning, match="3 of 3 items"):
        assert reward(samples(4)[torch.tensor([1, 2, 3])]).tolist() == [5, 5, 5]
    server.script = [says("7")]
    assert reward(samples(5)[torch.tensor([4])]).tolist() == [7]
    with pytest.raises(InputError, match="got none for 4 questions in a row"):
        reward(samples(20))
    assert len(server.seen) == 1 + 6 + 1 + 8


def test_what_asking_again_would_not_help_stops_the_run(server):
    server.script = [says("7")]
    server.always = gives(b'{"error": {"message": "model eye has no eyes"}}', 400)
    with pytest.raises(InputError, match=r"status 400 \(model eye has no eyes\); check that the model takes images"):
        judge(server.endpoint, workers=1)(samples(30))
    assert len(server.seen) < 5


@pytest.mark.parametrize("act", ["good", "401", "400", "redirect", "html", "neutral", "refused", "hang"])
def test_the_key_is_shown_nowhere(server, monkeypatch, tmp_path, caplog, capsys, act):
    """The server repeats the key wherever it can."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("JUDGE_KEY", KEY)
    echo = json.dumps({"error": {"message": f"bad key {KEY}"}}).encode()
    server.always = {
        "good": says(f"{KEY}\n7"),
        "401": gives(echo, 401),
        "400": gives(echo, 400),
        "redirect": gives(echo, 302, Location=f"http://localhost/{KEY}"),
        "html": gives(KEY.encode(), Content_Type="text/html"),
        "neutral": says(KEY, finish_reason="length"),
        "refused": raw(KEY.encode() + b"\r\n"),
        "hang": hangs(server),
    }[act]
    shown = []
    reward = judge(server.endpoint, key_variable="JUDGE_KEY", cache=str(tmp_path), timeout=0.3)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            shown.append(repr(reward(samples(2))))
        except InputError as error:
            chain = error
            while chain is not None:
                shown += [str(chain), repr(chain)]
                chain = chain.__cause__ or chain.__context__
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    shown += [str(entry.message) for entry in warned]
    shown += [repr(reward), str(vars(reward)), repr(reward.chat), repr(reward.tally), caplog.text, *capsys.readouterr()]
    shown += [file.name + file.read_text() for file in tmp_path.iterdir()]
    assert len(shown) >= 9
    assert not [text for text in shown if KEY in text]


def test_nothing_is_asked_of_an_empty_batch(server):
    assert judge(server.endpoint)(samples(0, ())).shape == (0,)
    assert server.seen == []


@pytest.mark.parametrize(
    ("media", "error", "match"),
    [
        (torch.zeros(2, 2), InputError, r"got shape \(2, 2\)"),
        (torch.zeros(2, 1, 8, 8), InputError, r"got shape \(2, 1, 8, 8\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), InputError, "to judge"),
        (torch.full((2, 3, 8, 8), 255.0), InputError, r"expected pixels in \[0, 1\], got values from 255 to 255"),
        (torch.full((2, 3, 8, 8), -1.0), InputError, r"expected pixels in \[0, 1\]"),
        (torch.full((2, 3, 8, 8), torch.nan), NonFiniteError, "item 1 of the 2"),
        (Video(torch.full((2, 4, 3, 8, 8), torch.inf), 8.0), NonFiniteError, "item 1 of the 2"),
        (Audio(torch.zeros(2, 1, 8), 8), InputError, "got Audio"),
        (None, ValueError, "not decoded"),
    ],
)
def test_media_that_cannot_be_judged(server, media, error, match):
    with pytest.raises(error, match=match):
        judge(server.endpoint)(Samples(("a", "b"), torch.zeros(2, 2), media))
    assert server.seen == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"endpoint": "nowhere"},
        {"model": ""},
        {"key_variable": KEY},
        {"least": 5, "most": 5},
        {"least": -1},
        {"neutral": np.nan},
        {"temperature": -0.1},
        {"workers": 0},
        {"retries": -1},
        {"max_failures": -1},
        {"timeout": 0.0},
    ],
)
def test_fields_that_cannot_be(wrong):
    with pytest.raises(InputError, match=r"expected .*, got ") as caught:
        VisionJudge(**{"endpoint": "http://localhost:1/v1", "model": "eye"} | wrong)
    assert KEY not in str(caught.value)


def test_a_recipe_makes_one_without_the_network():
    parser = ArgumentParser()
    parser.add_subclass_arguments(Reward, "reward")
    fields = {"endpoint": "http://no-such-host.invalid/v1", "model": "eye", "key_variable": "JUDGE_KEY", "neutral": 3}
    recipe = {"class_path": "dragontune.rewards.vision_judge.VisionJudge", "init_args": fields}
    made = parser.instantiate_classes(parser.parse_object({"reward": recipe}))["reward"]
    assert made == VisionJudge("http://no-such-host.invalid/v1", "eye", key_variable="JUDGE_KEY", neutral=3.0)
