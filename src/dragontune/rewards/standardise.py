"""What a reward learns from the rounds so far, and where that is kept: outside of it, as tensors.

The scale of a reward is how much it differs between what could be chosen: between the items of a round, or between
random halves of them for a set. Squares about each round's own mean are added up over all rounds and divided by their
degrees of freedom (the pooled variance of the analysis of variance), so the drift of a mean that tuning causes does not
count, and the weights of a sum settle. Left out: forgetting old rounds. It would divide a member that is nearly used up
by its own small spread, and raise noise.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

import torch
from jaxtyping import Float
from torch import Tensor

from dragontune.errors import NonFiniteError
from dragontune.rewards.base import F, Features, InstanceReward, Reward
from dragontune.seeding import Key

State = Mapping[str, Tensor]
"""What was learnt, by names; empty before the first round. A checkpoint holds it."""

SPLITS = 16
"""Random halves of a round on which a reward of a set is scored: its scale is known to 18 % after a round."""

NOTHING = 1e-7
"""A spread of less than this share of the mean is rounding (of single precision)."""


class Adaptive(Reward[F]):
    """A reward that depends on the rounds so far. It holds nothing of them itself: `given(state)` is another reward."""

    @property
    @abstractmethod
    def learns(self) -> bool:
        """Whether there is anything to learn."""

    @abstractmethod
    def observe(self, features: F, key: Key, state: State) -> State:
        """What is known after one more round, whose items' features (the first set, then the second) these are."""

    @abstractmethod
    def given(self, state: State) -> Reward[F]:
        """The reward under what is known; itself where nothing is."""


def learns(reward: Reward) -> bool:
    """Whether the reward depends on the rounds so far."""
    return isinstance(reward, Adaptive) and reward.learns


def observe(reward: Reward, features: Features, key: Key, state: State) -> State:
    """As `Adaptive.observe`; nothing for any other reward."""
    return reward.observe(features, key, state) if isinstance(reward, Adaptive) and reward.learns else {}


def given(reward: Reward, state: State) -> Reward:
    """As `Adaptive.given`; any other reward itself."""
    return reward.given(state) if isinstance(reward, Adaptive) and state else reward


def place(name: str) -> str:
    """Where a member keeps its own: its name, without the / that parts of a state have between them."""
    return quote(name, safe="")


def inside(state: State, at: str) -> State:
    """The part of a state that `outside` put there."""
    start = f"{at}/"
    return {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}


def outside(state: State, at: str) -> State:
    """The same state as part of a larger one."""
    return {f"{at}/{name}": value for name, value in state.items()}


@dataclass(frozen=True)
class Spread:
    """Mean and variance of `count` scores, over one round or several.

    `freedom` are the degrees of freedom of `squares`, the squared deviations from the mean of their round.
    """

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0
    freedom: float = 0.0

    @classmethod
    def of(cls, scores: Float[Tensor, " n"], shrink: float = 1.0) -> "Spread":
        """Of some scores; `shrink` multiplies their variance."""
        scores = scores.double().cpu()
        if len(scores) < 2:
            return cls()
        mean, variance, freedom = scores.mean().item(), scores.var().item() * shrink, len(scores) - 1
        if variance**0.5 <= NOTHING * abs(mean):  # a round that says nothing of the spread
            return cls(len(scores), mean)
        return cls(len(scores), mean, variance * freedom, freedom)

    @classmethod
    def read(cls, state: Tensor) -> "Spread":
        """The inverse of `tensor`."""
        return cls(*state.tolist())

    def tensor(self) -> Float[Tensor, " 4"]:
        """For a checkpoint."""
        return torch.tensor([self.count, self.mean, self.squares, self.freedom], dtype=torch.float64)

    def __add__(self, other: "Spread") -> "Spread":
        """Both rounds."""
        count = self.count + other.count
        mean = self.mean + (other.mean - self.mean) * other.count / max(count, 1.0)
        return Spread(count, mean, self.squares + other.squares, self.freedom + other.freedom)

    @property
    def scale(self) -> float:
        """The standard deviation; infinite if there is none, so that what is divided by it has no say."""
        return (self.squares / self.freedom) ** 0.5 if self.freedom else float("inf")


def items_spread(name: str, reward: Reward, features: Features, shrink: float = 1.0) -> Spread:
    """Of the scores of single items.

    Raises:
        NonFiniteError: one is NaN or infinite.
    """
    with torch.no_grad():
        scores = reward.score(features).double().cpu()
    for row in (~scores.isfinite()).nonzero()[:1, 0].tolist():
        raise NonFiniteError(f"{name} ({type(reward).__name__}) is {scores[row].item()} for item {row} of the round")
    return Spread.of(scores, shrink)


def halves_spread(name: str, reward: Reward, features: Features, key: Key) -> Spread:
    """Of the scores of random halves of a round's items; of an instance reward the mean is a half's score.

    How far the mean of a half scatters is known without drawing: a half of 2n has 1 / 2n of the items' variance.

    Raises:
        NonFiniteError: a score is NaN or infinite.
    """
    total = len(features)
    half = total // 2
    if isinstance(reward, InstanceReward):
        return items_spread(name, reward, features, (1 / half - 1 / total) if half else 0.0)
    if half < max(reward.minimum, 1):
        return Spread()
    chosen = [key.fold("half", split).permutation(total)[:half] for split in range(SPLITS)]
    with torch.no_grad():
        scores = torch.stack([reward.score(features[rows]).double().cpu() for rows in chosen])
    if not bool(scores.isfinite().all()):
        bad = scores[~scores.isfinite()][0].item()
        raise NonFiniteError(f"{name} ({type(reward).__name__}) is {bad} for a random half of the round's items")
    return Spread.of(scores)
