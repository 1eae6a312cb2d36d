"""Models, adapters and encoders that are wrong, on the command line: exit code 2, one sentence, and nothing written."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file

from dragontune import cli
from dragontune.generators import pretrained
from dragontune.generators.adapters import Lora
from tiny_encoders import save_dinov2
from tiny_models import save_stable_audio, save_tiny_clap
from tiny_stable_diffusion import save_stable_diffusion

DRAGON = {"class_path": "Dragon", "init_args": {"sampler": {"steps": 1}}}
RECIPE = {
    "model": "sd",
    "lora": {"rank": 2, "alpha": 2},
    "reward": {"class_path": "Brightness"},
    "algorithm": DRAGON,
    "loop": {"rounds": 1, "pairs": 2, "updates": 1, "batch": 2, "sample_count": 1},
    "prompts": "prompts.txt",
}
PART = {"unet": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")}
PART |= {"text_encoder": ("model.safetensors", "pytorch_model.bin")}
HUB = "dragontune-tests/no-such-model"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Models of images and of sound, a LoRA of each, encoders of each, exemplars of each."""
    folder = tmp_path_factory.mktemp("models")
    save_stable_diffusion(folder / "sd")
    save_stable_diffusion(folder / "wide", block_out_channels=(16, 32))
    save_stable_audio(folder / "sound")
    save_tiny_clap(folder / "clap")
    save_dinov2(folder / "dino")
    for name in ("sd", "sound"):
        pretrained.load(str(folder / name), Lora(rank=2, alpha=2), "cpu").save_adapter(str(folder / f"{name}-lora"))
    torch.save(load_file(folder / "sd-lora" / "adapter_model.safetensors"), folder / "lora.bin")
    torn = (folder / "sd-lora" / "pytorch_lora_weights.safetensors").read_bytes()[:100]
    (folder / "torn.safetensors").write_bytes(torn)
    (folder / "prompts.txt").write_text("a\nb\n")
    for name in ("sounds", "stills", "nothing"):
        (folder / name).mkdir()
    random = np.random.default_rng(0)
    for i in range(3):
        soundfile.write(folder / f"sounds/{i}.wav", 0.1 * random.standard_normal(16000), 16000)
        Image.fromarray(random.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / f"stills/{i}.png")
    return folder


@pytest.fixture
def place(built, tmp_path, monkeypatch):
    """The working directory, a copy in which models may be broken, without a network."""
    shutil.copytree(built, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "place"


def files() -> set[str]:
    return {str(path) for path in Path().rglob("*") if path.is_file()}


def refused(capfd: pytest.CaptureFixture, *words: str) -> str:
    """The one sentence, which is all that is said."""
    before = files()
    capfd.readouterr()
    assert cli.run(list(words)) == 2
    said = capfd.readouterr()
    assert said.out == ""
    lines = said.err.strip().splitlines()
    assert len(lines) == 1, said.err
    assert lines[0].startswith("dragontune: expected ")
    assert "Traceback" not in lines[0]
    assert files() == before
    return lines[0]


def generated(capfd: pytest.CaptureFixture, model: str, *words: str) -> str:
    return refused(capfd, "generate", "--model", model, "--prompt", "a", "--out", "out", "--steps", "1", *words)


def recipe(**more: object) -> str:
    Path("recipe.yaml").write_text(yaml.safe_dump({**RECIPE, **more}))
    return "recipe.yaml"


def tuned(capfd: pytest.CaptureFixture, **more: object) -> str:
    return refused(capfd, "tune", recipe(**more), "--out", "run")


def frechet(kind: str, model: str, exemplars: str) -> dict[str, Any]:
    encoder = {"class_path": kind, "init_args": {"model": model}}
    return {"class_path": "SetFrechet", "init_args": {"encoder": encoder, "exemplars": exemplars}}


def to_json(path: str, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(Path(path).read_text())
    change(content)
    Path(path).write_text(json.dumps(content))


@pytest.mark.parametrize("cut", ["a flag", "an unreachable address"])
def test_a_hub_name_without_a_network(place, capfd, monkeypatch, cut):
    if cut != "a flag":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for said in (
        generated(capfd, HUB),
        tuned(capfd, model=HUB),
        tuned(capfd, start=HUB),
        tuned(capfd, reward=frechet("Dinov2", HUB, "stills")),
        refused(capfd, "reference", "stills", "--encoder", f"dinov2:{HUB}", "--out", "r.safetensors"),
    ):
        assert f"got {HUB}, which is neither here nor to be had from the hub" in said
        assert "check the name, the connection" in said


def test_a_folder_that_is_no_model(place, capfd):
    assert "a diffusers folder with a model_index.json, got nothing" in generated(capfd, "nothing")
    assert "model_index.json, got sounds" in tuned(capfd, model="sounds")
    assert "a model folder or a hub name (owner/model), got nowhere" in generated(capfd, "nowhere")


@pytest.mark.parametrize("content", ['{"_class_name": "Stable', "", "[]", "{}", "\x00\xff"])
def test_an_index_that_cannot_be_read(place, capfd, content):
    Path("sd/model_index.json").write_text(content, "latin-1")
    assert "a readable model_index.json that names a pipeline, got sd/model_index.json" in generated(capfd, "sd")
    assert "got sd/model_index.json" in tuned(capfd)


def test_an_unsupported_pipeline(place, capfd):
    to_json("sd/model_index.json", lambda index: index.update(_class_name="KolorsPipeline"))
    for said in (generated(capfd, "sd"), tuned(capfd)):
        assert "got KolorsPipeline in sd" in said
        assert "docs/extend.md" in said
        assert all(name in said for name in pretrained.FAMILIES)


@pytest.mark.parametrize("model", ["sound", "wide"])
def test_a_lora_of_another_architecture(place, capfd, model):
    reward = {"class_path": "CleanSound"} if model == "sound" else RECIPE["reward"]
    for said in (
        generated(capfd, model, "--adapter", "sd-lora"),
        generated(capfd, model, "--adapter", "sd-lora", "sd-lora:0.5"),
        tuned(capfd, model=model, reward=reward, start="sd-lora"),
    ):
        assert "expected an adapter for this model, got sd-lora" in said
        assert "use the model that the adapter was trained on" in said
    assert "got sound-lora" in generated(capfd, "sd", "--adapter", "sound-lora")


def test_a_lora_in_a_pickle_or_torn(place, capfd):
    Path("folder").mkdir()
    shutil.copy("lora.bin", "folder/pytorch_lora_weights.bin")
    for name in ("lora.bin", "folder"):
        for said in (generated(capfd, "sd", "--adapter", name, "--allow-pickle"), tuned(capfd, start=name)):
            assert f"expected a LoRA in safetensors, got {name}" in said
            assert "can run code when it is read" in said
    assert "got torn.safetensors" in generated(capfd, "sd", "--adapter", "torn.safetensors")
    assert "got torn.safetensors" in tuned(capfd, start="torn.safetensors")
    assert "a run, or a hub name in start, got nowhere" in tuned(capfd, start="nowhere")
    assert "a run's folder or an adapter's, got nowhere" in generated(capfd, "sd", "--adapter", "nowhere")


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_weights_in_pickles_need_leave(place, capfd, part):
    safe, pickle = (f"sd/{part}/{name}" for name in PART[part])
    torch.save(load_file(safe), pickle)
    words = ["generate", "--model", "sd", "--prompt", "a", "--steps", "1"]
    assert cli.run([*words, "--out", "safe"]) == 0
    Path(safe).unlink()
    for said in (generated(capfd, "sd"), tuned(capfd)):
        assert f"expected weights in safetensors, got {pickle}, whose format can run code" in said
        assert "set allow_pickle if you trust" in said
    assert cli.run([*words, "--out", "pickled", "--allow-pickle"]) == 0
    assert Path("pickled/0000-a.png").read_bytes() == Path("safe/0000-a.png").read_bytes()
    assert cli.run(["tune", recipe(allow_pickle=True), "--out", "run"]) == 0
    assert Path("run/adapter/adapter_model.safetensors").is_file()


class Evil:
    """What a pickle can do."""

    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_a_pickle_with_code_is_not_run(place, capfd):
    safe, pickle = (f"sd/unet/{name}" for name in PART["unet"])
    torch.save({"conv_in.weight": Evil()}, pickle)
    Path(safe).unlink()
    assert cli.run(["generate", "--model", "sd", "--prompt", "a", "--out", "out", "--allow-pickle"]) == 2
    assert "Traceback" not in capfd.readouterr().err
    assert not Path("evil").exists()


@pytest.mark.parametrize("part", ["unet", "tokenizer", "text_encoder", "vae"])
def test_a_missing_part(place, capfd, part):
    shutil.rmtree(f"sd/{part}")
    assert f"expected {part} in sd, which its index names, got none" in generated(capfd, "sd")
    assert f"expected {part} in sd" in tuned(capfd)


@pytest.mark.parametrize("keep", [0.0, 0.5])
@pytest.mark.parametrize(
    "file",
    [
        "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "unet/config.json",
        "text_encoder/config.json",
        "tokenizer/tokenizer.json",
        "scheduler/scheduler_config.json",
    ],
)
def test_a_torn_file(place, capfd, file, keep):
    path = Path("sd") / file
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    said = generated(capfd, "sd")
    assert "expected a complete model in sd, got a defect" in said or f"expected {file} in sd" in said
    assert "; restore" in said


def test_a_scheduler_of_another_kind(place, capfd):
    config = "sd/scheduler/scheduler_config.json"
    before = Path(config).read_text()
    Path(config).write_text('{"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}')
    assert "got FlowMatchEulerDiscreteScheduler" in generated(capfd, "sd")
    assert "DDIMScheduler" in tuned(capfd)
    Path(config).write_text(before)
    to_json(config, lambda scheduler: scheduler.update(prediction_type="odd"))
    assert "expected prediction_type epsilon or v_prediction" in generated(capfd, "sd")
    Path(config).unlink()
    assert "expected scheduler/scheduler_config.json in sd" in generated(capfd, "sd")


@pytest.mark.parametrize(
    ("model", "size", "words"),
    [
        ("sd", {"seconds": 3}, "expected only height, width in size for a model of images, got seconds"),
        ("sd", {"frames": 3}, "expected only height, width in size for a model of images, got frames"),
        ("sd", {"height": 17}, "expected a height and a width in steps of 2 pixels, got 17 and 16"),
        ("sd", {"height": 100000}, "expected size.height to be a whole number from 1 to 8192, got 100000"),
        ("sd", {"width": -8}, "expected size.width to be a whole number from 1 to 8192, got -8"),
        ("sound", {"height": 16}, "expected only seconds in size for a model of audio, got height"),
        ("sound", {"seconds": 100}, "expected size.seconds of at most 2.56 for sound, got 100"),
        ("sound", {"seconds": float("inf")}, "expected size.seconds to be a number above 0 and up to 3600, got inf"),
    ],
)
def test_sizes_that_cannot_be(place, capfd, model, size, words):
    ((name, value),) = size.items()
    assert words in generated(capfd, model, f"--{name}={value}")
    assert words in tuned(capfd, model=model, size=size)


def test_a_precision_that_there_is_not(place, capfd):
    said = generated(capfd, "sd", "--precision", "fp16")
    assert "'fp16'" in said
    assert "'bf16'" in said
    assert "expected one of 'float32', 'bf16' in precision, got fp16" in tuned(capfd, precision="fp16")


def test_an_encoder_of_another_medium(place, capfd):
    for exemplars in ("stills", "sounds"):
        said = tuned(capfd, reward=frechet("TinyClap", "clap", exemplars))
        assert "expected audio for the encoder clap, got images" in said
        said = tuned(capfd, model="sound", reward=frechet("Dinov2", "dino", exemplars))
        assert "expected images for the encoder dino, got audio" in said
    words = ["--out", "r.safetensors", "--encoder"]
    assert "expected images for the encoder dino, got audio" in refused(
        capfd, "reference", "sounds", *words, "dinov2:dino"
    )
    assert "expected audio for the encoder clap" in refused(capfd, "reference", "stills", *words, "tiny-clap:clap")
    assert "expected a checkpoint of clap, got one of dinov2" in refused(
        capfd, "reference", "sounds", *words, "clap:dino"
    )


def test_a_model_of_tokens_is_not_tuned(place, capfd):
    assert "expected a continuous diffusion model to tune, got tiny-tokens" in tuned(capfd, model="tiny-tokens")
