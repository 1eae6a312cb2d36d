"""Several rewards, compared among the candidates of one step (Free2Guide, Kim et al. 2025, arXiv 2411.17041).

`sum` adds weighted scores, which must be of one size. `normalised` first brings each reward's scores among the
candidates to [0, 1]; one that does not tell them apart counts nothing. `consensus` adds ranks: it does not care how any
reward is scaled.
"""

from dataclasses import dataclass, field
from math import isfinite
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from dragontune.data import Samples
from dragontune.errors import InputError
from dragontune.rewards import standardise
from dragontune.rewards.base import InstanceReward
from dragontune.rewards.crop import Crop

Combine = Literal["sum", "normalised", "consensus"]


@dataclass(frozen=True, eq=False)
class Ensemble(InstanceReward[Tensor]):
    """A reward for steering alone; elsewhere it is the weighted sum.

    >>> Ensemble({"words": Alignment(TinyClap()), "taste": Aesthetics(...)}, combine="consensus")

    Raises:
        InputError: no reward, one of sets, or a weight for none of them.
    """

    rewards: dict[str, InstanceReward]
    weights: dict[str, float] = field(default_factory=dict)
    combine: Combine = "normalised"

    def __post_init__(self) -> None:
        if not self.rewards:
            raise InputError("expected at least one reward in an Ensemble, got none; add one")
        for name, reward in self.rewards.items():
            if not isinstance(reward, InstanceReward):
                raise InputError(
                    f"expected rewards of single items in an Ensemble, got {name!r}, a {reward.label}; choose another"
                )
            if isinstance(reward, Crop) or standardise.learns(reward):
                raise InputError(
                    f"expected rewards of whole items with fixed scales in an Ensemble, got {name!r}, a "
                    f"{reward.label}; give the reward itself, and a sum its scales"
                )
        for name, weight in self.weights.items():
            if name not in self.rewards:
                raise InputError(f"expected weights for {', '.join(self.rewards)}, got one for {name!r}; correct it")
            if not isfinite(weight):
                raise InputError(f"expected a finite weight for {name!r}, got {weight}; correct it")

    @property
    def needs_media(self) -> bool:
        """As its members."""
        return any(reward.needs_media for reward in self.rewards.values())

    @property
    def needs_prompts(self) -> bool:
        """As its members."""
        return any(reward.needs_prompts for reward in self.rewards.values())

    @property
    def label(self) -> str:
        """The members' names."""
        return f"Ensemble of {', '.join(self.rewards)}"

    def encode(self, samples: Samples) -> Float[Tensor, " n rewards"]:
        """Every member's score."""
        columns = {name: reward.score(reward.encode(samples)) for name, reward in self.rewards.items()}
        for name, column in columns.items():
            if column.shape != (len(samples),):
                raise InputError(
                    f"expected one score for each of {len(samples)} items from {name!r}, got shape "
                    f"{tuple(column.shape)}; correct its score"
                )
        return torch.stack([column.double().cpu() for column in columns.values()], 1)

    def score(self, features: Float[Tensor, " n rewards"]) -> Float[Tensor, " n"]:
        """The weighted sum, which is all that can be said of an item by itself."""
        return features @ self._weights()

    def among(self, scores: Float[Tensor, " *shape m rewards"]) -> Float[Tensor, " *shape m"]:
        """Values of m candidates by what each member says of all of them."""
        match self.combine:
            case "sum":
                return scores @ self._weights()
            case "normalised":
                low, high = scores.amin(-2, keepdim=True), scores.amax(-2, keepdim=True)
                spread = high - low
                return torch.where(spread > 0, (scores - low) / spread.clamp(min=1e-300), 0.0) @ self._weights()
            case "consensus":
                better = (scores[..., :, None, :] > scores[..., None, :, :]).double().sum(-2)
                same = (scores[..., :, None, :] == scores[..., None, :, :]).double().sum(-2)
                return (better + (same - 1) / 2) @ self._weights()

    def _weights(self) -> Float[Tensor, " rewards"]:
        return torch.tensor([self.weights.get(name, 1.0) for name in self.rewards], dtype=torch.float64)
