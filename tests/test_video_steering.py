"""Video steered by a vision-language judge over HTTP: Wan's real classes, a real server that looks at the pictures."""

import json
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
import torch

from dragontune.cli import run
from dragontune.generators.pretrained import load
from dragontune.media.video import Video
from dragontune.media.video import read as read_video
from dragontune.rewards.vision_judge import VisionJudge
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from dragontune.steering.free2guide import Free2Guide
from dragontune.steering.svdd import Svdd
from judges import gives, picture, reply, send, serving
from tiny_wan import save_wan

pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype")
NOISY = Sampler(steps=4, guidance=2.0, order=1, eta=1.0)
PROMPTS = ["a reel in G major", "a jig for flute"]


def likes_red(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    """From 1 to 9, by how red the picture is, more sharply than people would."""
    red, green, blue = picture(body).reshape(-1, 3).mean(0) / 255
    verdict = round(5 + 400 * float(red - (green + blue) / 2 - 0.12))
    send(handler, reply(f"There are 4 frames. They are somewhat red. {min(9, max(1, verdict))}"))


def redness(video: object) -> torch.Tensor:
    assert isinstance(video, Video)
    red, green, blue = video.frames.mean((1, 3, 4)).unbind(1)
    return red - (green + blue) / 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    return save_wan(tmp_path_factory.mktemp("models") / "wan", heard=True)


def test_a_judge_chooses_videos(folder):
    generator = load(str(folder), device="cpu")
    prompts = PROMPTS * 6
    plain = NOISY.sample(generator, prompts, Key(0))
    with serving() as server:
        server.always = likes_red
        judge = VisionJudge(server.endpoint, "any")
        for steering in (Free2Guide(judge, candidates=6, guided_steps=3), Svdd(judge, candidates=4)):
            steered = NOISY.sample(generator, prompts, Key(0), steer=steering)
            assert redness(steered.media).mean() > redness(plain.media).mean()
        assert judge.tally.failures == 0
        # equal pictures are asked about once
        assert judge.tally.requests <= Free2Guide(judge, 6, 3).budget(NOISY, 12, Key(0)).encodes * 2 + 12 * 4 * 3


def test_videos_are_steered_from_the_command_line(folder, tmp_path, capfd):
    steer = tmp_path / "steer.yaml"
    with serving() as server:
        server.always = likes_red
        reward = {"class_path": "VisionJudge", "init_args": {"endpoint": server.endpoint, "model": "any"}}
        method = {"class_path": "Free2Guide", "init_args": {"reward": reward, "candidates": 3, "guided_steps": 2}}
        sampler = {"steps": 3, "guidance": 2.0, "order": 1, "eta": 1.0}
        steer.write_text(json.dumps({"steering": method, "sampler": sampler}))
        words = ["generate", "--model", str(folder), "--prompt", PROMPTS[0], "--steer", str(steer)]
        assert run([*words, "--out", str(tmp_path / "clips")]) == 0
        assert "reward calls" in capfd.readouterr().out
        (clip,) = (tmp_path / "clips").glob("*.webp")
        assert read_video(clip).frames.shape[1] == 5
        server.always = gives(b"{}", status=401)
        assert run([*words, "--out", str(tmp_path / "refused")]) == 2
    assert run([*words, "--out", str(tmp_path / "gone")]) == 2
    said = capfd.readouterr().err.strip().splitlines()
    assert len([line for line in said if line.startswith("dragontune: expected")]) == 2
    assert not any("Traceback" in line for line in said)
