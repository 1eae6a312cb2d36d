"""Whatever is wrong with the input: exit code 2 and one sentence with what was expected, what came and what to do."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dragontune import cli
from dragontune.training.run_folder import RunFolder
from small_runs import make_workplace


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return make_workplace(tmp_path_factory.mktemp("workplace"))


@pytest.fixture
def workplace(built, tmp_path, monkeypatch):
    folder = tmp_path / "workplace"
    shutil.copytree(built, folder)
    monkeypatch.chdir(folder)
    return folder


def refused(capsys, *arguments):
    """The sentence."""
    capsys.readouterr()
    code = cli.run(list(arguments))
    lines = capsys.readouterr().err.strip().splitlines()
    assert code == 2, lines
    sentence = lines[-1]
    assert sentence.startswith("dragontune: ")
    assert not any("Traceback" in line for line in lines), lines
    assert sum(line.startswith("dragontune: ") and "warning" not in line for line in lines) == 1
    return sentence


def edited(folder, old, new):
    text = (folder / "recipe.yaml").read_text()
    assert old in text
    (folder / "recipe.yaml").write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("rounds: 3", "roundz: 3", ["roundz", "did you mean rounds?"]),
        ("beta: 50", "betta: 50", ["algorithm", "betta", "did you mean beta?"]),
        ("steps: 3", "stepps: 3", ["stepps", "did you mean steps?"]),
        ("players: 1", "player: 1", ["player", "did you mean players?"]),
        ("prompts: prompts.txt\nevaluation", "promts: prompts.txt\nevaluation", ["promts", "prompts"]),
        ("SetFrechet", "SetFrechett", ["SetFrechett", "did you mean SetFrechet?"]),
        ("class_path: Dragon", "class_path: Dragoon", ["Dragoon", "did you mean Dragon?"]),
        ("rounds: 3", "rounds: many", ["loop.rounds", "int", "many"]),
        ("rounds: 3", "rounds: 2.5", ["loop.rounds", "int", "2.5"]),
        ("beta: 50", "beta: strong", ["beta", "float", "strong"]),
        ("rounds: 3", "rounds: -3", ["loop.rounds", "-3"]),
        ("lr: 1.0e-3", "lr: 1000", ["loop.lr", "1000"]),
        ("lr: 1.0e-3", "lr: .nan", ["loop.lr", "nan"]),
        ("beta: 50", "beta: -1", ["beta", "-1"]),
        ("steps: 3", "steps: 0", ["steps", "0"]),
        ("rank: 2", "rank: -2", ["rank", "-2"]),
        ("rank: 2", "rank: 100000", ["rank", "4096", "100000"]),
        ("steps: 3", "steps: 9999999", ["steps", "10000", "9999999"]),
        ("SetFrechet", "os.path.join", ["reward", "kind of Reward", "os.path.join"]),
        ("SetFrechet", "nowhere.Quiet", ["reward", "nowhere.Quiet", "cannot be imported"]),
        ("class_path: TinyClap", "class_path: Vendi", ["another kind of class", "Vendi"]),
        ("count: 4", "count: -4", ["count", "-4"]),
        ("pairs: 6", "pairs: 1", ["loop.pairs", "SetFrechet", "1"]),
        ("subset: 3", "subset: 1", ["subset", "1"]),
        ("model: music", "model: nowhere", ["model", "nowhere"]),
        ("exemplars: real", "exemplars: unreal", ["unreal", "not there"]),
        ("exemplars: real", "exemplars: vacant", ["vacant"]),
        ("exemplars: real", "exemplars: texts", ["texts"]),
        ("prompts: prompts.txt\nevaluation", "prompts: nothing.txt\nevaluation", ["nothing.txt"]),
        ("prompts: prompts.txt\nevaluation", "prompts: blank.txt\nevaluation", ["blank.txt", "prompt"]),
        ("prompts: prompts.txt\nevaluation", "prompts: real/00.wav\nevaluation", ["real/00.wav"]),
        ("model: clap}}, exemplars", "model: music}}, exemplars", ["music"]),
        ("model: music", "model: [", ["recipe.yaml"]),
        ("rank: 2", "ranks: 2, dropout: 1", ["a field of Lora in lora", "got ranks; did you mean rank?"]),
        ("rank: 2", "dropout: 1", ["a field of Lora in lora (rank, alpha, targets, seed), got dropout; remove"]),
        ("rank: 2", "targets: nosuch", ["expected 'all-linear' or a list of texts in lora.targets, got nosuch;"]),
        ("lora:", "size: {height: tall}\nlora:", ["a whole number or nothing in size.height, got tall;"]),
        ("lora:", "size: {depth: 3}\nlora:", ["a field of Size in size (seconds, height, width, frames, fps), got"]),
        ("lora:", "size: big\nlora:", ["fields with values in size, got big"]),
        ("lora:", "guard: 7\nlora:", ["expected the fields of Guard or nothing in guard, got 7;"]),
        ("lora:", "guard: {every: x}\nlora:", ["type int in guard.every, got x;"]),
        ("lora:", "precision: fp16\nlora:", ["one of 'float32', 'bf16' in precision, got fp16; choose"]),
        ("lora:", "trackers: [{class_path: nope}]\nlora:", ["in trackers (TensorBoard, Trackio, Wandb), got nope;"]),
        ("beta: 50", "k: 1", ["a field of Dragon in algorithm (preference, sampler, beta,", "got k; remove"]),
        ("steps: 3", "order: x", ["type int in algorithm.sampler.order, got x;"]),
        (
            "TinyClap, init_args: {model: clap}}, exem",
            "Vggish, init_args: {weights: x}}, exem",
            ["a field of Vggish in reward.encoder (model, pca), got weights;"],
        ),
        (
            "TinyClap, init_args: {model: clap}}, exem",
            "Mert, init_args: {layer: x}}, exem",
            ["a whole number or nothing in reward.encoder.layer, got x;"],
        ),
        (
            "TinyClap, init_args: {model: clap}}, exem",
            "Dinov2, init_args: {tokens: x}}, exem",
            ["one of 'class', 'patches' in reward.encoder.tokens, got x;"],
        ),
    ],
)
def test_a_bad_recipe(workplace, capsys, old, new, words):
    (workplace / "vacant").mkdir()
    (workplace / "texts").mkdir()
    (workplace / "texts" / "notes.md").write_text("no audio")
    (workplace / "blank.txt").write_text("\n\n")
    edited(workplace, old, new)
    sentence = refused(capsys, "tune", "recipe.yaml")
    for word in words:
        assert word in sentence
    assert not (workplace / "runs/recipe").exists() or not any((workplace / "runs/recipe").iterdir())
    if (workplace / "runs").exists() or "class_path" not in old:
        refused(capsys, "doctor", "recipe.yaml")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tune"], ["RECIPE.yaml", "--help"]),
        (["tune", "gone.yaml"], ["gone.yaml", "not there"]),
        (["tune", "real"], ["real", "folder"]),
        (["tune", "prompts.txt"], ["prompts.txt", "fields"]),
        (["tune", "recipe.yaml", "--loop.roundz", "3"], ["roundz", "did you mean --loop.rounds?"]),
        (["tune", "recipe.yaml", "--size.depth", "3"], ["in size (seconds, height, width, frames, fps), got"]),
        (["tune", "recipe.yaml", "--plan.tile", "true"], ["--plan.tile; did you mean --plan.tiling?"]),
        (["tune", "recipe.yaml", "--height", "32"], ["got --height; did you mean --size.height?"]),
        (["tune", "recipe.yaml", "--size.height", "tall"], ["a whole number or nothing in size.height, got tall"]),
        (["tune", "recipe.yaml", "--algorithm.k", "1"], ["a field of Dragon in algorithm (", "got k; remove"]),
        (["tune", "recipe.yaml", "--loop.rounds", "x"], ["loop.rounds", "x"]),
        (["tune", "recipe.yaml", "--loop.rounds"], ["a value after --loop.rounds", "nothing"]),
        (["tune", "recipe.yaml", "--loop", "3"], ["fields with values", "loop"]),
        (["tune", "hollow.yaml"], ["hollow.yaml", "nothing"]),
        (["score", "real", "--reward", "other.yaml"], ["reward", "class_path"]),
        (["reference", "real", "--encoder", "vendi", "--out", "r.safetensors"], ["another kind of class", "Vendi"]),
        (["generate", "--model", "music", "--prompt", "x", "--out", "c", "--scale", "2"], ["--adapter", "--scale 2"]),
        (["generate", "--model", "music", "--prompt", "x", "--out", "prompts.txt"], ["prompts.txt", "a file"]),
        (["generate", "--model", "music", "--prompt", "x", "--out", "prompts.txt/c"], ["prompts.txt/c", "a file"]),
        (["tune", "recipe.yaml", "--reume"], ["--reume; did you mean --resume?"]),
        (["generate", "--model", "music", "--out", "clips"], ["--prompt"]),
        (["generate", "--prompt", "x", "--out", "clips"], ["--model"]),
        (["generate", "--model", "music", "--prompt", "x", "--out", "clips", "--steps", "-1"], ["steps", "-1"]),
        (["generate", "--model", "music", "--prompt", "x", "--out", "clips", "--scale", "nan"], ["--scale", "nan"]),
        (["generate", "--model", "music", "--prompt", "x", "--out", "clips", "--seed", "-1"], ["--seed", "-1"]),
        (["generate", "--model", "music", "--prompt", "x", "--out", "real"], ["real", "other files"]),
        (["generate", "--model", "music", "--prompt", "x", "--out", "c", "--adapter", "real"], ["adapter", "real"]),
        (["score", "gone", "--reward", "reward.yaml"], ["gone"]),
        (["score", "real", "--reward", "gone.yaml"], ["gone.yaml"]),
        (["score", "real", "--reward", "reward.yaml", "--prompts", "prompts.txt"], ["12", "4"]),
        (["score", "real", "--reward", "reward.yaml", "--prompts", "gone.csv"], ["gone.csv"]),
        (["reference", "real", "--encoder", "tiny-clamp", "--out", "r.safetensors"], ["TinyClamp", "TinyClap?"]),
        (["reference", "gone", "--encoder", "encoder.yaml", "--out", "r.safetensors"], ["gone"]),
        (["reference", "real", "--encoder", "encoder.yaml", "--out", "r.txt"], [".safetensors"]),
        (["evaluate", "gone"], ["gone"]),
        (["evaluate", "real"], ["real"]),
        (["doctor", "gone.yaml"], ["gone.yaml"]),
    ],
)
def test_bad_arguments(workplace, capsys, arguments, words):
    (workplace / "hollow.yaml").write_text("")
    (workplace / "other.yaml").write_text("kind: 1\n")
    sentence = refused(capsys, *arguments)
    for word in words:
        assert word in sentence


def test_a_slip_in_generate_leaves_no_folder_behind(workplace, capsys):
    for slip in (["--model", "nowhere"], ["--model", "music", "--adapter", "real"]):
        refused(capsys, "generate", "--prompt", "x", "--out", "clips", *slip)
        assert not (workplace / "clips").exists()


def spoil(folder, kind):
    """One bad file."""
    path = folder / "bad.wav"
    match kind:
        case "corrupt":
            path.write_bytes(b"RIFF nonsense")
        case "empty":
            path.write_bytes(b"")
        case "zero length":
            soundfile.write(path, np.zeros(0), 16000)
        case "nan":
            soundfile.write(path, np.full(1000, np.nan), 16000, subtype="FLOAT")
        case "torn":
            path = path.with_suffix(".flac")
            soundfile.write(path, np.zeros(1000), 16000)
            path.write_bytes(path.read_bytes()[:30])


@pytest.mark.parametrize("kind", ["corrupt", "empty", "zero length", "nan", "torn"])
def test_a_bad_file_among_good_ones_is_named_and_left_out(workplace, capsys, kind):
    spoil(workplace / "real", kind)
    assert cli.run(["tune", "recipe.yaml", "--evaluation", "null", "--loop.rounds", "1"]) == 0
    assert "bad." in capsys.readouterr().err
    assert cli.run(["score", "real", "--reward", "recipe.yaml"]) == 0
    assert "bad." in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["corrupt", "nan"])
def test_bad_files_only(workplace, capsys, kind):
    shutil.rmtree(workplace / "real")
    (workplace / "real").mkdir()
    spoil(workplace / "real", kind)
    assert "real" in refused(capsys, "tune", "recipe.yaml")
    assert "readable" in refused(capsys, "score", "real", "--reward", "reward.yaml")
    assert "real" in refused(capsys, "reference", "real", "--encoder", "encoder.yaml", "--out", "r.safetensors")


def test_a_reference_of_another_encoder(workplace, capsys):
    assert cli.run(["reference", "real", "--encoder", "encoder.yaml", "--out", "r.safetensors"]) == 0
    edited(workplace, "model: clap}}, exemplars: real", "model: other}}, exemplars: r.safetensors")
    from tiny_models import save_tiny_clap

    save_tiny_clap(workplace / "other", seed=1)
    assert "encoder" in refused(capsys, "tune", "recipe.yaml")


def test_too_few_files_for_a_set(workplace, capsys):
    (workplace / "one").mkdir()
    shutil.copy(workplace / "real" / "00.wav", workplace / "one")
    assert "at least 2" in refused(capsys, "score", "one", "--reward", "recipe.yaml")


def test_a_folder_that_holds_something_else(workplace, capsys):
    short = ["tune", "recipe.yaml", "--evaluation", "null", "--loop.rounds", "1"]
    assert "another --out" in refused(capsys, *short, "--out", "real")
    assert "in a file" in refused(capsys, *short, "--out", "prompts.txt/run")
    assert cli.run([*short, "--out", "run"]) == 0
    before = (workplace / "run/adapter/adapter_model.safetensors").read_bytes()
    assert "--resume" in refused(capsys, *short, "--out", "run")
    sentence = refused(capsys, *short, "--out", "run", "--resume", "--algorithm.beta", "3")
    assert "got another (algorithm.beta: 50.0 before, 3.0 now); resume with run/recipe.yaml" in sentence
    changes = ["--model", "clap", "--loop.lr", "0.5", "--lora.rank", "4", "--loop.pairs", "8"]
    sentence = refused(capsys, *short, "--out", "run", "--resume", *changes)
    assert "(loop.lr: 0.001 before, 0.5 now; loop.pairs: 6 before, 8 now; lora.rank: 2 before, 4 now; and 1 more);" in (
        sentence
    )
    sentence = refused(capsys, *short, "--out", "run", "--resume", "--start", "clap", "--size.height", "16")
    assert "(size.height: nothing before, 16 now; start: nothing before, clap now);" in sentence
    sentence = refused(capsys, *short, "--out", "run", "--resume", "--reward", '{"class_path": "CleanSound"}')
    assert "(reward: SetFrechet before, CleanSound now);" in sentence
    assert (workplace / "run/adapter/adapter_model.safetensors").read_bytes() == before
    with RunFolder(Path("run")).held():
        assert "another process" in refused(capsys, *short, "--out", "run", "--resume")


@pytest.mark.parametrize("after", [0, 2, 4, 9, 10])
def test_a_full_disk_anywhere(workplace, capsys, monkeypatch, after):
    """What was complete stays, and the run goes on when there is room again."""
    arguments = ["tune", "recipe.yaml", "--out", "run"]
    replace, calls = Path.replace, []

    def full(self, target):
        calls.append(target)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        assert "free some space" in refused(capsys, *arguments)
    assert cli.run([*arguments, "--resume"]) == 0
    assert cli.run(["tune", "recipe.yaml", "--out", "whole", "--evaluation", "null"]) == 0
    one, other = (workplace / name / "adapter/adapter_model.safetensors" for name in ("run", "whole"))
    assert one.read_bytes() == other.read_bytes()


def test_a_folder_that_cannot_be_written(workplace, capsys, monkeypatch):
    def denied(self, *arguments, **named):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", denied)
        assert "where a folder can be made" in refused(capsys, "tune", "recipe.yaml", "--out", "locked/run")
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, *rest, **kind: path != Path("run") and allowed(path, *rest, **kind))
    assert "can be written" in refused(capsys, "tune", "recipe.yaml", "--out", "run")


def test_options_of_an_evaluation_that_are_fields(workplace, capsys):
    assert cli.run(["tune", "recipe.yaml", "--evaluation", "null", "--loop.rounds", "1", "--out", "run"]) == 0
    assert "did you mean --size.height?" in refused(capsys, "evaluate", "run", "--height", "32")
