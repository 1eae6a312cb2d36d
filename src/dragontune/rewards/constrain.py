"""Raise one reward while others stay above a floor, as one number of a set.

While every constraint holds, the number is the reward; where one is violated, it is below anything the reward can be,
the lower the more is missing. So whatever raises the number first brings the constraints back and then raises the
reward among the sets that keep them (a lexicographic order). Every exchange is known in closed form if the members'
are. Left out: floors for single items; multipliers that trade the reward against a constraint (Lagrange).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from dragontune.data import Samples
from dragontune.distances.swaps import Positions, Swaps
from dragontune.errors import InputError
from dragontune.rewards import standardise
from dragontune.rewards.base import DistributionReward, Reward
from dragontune.rewards.combine import Parts, check_members, member_scores, member_swaps
from dragontune.rewards.standardise import Adaptive, State, inside, outside, place
from dragontune.seeding import Key

OBJECTIVE = "reward"
"""The name of the reward among the members."""

SLACK = 1e-9
"""A floor is kept if what is missing is below this share of it, or of its scale: rounding."""


@dataclass(frozen=True, eq=False)
class Floor:
    """The score of `reward` (of an instance reward the mean) is to be `at_least` this much; give it or `drop`.

    The score of a distance is negative: `at_least: -0.4` is a distance of at most 0.4. `drop: 0.05` means at least what
    the first round's sets have, less 5 % of its size. Their items are the untuned model's, unless tuning began with an
    adapter; before the first round there is no such floor. `scale` is what counts as one unit missing, where several
    floors are violated at once.
    """

    reward: Reward
    at_least: float | None = None
    drop: float | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        if (self.at_least is None) == (self.drop is None):
            given = "neither" if self.drop is None else "both"
            raise InputError(f"expected at_least or drop for a floor, got {given}; give one of them")
        for name, value in (("at_least", self.at_least), ("drop", self.drop)):
            if value is not None and not abs(value) < float("inf"):
                raise InputError(f"expected a finite {name} for a floor, got {value}; correct it")
        if self.drop is not None and self.drop < 0:
            raise InputError(f"expected a drop of 0 or more, got {self.drop}; 0.05 is 5 %")
        if not 0 < self.scale < float("inf"):
            raise InputError(f"expected a finite scale above 0 for a floor, got {self.scale}; give its usual size")

    def missing(self, scores: Float[Tensor, " *k"]) -> Float[Tensor, " *k"]:
        """How far below the floor scores are, in scales; 0 where it is kept."""
        if self.at_least is None:
            return 0 * scores
        short = self.at_least - scores
        slack = SLACK * max(abs(self.at_least), self.scale)
        return torch.where(short <= slack, 0 * scores, short) / self.scale


@dataclass(frozen=True, eq=False)
class Constrained(Adaptive[Parts], DistributionReward[Parts]):
    """`reward` while all `constraints` hold, else -`penalty` (1 + what is missing); rewards of any scope.

    A reward below -`penalty` / 2 is squeezed, in its order, into what is left above -`penalty`; take a penalty that the
    reward stays far from. The score carries no gradients.

    >>> Constrained(SetFrechet(clap, "choir"), {"latents": Floor(SetFrechet(Latents(), "real"), at_least=-0.5)})
    """

    reward: Reward
    constraints: dict[str, Floor]
    penalty: float = 1000.0

    def __post_init__(self) -> None:
        if not self.constraints:
            raise InputError("expected at least one constraint in Constrained, got none; add one or use the reward")
        if OBJECTIVE in self.constraints:
            raise InputError(f"expected another name for a constraint than {OBJECTIVE!r}, got it; rename it")
        if not 0 < self.penalty < float("inf"):
            raise InputError(f"expected a finite penalty above 0, got {self.penalty}; 1000 is the default")
        check_members(self._members)
        for name, floor in self.constraints.items():
            if standardise.learns(floor.reward):
                raise InputError(
                    f"expected a constraint in fixed units, got {name!r} ({type(floor.reward).__name__}), whose units "
                    "follow the rounds; give it scales or a floor each"
                )

    @property
    def _members(self) -> dict[str, Reward]:
        return {OBJECTIVE: self.reward, **{name: floor.reward for name, floor in self.constraints.items()}}

    @property
    def needs_media(self) -> bool:
        """Whether any member does."""
        return any(reward.needs_media for reward in self._members.values())

    @property
    def needs_prompts(self) -> bool:
        """Whether any member does."""
        return any(reward.needs_prompts for reward in self._members.values())

    @property
    def minimum(self) -> int:
        """What the most demanding member needs."""
        return max(reward.minimum for reward in self._members.values())

    @property
    def learns(self) -> bool:
        """Whether a floor depends on the first round, or the reward on all of them."""
        return standardise.learns(self.reward) or any(floor.drop is not None for floor in self.constraints.values())

    def encode(self, samples: Samples) -> Parts:
        """Every member's features."""
        return Parts.of(self._members, samples)

    def observe(self, features: Parts, key: Key, state: State) -> State:
        """The floors that the first round sets (by their names), and what the reward learns."""
        deeper = standardise.observe(self.reward, features.members[OBJECTIVE], key, inside(state, OBJECTIVE))
        known = {place(name): state[place(name)] for name in self._relative() if place(name) in state}
        found = {**outside(deeper, OBJECTIVE), **known}
        if len(features) // 2 < max(self.minimum, 1):
            return found
        halves = torch.arange(len(features)).chunk(2)
        for name, floor in self._relative().items():
            if place(name) not in found:
                scores = [member_scores({name: floor.reward}, features[rows])[name] for rows in halves]
                found[place(name)] = torch.tensor(sum(scores) / 2, dtype=torch.float64)
        return found

    def given(self, state: State) -> "Constrained":
        """The same with the floors that the first round set."""
        if not state:
            return self
        constraints = dict(self.constraints)
        for name, floor in self._relative().items():
            if place(name) in state and floor.drop is not None:
                start = state[place(name)].item()
                constraints[name] = replace(floor, at_least=start - floor.drop * abs(start), drop=None)
        return replace(self, reward=standardise.given(self.reward, inside(state, OBJECTIVE)), constraints=constraints)

    def members(self, features: Parts) -> dict[str, float]:
        """Every member's own score, in its own units; of an instance reward the mean."""
        return member_scores(self._members, features)

    def score(self, features: Parts) -> Float[Tensor, ""]:
        """The number of a set."""
        scores = {name: torch.tensor(s, dtype=torch.float64) for name, s in self.members(features).items()}
        return ranked(scores.pop(OBJECTIVE), _missing(self.constraints, scores), self.penalty)

    def swaps(self, first: Parts, second: Parts) -> Swaps:
        """From the exchanges of the members."""
        made = {
            name: member_swaps(reward, first.members[name], second.members[name])
            for name, reward in self._members.items()
        }
        return Conditional(made.pop(OBJECTIVE), made, self.constraints, self.penalty)

    def _relative(self) -> dict[str, Floor]:
        return {name: floor for name, floor in self.constraints.items() if floor.drop is not None}


class Conditional(Swaps):
    """One swaps' value where the values of others keep their floors, else what `ranked` makes of it."""

    steep = True

    def __init__(
        self, objective: Swaps, others: Mapping[str, Swaps], floors: Mapping[str, Floor], penalty: float
    ) -> None:
        super().__init__(len(objective.members), len(objective.candidates))
        self._objective, self._others, self._floors, self._penalty = objective, dict(others), dict(floors), penalty
        self.approximate = any(swaps.approximate for swaps in (objective, *others.values()))

    @property
    def value(self) -> float:
        """Of the members."""
        scores = {name: torch.tensor(swaps.value, dtype=torch.float64) for name, swaps in self._others.items()}
        objective = torch.tensor(self._objective.value, dtype=torch.float64)
        return ranked(objective, _missing(self._floors, scores), self._penalty).item()

    @property
    def rounding(self) -> float:
        """That of the reward where the floors are kept."""
        kept = self.value > -self._penalty
        return self._objective.rounding if kept else super().rounding

    def pairs(self, i: Positions, j: Positions) -> Float[Tensor, " k"]:
        """From the pairs of each."""
        scores = {name: swaps.pairs(i, j).cpu() for name, swaps in self._others.items()}
        return ranked(self._objective.pairs(i, j).cpu(), _missing(self._floors, scores), self._penalty)

    def table(self) -> Float[Tensor, " m c"]:
        """From the table of each."""
        scores = {name: swaps.table().cpu() for name, swaps in self._others.items()}
        return ranked(self._objective.table().cpu(), _missing(self._floors, scores), self._penalty)

    def screen(self) -> Float[Tensor, " m c"]:
        """From the first look of each."""
        scores = {name: swaps.screen().cpu() for name, swaps in self._others.items()}
        return ranked(self._objective.screen().cpu(), _missing(self._floors, scores), self._penalty)

    def _exchanged(self, i: int, j: int) -> None:
        for swaps in (self._objective, *self._others.values()):
            swaps.accept(i, j)


def ranked(objective: Float[Tensor, " *k"], missing: Float[Tensor, " *k"], penalty: float) -> Float[Tensor, " *k"]:
    """The objective where nothing is missing, else -`penalty` (1 + what is missing); NaN if either is."""
    half = penalty / 2
    excess = (-objective / half - 1).clamp(min=0)
    kept = torch.where(excess > 0, -half * (1 + excess / (1 + excess)), objective)
    return torch.where(missing == 0, kept, 0 * objective - penalty * (1 + missing))


def _missing(floors: Mapping[str, Floor], scores: Mapping[str, Tensor]) -> Tensor:
    found: Sequence[Tensor] = [floor.missing(scores[name]) for name, floor in floors.items()]
    return torch.stack(list(found)).sum(0)
