"""The step that most methods share: draw children of every beam, look ahead of them, keep one of each beam's."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dragontune.rewards.base import DistributionReward, Features, Reward
from dragontune.steering.choice import Company, pick
from dragontune.steering.ensemble import Ensemble
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

    def children(self, walk: Walk, beams: Beams, count: int, company: Company | None, width: int = 1) -> Kept:
        """Branch each beam `count` times and keep one child of each.

        An `Ensemble` compares all children of a prompt's `width` beams, so that these can be compared, too.
        """
        together = width if isinstance(self.reward, Ensemble) else 1
        luck = walk.luck(beams, count)
        parts, first = [], 0
        for group in walk.groups(beams, count, together):
            rows = torch.arange(first, first + len(group))

            def branch(start: int, size: int, group: Beams = group) -> Beams:
                return walk.branch(group, size, start, count)

            parts.append(self.kept(walk, branch, rows, luck[rows], company, together))
            company, first = parts[-1].company, first + len(group)
        return Kept(Beams.join([part.beams for part in parts]), torch.cat([part.values for part in parts]), company)

    def kept(
        self,
        walk: Walk,
        candidates: Callable[[int, int], Beams],
        places: Int[Tensor, " n"],
        luck: Float[Tensor, " n m"],
        company: Company | None,
        together: int = 1,
    ) -> Kept:
        """One of m candidates for each place, of which `candidates(first, number)` makes some.

        Those of a single place that are more than the rows are made one part after another, and only the best of each
        part is remembered: the best of these is the best of all. An `Ensemble` has to see all of them together.
        """
        count = luck.shape[1]
        if len(places) > 1 or count <= walk.rows or isinstance(self.reward, Ensemble):
            made = candidates(0, count)
            seen = self.foresight.look(walk, self.reward, made)
            values = torch.zeros(luck.shape, dtype=torch.float64)
            if company is None:
                shape = (len(places) // together, together * count)
                values = self.foresight.values(self.reward, seen, made.prompts, shape).view(luck.shape)
                choice = pick(values, self.alpha, luck)
            else:
                choice, company = company.choose(places, seen, self.alpha, luck)
            rows = torch.arange(len(places)) * count + choice
            return Kept(made[rows], values.gather(1, choice[:, None])[:, 0], company)
        best, values, sights = [], [], []
        for first, number in walk.shares(count):
            made = candidates(first, number)
            seen = self.foresight.look(walk, self.reward, made)
            if company is None:
                worth = self.foresight.values(self.reward, seen, made.prompts, (1, number))
            else:
                worth = company.worth(int(places), seen)[None]
            choice = pick(worth, self.alpha, luck[:, first : first + number])
            best.append(made[choice])
            values.append(worth)
            sights.append(seen[choice] if company is not None else seen)
        every = torch.cat(values, 1)
        choice = pick(every, self.alpha, luck)
        part = int(choice) // walk.rows
        return Kept(best[part], every[0, choice], company and company.with_(places, sights[part]))
