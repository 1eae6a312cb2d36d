"""DSearch (Li et al. 2025, arXiv 2503.02039): beams that become fewer while their children become more.

Every beam keeps its best child; the number of beams falls by a schedule; and at steps that are searched, which late
ones are more often than early ones, the children are more. The released code drops beams across prompts, so that hard
prompts lose all of theirs; here beams compete only with those of their own prompt. It climbs the reward and does not
sample any tilted law. Left out: going back to states that were dropped.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp, floor
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dragontune.costs import Costs
from dragontune.errors import InputError
from dragontune.process import ReverseProcess, State
from dragontune.rewards.base import Features, InstanceReward
from dragontune.seeding import Key
from dragontune.steering.base import Steering, Visit, check_counts, check_random, check_reward, evaluations
from dragontune.steering.foresight import Foresight, PosteriorMean
from dragontune.steering.selection import Selection
from dragontune.steering.walk import Beams, Walk

Search = Literal["all", "uniform", "linear", "exponential"]
Narrowing = Literal["exponential", "linear", "quadratic", "sigmoid"]
STEEPNESS = 10.0
"""Of the sigmoid schedule."""


@dataclass(frozen=True, eq=False)
class DSearch(Steering):
    """`beams` a prompt at first and one at the end; `children` of each, times `multiplier` at steps that are searched.

    As beams are dropped, the children of the others grow, so that `beams` x `children` x `multiplier` is about what a
    searched step costs throughout. With `replace` (DSearch-R) the number of beams stays, that share of a prompt's
    beams, the worst, is replaced by copies of others (drawn by the softmax of their values), and the best is handed
    over.
    Defaults are the paper's for images (R = 5, M = 5, omega = 5), which is dear: 125 evaluations at a searched step.

    >>> DSearch(KeyStrength(), beams=4, children=2, multiplier=1.0, search="all")
    """

    reward: InstanceReward  # pyright: ignore[reportIncompatibleVariableOverride] - frozen, so it may be narrower
    beams: int = 5
    children: int = 5
    multiplier: float = 5.0
    search: Search = "exponential"
    narrowing: Narrowing = "exponential"
    replace: float = 0.0
    value: Foresight = field(default_factory=PosteriorMean)
    micro_batch: int = 40

    def __post_init__(self) -> None:
        check_counts(self, beams=self.beams, children=self.children)
        check_reward(self, sets=False)
        if not 1 <= self.multiplier <= 1000:
            raise InputError(f"expected DSearch's multiplier from 1 to 1000, got {self.multiplier}; the paper's is 5")
        if not 0 <= self.replace < 1:
            raise InputError(f"expected DSearch's replace from 0 to below 1, got {self.replace}; 0 turns it off")
        if self.replace and floor(self.replace * self.beams) < 1:
            raise InputError(
                f"expected DSearch's replace to be at least one beam, got {self.replace:g} of {self.beams} beams; "
                "raise either"
            )
        self.value.fit_to(self.reward)

    def check(self, process: ReverseProcess) -> None:
        """It must draw at random."""
        if self.beams * self.children * self.multiplier > 1:
            check_random(self, process)

    def widths(self, process: ReverseProcess) -> list[int]:
        """Beams of a prompt after each choice; they never grow, and end at 1."""
        steps, choices = max(1, process.steps - 1), process.random_steps
        if self.replace:
            return [self.beams] * max(0, choices - 1) + [1] * bool(choices)
        found, least = [], self.beams
        for i in range(choices):
            least = min(least, max(1, floor(self._width(i / steps) + 1e-9)))
            found.append(1 if i == choices - 1 else least)
        return found

    def counts(self, process: ReverseProcess, key: Key) -> list[int]:
        """Children of each beam at each choice; which steps are searched belongs to `key`."""
        last, luck = max(1, process.steps - 1), key.fold("search").uniform(range(process.random_steps)).tolist()
        alive = [self.beams, *self.widths(process)]
        return [
            floor(self.multiplier * self.children * (1 if self.replace else self.beams / alive[i]) + 1e-9)
            if luck[i] < self._share(i, last)
            else self.children
            for i in range(process.random_steps)
        ]

    @property
    def foresight(self) -> Foresight:
        """The value."""
        return self.value

    def held(self, prompts: int) -> int:
        """All beams of all prompts, once more while the best are put together."""
        return 2 * prompts * self.beams

    def item_costs(self, process: ReverseProcess, key: Key) -> Costs:
        """Of the widths and children that `key` leads to."""
        counts, alive = self.counts(process, key), [self.beams, *self.widths(process)]
        costs = evaluations(process, self.beams)
        for step in range(1, process.steps + 1):
            chosen = step <= process.random_steps
            rows = alive[step - 1] * counts[step - 1] if chosen else alive[-1]
            costs += evaluations(process, rows if step < process.steps else 0)
            if chosen and self._judges(alive[step - 1], counts[step - 1], alive[step]):
                costs += self.value.costs(process, self.reward, step) * rows
        return costs

    def run(
        self, walk: Walk, prompts: Sequence[str], items: Sequence[int], visit: Visit, made: Features | None
    ) -> State:
        """Beams of all prompts walk side by side."""
        process, selection = walk.process, Selection(self.reward, self.value, 0.0)
        widths, counts = self.widths(process), self.counts(process, walk.key)
        beams = walk.start(prompts, items, self.beams)
        width = self.beams
        for step in range(process.steps):
            visit(beams.state)
            if step >= process.random_steps or not self._judges(width, counts[step], widths[step]):
                beams = walk.branch(beams)
                continue
            kept = selection.children(walk, beams, counts[step], None, width)
            rows = self._survivors(walk, kept.beams, kept.values.view(len(prompts), width), widths[step])
            width = widths[step]
            beams = kept.beams[rows].numbered(width)
        visit(beams.state)
        return beams.state

    def _judges(self, width: int, count: int, left: int) -> bool:
        """Whether there is anything to choose."""
        return count > 1 or left < width or self.replace > 0

    def _survivors(
        self, walk: Walk, beams: Beams, values: Float[Tensor, " prompts width"], width: int
    ) -> Int[Tensor, " rows"]:
        """The best `width` of each prompt, in their order; or all, the worst of them replaced."""
        prompts, before = values.shape
        best = values.argsort(dim=1, descending=True, stable=True)
        kept = best[:, :width].sort(1).values
        if width == before and self.replace:
            lost = floor(self.replace * before)
            alive = best[:, : before - lost]
            first = beams[torch.arange(prompts) * before]
            luck = walk.luck(first, lost * (before - lost)).view(prompts, lost, before - lost)
            drawn = (values.gather(1, alive)[:, None] + luck).argmax(2)
            kept = torch.cat([alive.sort(1).values, alive.gather(1, drawn)], 1)
        return (torch.arange(prompts)[:, None] * before + kept).flatten()

    def _width(self, share: float) -> float:
        """Beams when that share of the way is behind."""
        more = self.beams - 1
        match self.narrowing:
            case "exponential":
                return self.beams ** (1 - share)
            case "linear":
                return 1 + more * (1 - share)
            case "quadratic":
                return 1 + more * (1 - share) ** 2
            case "sigmoid":  # from all to one, as the others, and not from nearly all to nearly one
                fall = [1 / (1 + exp(STEEPNESS * (place - 0.5))) for place in (0.0, share, 1.0)]
                return 1 + more * (fall[1] - fall[2]) / (fall[0] - fall[2])

    def _share(self, step: int, last: int) -> float:
        """How probable it is that a step is searched."""
        match self.search:
            case "all":
                return 1.0
            case "uniform":
                return 0.7
            case "linear":
                return min(1.0, (step + 10) / last)
            case "exponential":
                return 1 - exp(-3 * step / last)
