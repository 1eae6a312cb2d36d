"""`dragontune generate` with adapters of any strength and with mixtures of them."""

import json
import shutil

import pytest
import soundfile
import torch
from peft import LoraConfig, inject_adapter_in_model

from dragontune import cli
from dragontune.generators import adapters
from dragontune.generators.adapters import Lora
from dragontune.generators.pretrained import load
from dragontune.media.audio import Audio
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from tiny_models import save_tiny_music


def move(weights, seed):
    """Away from the start, where an adapter changes nothing."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in weights:
            weight.add_(torch.randn(weight.shape, generator=draw), alpha=0.2)


def write(folder, network, config):
    """An adapter of any kind."""
    inject_adapter_in_model(config, network, "default")
    move(adapters.parameters(network), 3)
    adapters.save(network, folder, "music")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Two runs of one model and one of another, as far as `generate` looks at them, and their base's clip."""
    folder = tmp_path_factory.mktemp("workplace")
    for seed, (run, model) in enumerate([("one", "music"), ("two", "music"), ("other", "melody")]):
        if not (folder / model).exists():
            save_tiny_music(folder / model, seed)
        tuned = load(str(folder / model), Lora(rank=seed + 2), device="cpu")
        move(tuned.parameters(), seed)
        tuned.save_adapter(str(folder / "runs" / run / "adapter"))
        recipe = f"model: {model}\nalgorithm: {{init_args: {{sampler: {{steps: 3, guidance: 2.0}}}}}}\n"
        (folder / "runs" / run / "recipe.yaml").write_text(recipe)
    return folder


@pytest.fixture
def workplace(built, tmp_path, monkeypatch):
    shutil.copytree(built, tmp_path / "workplace")
    monkeypatch.chdir(tmp_path / "workplace")
    return tmp_path / "workplace"


def clip(*arguments, out="clips"):
    """The bytes of one generated clip."""
    assert cli.run(["generate", "--prompt", "a reel", "--out", out, *arguments]) == 0
    with open(f"{out}/0000-a-reel.flac", "rb") as file:
        return file.read()


def sound(*arguments, out="clips"):
    clip(*arguments, out=out)
    return torch.from_numpy(soundfile.read(f"{out}/0000-a-reel.flac")[0])


def close(one, other):
    """But for the rounding of a sound file."""
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def test_generate_with_a_mixture(workplace):
    arguments = ["--adapter", "runs/one:0.5", "runs/two:-1.5", "--scale", "0.5"]
    made = clip(*arguments)
    stored = json.loads((workplace / "clips/generation.json").read_text())
    assert stored["adapters"] == [{"folder": "runs/one", "weight": 0.5}, {"folder": "runs/two", "weight": -1.5}]
    assert (stored["model"], stored["scale"], stored["sampler"]["steps"]) == ("music", 0.5, 3)
    (workplace / "clips/0000-a-reel.flac").unlink()
    assert clip(*arguments) == made
    assert clip("--adapter", "runs/one:0.5", "--adapter", "runs/two:-1.5", "--scale", "0.5", out="again") == made
    by_hand = load("music", device="cpu")
    by_hand.mix_adapters([("runs/one/adapter", 0.25), ("runs/two/adapter", -0.75)])
    media = Sampler(steps=3, guidance=2.0).sample(by_hand, ["a reel"], Key(0).fold("generate")).media
    assert isinstance(media, Audio)
    got = torch.from_numpy(soundfile.read("clips/0000-a-reel.flac")[0])
    close(got, media.waveform[0, 0].double())


def test_a_weight_is_a_scale(workplace):
    half = sound("--adapter", "runs/one", "--scale", "0.5", out="scale")
    close(sound("--adapter", "runs/one:0.5", out="weight"), half)
    close(sound("--adapter", "runs/one:1", "runs/one:-0.5", out="twice"), half)
    full = clip("--adapter", "runs/one", out="full")
    assert clip("--adapter", "runs/one:1", out="one") == full
    assert (sound("--adapter", "runs/one", out="full") - half).abs().max() > 1e-3


def test_nought_is_the_untuned_model_bit_for_bit(workplace):
    base = clip("--model", "music", "--steps", "3", out="base")
    for number, nothing in enumerate(
        (
            ["runs/one:0"],
            ["runs/one:0", "runs/two:0.0"],
            ["runs/one", "--scale", "0"],
            ["runs/one", "runs/two:2", "--scale", "0"],
        )
    ):
        assert clip("--adapter", *nothing, out=f"nought-{number}") == base
    assert clip("--adapter", "runs/one:0.001", out="little") != base


def test_colons_in_paths(workplace):
    shutil.copytree("runs/one", "runs/one:more")
    shutil.copytree("runs/one", "runs/one:3")
    full, half = clip("--adapter", "runs/one", out="full"), clip("--adapter", "runs/one:0.5", out="half")
    assert clip("--adapter", "runs/one:more", out="more") == full
    assert clip("--adapter", "runs/one:more:5e-1", out="more-half") == half
    assert clip("--adapter", "runs/one:3:1", out="three") == full
    assert json.loads((workplace / "three/generation.json").read_text())["adapters"][0]["folder"] == "runs/one:3"


def test_folders_in_pefts_format_say_themselves_which_model_they_are_for(workplace, capsys):
    shutil.copytree("runs/two/adapter", "two")
    assert clip("--adapter", "two:0.5", out="alone") == clip("--model", "music", "--adapter", "two:0.5", out="told")
    config = json.loads((workplace / "two/adapter_config.json").read_text())
    (workplace / "two/adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    capsys.readouterr()
    assert cli.run(["generate", "--prompt", "x", "--out", "c", "--adapter", "two:0.5"]) == 2
    assert "--model" in capsys.readouterr().err
    mixed = clip("--adapter", "two:0.5", "runs/one:0.5", out="mixed")
    assert clip("--model", "music", "--adapter", "two:0.5", "runs/one:0.5", out="named") == mixed


def test_the_first_runs_sampler_is_used_and_another_is_mentioned(workplace, capsys):
    both = ["--adapter", "runs/one:0.5", "runs/two:0.5"]
    clip(*both, out="alike")
    assert "sampler" not in capsys.readouterr().err
    (workplace / "runs/two/recipe.yaml").write_text("model: music\n")
    clip(*both, out="unlike")
    said = capsys.readouterr().err
    assert "warning: " in said
    assert "runs/two" in said
    assert "sampler" in said
    assert json.loads((workplace / "unlike/generation.json").read_text())["sampler"]["steps"] == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--adapter", "runs/one", "runs/other"],
            ["one model", "runs/other of melody", "runs/one of music", "--model"],
        ),
        (["--adapter", "runs/one:10.5"], ["-10 to 10", "10.5", "runs/one"]),
        (["--adapter", "runs/one", "runs/two:-11"], ["-10 to 10", "-11", "runs/two"]),
        (["--adapter", "runs/one:nan"], ["-10 to 10", "nan"]),
        (["--adapter", "runs/one:-inf"], ["-10 to 10", "-inf"]),
        (["--adapter", ":0.5"], ["folder", "none"]),
        (["--adapter", ""], ["folder", "none"]),
        (["--adapter"], ["--adapter", "--help"]),
        (["--adapter", "runs/one", "--scale", "-1"], ["--scale", "-1"]),
        (["--model", "music", "--adapter", "gone", "runs/one"], ["gone", "check the path"]),
        (["--adapter", "runs/one", "gone:0.5"], ["gone", "check the path"]),
        (["--adapter", "runs/one", "dora:0.5"], ["plain LoRA", "dora", "use_dora = True"]),
        (["--model", "music", "--adapter", "runs/one", "odd"], ["adapter for this model", "odd"]),
    ],
)
def test_bad_mixtures_are_one_sentence(workplace, capsys, arguments, words):
    music = load("music", device="cpu").network
    write(workplace / "dora", music, LoraConfig(r=2, use_dora=True, target_modules=["to_q"]))
    odd = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([torch.nn.Linear(4, 4)])})
    write(workplace / "odd", odd, LoraConfig(r=2, target_modules=["0"]))
    assert cli.run(["generate", "--prompt", "a reel", "--out", "clips", *arguments]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1, said
    for word in ("expected", "got", *words):
        assert word in said[0]
    assert not (workplace / "clips").exists()


def test_a_single_adapter_of_another_kind_still_loads(workplace):
    network = load("music", device="cpu").network
    write(workplace / "dora", network, LoraConfig(r=2, use_dora=True, target_modules=["to_q"]))
    assert clip("--model", "music", "--adapter", "dora", "--scale", "0.5") != clip("--model", "music", out="base")
