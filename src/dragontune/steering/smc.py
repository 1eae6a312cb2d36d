"""Sequential Monte Carlo: particles of a prompt, weighted by what they promise, resampled among each other.

The textbook baseline (Wu et al. 2023, arXiv 2306.17775, propose from the model itself as here; SVDD's image code
weights by exp((V_new - V_old) / alpha)). Unlike SVDD a particle can lose all its descendants. Left out: proposals that
look ahead.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dragontune.costs import Costs
from dragontune.errors import InputError
from dragontune.process import ReverseProcess, State
from dragontune.rewards.base import Features, InstanceReward
from dragontune.seeding import Key
from dragontune.steering.base import (
    Steering,
    Visit,
    check_alpha,
    check_counts,
    check_random,
    check_reward,
    evaluations,
)
from dragontune.steering.choice import pick
from dragontune.steering.ensemble import Ensemble
from dragontune.steering.foresight import Foresight, PosteriorMean
from dragontune.steering.walk import Beams, Walk


@dataclass(frozen=True, eq=False)
class Smc(Steering):
    """`particles` of each prompt, of which one is handed over, drawn by the weights.

    `alpha` (above 0, in units of the reward) is the temperature of the law p(x) exp(r(x) / alpha) that is aimed at. The
    particles are resampled (systematically) when their effective number falls below `resample_below` times theirs.

    >>> Smc(KeyStrength(), alpha=0.05, particles=16)
    """

    reward: InstanceReward  # pyright: ignore[reportIncompatibleVariableOverride] - frozen, so it may be narrower
    alpha: float
    particles: int = 10
    resample_below: float = 0.5
    value: Foresight = field(default_factory=PosteriorMean)
    micro_batch: int = 40

    def __post_init__(self) -> None:
        check_counts(self, particles=self.particles)
        check_alpha(self, self.alpha)
        check_reward(self, sets=False)
        if self.alpha == 0:
            raise InputError(
                "expected alpha above 0 in Smc, got 0, for which weights are not finite; a tenth of the reward's "
                "spread may be a start"
            )
        if not 0 <= self.resample_below <= 1:
            raise InputError(
                f"expected Smc's resample_below from 0 (never) to 1 (at every step), got {self.resample_below}; 0.5 is "
                "usual"
            )
        if isinstance(self.reward, Ensemble) and self.reward.combine != "sum":
            raise InputError(
                f"expected an Ensemble with combine: sum in Smc, got {self.reward.combine}, whose values depend on "
                "what they are compared with, so that they define no law; set sum"
            )
        self.value.fit_to(self.reward)

    def check(self, process: ReverseProcess) -> None:
        """It must draw at random."""
        if self.particles > 1:
            check_random(self, process)

    @property
    def foresight(self) -> Foresight:
        """The value."""
        return self.value

    def held(self, prompts: int) -> int:
        """The particles of a prompt."""
        return max(prompts, self.particles)

    def item_costs(self, process: ReverseProcess, key: Key) -> Costs:
        """Every particle at every step, looked at before the first and after each random one."""
        costs = evaluations(process, process.steps * self.particles)
        if self.particles > 1:
            for step in range(process.random_steps + 1):
                costs += self.value.costs(process, self.reward, step) * self.particles
        return costs

    def run(
        self, walk: Walk, prompts: Sequence[str], items: Sequence[int], visit: Visit, made: Features | None
    ) -> State:
        """Prompts are independent; as many walk side by side as the rows hold."""
        together = max(1, walk.rows // self.particles)
        firsts = range(0, len(prompts), together)
        parts = [(prompts[first : first + together], items[first : first + together]) for first in firsts]
        return State.join([self._prompts(walk, *part, visit) for part in parts])

    def _prompts(self, walk: Walk, prompts: Sequence[str], items: Sequence[int], visit: Visit) -> State:
        shape = (len(prompts), self.particles)
        beams = walk.start(prompts, items, self.particles)
        values = self._values(walk, beams, shape)
        weights = values / self.alpha
        for step in range(walk.process.steps):
            visit(beams.state)
            if step >= walk.process.random_steps:
                beams = walk.branch(beams)
                continue
            beams, values, weights = self._resampled(walk, beams, values, weights)
            beams = walk.branch(beams)
            ahead = self._values(walk, beams, shape)
            weights, values = weights + (ahead - values) / self.alpha, ahead
        first = beams[torch.arange(len(prompts)) * self.particles]
        chosen = pick(weights, 1.0, walk.luck(first, self.particles))
        state = beams.state[torch.arange(len(prompts)) * self.particles + chosen]
        visit(state)
        return state

    def _values(self, walk: Walk, beams: Beams, shape: tuple[int, int]) -> Float[Tensor, " prompts particles"]:
        if self.particles == 1:
            return torch.zeros(shape, dtype=torch.float64)
        return self.value.values(self.reward, self.value.look(walk, self.reward, beams), beams.prompts, shape)

    def _resampled(
        self,
        walk: Walk,
        beams: Beams,
        values: Float[Tensor, " prompts particles"],
        weights: Float[Tensor, " prompts particles"],
    ) -> tuple[Beams, Float[Tensor, " prompts particles"], Float[Tensor, " prompts particles"]]:
        """The particles that go on, their values, and log-weights: 0 where a prompt was resampled."""
        share = weights.softmax(1)
        few = 1 / share.square().sum(1) < self.resample_below * self.particles * (1 - 1e-9)
        if self.resample_below == 1:
            few = torch.ones_like(few)
        if self.particles == 1 or not few.any():
            return beams, values, weights
        items = beams.state.item.view(weights.shape)[:, 0]
        luck = walk.key.fold("resampling", beams.step).uniform(items).double()
        ancestors = torch.where(few[:, None], systematic(share, luck), torch.arange(self.particles))
        rows = (torch.arange(len(share))[:, None] * self.particles + ancestors).flatten()
        fresh = torch.where(few[:, None], 0.0, weights)
        return beams[rows].numbered(self.particles), values.gather(1, ancestors), fresh


def systematic(shares: Float[Tensor, " n m"], luck: Float[Tensor, " n"]) -> Int[Tensor, " n m"]:
    """Ancestors drawn by `shares` (which sum to 1) with one number of [0, 1) each (Kitagawa 1996).

    Ancestor j is taken floor(m share_j) or one more times.
    """
    count = shares.shape[1]
    places = (luck[:, None] + torch.arange(count)) / count
    return torch.searchsorted(shares.cumsum(1).contiguous(), places, right=True).clamp(max=count - 1)
