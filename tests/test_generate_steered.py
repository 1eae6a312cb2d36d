"""`dragontune generate --steer`: the budget, the clips, going on after an interruption, sets, and wrong input."""

import csv
import json
import re
import shutil

import pytest
import soundfile
import torch
import yaml

from dragontune import cli
from dragontune.commands import clips
from dragontune.commands.steer import RANDOM, Steer
from dragontune.media import video
from dragontune.rewards.alignment import Alignment
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from dragontune.steering.best_of_n import BestOfN
from dragontune.steering.gradient import GradientGuidance
from dragontune.steering.svdd import Svdd
from dragontune.testing import Toy, ToyEncoder
from fakes import Pitch
from small_runs import make_workplace
from tiny_wan import save_wan

ALIGNMENT = {
    "class_path": "Alignment",
    "init_args": {"encoder": {"class_path": "TinyClap", "init_args": {"model": "clap"}}},
}
VENDI = {"class_path": "Vendi", "init_args": {"encoder": {"class_path": "TinyClap", "init_args": {"model": "clap"}}}}
SAMPLER = {"steps": 3, "guidance": 2.0, "order": 1, "eta": 1.0}
OWN = """\
from dataclasses import dataclass
from dragontune import InstanceReward


def level(media, prompts):
    return media.loudness()


@dataclass(frozen=True)
class Tall(InstanceReward):
    def encode(self, samples):
        return samples.media.loudness()

    def score(self, features):
        return features[:, None]
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = make_workplace(tmp_path_factory.mktemp("workplace"))
    (folder / "own.py").write_text(OWN)
    return folder


@pytest.fixture
def workplace(built, tmp_path, monkeypatch):
    shutil.copytree(built, tmp_path / "workplace")
    monkeypatch.chdir(tmp_path / "workplace")
    return tmp_path / "workplace"


def steer(kind="Svdd", reward=ALIGNMENT, sampler=SAMPLER, batch=None, **fields):
    """Write steer.yaml."""
    said = {"steering": {"class_path": kind, "init_args": {"reward": reward, **fields}}, "sampler": sampler}
    said |= {"batch": batch} if batch else {}
    with open("steer.yaml", "w") as file:
        yaml.safe_dump({name: value for name, value in said.items() if value is not None}, file)
    return "steer.yaml"


def generate(*arguments, out="clips", code=0):
    asked = [] if {"--prompt", "--prompts"} & set(arguments) else ["--prompts", "prompts.txt"]
    assert cli.run(["generate", "--model", "music", *asked, "--out", out, *arguments]) == code


def made(folder):
    """Every file's bytes by its path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_budget_comes_first_and_is_right(workplace, capsys, monkeypatch):
    generate("--steer", steer(candidates=2), "--count", "2")
    said = capsys.readouterr().out.splitlines()
    one = Svdd(Pitch(), candidates=2).budget(Sampler(3, 2.0, 1.0, 1), 1, Key(0).fold("generate")).calls
    assert one == 2 * (1 + 2 * 2)
    assert said[0] == "Steering 8 clips with Svdd towards Alignment: 1.67 times a plain generation."
    assert (
        said[1] == f"It takes {8 * one} denoiser calls; {8 * (2 * 2 + 1)} reward calls and {8 * (2 * 2 + 1)} decodes."
    )
    assert "Mean Alignment: " in said[2]


def test_what_is_spent_is_what_was_said(workplace, capsys, monkeypatch):
    """Counted at the network, the decoder and the reward, not in the books."""
    from dragontune.generators.tiny_music import TinyMusic

    spent = {"calls": 0, "decodes": 0, "encodes": 0}

    def counted(kind, name, what):
        before = getattr(kind, name)

        def method(self, first, *others):
            spent[what] += len(first)
            return before(self, first, *others)

        monkeypatch.setattr(kind, name, method)

    counted(TinyMusic, "denoise", "calls")
    counted(TinyMusic, "decode", "decodes")
    counted(Alignment, "encode", "encodes")
    for kind, fields in (("Svdd", {"candidates": 3}), ("BestOfN", {"n": 2}), ("DSearch", {"beams": 2, "children": 2})):
        generate("--steer", steer(kind, **fields), "--prompt", "a reel", out=kind)
        numbers = [int(text.replace(",", "")) for text in re.findall(r"[\d,]+(?= (?:d|r)e)", capsys.readouterr().out)]
        assert numbers == [spent["calls"], spent["encodes"], spent["decodes"]]
        spent.update(dict.fromkeys(spent, 0))


def test_one_candidate_is_the_plain_clip_bit_for_bit(workplace):
    sampler = {"steps": 3, "guidance": 2.0}
    generate("--steps", "3", out="plain")
    for kind, fields in (("Svdd", {"candidates": 1}), ("BestOfN", {"n": 1})):
        generate("--steer", steer(kind, sampler=sampler, **fields), out=kind)
        plain, steered = made(workplace / "plain"), made(workplace / kind)
        names = [name for name in plain if name.endswith((".flac", ".csv"))]
        assert len(names) == 5
        assert all(plain[name] == steered[name] for name in names)
    generate("--steer", steer("BestOfN", sampler=sampler, n=2), out="two")
    assert any(plain[name] != made(workplace / "two")[name] for name in names)


def test_scores_are_the_clips_own_and_the_score_command_agrees(workplace, capsys):
    generate("--steer", steer(candidates=2))
    rows = table(workplace / "clips/scores.csv")
    assert [row["file"] for row in rows] == [row["file"] for row in table(workplace / "clips/prompts.csv")]
    capsys.readouterr()
    assert cli.run(["score", "clips", "--reward", "reward.yaml", "--json"]) == 0
    found = {row["file"]: row["score"] for row in json.loads(capsys.readouterr().out)["files"]}
    assert {row["file"]: float(row["score"]) for row in rows} == pytest.approx(found, abs=2e-2)  # of 16-bit files


def test_more_candidates_score_higher(workplace):
    def mean(out):
        return sum(float(row["score"]) for row in table(workplace / out / "scores.csv"))

    for n in (1, 6):
        generate("--steer", steer("BestOfN", n=n), "--count", "2", out=f"of-{n}")
    assert mean("of-6") > mean("of-1")


def test_resuming_gives_the_same_clips(workplace, capsys):
    arguments = ["--steer", steer(candidates=2), "--count", "2"]
    generate(*arguments)
    whole = made(workplace / "clips")
    (workplace / "clips/0001-a-jig-for-flute-01.flac").unlink()
    lines = (workplace / "clips/scores.csv").read_text().splitlines()
    (workplace / "clips/scores.csv").write_text("\n".join(lines[:-1]) + "\n")
    capsys.readouterr()
    generate(*arguments)
    assert "2 of 8 clips, which are not there yet" in capsys.readouterr().out
    again = made(workplace / "clips")
    assert sorted(whole.pop("scores.csv").splitlines()) == sorted(again.pop("scores.csv").splitlines())
    assert again == whole
    generate(*arguments)
    assert "no denoiser call is left" in capsys.readouterr().out


def test_count_makes_several_of_each_prompt(workplace):
    generate("--steps", "3", out="one")
    generate("--steps", "3", "--count", "3", out="three")
    rows = table(workplace / "three/prompts.csv")
    assert [row["file"] for row in rows[:4]] == [
        *(f"0000-a-reel-in-g-major-0{copy}.flac" for copy in (1, 2, 3)),
        "0001-a-jig-for-flute-01.flac",
    ]
    assert [row["prompt"] for row in rows[2:4]] == ["a reel in G major", "a jig for flute"]
    one, three = made(workplace / "one"), made(workplace / "three")
    assert one["0001-a-jig-for-flute.flac"] == three["0001-a-jig-for-flute-01.flac"]
    assert len({three[row["file"]] for row in rows}) == 12
    assert "count" not in json.loads(one["generation.json"])
    assert json.loads(three["generation.json"])["count"] == 3


def test_the_request_says_all_that_decides(workplace, capsys):
    generate("--steer", steer(candidates=2, micro_batch=5), "--prompt", "a reel")
    stored = json.loads((workplace / "clips/generation.json").read_text())
    assert stored["sampler"] == {**SAMPLER, "plus": 0.6, "plus_steps": []}
    assert stored["steering"]["init_args"]["candidates"] == 2
    assert stored["steering"]["init_args"]["reward"]["init_args"]["encoder"]["init_args"] == {"model": "clap"}
    generate("--steer", steer(candidates=2, micro_batch=3), "--prompt", "a reel")  # memory only
    generate("--steer", steer(candidates=3), "--prompt", "a reel", code=2)
    assert "another candidates" in capsys.readouterr().err


def test_steps_and_guidance_go_before_the_file(workplace):
    generate("--steer", steer(candidates=2), "--steps", "2", "--guidance", "1", "--prompt", "a reel")
    stored = json.loads((workplace / "clips/generation.json").read_text())["sampler"]
    assert (stored["steps"], stored["guidance"], stored["eta"]) == (2, 1.0, 1.0)


def test_without_a_sampler_there_is_one_that_fits():
    plain = Sampler(steps=7)
    for steering in (BestOfN(Pitch()), GradientGuidance(Alignment(ToyEncoder()), alpha=1.0)):
        assert Steer(steering).walked(plain) == plain
    assert Steer(Svdd(Pitch())).walked(plain) == RANDOM == Sampler(steps=40, guidance=2.0, order=1, eta=1.0)
    assert Steer(Svdd(Pitch()), Sampler(steps=5, eta=1, order=1)).walked(plain).steps == 5


def test_an_adapter_can_be_steered_too(workplace):
    assert cli.run(["tune", "recipe.yaml", "--loop.rounds", "1", "--evaluation", "null"]) == 0
    arguments = ["--prompt", "a reel", "--adapter", "runs/recipe"]
    assert cli.run(["generate", *arguments, "--out", "steered", "--steer", steer("BestOfN", sampler=None, n=2)]) == 0
    stored = json.loads((workplace / "steered/generation.json").read_text())
    assert (stored["model"], stored["sampler"]["steps"], stored["sampler"]["eta"]) == ("music", 3, 0.0)


def test_functions_steer(workplace):
    generate("--steer", steer("BestOfN", "own.py:level", n=4), out="loud")
    generate("--steer", steer("BestOfN", "own.py:level", n=1), out="plain")
    loud, plain = (
        [torch.from_numpy(soundfile.read(path)[0]).square().mean() for path in sorted((workplace / out).glob("*.flac"))]
        for out in ("loud", "plain")
    )
    assert all(one >= other for one, other in zip(loud, plain, strict=True))
    assert sum(loud) > sum(plain)


def test_short_names_and_rewards_inside_rewards(workplace):
    inner = {"words": ALIGNMENT, "loud": "own.py:level"}
    reward = {"class_path": "Ensemble", "init_args": {"rewards": inner, "combine": "consensus"}}
    generate("--steer", steer("Free2Guide", reward, candidates=2, guided_steps=2), "--prompt", "a reel")
    stored = json.loads((workplace / "clips/generation.json").read_text())["steering"]
    assert stored["init_args"]["reward"]["init_args"]["rewards"]["loud"]["init_args"]["function"] == "own.py:level"


def test_a_set_is_made_batch_by_batch(workplace, capsys):
    generate("--steer", steer(reward=VENDI, candidates=2, batch=3), "--count", "2")
    said = capsys.readouterr().out
    rows = table(workplace / "clips/scores.csv")
    assert [int(row["clips"]) for row in rows] == [2, 5, 8]
    assert f"Vendi of all 8: {float(rows[-1]['score']):.6g}" in said
    assert "8 clips with Svdd towards Vendi" in said
    (workplace / "vendi.yaml").write_text(yaml.safe_dump(VENDI))
    assert cli.run(["score", "clips", "--reward", "vendi.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["score"] == pytest.approx(float(rows[-1]["score"]), rel=2e-2)


def test_what_was_made_decides_what_follows(workplace):
    """The second batch of a set is not what it would be as a first."""
    generate("--steer", steer(reward=VENDI, candidates=4, batch=2))
    (workplace / "late.txt").write_text("a reel for violin\na jig for organ\n")
    alone = ["--prompts", "late.txt", "--count", "1"]
    generate("--steer", steer(reward=VENDI, candidates=4, batch=2), *alone, out="alone")
    assert len(list((workplace / "clips/.batches").iterdir())) == 2
    whole, part = made(workplace / "clips"), made(workplace / "alone")
    assert whole["0002-a-reel-for-violin.flac"] != part["0000-a-reel-for-violin.flac"]


@pytest.mark.parametrize("after", [1, 2])
def test_a_set_that_was_interrupted_ends_as_one_that_was_not(workplace, capsys, monkeypatch, after):
    arguments = ["--steer", steer(reward=VENDI, candidates=2, batch=3), "--count", "2"]
    generate(*arguments, out="whole")
    unpack, calls = clips.Clips._unpack, []

    def interrupted(self, *others):
        calls.append(len(calls))
        if len(calls) > after:
            raise KeyboardInterrupt
        return unpack(self, *others)

    monkeypatch.setattr(clips.Clips, "_unpack", interrupted)
    generate(*arguments, code=75)
    monkeypatch.undo()
    monkeypatch.chdir(workplace)
    removed = sorted((workplace / "clips").glob("*.flac"))[0]
    removed.unlink()
    capsys.readouterr()
    generate(*arguments)
    assert f"{3 * (2 - after)} of 8 clips" in capsys.readouterr().out or after == 2
    assert made(workplace / "clips") == made(workplace / "whole")


def test_a_torn_batch_is_made_again(workplace):
    arguments = ["--steer", steer(reward=VENDI, candidates=2, batch=4)]
    generate(*arguments)
    whole = made(workplace / "clips")
    (workplace / "clips/.batches/0000.safetensors").write_bytes(b"torn")
    generate(*arguments)
    assert made(workplace / "clips") == whole


def test_stored_batches_of_another_request_are_not_used(workplace):
    generate("--steer", steer(reward=VENDI, candidates=2))
    whole = made(workplace / "clips")
    for path in [*(workplace / "clips").glob("*.flac"), *(workplace / "clips").glob("*.csv")]:
        path.unlink()
    generate("--steer", steer(reward=VENDI, candidates=2), "--seed", "5")
    again = made(workplace / "clips")
    assert all(again[name] != whole[name] for name in whole if name.endswith(".flac"))


@pytest.mark.parametrize(
    ("written", "arguments", "words"),
    [
        (dict(sampler={"steps": 3}), [], ["draw at random", "Svdd", "eta 0", "BestOfN"]),
        (dict(sampler={"steps": 1, "eta": 1.0, "order": 1}), [], ["single step"]),
        (dict(sampler={"steps": 3, "eta": 1.0}), [], ["second-order", "eta 1.0", "order 1"]),
        (dict(candidates=0), [], ["candidates of 1 or more", "Svdd", "0"]),
        (dict(kind="BestOfN", n=0), [], ["n of 1 or more", "BestOfN"]),
        (dict(kind="Smc", alpha=0), [], ["alpha", "Smc"]),
        (dict(candidate=4), [], ["candidate", "did you mean candidates?"]),
        (dict(kind="Svd"), [], ["Svd", "did you mean Svdd?"]),
        (dict(kind="Alignment"), [], ["another kind of class", "steering", "Alignment"]),
        (dict(kind="DSearch", reward=VENDI), [], ["an InstanceReward for DSearch", "steering.reward", "Vendi"]),
        (dict(reward="own.py:Tall", candidates=2), ["--prompt", "x"], ["one score", "Tall", "shape (2, 1)"]),
        (dict(reward="own.py:Tall", candidates=1), ["--prompt", "x"], ["one score", "Tall", "shape (1, 1)"]),
        (dict(reward="own.py:gone"), [], ["own.py:gone", "level"]),
        (dict(reward=VENDI), ["--prompt", "x"], ["2 items", "Vendi", "1"]),
        (dict(reward=VENDI, batch=1), [], ["2 items", "Vendi", "batch"]),
        (dict(batch=-2), [], ["batch", "-2"]),
        (dict(micro_batch=0), [], ["micro_batch", "0"]),
        (dict(kind="GradientGuidance", reward="own.py:level", alpha=1.0), [], ["DifferentiableReward", "Function"]),
        (dict(), ["--count", "0"], ["--count", "0"]),
        (dict(), ["--steer", "gone.yaml"], ["gone.yaml", "not there"]),
        (dict(), ["--steer", "prompts.txt"], ["prompts.txt", "fields"]),
        (dict(), ["--steer", "reward.yaml"], ["reward.yaml"]),
        (dict(), ["--steps", "1"], ["single step"]),
    ],
)  # fmt: skip
def test_wrong_input_is_one_sentence(workplace, capsys, written, arguments, words):
    generate("--steer", steer(**written), *arguments, code=2)
    said = capsys.readouterr().err.strip().splitlines()
    told = [line for line in said if line.startswith("dragontune: ")]
    assert len(told) == 1, said
    for word in words:
        assert word in told[0]
    assert not list(workplace.glob("clips/*.flac"))


def test_nothing_is_loaded_before_the_input_is_known_to_be_right(workplace, capsys, monkeypatch):
    def load(*arguments, **named):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("dragontune.generators.pretrained.load", load)
    generate("--steer", steer(sampler={"steps": 3}), code=2)
    generate("--steer", steer(candidates=0), code=2)
    generate("--steer", steer(reward=VENDI, batch=1), code=2)
    assert not (workplace / "clips").exists()


def test_videos_are_steered_and_written(workplace, capsys):
    save_wan(workplace / "wan")
    (workplace / "light.py").write_text("def light(media, prompts):\n    return media.frames.flatten(1).mean(1)\n")
    arguments = ["generate", "--model", "wan", "--prompt", "a reel", "--count", "2", "--out", "videos"]
    assert cli.run([*arguments, "--steer", steer("BestOfN", "light.py:light", n=2)]) == 0
    rows = table(workplace / "videos/scores.csv")
    assert [row["file"] for row in rows] == [f"0000-a-reel-0{copy}.webp" for copy in (1, 2)]
    assert [row["file"] for row in table(workplace / "videos/prompts.csv")] == [row["file"] for row in rows]
    for row in rows:
        stored = video.read(workplace / "videos" / row["file"])
        assert float(stored.frames.mean()) == pytest.approx(float(row["score"]), abs=3e-3)


def test_media_that_are_no_files_are_refused(workplace, monkeypatch, capsys):
    monkeypatch.setattr("dragontune.generators.pretrained.load", lambda *arguments, **named: Toy())
    generate("--prompt", "left", "--steps", "3", code=2)
    assert "expected a model of audio, images or video, got one of Tensor" in capsys.readouterr().err


def test_plain_clips_have_no_scores_and_no_budget(workplace, capsys):
    generate("--steps", "3", "--prompt", "a reel")
    assert "Steering" not in capsys.readouterr().out
    assert not (workplace / "clips/scores.csv").exists()


def test_a_reward_that_was_edited_is_another_request(workplace, capsys):
    generate("--steer", steer(reward="own.py:level", candidates=2), "--prompt", "a reel")
    (workplace / "own.py").write_text(OWN.replace("return media.loudness()", "return -media.loudness()"))
    generate("--steer", steer(reward="own.py:level", candidates=2), "--prompt", "a reel", code=2)
    assert "another" in (said := capsys.readouterr().err)
    assert "own.py" in said


def test_leftovers_of_another_request_are_not_taken_for_clips(workplace, capsys):
    words = ["--steer", steer(reward=VENDI, candidates=2), "--prompt", "a reel", "--count", "2"]
    generate(*words)
    for path in (workplace / "clips").glob("*.*"):
        if not path.name.startswith("."):
            path.unlink()
    capsys.readouterr()
    generate(*words, "--seed", "7")
    assert "no denoiser call is left" not in capsys.readouterr().out


def test_a_judge_of_pictures_hears_nothing(workplace, capsys):
    judge = {"class_path": "VisionJudge", "init_args": {"endpoint": "http://127.0.0.1:9/v1", "model": "any"}}
    generate("--steer", steer("BestOfN", judge, n=2), "--prompt", "a reel", code=2)
    assert "expected Video or images to judge, got Audio" in capsys.readouterr().err


def test_a_number_of_the_wrong_type_is_named(workplace, capsys):
    generate("--steer", steer(candidates=2.5), "--prompt", "a reel", code=2)
    assert "expected a value of type int in steering.candidates, got 2.5" in capsys.readouterr().err
