"""The step that most methods share: draw children of every beam, look ahead of them, keep one of each beam's."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dragontune.rewards.base import DistributionReward, Features, Reward
from dragontune.steering.choice import Company, pick
from dragontune.steering.foresight import Foresight
from dragontune.steering.walk import Beams, Walk


@dataclass(frozen=True, eq=False)
class Kept:
    """The children that were kept, what they are worth, and the set with them in it (for a reward of sets)."""

    beams: Beams
    values: Float[Tensor, " n"]
    company: Company | None


@dataclass(frozen=True, eq=False)
class Selection:
    """Choose by the `foresight` of a reward, softly where `alpha` is above 0."""

    reward: Reward
    foresight: Foresight
    alpha: float

    def gather(self, walk: Walk, beams: Beams, made: Features | None) -> Company | None:
        """For a reward of sets: what was made before, and what the beams promise so far."""
        if not isinstance(self.reward, DistributionReward):
            return None
        return Company.of(self.reward, made, self.foresight.look(walk, self.reward, beams))

    def children(self, walk: Walk, beams: Beams, count: int, company: Company | None) -> Kept:
        """Branch each beam `count` times and keep one child of each."""
        luck = walk.luck(beams, count)
        found, values, first = [], [], 0
        for group in walk.groups(beams, count):
            candidates = walk.branch(group, count)
            seen = self.foresight.look(walk, self.reward, candidates)
            rows = torch.arange(first, first + len(group))
            if company is None:
                worth = self.foresight.values(self.reward, seen, candidates.prompts, (len(group), count))
                choice = pick(worth, self.alpha, luck[rows])
                values.append(worth.gather(1, choice[:, None])[:, 0])
            else:
                choice, company = company.choose(rows, seen, self.alpha, luck[rows])
                values.append(torch.zeros(len(group), dtype=torch.float64))
            found.append(candidates[torch.arange(len(group)) * count + choice])
            first += len(group)
        return Kept(Beams.join(found), torch.cat(values), company)
