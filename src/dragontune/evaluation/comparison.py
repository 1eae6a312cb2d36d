"""Two models' generations side by side: every reward's verdict, the LoRA-scale sweep, the items to listen to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dragontune.costs import Costs
from dragontune.errors import NonFiniteError
from dragontune.evaluation.generations import Generations, Making
from dragontune.evaluation.pictures import Kept
from dragontune.evaluation.statistics import Change, WinRate, item_wins, outcome, subset_wins
from dragontune.rewards.base import Features, InstanceReward, Reward
from dragontune.seeding import Key


@dataclass(frozen=True)
class Verdict:
    """What one reward says. `before` and `after` are higher for better, so a distance is negative."""

    name: str
    kind: str
    scope: str
    target: bool
    distance: bool
    before: float
    after: float
    wins: WinRate
    change: Change
    """Of an item's score; of a set reward that of a random subset, which is not the change of the whole set."""

    @property
    def result(self) -> float:
        """1 if it is better after, 0 if it is worse, one half if it is the same."""
        return outcome(self.before, self.after)

    def record(self) -> dict:
        """The reward's entry in metrics.json."""
        return {
            "scope": self.scope,
            "target": self.target,
            "before": self.before,
            "after": self.after,
            "win_rate": self.wins.rate,
            "win_rate_ci95": [self.wins.low, self.wins.high],
            f"{'subset_' if self.scope == 'set' else ''}change_ci95": [self.change.low, self.change.high],
        }


@dataclass(frozen=True, eq=False)
class Player:
    """One prompt to listen to or look at, with each instance reward's score before and after."""

    prompt: str
    before: Kept
    after: Kept
    scores: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, eq=False)
class Sweep:
    """Every reward at every LoRA scale, on `items` prompts."""

    scales: tuple[float, ...]
    values: Mapping[str, tuple[float, ...]]
    items: int
    costs: Costs


@dataclass(frozen=True, eq=False)
class Comparison:
    """The untuned model (`base`) against the tuned one on the same items.

    `known` remembers what subsets of `base` score, for several comparisons with the same base.
    """

    making: Making
    base: Generations
    tuned: Generations
    known: dict[tuple[str, bytes], float] = field(default_factory=dict)

    def verdict(self, name: str, target: bool, subset: int, subsets: int, key: Key) -> Verdict:
        """A reward's means or set scores on all items, and its win rate: by item, or by random subset."""
        reward = self.making.rewards[name]
        instance = isinstance(reward, InstanceReward)
        before, after = (scores(name, reward, side.features[name]) for side in (self.base, self.tuned))
        wins, change = item_wins(before, after, key) if instance else self._set_wins(name, subset, subsets, key)
        return Verdict(
            name=name,
            kind=reward.label,
            scope="instance" if instance else "set",
            target=target,
            distance=reward.distance,
            before=float(before.mean()),
            after=float(after.mean()),
            wins=wins,
            change=change,
        )

    def _set_wins(self, name: str, subset: int, subsets: int, key: Key) -> tuple[WinRate, Change]:
        reward = self.making.rewards[name]

        def compare(rows: Int[Tensor, " size"]) -> tuple[float, float]:
            place = (name, rows.numpy().tobytes())
            if place not in self.known:
                self.known[place] = float(scores(name, reward, self.base.features[name][rows]))
            return self.known[place], float(scores(name, reward, self.tuned.features[name][rows]))

        def progress(done: int, total: int) -> None:
            self.making.progress(f"subsets, {name}", done, total)

        return subset_wins(compare, len(self.making.prompts), subset, subsets, key, progress)

    def sweep(self, scales: Sequence[float], items: Sequence[int]) -> Sweep:
        """Means or set scores on `items` at other strengths of the adapter; 0 and 1 are the models at hand."""
        rewards = {name: reward for name, reward in self.making.rewards.items() if reward.minimum <= len(items)}
        values: dict[str, list[float]] = {name: [] for name in rewards}
        ordered, costs, index = sorted(set(scales)), Costs(), torch.tensor(list(items))
        for scale in ordered:
            if scale in (0, 1):
                side = self.tuned if scale else self.base
                features = {name: side.features[name][index] for name in rewards}
            else:
                with self.making.generator.scaled(scale):
                    made = self.making.make(f"LoRA scale {scale:g}", items)
                features, costs = made.features, costs + made.costs
            for name, reward in rewards.items():
                values[name].append(float(scores(name, reward, features[name]).mean()))
        return Sweep(tuple(ordered), {name: tuple(series) for name, series in values.items()}, len(items), costs)

    def players(self, items: Sequence[int]) -> tuple[Player, ...]:
        """Those of the items that were kept."""
        items = [item for item in items if item in self.base.clips]
        if not items:
            return ()
        index = torch.tensor(list(items))
        pairs: dict[str, list[tuple[float, float]]] = {}
        for name, reward in self.making.rewards.items():
            if isinstance(reward, InstanceReward):
                sides = (scores(name, reward, side.features[name][index]) for side in (self.base, self.tuned))
                pairs[name] = list(zip(*(side.tolist() for side in sides), strict=True))
        return tuple(
            Player(
                self.making.prompts[item],
                self.base.clips[item],
                self.tuned.clips[item],
                {name: scored[i] for name, scored in pairs.items()},
            )
            for i, item in enumerate(items)
        )

    def change(self) -> float:
        """How far tuning moved the latents: the median over items of the relative Euclidean distance."""
        base, tuned = self.base.latents.flatten(1), self.tuned.latents.flatten(1)
        return float(((tuned - base).norm(dim=1) / base.norm(dim=1).clamp(min=1e-12)).median())


def scores(name: str, reward: Reward, features: Features) -> Float[Tensor, " *n"]:
    """Finite scores in float64 on the CPU."""
    with torch.no_grad():
        found = reward.score(features).double().cpu()
    if not found.isfinite().all():
        where = f" for item {int((~found.isfinite()).nonzero()[0])}" if found.ndim else ""
        raise NonFiniteError(f"the reward {name!r} is not a finite number{where}")
    return found
