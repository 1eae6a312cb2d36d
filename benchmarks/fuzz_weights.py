"""What `fuzz.py` tries on models: safetensors, references, heads, checkpoints, adapters and their settings."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from fuzz_inputs import ASSETS, CHANGES, Draw, header, mutated, text_like, tree
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from dragontune import json_files, tensor_files
from dragontune.encoders.log_mel import LogMel
from dragontune.generators import adapter_settings, adapters, pretrained
from dragontune.media.audio import Audio
from dragontune.reference import Reference
from dragontune.rewards.aesthetics import SHIPPED, Head
from dragontune.training.checkpoint import Checkpoints, TrainingState


def tensors(scratch: Path) -> Callable[[Draw], object]:
    """Safetensors as bytes and as files."""
    content = save({"a": torch.zeros(2, 3), "b": torch.ones(4, dtype=torch.int64)}, {"x": "y"})
    path = scratch / "x.safetensors"

    def once(draw: Draw) -> object:
        data = header(draw, content)
        path.write_bytes(data)
        with contextlib.suppress(ValueError):
            tensor_files.read(path)
        return tensor_files.loads(data)

    return once


def of_file(scratch: Path, write: Callable[[Path], object], read: Callable[[Path], object]) -> Callable[[Draw], object]:
    """A reader of one safetensors file; its own digest is not in the way where only numbers are changed."""
    path = scratch / "file.safetensors"
    write(path)
    content = path.read_bytes()

    def once(draw: Draw) -> object:
        path.write_bytes(header(draw, content))
        return read(path)

    return once


def references(scratch: Path) -> Callable[[Draw], object]:
    """Statistics of exemplars."""
    clips = [Audio(torch.randn(1, 1, 16000, generator=torch.Generator().manual_seed(i)), 16000) for i in range(3)]
    built = Reference.build(LogMel(), clips, "x")
    return of_file(scratch, built.save, Reference.load)


def heads(scratch: Path) -> Callable[[Draw], object]:
    """Heads of aesthetics rewards."""
    return of_file(scratch, Head.load(ASSETS / SHIPPED).save, Head.load)


def checkpoints(scratch: Path) -> Callable[[Draw], object]:
    """A run's state: damage must be found, a crafted one must not crash."""
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = TrainingState.of(list(layer.parameters()), optimizer, [{"round": 1, "reward": 0.0, "seconds": 1.0}])
    kept = Checkpoints(scratch / "kept")
    kept.save(state)
    tensor, record = (next((scratch / "kept").glob(f"*.{suffix}")) for suffix in ("safetensors", "json"))
    whole = tensor.read_bytes(), record.read_bytes()

    def once(draw: Draw) -> object:
        which = draw(st.booleans())
        tensor.write_bytes(header(draw, whole[0]) if which else whole[0])
        record.write_bytes(whole[1] if which else mutated(whole[1], draw(CHANGES)))
        found = kept.latest()
        if found is not None:
            found.restore(list(layer.parameters()), optimizer)
        return found

    return once


class Net(nn.Module):
    """Two layers to put adapters on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)


def adapter(scratch: Path) -> Callable[[Draw], object]:
    """Adapters in peft's format: settings and weights."""
    net = Net()
    adapters.attach(net, adapters.Lora(rank=2))
    adapters.save(net, scratch / "lora", "tiny-music")
    config, weights = (scratch / "lora" / name for name in (adapters.CONFIG_FILE, adapters.WEIGHTS_FILE))
    settings, content = json.loads(config.read_text()), weights.read_bytes()

    def once(draw: Draw) -> object:
        if draw(st.booleans()):
            weights.write_bytes(content)
            config.write_text(json.dumps(tree(draw, settings)))
        else:
            config.write_text(json.dumps(settings))
            weights.write_bytes(header(draw, content))
        return adapters.load(Net(), scratch / "lora")

    return once


def settings(scratch: Path) -> Callable[[Draw], object]:
    """JSON of models and adapters, as text and as values."""
    samples = [path.read_text() for path in sorted(ASSETS.rglob("*config.json")) if path.stat().st_size < 1 << 16]
    deep = ["[" * 5000, '{"a":' * 500 + "1" + "}" * 500, "9" * 5000, '{"r": 1e999, "target_modules": "(a+)+$"}']
    path = scratch / "config.json"

    def once(draw: Draw) -> object:
        path.write_bytes(draw(text_like(samples + deep)))
        with contextlib.suppress(ValueError):
            adapter_settings.read(path)
        return json_files.read(path)

    return once


def model(scratch: Path) -> Callable[[Draw], object]:
    """The embedded model with one of its settings changed, opened as a whole."""
    folder = scratch / "model"
    shutil.copytree(ASSETS / "tiny-music", folder, ignore=shutil.ignore_patterns("exemplars", "ratings", "references"))
    configs = {path: path.read_text() for path in sorted(folder.rglob("*.json")) if path.stat().st_size < 1 << 16}

    def once(draw: Draw) -> object:
        path = draw(st.sampled_from(list(configs)))
        path.write_text(json.dumps(tree(draw, json.loads(configs[path]))))
        try:
            return pretrained.load(str(folder), device="cpu")
        finally:
            path.write_text(configs[path])

    return once
