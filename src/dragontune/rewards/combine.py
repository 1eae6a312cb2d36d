"""Several rewards at once: a weighted sum, each member brought to a common scale first."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dragontune.data import Rows, Samples, join_columns
from dragontune.distances.swaps import Means, Swaps, Total
from dragontune.errors import InputError
from dragontune.rewards.base import DistributionReward, Features, InstanceReward, Reward


@dataclass(frozen=True, eq=False)
class Parts(Rows):
    """The features of each member, by its name."""

    members: dict[str, Features]

    def __len__(self) -> int:
        return len(next(iter(self.members.values())))

    def __getitem__(self, index: Int[Tensor, " k"]) -> "Parts":
        return Parts({name: features[index] for name, features in self.members.items()})

    @classmethod
    def join(cls, parts: "Sequence[Parts]") -> "Parts":  # pyright: ignore[reportIncompatibleMethodOverride]
        """Stack the rows, member by member."""
        return cls({name: join_columns([part.members[name] for part in parts]) for name in parts[0].members})


@dataclass(frozen=True, eq=False)
class Sum(DistributionReward[Parts]):
    """A weighted sum of any rewards, as one reward of a set; the score of an instance reward enters by its mean.

    Each member is divided by its `scales` (default 1), its usual size, so that `weights` (default 1) say what matters:
    with the scale of a Fréchet reward set to the distance the untuned model has, the sum counts relative improvements.
    The score carries no gradients.
    """

    rewards: dict[str, Reward]
    weights: dict[str, float] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self.rewards, self.weights, self.scales)

    @property
    def needs_media(self) -> bool:
        """Whether any member does."""
        return any(reward.needs_media for reward in self.rewards.values())

    @property
    def minimum(self) -> int:
        """What the most demanding member needs."""
        return max(reward.minimum for reward in self.rewards.values())

    def encode(self, samples: Samples) -> Parts:
        """Every member's features."""
        return Parts({name: reward.encode(samples) for name, reward in self.rewards.items()})

    def score(self, features: Parts) -> Float[Tensor, ""]:
        """The weighted sum of the members' (mean) scores."""
        with torch.no_grad():
            terms = [
                _factor(self, name) * reward.score(features.members[name]).cpu().double().mean()
                for name, reward in self.rewards.items()
            ]
            return torch.stack(terms).sum()

    def swaps(self, first: Parts, second: Parts) -> Swaps:
        """The sum of the members' exchanges; of an instance reward those of its mean."""
        terms = list[tuple[float, Swaps]]()
        for name, reward in self.rewards.items():
            one, other = first.members[name], second.members[name]
            match reward:
                case DistributionReward():
                    terms.append((_factor(self, name), reward.swaps(one, other)))
                case _:
                    with torch.no_grad():
                        terms.append((_factor(self, name), Means(reward.score(one), reward.score(other))))
        return Total(terms)


@dataclass(frozen=True, eq=False)
class InstanceSum(InstanceReward[Parts]):
    """`Sum` for instance rewards: one score an item."""

    rewards: dict[str, InstanceReward]
    weights: dict[str, float] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self.rewards, self.weights, self.scales)

    @property
    def needs_media(self) -> bool:
        """Whether any member does."""
        return any(reward.needs_media for reward in self.rewards.values())

    def encode(self, samples: Samples) -> Parts:
        """Every member's features."""
        return Parts({name: reward.encode(samples) for name, reward in self.rewards.items()})

    def score(self, features: Parts) -> Float[Tensor, " n"]:
        """The weighted sum of the members' scores."""
        with torch.no_grad():
            terms = [
                _factor(self, name) * reward.score(features.members[name]).cpu().double()
                for name, reward in self.rewards.items()
            ]
            return torch.stack(terms).sum(0)


def _factor(total: Sum | InstanceSum, name: str) -> float:
    return total.weights.get(name, 1.0) / total.scales.get(name, 1.0)


def _check(rewards: dict, weights: dict[str, float], scales: dict[str, float]) -> None:
    if not rewards:
        raise InputError("a sum of rewards needs at least one reward, got none")
    for name in (*weights, *scales):
        if name not in rewards:
            raise InputError(f"weights and scales name rewards of the sum ({', '.join(rewards)}), got {name!r}")
    for name, scale in scales.items():
        if not scale > 0:
            raise InputError(f"the scale of {name!r} must be above 0, got {scale}")
