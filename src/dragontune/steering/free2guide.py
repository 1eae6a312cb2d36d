"""Free2Guide (Kim et al. 2025, arXiv 2411.17041): black-box rewards choose among a few candidates in early steps only.

Early steps decide what an item becomes. First the noise itself is chosen, by the clean estimates it promises; then, for
the other guided steps, the next state. Softly (alpha above 0) a candidate is drawn by
exp(value / alpha), or the noises are averaged with those weights, as path-integral control has it. Several rewards are
an `Ensemble`. Beyond the paper: rewards of whole sets.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from dragontune.costs import Costs
from dragontune.errors import InputError
from dragontune.process import ReverseProcess, State
from dragontune.rewards.base import DistributionReward, Features, Reward
from dragontune.sampling import Transition
from dragontune.schedule import expand
from dragontune.seeding import Key, gumbels
from dragontune.steering.base import (
    Steering,
    Visit,
    check_alpha,
    check_counts,
    check_random,
    check_reward,
    evaluations,
)
from dragontune.steering.choice import Company
from dragontune.steering.ensemble import Ensemble
from dragontune.steering.foresight import Foresight, PosteriorMean
from dragontune.steering.selection import Selection
from dragontune.steering.walk import Beams, Walk

Mode = Literal["choose", "average"]


@dataclass(frozen=True, eq=False)
class Free2Guide(Steering):
    """`candidates` in each of the first `guided_steps` steps; then the sampler goes its way.

    `average` takes the mean of the candidates' noises, weighted by exp(value / alpha), and as much fresh noise as the
    mean lacks in variance, so that the step keeps its spread. With one candidate it is the plain sampler, bit for bit.
    Defaults are those of the released code for 50 steps: 10 candidates, 6 guided steps, the best is kept.

    >>> Free2Guide(KeyStrength()).budget(Sampler(steps=50, order=1, eta=1), 1, Key(0)).encodes
    60
    """

    reward: Reward
    candidates: int = 10
    guided_steps: int = 6
    alpha: float = 0.0
    mode: Mode = "choose"
    value: Foresight = field(default_factory=PosteriorMean)
    micro_batch: int = 40

    def __post_init__(self) -> None:
        check_counts(self, candidates=self.candidates)
        check_alpha(self, self.alpha)
        check_reward(self, sets=True)
        if self.guided_steps < 0:
            raise InputError(f"expected guided_steps of 0 or more in Free2Guide, got {self.guided_steps}; 6 is usual")
        if self.mode == "average" and (self.alpha == 0 or isinstance(self.reward, DistributionReward)):
            raise InputError(
                "expected alpha above 0 and a reward of single items for the mode average of Free2Guide, got "
                f"alpha {self.alpha:g} and {self.reward.label}; change them or set mode to choose"
            )
        self.value.fit_to(self.reward)

    def check(self, process: ReverseProcess) -> None:
        """It must draw at random, unless only the noise is chosen."""
        if self.candidates > 1 and self.guided_steps > 1:
            check_random(self, process)

    @property
    def foresight(self) -> Foresight:
        """The value."""
        return self.value

    def item_costs(self, process: ReverseProcess, key: Key) -> Costs:
        """The noise's choice, one step, the other choices, and the steps that are left."""
        if self.candidates == 1 or self.guided_steps == 0:
            return evaluations(process, process.steps)
        first = self.candidates + isinstance(self.reward, DistributionReward)
        costs = evaluations(process, first) + self.value.costs(process, self.reward, 0) * first
        for step in range(1, process.steps + 1):
            guided = 2 <= step <= min(self.guided_steps, process.random_steps)
            rows = (self.candidates + (self.mode == "average")) if guided else 1
            costs += evaluations(process, rows if step < process.steps else 0)
            if guided:
                costs += self.value.costs(process, self.reward, step) * self.candidates
        return costs

    def run(
        self, walk: Walk, prompts: Sequence[str], items: Sequence[int], visit: Visit, made: Features | None
    ) -> State:
        """Beams are single; the first choice is among noises."""
        selection = Selection(self.reward, self.value, self.alpha)
        chooses = self.candidates > 1 and self.guided_steps > 0
        beams, company = (
            self._noise(walk, prompts, items, made, selection) if chooses else (walk.start(prompts, items), None)
        )
        for step in range(walk.process.steps):
            visit(beams.state)
            if not (chooses and 1 <= step < min(self.guided_steps, walk.process.random_steps)):
                beams = walk.branch(beams)
            elif self.mode == "average":
                beams = self._averaged(walk, beams)
            else:
                kept = selection.children(walk, beams, self.candidates, company)
                beams, company = kept.beams.numbered(1), kept.company
        visit(beams.state)
        return beams.state

    def _noise(
        self, walk: Walk, prompts: Sequence[str], items: Sequence[int], made: Features | None, selection: Selection
    ) -> tuple[Beams, Company | None]:
        """One of several noises for each prompt."""
        count, company, found = self.candidates, None, []
        if isinstance(self.reward, DistributionReward):
            company = selection.gather(walk, walk.start(prompts, items), made)
        together = max(1, walk.rows // count)
        for first in range(0, len(prompts), together):
            texts, numbers = prompts[first : first + together], items[first : first + together]

            def start(lane: int, size: int, texts: Sequence[str] = texts, numbers: Sequence[int] = numbers) -> Beams:
                return walk.start(texts, numbers, size, lane)

            luck = gumbels(walk.key.fold("choice", 0), torch.tensor(list(numbers)), count)
            places = torch.arange(first, first + len(texts))
            kept = selection.kept(walk, start, places, luck, company)
            company = kept.company
            found.append(kept.beams)
        return Beams.join(found).numbered(1), company

    def _averaged(self, walk: Walk, beams: Beams) -> Beams:
        """On to the mean of the candidates, completed by fresh noise."""
        move = beams.move
        if not isinstance(move, Transition):
            raise InputError(
                "expected a process of Gaussian steps for the mode average of Free2Guide, got one of tokens; set mode "
                "to choose"
            )
        fresh = move.draw(walk.key.fold("fresh")) - move.mean
        means, left = [], []
        for group in walk.groups(beams, self.candidates):
            shape, latents, values = (len(group), self.candidates), [], []
            apart = len(group) == 1 and not isinstance(self.reward, Ensemble)  # which has to see all together
            parts = walk.shares(self.candidates) if apart else [(0, self.candidates)]
            for first, number in parts:
                candidates = walk.branch(group, number, first, self.candidates)
                seen = self.value.look(walk, self.reward, candidates)
                values.append(self.value.values(self.reward, seen, candidates.prompts, (len(group), number)))
                latents.append(candidates.state.latents)
            weights = (torch.cat(values, 1) / self.alpha).softmax(1)
            means.append(_mean(torch.cat(latents).unflatten(0, shape), weights))
            left.append((1 - weights.square().sum(1)).clamp(min=0).sqrt())
        return walk.follow(beams, torch.cat(means) + expand(torch.cat(left).to(fresh), fresh) * fresh)


def _mean(latents: Shaped[Tensor, " n m *latent"], weights: Float[Tensor, " n m"]) -> Shaped[Tensor, " n *latent"]:
    wide = weights.to(latents).view(*weights.shape, *[1] * (latents.ndim - 2))
    return (wide * latents).sum(1)
