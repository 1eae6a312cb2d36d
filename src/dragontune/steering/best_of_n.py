"""Best of n: finish n generations of each prompt and keep the best. The baseline that every other method must beat.

For a reward of a whole set one item is chosen for each prompt so that the set of all of them scores high: one place is
improved after another until nothing improves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from dragontune.costs import Costs
from dragontune.data import join_columns
from dragontune.process import ReverseProcess, State
from dragontune.rewards.base import DistributionReward, Features, Reward
from dragontune.seeding import Key
from dragontune.steering.base import Steering, Visit, check_counts, check_reward, evaluations
from dragontune.steering.choice import Company, judged, pick
from dragontune.steering.foresight import look_costs
from dragontune.steering.walk import Beams, Walk


@dataclass(frozen=True, eq=False)
class BestOfN(Steering):
    """`n` generations of each prompt, from different noise, under any sampler.

    With n = 1 it is the plain sampler, bit for bit.

    >>> BestOfN(KeyStrength(), n=8).budget(Sampler(steps=12), 1, Key(0)).calls
    96
    """

    reward: Reward
    n: int = 10
    micro_batch: int = 40

    def __post_init__(self) -> None:
        check_counts(self, n=self.n)
        check_reward(self, sets=True)

    def check(self, process: ReverseProcess) -> None:
        """Any will do."""

    def held(self, prompts: int) -> int:
        """All that are finished, until they are judged."""
        return prompts * self.n

    def item_costs(self, process: ReverseProcess, key: Key) -> Costs:
        """N generations, each looked at once."""
        looks = look_costs(self.reward) * self.n if self.n > 1 else Costs()
        return evaluations(process, process.steps * self.n) + looks

    def run(
        self, walk: Walk, prompts: Sequence[str], items: Sequence[int], visit: Visit, made: Features | None
    ) -> State:
        """All are finished before any is judged."""
        together = max(1, walk.rows // self.n)
        states, seen = [], []
        for first in range(0, len(prompts), together):
            part = slice(first, first + together)
            shares = walk.shares(self.n) if together == 1 else [(0, self.n)]
            ends = [self._finished(walk, walk.start(prompts[part], items[part], n, lane), visit) for lane, n in shares]
            beams = Beams.join(ends)
            if self.n > 1:
                features = walk.features(self.reward, beams)
                if isinstance(self.reward, DistributionReward):
                    seen.append(features)
                else:
                    beams = beams[self._best(walk, beams, features)]
            states.append(beams.state)
        state = State.join(states)
        if isinstance(self.reward, DistributionReward) and seen:
            state = state[Company.settled(self.reward, made, join_columns(seen), self.n)]
        visit(state)
        return state

    def _finished(self, walk: Walk, beams: Beams, visit: Visit) -> Beams:
        for _ in range(walk.process.steps):
            visit(beams.state)
            beams = walk.branch(beams)
        return beams

    def _best(self, walk: Walk, beams: Beams, features: Features) -> Int[Tensor, " prompts"]:
        """The row of each prompt's best."""
        count = len(beams) // self.n
        values = judged(self.reward, features, beams.prompts, (count, self.n))
        rows = torch.arange(count) * self.n
        return rows + pick(values, 0.0, walk.luck(beams[rows], self.n))
