"""SVDD (Li et al. 2024, arXiv 2408.08252): at every step draw children of each particle and keep one by its value.

The law that is aimed at is p(x) exp(r(x) / alpha). With exact soft values it is reached as the candidates grow, up to
the tilt of the start at t = 1, which is not made. A particle only competes with its own siblings, so none dies out.
The released code always keeps the best (alpha 0), which is the default. Beyond the paper: a reward of a whole set,
where a child is worth what it makes of the set with all other particles in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from dragontune.costs import Costs
from dragontune.process import ReverseProcess, State
from dragontune.rewards.base import DistributionReward, Features, Reward
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
from dragontune.steering.foresight import Foresight, PosteriorMean
from dragontune.steering.selection import Selection
from dragontune.steering.walk import Walk


@dataclass(frozen=True, eq=False)
class Svdd(Steering):
    """`candidates` children a step (M; the paper's 10 for sequences, 20 for images).

    One step costs as many denoiser evaluations and reward calls. `alpha` is in units of the reward. With one candidate
    it is the plain sampler, bit for bit.

    >>> Svdd(KeyStrength(), candidates=8).budget(Sampler(steps=12, order=1, eta=1), 1, Key(0)).calls
    89
    """

    reward: Reward
    candidates: int = 10
    alpha: float = 0.0
    value: Foresight = field(default_factory=PosteriorMean)
    micro_batch: int = 40

    def __post_init__(self) -> None:
        check_counts(self, candidates=self.candidates)
        check_alpha(self, self.alpha)
        check_reward(self, sets=True)
        self.value.fit_to(self.reward)

    def check(self, process: ReverseProcess) -> None:
        """It must draw at random."""
        if self.candidates > 1:
            check_random(self, process)

    @property
    def foresight(self) -> Foresight:
        """The value."""
        return self.value

    def item_costs(self, process: ReverseProcess, key: Key) -> Costs:
        """1 + M (T - 1) evaluations for T steps of which the last is not random."""
        costs = evaluations(process, 1)
        if self.candidates > 1 and isinstance(self.reward, DistributionReward):
            costs += self.value.costs(process, self.reward, 0)
        for step in range(1, process.steps + 1):
            count = self.candidates if step <= process.random_steps else 1
            costs += evaluations(process, count if step < process.steps else 0)
            if count > 1:
                costs += self.value.costs(process, self.reward, step) * count
        return costs

    def run(
        self, walk: Walk, prompts: Sequence[str], items: Sequence[int], visit: Visit, made: Features | None
    ) -> State:
        """Children are drawn from the process, so every choice is one that the model could have made."""
        selection = Selection(self.reward, self.value, self.alpha)
        beams = walk.start(prompts, items)
        company = selection.gather(walk, beams, made) if self.candidates > 1 else None
        for step in range(walk.process.steps):
            visit(beams.state)
            if self.candidates > 1 and step < walk.process.random_steps:
                kept = selection.children(walk, beams, self.candidates, company)
                beams, company = kept.beams.numbered(1), kept.company
            else:
                beams = walk.branch(beams)
        visit(beams.state)
        return beams.state
