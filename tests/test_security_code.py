"""Data are never code: pickles are planted wherever weights are looked for, code wherever a name is; none is run."""

import json
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from dragontune import cli
from dragontune.embedded import ASSETS
from dragontune.encoders import checkpoint
from dragontune.errors import InputError
from dragontune.generators import adapters, lora_files, pretrained
from dragontune.media import audio
from dragontune.reference import Reference
from dragontune.rewards.aesthetics import Head
from dragontune.training.checkpoint import Checkpoints


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.fixture
def bomb(tmp_path: Path):
    """Writes a pickle that leaves `mark`; at the end there is none."""
    mark = tmp_path / "pwned"
    made = list[Path]()

    def plant(path: Path, torchs: bool = True) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        if torchs:
            torch.save({"state_dict": Bomb(mark)}, path)
        else:
            path.write_bytes(pickle.dumps(Bomb(mark)))
        made.append(path)
        return path

    yield plant
    assert made
    assert not mark.exists()


def test_the_bomb_is_one(tmp_path: Path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


def touching(folder: Path) -> str:
    """Code that leaves a file when it is run."""
    return f"from pathlib import Path\nPath({str(folder / 'pwned')!r}).touch()\n"


def copied(folder: Path) -> Path:
    """The embedded model without what it is tuned with."""
    shutil.copytree(ASSETS / "tiny-music", folder, ignore=shutil.ignore_patterns("exemplars", "ratings", "references"))
    return folder


@pytest.mark.parametrize("allow", [False, True])
@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("transformer", "diffusion_pytorch_model.bin"),
        ("vae", "diffusion_pytorch_model.bin"),
        ("text_encoder", "pytorch_model.bin"),
        ("text_encoder", "model.ckpt"),
        ("vae", "weights.pt"),
    ],
)
def test_models(tmp_path: Path, bomb, part: str, name: str, allow: bool):
    folder = copied(tmp_path / "model")
    for file in (folder / part).glob("*.safetensors"):
        file.unlink()
    bomb(folder / part / name)
    with pytest.raises(InputError):
        pretrained.load(str(folder), device="cpu", allow_pickle=allow)


def test_models_with_both(tmp_path: Path, bomb):
    folder = copied(tmp_path / "model")
    bomb(folder / "vae" / "diffusion_pytorch_model.bin")
    bomb(folder / "text_encoder" / "pytorch_model.bin", torchs=False)
    pretrained.load(str(folder), device="cpu")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_encoders(tmp_path: Path, bomb, name: str):
    bomb(tmp_path / "encoder" / name)
    (tmp_path / "encoder" / "config.json").write_text(json.dumps({"model_type": "clap"}))
    with pytest.raises(InputError, match="in safetensors, got only"):
        checkpoint.read_weights(tmp_path / "encoder", None)
    with pytest.raises(InputError, match="expected the weights of a network"):
        checkpoint.read_weights(tmp_path / "encoder", name)  # named, so that it is read: tensors and nothing else


@pytest.mark.parametrize("name", ["adapter_model.bin", "pytorch_lora_weights.bin", "lora.pt", "lora.ckpt", "lora.pkl"])
def test_adapters(tmp_path: Path, bomb, name: str, capsys: pytest.CaptureFixture[str]):
    net = nn.Sequential(nn.Linear(2, 2))
    adapters.attach(net, adapters.Lora(rank=1))
    adapters.save(net, tmp_path / "lora", "tiny-music")
    (tmp_path / "lora" / adapters.WEIGHTS_FILE).unlink()
    planted = bomb(tmp_path / "lora" / name)
    with pytest.raises(InputError):
        adapters.load(nn.Sequential(nn.Linear(2, 2)), tmp_path / "lora")
    with pytest.raises(InputError, match="can run code"):
        lora_files.find(planted)
    for given in (tmp_path / "lora", planted):
        command = [
            "generate",
            "--model",
            "tiny-music",
            "--adapter",
            str(given),
            "--prompt",
            "a",
            "--out",
            str(tmp_path / "out"),
        ]
        assert cli.run(command) == 2
        assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("torchs", [True, False])
def test_files_that_are_pickles_under_another_name(tmp_path: Path, bomb, torchs: bool):
    planted = bomb(tmp_path / "x.safetensors", torchs)
    for read in (Reference.load, Head.load, lambda path: checkpoint.read_weights(path.parent, path.name)):
        with pytest.raises(InputError):
            read(planted)
    for name in ("x.wav", "x.flac", "x.npy"):
        with pytest.raises(InputError):
            audio.read(bomb(tmp_path / name, torchs))


def test_checkpoints(tmp_path: Path, bomb):
    bomb(tmp_path / "round-000001.safetensors")
    bomb(tmp_path / "round-000001.json", torchs=False)
    bomb(tmp_path / "optimizer.pt")
    with pytest.warns(UserWarning, match="damaged"):
        assert Checkpoints(tmp_path).latest() is None


@pytest.mark.parametrize("field", ["vae", "scheduler", "extra"])
def test_an_index_imports_nothing_new(tmp_path: Path, monkeypatch, field: str):
    (tmp_path / "evil_library.py").write_text(touching(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    folder = copied(tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / field).mkdir(exist_ok=True)
    (folder / field / "evil_library.py").write_text(touching(tmp_path))
    (folder / "model_index.json").write_text(json.dumps(index | {field: ["evil_library", "Evil"]}))
    with pytest.raises(InputError, match="evil_library"):
        pretrained.load(str(folder), device="cpu")
    assert not (tmp_path / "pwned").exists()
    assert "evil_library" not in sys.modules


@pytest.mark.parametrize("library", ["os", "subprocess", "builtins"])
def test_an_index_calls_nothing(tmp_path: Path, library: str):
    folder = copied(tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"vae": [library, "system"]}))
    with pytest.raises(InputError):
        pretrained.load(str(folder), device="cpu")


def test_remote_code_is_not_run(tmp_path: Path):
    folder = copied(tmp_path / "model")
    (folder / "text_encoder" / "evil.py").write_text(touching(tmp_path))
    config = json.loads((folder / "text_encoder" / "config.json").read_text())
    auto = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "T5EncoderModel": "evil.Model"}
    (folder / "text_encoder" / "config.json").write_text(json.dumps(config | {"auto_map": auto}))
    pretrained.load(str(folder), device="cpu")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("field", "value", "option"), [("family", "evil.py", "--family"), ("allow_pickle", True, "--allow-pickle")]
)
def test_a_run_that_was_handed_on_asks_for_code(
    tmp_path: Path, monkeypatch, capsys, field: str, value: object, option: str
):
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("evil.py").write_text(touching(tmp_path) + "FAMILY = 1\n")
    Path("run/recipe.yaml").write_text(yaml.safe_dump({"model": "tiny-music", field: value}))
    assert cli.run(["generate", "--adapter", "run", "--prompt", "a", "--out", "out"]) == 2
    assert f"expected {option}" in capsys.readouterr().err
    assert not Path("pwned").exists()
    assert not Path("out").exists()
