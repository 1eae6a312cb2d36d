"""Several rewards at once: a weighted sum, each member brought to a common scale first.

Scales are given, or estimated from what the policy makes (`standardise: running`, see standardise.py). Two more ways to
combine are in pareto.py and constrain.py. Left out: weights that change while tuning.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dragontune.data import Rows, Samples, join_columns
from dragontune.distances.swaps import Means, Swaps, Total
from dragontune.errors import InputError
from dragontune.rewards import standardise
from dragontune.rewards.base import DifferentiableReward, DistributionReward, Features, InstanceReward, Reward
from dragontune.rewards.crop import Crop
from dragontune.rewards.standardise import Adaptive, Spread, State, halves_spread, inside, items_spread, outside, place
from dragontune.rewards.tally import Tally
from dragontune.seeding import Key

Standardise = Literal["fixed", "running"]
"""`fixed`: by the scales given. `running`: by what was seen in the rounds so far."""


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

    @classmethod
    def of(cls, members: Mapping[str, Reward], samples: Samples) -> "Parts":
        """Every member's features.

        Raises:
            InputError: a member does not give one row an item.
        """
        found = cls({name: reward.encode(samples) for name, reward in members.items()})
        for name, features in found.members.items():
            if len(features) != len(samples):
                raise InputError(
                    f"expected one row an item from the features of {name!r}, got {len(features)} for {len(samples)} "
                    "items; correct its encode"
                )
        return found


def check_members(members: Mapping[str, Reward]) -> None:
    """InputError for a member that only works as the outermost reward."""
    for name, reward in members.items():
        if getattr(reward, "outermost", False):
            raise InputError(
                f"expected a reward of sets or items as {name!r}, got {type(reward).__name__}, which says which "
                "exchanges are allowed and not only what a set is worth; put it outermost"
            )


def member_scores(members: Mapping[str, Reward], features: Parts) -> dict[str, float]:
    """Every member's own score, in its own units; of an instance reward the mean."""
    with torch.no_grad():
        return {name: _mean(reward, features.members[name]).item() for name, reward in members.items()}


def member_swaps(reward: Reward, first: Features, second: Features) -> Swaps:
    """The exchanges of a member; of an instance reward those of its mean."""
    if isinstance(reward, DistributionReward):
        return reward.swaps(first, second)
    with torch.no_grad():
        return Means(reward.score(first), reward.score(second))


def _mean(reward: Reward, features: Features) -> Float[Tensor, ""]:
    return reward.score(features).cpu().double().mean()


@dataclass(frozen=True, eq=False)
class Weighted(Adaptive[Parts]):
    """Members, of which each counts `weights` (default 1) times (its score - `means`) / `scales` (default 0 and 1).

    A scale is a member's usual size, so that weights say what matters. `standardise: running` estimates means and
    scales from all rounds so far, the present one included; before the first round they are 0 and 1. The score carries
    no gradients.
    """

    rewards: dict[str, Reward]
    weights: dict[str, float] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)
    means: dict[str, float] = field(default_factory=dict)
    standardise: Standardise = "fixed"

    def __post_init__(self) -> None:
        kind = type(self).__name__
        if not self.rewards:
            raise InputError(f"expected at least one reward in {kind}, got none; add one")
        for what in ("weights", "scales", "means"):
            for name, value in getattr(self, what).items():
                if name not in self.rewards:
                    raise InputError(
                        f"expected names of rewards of the sum in {what} ({', '.join(self.rewards)}), got {name!r}; "
                        "correct it"
                    )
                if math.isnan(value) or (math.isinf(value) and what != "scales"):
                    raise InputError(f"expected a finite number as {what} of {name!r}, got {value}; correct it")
        for name, scale in self.scales.items():
            if not scale > 0:
                raise InputError(f"expected a scale above 0 for {name!r}, got {scale}; give its usual size")
        if self.standardise == "running" and (self.scales or self.means):
            raise InputError(
                f"expected no scales or means in {kind} with standardise: running, which estimates them, got some; "
                "remove them or standardise"
            )
        check_members(self.rewards)

    @property
    def needs_media(self) -> bool:
        """Whether any member does."""
        return any(reward.needs_media for reward in self.rewards.values())

    @property
    def needs_prompts(self) -> bool:
        """Whether any member does."""
        return any(reward.needs_prompts for reward in self.rewards.values())

    @property
    def minimum(self) -> int:
        """What the most demanding member needs."""
        return max(reward.minimum for reward in self.rewards.values())

    @property
    def learns(self) -> bool:
        """Whether the sum or a member standardises by what was seen."""
        return self.standardise == "running" or any(map(standardise.learns, self.rewards.values()))

    def encode(self, samples: Samples) -> Parts:
        """Every member's features."""
        return Parts.of(self.rewards, samples)

    def observe(self, features: Parts, key: Key, state: State) -> State:
        """One spread a member (by its name), in the units in which the sum compares: items, or sets."""
        found = dict[str, Tensor]()
        for name, reward in self.rewards.items():
            at, rows = place(name), features.members[name]
            deeper = standardise.observe(reward, rows, key.fold(at), inside(state, at))
            found |= outside(deeper, at)
            if self.standardise == "running":
                seen = self._spread(name, standardise.given(reward, deeper), rows, key.fold(at, "spread"))
                found[at] = ((Spread.read(state[at]) if at in state else Spread()) + seen).tensor()
        return found

    def given(self, state: State) -> "Weighted":
        """The same sum with the means and scales seen so far."""
        if not state:
            return self
        members = {name: standardise.given(member, inside(state, place(name))) for name, member in self.rewards.items()}
        if self.standardise == "fixed":
            return replace(self, rewards=members)
        seen = {name: Spread.read(state[place(name)]) for name in members if place(name) in state}
        return replace(
            self,
            rewards=members,
            scales={name: spread.scale for name, spread in seen.items() if spread.count},
            means={name: spread.mean for name, spread in seen.items() if spread.count},
            standardise="fixed",
        )

    def members(self, features: Parts) -> dict[str, float]:
        """Every member's own score, in its own units; of an instance reward the mean."""
        return member_scores(self.rewards, features)

    def _spread(self, name: str, reward: Reward, features: Features, key: Key) -> Spread:
        return halves_spread(name, reward, features, key)

    def _factor(self, name: str) -> float:
        return self.weights.get(name, 1.0) / self.scales.get(name, 1.0)

    @property
    def _offset(self) -> float:
        return 0.0 - sum(self._factor(name) * mean for name, mean in self.means.items())


@dataclass(frozen=True, eq=False)
class Sum(Weighted, DistributionReward[Parts]):
    """A weighted sum of any rewards, as one reward of a set; the score of an instance reward enters by its mean.

    With the scale of a Fréchet reward set to the distance the untuned model has, the sum counts relative improvements.
    Under `standardise: running` a scale is the standard deviation between random halves of a round's items.
    """

    def score(self, features: Parts) -> Float[Tensor, ""]:
        """The weighted sum of the members' (mean) scores."""
        with torch.no_grad():
            return self._total(features)

    def running(self) -> Tally[Parts]:
        """Each member's own."""
        return SumTally(self)

    def total(self, means: Mapping[str, Float[Tensor, ""]]) -> Float[Tensor, ""]:
        """The weighted sum of the members' (mean) scores, which are given."""
        return torch.stack([self._factor(name) * means[name] for name in self.rewards]).sum() + self._offset

    def _total(self, features: Parts) -> Float[Tensor, ""]:
        return self.total({name: _mean(reward, features.members[name]) for name, reward in self.rewards.items()})

    def swaps(self, first: Parts, second: Parts) -> Swaps:
        """The sum of the members' exchanges; of an instance reward those of its mean."""
        return Total(self.terms(first, second), self._offset)

    def terms(self, first: Parts, second: Parts) -> list[tuple[float, Swaps]]:
        """Each member's factor in the sum, and its exchanges."""
        return [
            (self._factor(name), member_swaps(reward, first.members[name], second.members[name]))
            for name, reward in self.rewards.items()
        ]


class SumTally(Tally[Parts]):
    """A set for a `Sum`, which comes part by part."""

    def __init__(self, reward: Sum) -> None:
        self._reward = reward
        self._members = {name: member.running() for name, member in reward.rewards.items()}

    def add(self, features: Parts) -> None:
        """Tell every member."""
        for name, member in self._members.items():
            member.add(features.members[name])

    def score(self) -> Float[Tensor, ""]:
        """The weighted sum, without gradients."""
        with torch.no_grad():
            return self._reward.total({n: m.score().cpu().double().mean() for n, m in self._members.items()})


@dataclass(frozen=True, eq=False)
class DifferentiableSum(Sum, DifferentiableReward):
    """`Sum` whose score has gradients, for algorithms that follow them: every member is a `DifferentiableReward`.

    To score windows of the items, put the sum into a `SetCrop`.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, reward in self.rewards.items():
            if not isinstance(reward, DifferentiableReward):
                raise InputError(
                    f"expected DifferentiableRewards in DifferentiableSum, got {name!r} ({reward.label}), through "
                    "which no gradients pass; remove it, or use Sum with Dragon"
                )
            if isinstance(reward, Crop):
                raise InputError(
                    f"expected a crop around the DifferentiableSum, got {name!r} ({type(reward).__name__}) as a "
                    "member; put the sum into a SetCrop"
                )

    def score(self, features: Parts) -> Float[Tensor, ""]:
        """The weighted sum of the members' (mean) scores, with gradients."""
        return self._total(features)


@dataclass(frozen=True, eq=False)
class InstanceSum(Weighted, InstanceReward[Parts]):
    """`Sum` for instance rewards: one score an item.

    Under `standardise: running` a scale is the standard deviation between the items of a round.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, reward in self.rewards.items():
            if not isinstance(reward, InstanceReward):
                raise InputError(
                    f"expected rewards of single items in InstanceSum, got {name!r} ({type(reward).__name__}), which "
                    "scores a set; use Sum"
                )

    def score(self, features: Parts) -> Float[Tensor, " n"]:
        """The weighted sum of the members' scores."""
        with torch.no_grad():
            terms = [
                self._factor(name) * reward.score(features.members[name]).cpu().double()
                for name, reward in self.rewards.items()
            ]
            return torch.stack(terms).sum(0) + self._offset

    def _spread(self, name: str, reward: Reward, features: Features, key: Key) -> Spread:
        return items_spread(name, reward, features)
