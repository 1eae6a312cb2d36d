"""ReFL (Xu et al. 2023, ImageReward, arXiv 2304.05977): one gradient step from a random late point of the sampling.

Sampling stops at a random late step; there one evaluation of the network estimates the clean latents (Tweedie's
formula), and the reward of that estimate is followed. Left out: the pre-training loss that the paper adds.
"""

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from dragontune.algorithms.draft import Draft
from dragontune.algorithms.objectives import ImageRewardLoss, Objective
from dragontune.errors import InputError
from dragontune.sampling import Stop
from dragontune.seeding import Key


@dataclass(frozen=True, eq=False)
class Refl(Draft):
    """The step is drawn evenly from those after the share `earliest` of all (the paper: 30 to 39 of 40).

    The default objective is the paper's, made for ImageReward's scale, on which 2 is very good: give another for
    rewards on another scale. The paper generates without guidance, as `Sampler` does by default. `last` and `renoised`
    are not used. The reward in the log is that of the estimates, not that of finished generations.

    >>> Refl(generator, Alignment(TinyClap()), objective=Capped(0.8))
    """

    objective: Objective = field(default_factory=ImageRewardLoss)
    earliest: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.earliest < 1:
            raise InputError(f"expected Refl's earliest in [0, 1), got {self.earliest}; the paper's is 0.75")
        if self.last != 1 or self.renoised:
            name, value = ("renoised", self.renoised) if self.renoised else ("last", self.last)
            raise InputError(f"expected no {name} for Refl, which takes one step, got {value}; remove it or use Draft")

    def depth(self, key: Key) -> int:
        """How many steps before the end sampling stops."""
        first = min(int(self.earliest * self.sampler.steps), self.sampler.steps - 1)
        late = self.sampler.steps - first
        return late - min(int(key.uniform([0]).item() * late), late - 1)

    def _finish(self, stop: Stop, key: Key) -> tuple[Float[Tensor, " n *latent"], Float[Tensor, " n"]]:
        """The clean estimate at the stop."""
        state = self.sampler.resume(self.generator, stop)
        clean = self.sampler.transition(self.generator, state).clean
        return clean, self._divergence(state, clean)

    def _counts(self, items: int, depth: int) -> dict[str, float]:
        """Sampling ends at the stop, whose evaluation is made twice: to be judged, and with gradients."""
        branches = 1 + self.sampler.guided
        done = self.sampler.steps - depth + (2 if self.kl else 1)
        return super()._counts(items, 1) | {"denoiser_calls": float(items * done * branches)}
