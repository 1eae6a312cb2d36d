"""Which candidate to keep: by its value, sharply or softly, alone or for what it adds to a set.

A soft choice draws candidate j with probability proportional to exp(value_j / alpha), by the Gumbel-max trick: the
largest of value / alpha plus Gumbel noise. With alpha 0 the largest value wins, and equal ones are drawn from.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dragontune.data import join_columns
from dragontune.distances.swaps import Swaps
from dragontune.errors import InputError, NonFiniteError
from dragontune.rewards.base import DistributionReward, Features, Reward
from dragontune.steering.ensemble import Ensemble


def pick(values: Float[Tensor, " n m"], alpha: float, luck: Float[Tensor, " n m"]) -> Int[Tensor, " n"]:
    """One of the m candidates for each of n; `luck` is Gumbel noise."""
    behind = values - values.max(1, keepdim=True).values
    if alpha == 0:
        return torch.where(behind == 0, luck, -torch.inf).argmax(1)
    return (behind / alpha + luck).argmax(1)


def judged(
    reward: Reward, features: Features, prompts: tuple[str, ...], shape: tuple[int, ...]
) -> Float[Tensor, " *shape"]:
    """The scores of candidates (float64, CPU), the last axis of `shape` holding those that compete.

    Raises:
        InputError: not one number a candidate.
        NonFiniteError: one is NaN or infinite; the message names its prompt.
    """
    found = reward.score(features)
    if found.shape != (len(prompts),):
        raise InputError(
            f"expected one score for each of {len(prompts)} candidates from {reward.label}, got shape "
            f"{tuple(found.shape)}; correct its score"
        )
    scores = found.detach().double().cpu()
    for row in (~scores.isfinite()).nonzero()[:1, 0].tolist():
        raise NonFiniteError(
            f"{reward.label} is {scores[row].item()} for a candidate of {prompts[row]!r}; look at what it does to "
            "silent or unfinished items"
        )
    if isinstance(reward, Ensemble) and isinstance(features, Tensor):
        return reward.among(features.detach().double().cpu().view(*shape, -1))
    return scores.view(shape)


MOST_PASSES = 20
"""Over all places; a few are enough."""


@dataclass(frozen=True, eq=False)
class Company:
    """A set in the making: the `made` items, which stay, then those that are still being chosen.

    A candidate is worth what the set scores with it in the place of what was there. Each choice is final before the
    next is made.
    """

    reward: DistributionReward
    members: Features
    made: int

    @classmethod
    def of(cls, reward: DistributionReward, made: Features | None, chosen: Features) -> "Company":
        """What was made, and first guesses at what is to be chosen.

        Raises:
            InputError: fewer items than the reward can score.
        """
        members = chosen if made is None else join_columns([made, chosen])
        if len(members) < reward.minimum:
            raise InputError(
                f"expected at least {reward.minimum} items together for {reward.label}, which scores sets, got "
                f"{len(members)}; ask for more items at once"
            )
        return cls(reward, members, len(members) - len(chosen))

    @classmethod
    def settled(
        cls, reward: DistributionReward, made: Features | None, seen: Features, count: int
    ) -> Int[Tensor, " places"]:
        """For each place the row of one of its `count` candidates, such that changing one place improves nothing."""
        places = len(seen) // count
        rows = torch.arange(len(seen)).view(places, count)
        company = cls.of(reward, made, seen[rows[:, 0]])
        swaps, best = reward.swaps(company.members, seen[rows[:, 1:].flatten()]), rows.clone()
        for _ in range(MOST_PASSES):
            changed = False
            for place in range(places):
                rivals = place * (count - 1) + torch.arange(count - 1)
                values = company._worth(swaps, company.made + place, rivals)
                rival = int(values.argmax())
                if values[rival] > swaps.value + swaps.rounding:
                    swaps.accept(company.made + place, int(rivals[rival]))
                    best[place, [0, rival + 1]] = best[place, [rival + 1, 0]]
                    changed = True
            if not changed:
                break
        return best[:, 0]

    def choose(
        self, places: Int[Tensor, " n"], candidates: Features, alpha: float, luck: Float[Tensor, " n m"]
    ) -> tuple[Int[Tensor, " n"], "Company"]:
        """For each place one of its m candidates, whose rows are adjacent, one place after another."""
        count, swaps = luck.shape[1], self.reward.swaps(self.members, candidates)
        found = []
        for row, place in enumerate(places.tolist()):
            rivals = torch.arange(row * count, (row + 1) * count)
            values = self._worth(swaps, self.made + place, rivals)
            best = int(pick(values[None], alpha, luck[row : row + 1]))
            swaps.accept(self.made + place, int(rivals[best]))
            found.append(best)
        choice = torch.tensor(found)
        return choice, self.with_(places, candidates[torch.arange(len(places)) * count + choice])

    def worth(self, place: int, candidates: Features) -> Float[Tensor, " m"]:
        """What the set would score with each candidate in one place."""
        swaps = self.reward.swaps(self.members, candidates)
        return self._worth(swaps, self.made + place, torch.arange(len(candidates)))

    def with_(self, places: Int[Tensor, " n"], kept: Features) -> "Company":
        """The set with those in these places."""
        everyone = torch.arange(len(self.members))
        everyone[self.made + places] = len(self.members) + torch.arange(len(places))
        return Company(self.reward, join_columns([self.members, kept])[everyone], self.made)

    def _worth(self, swaps: Swaps, place: int, rivals: Int[Tensor, " m"]) -> Float[Tensor, " m"]:
        places = torch.full_like(rivals, place)
        values = swaps.pairs(places, rivals).double().cpu()
        if not values.isfinite().all():
            raise NonFiniteError(f"{self.reward.label} of a set is not a finite number; look at what it divides by")
        allowed = swaps.allowed(places, rivals).cpu()
        return torch.where(allowed, values, values.min() - 1e9) if allowed.any() else values
