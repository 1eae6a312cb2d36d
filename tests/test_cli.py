import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from dragontune import cli
from dragontune.commands import clips
from dragontune.commands.recipe import rehearse
from dragontune.evaluation import evaluate as evaluation
from dragontune.media.kinds import AUDIO, IMAGES, VIDEO
from dragontune.rewards.base import InstanceReward
from dragontune.testing import Toy
from small_runs import make_workplace
from tiny_stable_diffusion import save_stable_diffusion

METRICS = {"prompts", "rewards", "seconds", "package_versions", "seed", "health", "peak_memory"}
REWARD = {"scope", "target", "before", "after", "win_rate", "win_rate_ci95"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workplace with one finished run."""
    folder = make_workplace(tmp_path_factory.mktemp("workplace"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.run(["tune", "recipe.yaml"]) == 0
    return folder


@pytest.fixture
def workplace(run, monkeypatch):
    monkeypatch.chdir(run)
    return run


def test_help_is_quick_and_light():
    code = "import sys; from dragontune import cli; cli.run(['--help']); assert 'torch' not in sys.modules"
    start = time.monotonic()
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.monotonic() - start < 5  # 0.1 s on a machine with nothing else to do
    for verb in ("tune", "generate", "score", "reference", "evaluate", "doctor"):
        assert f"dragontune {verb}" in found.stdout


@pytest.mark.parametrize("verb", ["tune", "generate", "score", "reference", "evaluate", "doctor"])
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.run([verb, "--help"])
    assert stop.value.code == 0
    assert f"dragontune {verb}" in capsys.readouterr().out


def test_nothing_and_nonsense(capsys):
    assert cli.run([]) == 2
    assert cli.run(["tuna"]) == 2
    assert "did you mean tune?" in capsys.readouterr().err
    assert cli.run(["--version"]) == 0


def test_the_run_folder(workplace):
    folder = workplace / "runs" / "recipe"
    found = {path.name for path in folder.iterdir()}
    assert found == {"recipe.yaml", "log.jsonl", "checkpoints", "samples", "adapter", "README.md", "report"}
    assert {path.name for path in (folder / "report").iterdir()} == {"index.html", "metrics.json"}
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (folder / "adapter" / name).is_file()
    metrics = json.loads((folder / "report" / "metrics.json").read_text())
    assert set(metrics) == METRICS
    for reward in metrics["rewards"].values():
        assert set(reward) == {*REWARD, "change_ci95" if reward["scope"] == "instance" else "subset_change_ci95"}
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [set(line) for line in lines] == [{"round", "seconds", "peak_memory", "reward", "loss", "metrics"}] * 3
    card = (folder / "README.md").read_text()
    assert "base_model: music" in card
    assert "| target | set | yes |" in card
    assert not list(folder.rglob("*.pt")) + list(folder.rglob("*.pkl")) + list(folder.rglob("*.bin"))


def test_the_resolved_recipe_is_the_same_run(workplace):
    assert cli.run(["tune", "runs/recipe/recipe.yaml", "--out", "runs/again"]) == 0
    first, second = (workplace / "runs" / name for name in ("recipe", "again"))
    assert (first / "recipe.yaml").read_text() == (second / "recipe.yaml").read_text()
    weights = [(folder / "adapter" / "adapter_model.safetensors").read_bytes() for folder in (first, second)]
    assert weights[0] == weights[1]


def test_a_finished_run_is_left_alone(workplace, capsys):
    before = {path: path.stat().st_mtime_ns for path in (workplace / "runs/recipe").rglob("*")}
    assert cli.run(["tune", "recipe.yaml", "--resume"]) == 0
    assert "nothing left to do" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (workplace / "runs/recipe").rglob("*")}


def test_overrides_and_print_config(workplace, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.run(["tune", "recipe.yaml", "--loop.rounds", "7", "--algorithm.beta=3", "--print_config"])
    assert stop.value.code in (0, None)
    printed = capsys.readouterr().out
    assert "rounds: 7" in printed
    assert "beta: 3" in printed


def test_a_run_that_is_done_can_be_prolonged(workplace):
    arguments = ["tune", "recipe.yaml", "--out", "runs/longer", "--evaluation", "null"]
    assert cli.run(arguments) == 0
    assert cli.run([*arguments, "--resume", "--loop.rounds", "5"]) == 0
    assert len((workplace / "runs/longer/log.jsonl").read_text().splitlines()) == 5
    assert "rounds: 5" in (workplace / "runs/longer/recipe.yaml").read_text()
    assert cli.run(["tune", "recipe.yaml", "--out", "runs/whole", "--evaluation", "null", "--loop.rounds", "5"]) == 0
    one, other = (workplace / f"runs/{name}/adapter/adapter_model.safetensors" for name in ("longer", "whole"))
    assert one.read_bytes() == other.read_bytes()


def test_generate_and_score(workplace, capsys):
    (workplace / "ask.txt").write_text("a reel\n\na jig <script>\n")
    arguments = ["generate", "--adapter", "runs/recipe", "--prompts", "ask.txt", "--out", "clips", "--scale", "1.5"]
    assert cli.run(arguments) == 0
    with (workplace / "clips/prompts.csv").open(newline="") as file:
        assert [row["prompt"] for row in csv.DictReader(file)] == ["a reel", "a jig <script>"]
    clips = sorted((workplace / "clips").glob("*.flac"))
    assert [clip.name for clip in clips] == ["0000-a-reel.flac", "0001-a-jig-script.flac"]
    before = clips[0].read_bytes()
    clips[0].unlink()
    assert cli.run(arguments) == 0
    assert clips[0].read_bytes() == before
    capsys.readouterr()
    assert cli.run(["score", "clips", "--reward", "reward.yaml", "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert scored["scope"] == "instance"
    assert [row["file"] for row in scored["files"]] == [clip.name for clip in clips]
    assert cli.run(["score", "clips", "--reward", "recipe.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scope"] == "set"
    assert cli.run(["score", "clips", "--reward", "reward.yaml"]) == 0
    assert "mean" in capsys.readouterr().out


@pytest.mark.parametrize("count", [1, 2])
def test_what_was_made_is_called_by_its_kind(workplace, capsys, tmp_path, count):
    save_stable_diffusion(tmp_path / "sd")
    for model, called in (("music", ("clip", "clips")), (str(tmp_path / "sd"), ("image", "images"))):
        words = ["generate", "--model", model, "--prompt", "a reel", "--steps", "1", "--count", str(count)]
        capsys.readouterr()
        assert cli.run([*words, "--out", str(tmp_path / called[0])]) == 0
        said = f"{count} {called[count - 1]} {'is' if count == 1 else 'are'} in {tmp_path / called[0]}.\n"
        assert capsys.readouterr().out == said


@pytest.mark.parametrize(("media", "called"), [("videos", "4 videos"), ("images", "1 image"), ("audio", "1,000 clips")])
def test_names_of_what_is_counted(media, called):
    kind = {"videos": VIDEO, "images": IMAGES, "audio": AUDIO}[media]
    assert clips.called(kind, int(called.split()[0].replace(",", ""))) == called


def test_scale_nought_is_the_untuned_model(workplace):
    plain = ["generate", "--model", "music", "--prompt", "a reel", "--steps", "3", "--seed", "4"]
    assert cli.run([*plain, "--out", "plain"]) == 0
    assert cli.run([*plain, "--adapter", "runs/recipe", "--scale", "0", "--out", "nought"]) == 0
    one, other = (workplace / name / "0000-a-reel.flac" for name in ("plain", "nought"))
    assert one.read_bytes() == other.read_bytes()


def test_score_takes_prompts_from_everywhere(workplace, capsys):
    (workplace / "few").mkdir()
    for name in ("00.wav", "01.wav"):
        (workplace / "few" / name).write_bytes((workplace / "real" / name).read_bytes())

    def scores(*arguments):
        assert cli.run(["score", "few", "--reward", "reward.yaml", "--json", *arguments]) == 0
        return [row["score"] for row in json.loads(capsys.readouterr().out)["files"]]

    (workplace / "two.txt").write_text("a reel\na jig\n")
    (workplace / "two.csv").write_text("file,prompt\n01.wav,a jig\n00.wav,a reel\n")
    given = scores("--prompts", "two.txt")
    assert scores("--prompts", "two.csv") == given
    (workplace / "few" / "00.txt").write_text("a reel")
    (workplace / "few" / "01.txt").write_text("a jig")
    assert scores() == given


def test_reference_and_its_use(workplace, capsys):
    assert cli.run(["reference", "real", "--encoder", "encoder.yaml", "--out", "refs/real.safetensors"]) == 0
    assert "12 items (audio)" in capsys.readouterr().out
    stored = ["--reward.init_args.exemplars", "refs/real.safetensors"]
    assert cli.run(["tune", "recipe.yaml", "--out", "runs/stored", "--evaluation", "null", *stored]) == 0
    one, other = (workplace / f"runs/{name}/adapter/adapter_model.safetensors" for name in ("stored", "recipe"))
    assert one.read_bytes() == other.read_bytes()
    (workplace / "captions.txt").write_text("a reel\na jig\nfor flute\n")
    assert cli.run(["reference", "captions.txt", "--encoder", "encoder.yaml", "--out", "refs/text.safetensors"]) == 0
    assert "3 items (text)" in capsys.readouterr().out


def test_evaluate_again(workplace):
    assert cli.run(["evaluate", "runs/recipe", "--prompts", "prompts.txt", "--out", "elsewhere"]) == 0
    first, second = (
        json.loads((workplace / path / "metrics.json").read_text()) for path in ("runs/recipe/report", "elsewhere")
    )
    assert first["rewards"] == second["rewards"]


def test_doctor_runs_nothing(workplace, capsys):
    before = sorted(workplace.rglob("*"))
    assert cli.run(["doctor", "recipe.yaml"]) == 0
    said = capsys.readouterr().out
    for word in ("prompts", "model", "adapter", "reward", "time", "memory", "disk"):
        assert word in said
    assert sorted(workplace.rglob("*")) == before


def test_the_cost_of_an_item_is_not_that_of_opening_the_exemplars():
    opened = []

    class Slow(InstanceReward):
        def encode(self, samples):
            if not opened:
                opened.append(time.sleep(0.5))
            return samples.latents.flatten(1)

        def score(self, features):
            return features.sum(1)

    seconds = rehearse(Toy(), Slow(), ["left", "right"])
    assert opened
    assert seconds.encode < 0.2


def test_evaluate_into_a_file(workplace, capsys):
    assert cli.run(["evaluate", "runs/recipe", "--out", "prompts.txt"]) == 2
    assert "prompts.txt, which is or lies in a file" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_in_the_evaluation(workplace, monkeypatch, capsys, request, number):
    """The adapter is there, the exit code says resumable, and resuming does only what is left."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores Ctrl-C
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    make, out = evaluation.Making.make, f"runs/stopped-{number}"

    def interrupted(self, *arguments):
        os.kill(os.getpid(), number)
        return make(self, *arguments)

    monkeypatch.setattr(evaluation.Making, "make", interrupted)
    assert cli.run(["tune", "recipe.yaml", "--out", out]) == 75
    said = capsys.readouterr().err
    assert f"resume with: dragontune tune recipe.yaml --out {out} --resume" in said
    assert (workplace / out / "adapter" / "adapter_model.safetensors").exists()
    monkeypatch.undo()
    monkeypatch.chdir(workplace)
    assert cli.run(["tune", "recipe.yaml", "--out", out, "--resume"]) == 0
    assert (workplace / out / "report" / "index.html").exists()
