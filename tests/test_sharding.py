"""Networks in pieces: real ones with tiny random weights compute the same, and each process holds its part."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from companies import company
from dragontune.algorithms.draft import Draft
from dragontune.data import Samples
from dragontune.generators import pretrained
from dragontune.generators.adapters import Lora
from dragontune.generators.checkpoint import Plan
from dragontune.generators.pipeline import Adapted
from dragontune.generators.sharding import sharded
from dragontune.media.audio import Audio
from dragontune.media.image import Images
from dragontune.parallel import add_up, portions
from dragontune.rewards.base import DifferentiableReward, InstanceReward
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from tiny_models import save_stable_audio, save_tiny_music
from tiny_stable_diffusion import save_stable_diffusion

MODELS: dict[str, Callable[[Path], Path]] = {
    "tiny-music": save_tiny_music,
    "stable-audio": save_stable_audio,
    "stable-diffusion": save_stable_diffusion,
}


class Loud(InstanceReward[Tensor], DifferentiableReward[Tensor]):
    """The mean of the media's values."""

    def encode(self, samples: Samples) -> Tensor:
        media = samples.media
        assert isinstance(media, Audio | Images)
        return (media.waveform if isinstance(media, Audio) else media.pixels).flatten(1).mean(1, keepdim=True)

    def score(self, features: Tensor) -> Tensor:
        return features[:, 0]


def gradients(generator: Adapted) -> list[Tensor]:
    """Of a reward through two steps, with activations computed again."""
    weights = list(generator.parameters())
    with torch.no_grad():
        for number, weight in enumerate(weights):
            weight.copy_(0.1 * Key(number).normal([0], weight.shape)[0])
    draft = Draft(generator, Loud(), sampler=Sampler(steps=3, guidance=2.0), last=2, micro_batch=1)
    prompts = ("a reel", "a jig for flute", "a reel in G")
    tail = draft.prepare(draft.collect(prompts, Key(0))[0], Key(1))
    for portion in portions(torch.arange(len(tail)), 1, generator.sharded):
        (portion.real * draft.loss(tail[portion.rows])[0]).backward()
    found = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
    add_up(found)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_pieces_make_a_whole(tmp_path: Path, name: str):
    """One process makes the same gradients without pieces; two hold about half of the frozen weights each."""
    folder = MODELS[name](tmp_path / "model")
    plan = Plan(checkpointing=True, shard=True)

    def work() -> Any:
        generator = pretrained.load(str(folder), Lora(rank=2, alpha=2.0), plan=plan)
        frozen = [weight for weight in generator.network.parameters() if not weight.requires_grad]
        pieces = sum(weight.to_local().numel() for weight in frozen if isinstance(weight, DTensor))
        found = gradients(generator)
        generator.save_adapter(str(tmp_path / "adapter"))
        generator.load_adapter(str(tmp_path / "adapter"))
        return generator.sharded, [type(weight).__name__ for weight in frozen], pieces, found

    alone = pretrained.load(str(folder), Lora(rank=2, alpha=2.0), plan=plan)
    assert not sharded(alone.network)
    whole = sum(weight.numel() for weight in alone.network.parameters() if not weight.requires_grad)
    pieces = 0
    for in_pieces, kinds, held, _ in (found := company(2, work, tmp_path / "two")):
        assert in_pieces
        assert set(kinds) == {"DTensor"}
        assert held < 0.6 * whole
        pieces += held
    assert pieces == whole
    expected = gradients(alone)
    assert all(one.any() for one in expected)
    for _, _, _, gradient in found:
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)
