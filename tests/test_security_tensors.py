"""Safetensors, JSON and adapters that were made to hurt."""

import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from dragontune import json_files, tensor_files
from dragontune.embedded import locate
from dragontune.encoders.log_mel import LogMel
from dragontune.errors import InputError
from dragontune.generators import adapter_settings, adapters
from dragontune.media.audio import Audio
from dragontune.reference import Reference
from dragontune.rewards.aesthetics import SHIPPED, Head
from dragontune.training.checkpoint import Checkpoints, TrainingState

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def file(header: object, data: bytes = bytes(8), length: int | None = None) -> bytes:
    """A file of a header, JSON or bytes, and data."""
    said = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(said) if length is None else length) + said + data


HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "too few"),
    "short": (b"1234567", "too few"),
    "length 2^60": (file({}, length=1 << 60), "a header of"),
    "length 2^63": (file({}, length=(1 << 64) - 1), "a header of"),
    "length beyond": (file({}, length=100), "a header of"),
    "latin": (file(b'{"\xff": 1}'), "utf-8"),
    "no JSON": (file(b"{"), "Expecting"),
    "no names": (file([]), "without names"),
    "deep": (file(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "deep"),
    "rather deep": (file(b'{"a":' + b"[" * 300 + b"]" * 300 + b"}"), "levels"),
    "twice": (file(b'{"a": %s, "a": %s}' % ((json.dumps(F32).encode(),) * 2)), "twice"),
    "overlap": (file({"a": F32, "b": {**F32, "data_offsets": [4, 12]}}, bytes(12)), "overlap"),
    "the same": (file({"a": F32, "b": F32}), "overlap"),
    "a gap": (file({"a": {**F32, "data_offsets": [8, 16]}}, bytes(16)), "missing"),
    "beyond": (file({"a": {**F32, "shape": [4], "data_offsets": [0, 16]}}), "declared"),
    "left over": (file({"a": F32}, bytes(12)), "declared"),
    "backwards": (file({"a": {**F32, "data_offsets": [8, 0]}}), "does not fill"),
    "negative": (file({"a": {**F32, "shape": [-2]}}), "impossible"),
    "half": (file({"a": {**F32, "shape": [2.0]}}), "impossible"),
    "true": (file({"a": {**F32, "shape": [True, 2]}}), "impossible"),
    "huge": (file({"a": {**F32, "shape": [1 << 62, 1 << 62]}}), "nothing can hold"),
    "empty and huge": (file({"a": {**F32, "shape": [0, 1 << 62], "data_offsets": [0, 0]}}, b""), "nothing can hold"),
    "axes": (file({"a": {**F32, "shape": [1] * 200 + [2]}}), "impossible"),
    "type": (file({"a": {**F32, "dtype": "F33"}}), "type F33"),
    "sub-byte": (file({"a": {"dtype": "F4", "shape": [16], "data_offsets": [0, 8]}}), "type F4"),
    "other fields": (file({"a": {**F32, "code": "x"}}), "no type, shape and offsets"),
    "no entry": (file({"a": 1}), "no type, shape and offsets"),
    "metadata": (file({"a": F32, "__metadata__": {"x": 1}}), "no texts"),
    "metadata list": (file({"a": F32, "__metadata__": []}), "no texts"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_files_that_are_not_what_they_say(tmp_path: Path, name: str):
    content, words = HOSTILE[name]
    (tmp_path / "x.safetensors").write_bytes(content)
    start = time.process_time()
    with pytest.raises(ValueError, match=words):
        tensor_files.read(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=words):
        tensor_files.loads(content)
    with pytest.raises(ValueError, match=r"x\.safetensors: "):
        tensor_files.check_folder(tmp_path)
    for load in (Reference.load, Head.load):
        with pytest.raises(InputError, match=r"x\.safetensors"):
            load(tmp_path / "x.safetensors")
    assert time.process_time() - start < 5


def test_too_many_tensors_and_too_long_a_header(monkeypatch):
    content = save({f"t{i}": torch.zeros(1) for i in range(5)}, {"a": "b"})
    assert len(tensor_files.loads(content).tensors) == 5
    assert tensor_files.loads(content).metadata == {"a": "b"}
    monkeypatch.setattr(tensor_files, "MOST_TENSORS", 4)
    with pytest.raises(ValueError, match="5 tensors"):
        tensor_files.loads(content)
    monkeypatch.setattr(tensor_files, "MOST_HEADER", 100)
    with pytest.raises(ValueError, match="a header of"):
        tensor_files.loads(content)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.bool, torch.float8_e4m3fn]
)
def test_sound_files_are_read(tmp_path: Path, dtype: torch.dtype):
    tensors = {"a": torch.ones(2, 3).to(dtype), "none": torch.zeros(0, 3).to(dtype), "one": torch.ones(()).to(dtype)}
    save_file(tensors, tmp_path / "x.safetensors")
    found = tensor_files.read(tmp_path / "x.safetensors").tensors
    assert {name: (value.dtype, value.shape) for name, value in found.items()} == {
        name: (value.dtype, value.shape) for name, value in tensors.items()
    }
    tensor_files.check_finite(found)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[" * 100_000, "levels"),
        ('{"a":' * 70 + "1" + "}" * 70, "levels"),
        ("9" * 5000, "limit"),
        ("{", "Expecting"),
        ("x" * 101, "more than"),
    ],
)
def test_json_that_is_too_much(tmp_path: Path, content: str, words: str):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=words):
        json_files.read(tmp_path / "x.json", 100 if content.startswith("x") else json_files.MOST_BYTES)
    if not content.startswith("x"):
        with pytest.raises(ValueError, match=r"x\.json: "):
            json_files.check_folder(tmp_path)


def reference() -> Reference:
    """Of noise."""
    clips = [Audio(torch.randn(1, 1, 16000, generator=torch.Generator().manual_seed(i)), 16000) for i in range(3)]
    return Reference.build(LogMel(), clips, "noise")


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields["mean"].fill_(float("nan")),
        lambda fields: fields["covariance"].fill_(float("inf")),
        lambda fields: fields.update(mean=fields["mean"][:-1]),
        lambda fields: fields.update(mean=fields["mean"][None]),
        lambda fields: fields.update(mean=fields["mean"].float()),
        lambda fields: fields.update(covariance=fields["covariance"][:, :-1]),
        lambda fields: fields.update(vectors=fields["vectors"][:-1]),
        lambda fields: fields.update(vectors=fields["vectors"].double()),
        lambda fields: fields.update(count=1),
        lambda fields: fields.update(items=-3),
        lambda fields: fields.update(items=10**30),
    ],
)
def test_references_that_do_not_fit_together(tmp_path: Path, change: Change):
    fields = {name: getattr(reference(), name) for name in Reference.__dataclass_fields__}
    fields = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in fields.items()}
    change(fields)
    path = tmp_path / "x.safetensors"
    header = {name: str(fields[name]) for name in ("count", "items", "encoder", "encoder_digest", "source", "modality")}
    tensors = {name: fields[name].contiguous() for name in ("mean", "covariance", "vectors")}
    save_file(tensors, path, header | {"digest": "0" * 64})
    with pytest.raises(InputError, match="is not a reference"):
        Reference.load(path)


def test_a_reference_with_something_else_in_it(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    reference().save(path)
    assert Reference.load(path).count
    found = tensor_files.read(path)
    save_file({**found.tensors, "more": torch.zeros(1)}, path, dict(found.metadata))
    with pytest.raises(InputError, match="a tensor too many, more"):
        Reference.load(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bandwidth", "nan"),
        ("bandwidth", "0"),
        ("bandwidth", "1e999"),
        ("offset", "inf"),
        ("kind", "pickle"),
        ("pooling", "sum"),
        ("about", "[]"),
        ("about", "[" * 5000),
        ("points", "nan"),
        ("values", "short"),
    ],
)
def test_heads_that_do_not_fit_together(tmp_path: Path, field: str, value: str):
    path = tmp_path / "x.safetensors"
    Head.load(locate(SHIPPED)).save(path)
    found = tensor_files.read(path)
    tensors, header = dict(found.tensors), dict(found.metadata)
    if field == "points":
        tensors["points"][0, 0] = float("nan")
    elif field == "values":
        tensors["values"] = tensors["values"][:-1].clone()
    else:
        header[field] = value
    save_file(tensors, path, header)
    with pytest.raises(InputError, match="expected the head of an aesthetics reward"):
        Head.load(path)


class Net(nn.Module):
    """Two layers to put adapters on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)


def adapter(folder: Path) -> Path:
    """One in peft's format."""
    net = Net()
    adapters.attach(net, adapters.Lora(rank=2))
    adapters.save(net, folder, "tiny-music")
    return folder


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("r", 1 << 40),
        ("r", -1),
        ("r", True),
        ("rank_pattern", {"first": 1 << 40}),
        ("rank_pattern", []),
        ("rank_pattern", {"((a|b)+)+$": 2}),
        ("alpha_pattern", {"(.*)*x": 2}),
        ("lora_alpha", float("nan")),
        ("lora_alpha", 1e300),
        ("target_modules", "(([a-z.])+)+!"),
        ("target_modules", ".*.*.*.*.*.*x"),
        ("target_modules", "(a|b)*(a|b)*c"),
        ("target_modules", "("),
        ("target_modules", [1]),
        ("target_modules", "a" * (2 << 20)),
        ("exclude_modules", "(?:x+)+y"),
        ("layers_pattern", ["(z*)*"]),
        ("megatron_config", {"a": 1}),
        ("layer_replication", [[0, 1 << 30]]),
        ("modules_to_save", {"a": 1}),
    ],
)
def test_settings_of_adapters_that_would_hurt(tmp_path: Path, name: str, value: object):
    folder = adapter(tmp_path)
    settings = json.loads((folder / adapters.CONFIG_FILE).read_text())
    adapters.load(Net(), folder)
    (folder / adapters.CONFIG_FILE).write_text(json.dumps(settings | {name: value}))
    start = time.process_time()
    with pytest.raises(InputError, match="expected a readable adapter"):
        adapters.load(Net(), folder)
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    "pattern",
    [
        r".*\.(to_q|to_k|to_v)$",
        r"^(?!.*conv).*attn.*",
        r"a\.b\.c|d\.e",
        r"blocks\.[0-9]+\.attn\.to_(q|k)",
        r"x\*\+\{|[*+{]y",
        "",
    ],
)
def test_settings_of_adapters_that_people_have(pattern: str):
    adapter_settings.check({"r": 8, "lora_alpha": 16.0, "target_modules": pattern, "rank_pattern": {pattern: 4}})


def test_weights_of_adapters_must_be_finite(tmp_path: Path):
    folder = adapter(tmp_path)
    weights = dict(tensor_files.read(folder / adapters.WEIGHTS_FILE).tensors)
    next(iter(weights.values())).fill_(float("nan"))
    save_file(weights, folder / adapters.WEIGHTS_FILE)
    with pytest.raises(InputError, match="NaN or infinity"):
        adapters.load(Net(), folder)


def test_a_hostile_checkpoint_is_passed_over(tmp_path: Path):
    layer = nn.Linear(2, 2)
    kept = Checkpoints(tmp_path, 3)
    optimizer = torch.optim.Adam(layer.parameters())
    for count in (1, 2):
        kept.save(
            TrainingState.of(
                list(layer.parameters()), optimizer, [{"round": i + 1, "reward": 0.0} for i in range(count)]
            )
        )
    newest = sorted(tmp_path.glob("*.safetensors"))[-1]
    newest.write_bytes(file({"a": F32, "b": F32}))
    with pytest.warns(UserWarning, match="damaged"):
        found = kept.latest()
    assert found is not None
    assert found.round == 1
