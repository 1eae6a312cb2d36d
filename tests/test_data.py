"""Records with rows."""

from dataclasses import FrozenInstanceError, dataclass

import pytest
import torch
from torch import Tensor

from dragontune.data import Demonstrations, Rows, Samples
from dragontune.encoders.base import Embeddings


@dataclass(frozen=True, eq=False)
class Clip(Rows):
    wave: Tensor
    rate: int


def samples(count: int) -> Samples:
    latents = torch.arange(count * 2.0).reshape(count, 2)
    return Samples(tuple(f"p{i}" for i in range(count)), latents, Clip(latents * 10, 8))


def test_index_and_join_are_inverse():
    whole = samples(5)
    parts = whole.chunks(2)
    assert [len(part) for part in parts] == [2, 2, 1]
    again = Samples.join(parts)
    assert again.prompts == whole.prompts
    assert torch.equal(again.latents, whole.latents)
    assert isinstance(again.media, Clip)
    assert again.media.rate == 8


def test_indexing_reaches_every_column():
    some = samples(4)[torch.tensor([3, 0])]
    assert some.prompts == ("p3", "p0")
    assert isinstance(some.media, Clip)
    assert torch.equal(some.media.wave, some.latents * 10)
    pair = Demonstrations(samples(3), samples(3))[torch.tensor([2])]
    assert pair.positive.prompts == pair.negative.prompts == ("p2",)
    assert len(pair) == 1


def test_constants_must_agree():
    with pytest.raises(ValueError, match="constants"):
        Clip.join([Clip(torch.ones(1), 8), Clip(torch.ones(1), 16)])
    undecoded = Samples(("a",), torch.ones(1, 2), None)
    assert Samples.join([undecoded, undecoded]).media is None


def test_records_are_frozen():
    with pytest.raises(FrozenInstanceError):
        samples(1).prompts = ("b",)  # pyright: ignore[reportAttributeAccessIssue]


def test_embeddings_of_different_lengths():
    a, b = Embeddings.of(torch.ones(2, 3, 4)), Embeddings.of(2 * torch.ones(1, 5, 4))
    both = Embeddings.join([a, b])
    assert both.frames.shape == (3, 5, 4)
    assert both.pooled().shape == (11, 4)
    torch.testing.assert_close(both.mean()[:, 0], torch.tensor([1.0, 1.0, 2.0]))
