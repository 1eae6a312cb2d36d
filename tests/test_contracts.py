"""The conformance suite accepts what keeps its promises, and catches what does not."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from dragontune.data import Media, Rows, Samples
from dragontune.encoders.base import Embeddings
from dragontune.generators.base import Generator
from dragontune.reference import Reference
from dragontune.rewards.alignment import Alignment
from dragontune.rewards.base import DifferentiableReward, DistributionReward, InstanceReward, Reward
from dragontune.rewards.combine import InstanceSum, Sum
from dragontune.rewards.diversity import Vendi
from dragontune.rewards.frechet import SetFrechet, SongFrechet
from dragontune.schedule import Cosine, Edm, Flow, Schedule
from dragontune.testing import Toy, ToyEncoder, check_encoder, check_generator, check_reward

ENCODER = ToyEncoder(frames=3)
REFERENCE = Reference.build(ENCODER, [torch.randn(50, 2, generator=torch.Generator().manual_seed(0))], "points")


def samples() -> Samples:
    points = torch.randn(6, 2, generator=torch.Generator().manual_seed(1))
    return Samples(("left", "right", "x") * 2, points, points)


@pytest.mark.parametrize("schedule", [Edm(), Cosine(), Flow()], ids=lambda s: type(s).__name__)
def test_generators(schedule: Schedule):
    check_generator(Toy(schedule=schedule), ("left", "right", ""))


@pytest.mark.parametrize("frames", [1, 3])
def test_encoders(frames: int):
    check_encoder(ToyEncoder(frames), samples().latents)


@pytest.mark.parametrize(
    "reward",
    [
        SetFrechet(ENCODER, REFERENCE),
        SongFrechet(ENCODER, REFERENCE),
        Alignment(ENCODER),
        Vendi(ENCODER),
        Vendi(ENCODER, 2.0),
        Sum({"frechet": SetFrechet(ENCODER, REFERENCE), "alignment": Alignment(ENCODER)}),
        InstanceSum({"alignment": Alignment(ENCODER), "song": SongFrechet(ENCODER, REFERENCE)}),
    ],
    ids=lambda r: type(r).__name__,
)
def test_rewards(reward: Reward):
    check_reward(reward, samples())


@dataclass(frozen=True, eq=False)
class NoReference(Toy):
    def reference(self) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass(frozen=True, eq=False)
class MixesRows(Toy):
    def denoise(self, noisy: Tensor, t: Tensor, condition: Rows) -> Tensor:
        estimate = super().denoise(noisy, t, condition)
        return estimate + 0.1 * estimate.mean(0)


@dataclass(frozen=True, eq=False)
class PredictsNoise(Toy):
    def denoise(self, noisy: Tensor, t: Tensor, condition: Rows) -> Tensor:
        return noisy - super().denoise(noisy, t, condition)


@pytest.mark.parametrize(
    ("broken", "complaint"), [(NoReference(), "reference"), (MixesRows(), "rows"), (PredictsNoise(), "near t = 0")]
)
def test_broken_generators_are_caught(broken: Generator, complaint: str):
    with pytest.raises(AssertionError, match=complaint):
        check_generator(broken)


@dataclass(frozen=True)
class Normalised(ToyEncoder):
    def embed(self, media: Media) -> Embeddings:
        assert isinstance(media, Tensor)
        return Embeddings.of((media - media.mean(0))[:, None])


@dataclass(frozen=True)
class LongText(ToyEncoder):
    def embed_text(self, texts: Sequence[str]) -> Embeddings:
        return Embeddings.of(2 * super().embed_text(texts).frames)


@pytest.mark.parametrize("broken", [Normalised(), LongText()], ids=lambda e: type(e).__name__)
def test_broken_encoders_are_caught(broken: ToyEncoder):
    with pytest.raises(AssertionError):
        check_encoder(broken, samples().latents)


@dataclass(frozen=True)
class Unmarked(InstanceReward[Tensor]):
    def encode(self, samples: Samples) -> Tensor:
        return samples.latents[:, 0]

    def score(self, features: Tensor) -> Tensor:
        return features


@dataclass(frozen=True)
class Detached(Unmarked, DifferentiableReward):
    def score(self, features: Tensor) -> Tensor:
        return features.detach()


@dataclass(frozen=True)
class Relative(InstanceReward[Tensor]):
    def encode(self, samples: Samples) -> Tensor:
        return (samples.latents[:, 0] - samples.latents[:, 0].mean()).detach()

    def score(self, features: Tensor) -> Tensor:
        return features


@dataclass(frozen=True)
class First(DistributionReward[Tensor]):
    def encode(self, samples: Samples) -> Tensor:
        return samples.latents.detach()

    def score(self, features: Tensor) -> Tensor:
        return features[0, 0]


@dataclass(frozen=True)
class Lenient(DistributionReward[Tensor]):
    @property
    def minimum(self) -> int:
        return 2

    def encode(self, samples: Samples) -> Tensor:
        return samples.latents.detach()

    def score(self, features: Tensor) -> Tensor:
        return features.mean()


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (Unmarked(), "marked|DifferentiableReward"),
        (Detached(), "DifferentiableReward"),
        (Relative(), "mixes the items"),
        (First(), "order"),
        (Lenient(), "InputError"),
    ],
)
def test_broken_rewards_are_caught(broken: Reward, complaint: str):
    with pytest.raises(AssertionError, match=complaint):
        check_reward(broken, samples())


def test_a_check_puts_the_adapter_back():
    toy = Toy()
    before = [weight.detach().clone() for weight in toy.parameters()]
    check_generator(toy)
    assert all(torch.equal(a, b) for a, b in zip(before, toy.parameters(), strict=True))
