"""How similar an item is to exemplars: the cosine of mean frames. Captions may be exemplars (CLAP): no music needed."""

from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from dragontune.data import Samples
from dragontune.errors import InputError
from dragontune.rewards.base import DifferentiableReward, InstanceReward
from dragontune.rewards.exemplar import ExemplarReward


@dataclass(frozen=True, eq=False)
class Similarity(ExemplarReward[Tensor], InstanceReward[Tensor], DifferentiableReward):
    """The mean cosine between an item and its `nearest` most similar exemplars (None: all of them), in [-1, 1].

    All of them pulls every item towards the exemplars' common direction; a few leave room for variety.
    """

    nearest: int | None = None

    def __post_init__(self) -> None:
        if self.nearest is not None and self.nearest < 1:
            raise InputError(f"expected nearest of 1 or more exemplars, got {self.nearest}: 5 is a start")

    @cached_property
    def target(self) -> Float[Tensor, " items dim"]:
        """Unit vectors."""
        return normalize(self.check_exemplars(self.nearest or 1), dim=1)

    def encode(self, samples: Samples) -> Float[Tensor, " n dim"]:
        """The unit mean frame of each item, on the CPU in double precision."""
        return normalize(self.encoder.encode(samples).double_on_cpu().mean(), dim=1)

    def score(self, features: Float[Tensor, " n dim"]) -> Float[Tensor, " n"]:
        """The mean cosines."""
        if self.nearest is None:
            return features @ self.target.mean(0)
        return (features @ self.target.mT).topk(self.nearest, dim=1).values.mean(1)
