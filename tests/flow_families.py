"""What every family of flow models must stand, for the tests of each."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dragontune.data import Rows
from dragontune.errors import InputError
from dragontune.generators.adapters import Lora
from dragontune.generators.checkpoint import Plan, Size
from dragontune.generators.pipeline import PipelineGenerator
from dragontune.generators.pretrained import load
from dragontune.sampling import Sampler
from dragontune.seeding import Key

PROMPTS = ["a reel in G major", "a jig for flute"]


def opened(
    folder: Path,
    size: Size | None = None,
    lora: Lora | None = None,
    precision: str = "float32",
    plan: Plan | None = None,
) -> Any:
    generator = load(str(folder), lora, "cpu", precision, size, plan)  # pyright: ignore[reportArgumentType]
    assert isinstance(generator, PipelineGenerator)
    return generator


def changed(folder: Path, tmp_path: Path, file: str, **values: object) -> Path:
    """A copy of the folder with other values in one of its files."""
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    path = other / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return other


def noise_of(generator: PipelineGenerator, count: int = 2) -> torch.Tensor:
    return torch.randn(count, *generator.latent_shape, generator=torch.Generator().manual_seed(0))


def check_prompts(generator: PipelineGenerator) -> None:
    """Each prompt is a row of its own, and prompts and times are heard."""
    together = generator.encode_prompts([*PROMPTS, ""])
    for i, prompt in enumerate([*PROMPTS, ""]):
        alone, row = generator.encode_prompts([prompt]), together[torch.tensor([i])]
        assert isinstance(alone, Rows)
        for name, column in vars(alone).items():
            torch.testing.assert_close(getattr(row, name), column, atol=1e-5, rtol=1e-5)
    noise = noise_of(generator, 1).expand(3, *generator.latent_shape)
    with torch.no_grad():
        first = generator.predict(noise, torch.full((3,), 0.5), together)
        later = generator.predict(noise, torch.full((3,), 0.4), together)
    for other in (first[1], first[2], later[0]):
        assert (first[0] - other).abs().max() > 0.1
    vectors = generator.prompt_vectors(together)
    assert len(vectors) == 3
    assert not torch.allclose(vectors[0], vectors[1], atol=1e-3)


class _Watched(TorchDispatchMode):
    """Keeps the names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def check_no_waiting(generator: PipelineGenerator) -> None:
    """A step asks no number of the device and sends it no constant, which would let it wait."""
    condition, noise, t = generator.encode_prompts(PROMPTS), noise_of(generator), torch.full((2,), 0.5)
    with torch.no_grad():
        generator.denoise(noise, t, condition)
        with _Watched() as watched:
            generator.denoise(noise, t, condition)
    assert "aten.add.Tensor" in watched.names
    waits = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh")
    assert not [name for name in watched.names if any(wait in name for wait in waits)]


def check_bfloat16(folder: Path, size: Size | None = None, tolerance: float = 0.15) -> None:
    """Networks and text encoders are kept in it, latents and the autoencoder are not; results are near."""
    full, half = opened(folder, size), opened(folder, size, precision="bf16")
    for name, part in half.pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            assert any(weight.dtype == torch.bfloat16 for weight in part.parameters()) == (name != "vae"), name
    noise, t = noise_of(full), torch.full((2,), 0.5)
    with torch.no_grad():
        exact = full.denoise(noise, t, full.encode_prompts(PROMPTS))
        near = half.denoise(noise, t, half.encode_prompts(PROMPTS))
    assert near.dtype == torch.float32
    assert not torch.equal(near, exact)
    assert (near - exact).square().mean().sqrt() < tolerance * exact.std()
    assert Sampler(steps=2, guidance=2.0).sample(half, PROMPTS, Key(0)).latents.isfinite().all()


def check_gradients(folder: Path, size: Size | None = None) -> None:
    """They pass from the decoded media to the adapter, the same with and without checkpointing."""
    found = []
    for checkpointing in (False, True):
        generator = opened(folder, size, Lora(rank=2), plan=Plan(checkpointing=checkpointing))
        draws = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in generator.parameters():
                weight.add_(0.02 * torch.randn(weight.shape, generator=draws))
        samples = Sampler(steps=2, guidance=2.0).sample(generator, PROMPTS, Key(0), differentiate_last=1)
        assert isinstance(samples.media, Rows)
        media = next(value for value in vars(samples.media).values() if isinstance(value, torch.Tensor))
        found.append(torch.autograd.grad(media.square().mean(), list(generator.parameters()), allow_unused=True))
    plain, again = ([torch.zeros(1) if slope is None else slope for slope in slopes] for slopes in found)
    assert sum(slope.abs().sum().item() for slope in plain) > 0
    for first, second in zip(plain, again, strict=True):
        assert first.isfinite().all()
        torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-4)


def check_offload(folder: Path, size: Size | None = None) -> None:
    """The same latents, and each prompt is encoded once."""
    plain, thrifty = opened(folder, size), opened(folder, size, plan=Plan(offload=True))
    sampler = Sampler(steps=2, guidance=2.0)
    expected = sampler.sample(plain, PROMPTS, Key(0), decode=False).latents
    for _ in range(2):
        found = sampler.sample(thrifty, PROMPTS, Key(0), decode=False).latents
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert set(thrifty._said) == {*PROMPTS, ""}


def check_scheduler(folder: Path, tmp_path: Path, wrong: dict[str, object], size: Size | None = None) -> None:
    """A folder with another scheduler is refused by a sentence."""
    with pytest.raises(InputError, match=r"expected .*, got .*; restore"):
        opened(changed(folder, tmp_path, "scheduler/scheduler_config.json", **wrong), size)
