"""Rewards with known answers, composites of them and a witness of exchanges, for tests of composites."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dragontune.data import Samples
from dragontune.distances.swaps import Swaps
from dragontune.errors import InputError
from dragontune.reference import Reference
from dragontune.rewards.alignment import Alignment
from dragontune.rewards.base import DistributionReward, InstanceReward, Reward
from dragontune.rewards.combine import InstanceSum, Sum
from dragontune.rewards.constrain import Constrained, Floor
from dragontune.rewards.diversity import Vendi
from dragontune.rewards.frechet import SetFrechet, SongFrechet
from dragontune.rewards.pareto import Pareto
from dragontune.testing import ToyEncoder

ENCODER = ToyEncoder(frames=3)
TARGET = Reference.build(ENCODER, [torch.randn(50, 2, generator=torch.Generator().manual_seed(99))], "points")


@dataclass(frozen=True)
class Height(InstanceReward[Tensor]):
    factor: float = 1.0

    @property
    def needs_media(self) -> bool:
        return False

    def encode(self, samples: Samples) -> Tensor:
        return samples.latents[:, 1].double()

    def score(self, features: Tensor) -> Tensor:
        return self.factor * features


@dataclass(frozen=True)
class Width(Height):
    def encode(self, samples: Samples) -> Tensor:
        return samples.latents[:, 0].double()


@dataclass(frozen=True)
class Narrow(DistributionReward[Tensor]):
    """Minus the standard deviation of the first coordinate: a reward of a set without exchanges of its own."""

    factor: float = 1.0

    @property
    def minimum(self) -> int:
        return 2

    def encode(self, samples: Samples) -> Tensor:
        return samples.latents[:, 0].double()

    def score(self, features: Tensor) -> Tensor:
        if len(features) < 2:
            raise InputError("expected 2 items, got fewer; add some")
        return -self.factor * features.std()


MIXED: dict[str, Reward] = {"set": SetFrechet(ENCODER, TARGET), "vendi": Vendi(ENCODER), "align": Alignment(ENCODER)}
PAIR: dict[str, Reward] = {"set": SetFrechet(ENCODER, TARGET), "song": SongFrechet(ENCODER, TARGET)}
COMPOSITES = {
    "sum": Sum(MIXED, {"vendi": 2.0, "align": -0.5}, {"set": 0.3}, {"vendi": 1.5}),
    "nested sum": Sum({"inner": Sum(MIXED), "song": InstanceSum({"song": SongFrechet(ENCODER, TARGET)})}),
    "pareto": Pareto(MIXED, {"vendi": 2.0}, {"set": 0.3}),
    "lenient pareto": Pareto(PAIR, tolerance=0.05),
    "pareto of items": Pareto({"height": Height(), "width": Width()}),
    "kept": Constrained(Vendi(ENCODER), {"set": Floor(PAIR["set"], at_least=-50.0)}),
    "violated": Constrained(Alignment(ENCODER), {"set": Floor(PAIR["set"], at_least=-0.9, scale=0.5)}),
    "never": Constrained(
        SetFrechet(ENCODER, TARGET), {"up": Floor(Height(), at_least=9.0), "v": Floor(MIXED["vendi"], 9.0)}
    ),
    "sum in constrained": Constrained(Sum(PAIR), {"align": Floor(Alignment(ENCODER), at_least=0.1)}),
    "constrained in sum": Sum({"c": Constrained(Vendi(ENCODER), {"h": Floor(Height(), at_least=0.0)}), "w": Width()}),
}
SEARCHES: list[dict[str, Any]] = [{"passes": 3}, {"search": "best"}, {"pairing": "unpaired"}]


def points(count: int, seed: int = 0) -> Samples:
    latents = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))
    return Samples(tuple(("left", "right")[i % 2] for i in range(count)), latents, latents)


def encoded(reward: Reward, n: int, seed: int) -> tuple[Any, tuple[str, ...]]:
    both = Samples.join([points(n, seed), points(n, seed + 50)])
    with torch.no_grad():
        return reward.encode(both), both.prompts


def members(reward: Any, features: Any, rows: Tensor) -> dict[str, float]:
    return reward.members(features[rows])


@dataclass(frozen=True, eq=False)
class Watched(DistributionReward):
    """Another reward, whose members are written down after every exchange that is accepted."""

    inner: Any
    seen: list[dict[str, float]]

    @property
    def minimum(self) -> int:
        return self.inner.minimum

    def encode(self, samples: Samples) -> Any:
        return self.inner.encode(samples)

    def score(self, features: Any) -> Tensor:
        return self.inner.score(features)

    def swaps(self, first: Any, second: Any) -> Swaps:
        swaps, both = self.inner.swaps(first, second), type(first).join([first, second])
        accept = swaps.accept

        def watched(i: int, j: int) -> None:
            accept(i, j)
            self.seen.append(self.inner.members(both[swaps.members]))

        self.seen.append(self.inner.members(first))
        swaps.accept = watched
        return swaps
