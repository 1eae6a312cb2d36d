"""A guard against over-optimisation: while the target rises, held-out rewards and diversity must not fall.

A reward is a stand-in for what is wanted, and tuning finds the difference (Gao, Schulman & Hilton 2022, "Scaling laws
for reward model overoptimization"). Smaller LoRA scales go back part of the way to the untuned model, as DRaFT does
(Clark et al. 2024). Left out: statistical tests; a look compares means, or one set, on the same noise, so `count`
should be large enough that `tolerance` is more than chance. What a run does with the looks is in `training/watch.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dragontune.distances.vendi import vendi_score
from dragontune.errors import InputError, NonFiniteError
from dragontune.evaluation.comparison import Comparison, scores
from dragontune.evaluation.evaluate import asked, named, silent
from dragontune.evaluation.generations import Generations, Making, Progress
from dragontune.evaluation.looks import Looks, of_history
from dragontune.generators.base import Generator
from dragontune.rewards.base import Reward
from dragontune.sampling import Sampler
from dragontune.seeding import Key

DIVERSITY = "diversity"


@dataclass(frozen=True, eq=False)
class Guard:
    """When to look at a run, what is sound, and what to hand over.

    A model at a LoRA scale is sound if no reward of `rewards` is worse than the untuned model's by more than
    `tolerance` times that one's size, and its diversity is at least `least_diversity` of the untuned model's. Looks are
    made after every `every` rounds and after the last; each tries the `scales`, the largest first, and the first sound
    one is its candidate. The candidate with the highest target is handed over; the untuned model is the first. After
    `patience` looks in a row without a new best the run stops.

    `count` prompts of the text file `prompts` are used, evenly spaced, always with the same noise. A reward that is
    named `target` takes the target's place. Diversity is the Vendi score of the latents, each item's mean over all
    axes but the first.

    >>> Guard("tiny-music/prompts/validation.txt", every=4).scales
    (1.0, 0.5, 0.25)
    """

    prompts: str
    count: int = 60
    every: int = 4
    patience: int = 2
    tolerance: float = 0.05
    least_diversity: float = 0.9
    scales: tuple[float, ...] = (1.0, 0.5, 0.25)
    rewards: dict[str, Reward] = field(default_factory=dict)
    micro_batch: int = 50

    def __post_init__(self) -> None:
        """InputError for numbers that make no sense."""
        for name, least in (("count", 2), ("every", 1), ("patience", 1), ("micro_batch", 1)):
            if getattr(self, name) < least:
                raise InputError(f"expected guard.{name} of {least} or more, got {getattr(self, name)}; raise it")
        if not 0 <= self.tolerance < inf:
            raise InputError(f"expected guard.tolerance of 0 or more, got {self.tolerance}; 0.05 is 5 %")
        if not 0 <= self.least_diversity <= 1:
            raise InputError(f"expected guard.least_diversity from 0 to 1, got {self.least_diversity}; 0.9 is 90 %")
        wrong = [scale for scale in self.scales if not 0 < scale <= 10]
        if wrong or not self.scales:
            got = wrong[0] if wrong else "none"
            raise InputError(f"expected guard.scales above 0 and up to 10, got {got}; 1 is as tuned")
        if DIVERSITY in self.rewards:
            raise InputError(
                f"expected another name than {DIVERSITY} among guard.rewards, got it; the guard always measures a "
                "diversity of its own, so call yours vendi"
            )

    @property
    def rule(self) -> str:
        """What is done, in a sentence or two, with the numbers that hold."""
        scales = ", ".join(f"{scale:g}" for scale in self._ordered)
        held = (
            f"no held-out reward may be worse than with the untuned model by more than {100 * self.tolerance:g} %, and "
        )
        return (
            f"{held if self.rewards else ''}at least {100 * self.least_diversity:g} % of its diversity must be left; "
            f"of the LoRA scales {scales} the first that is sound is the candidate of a look, the candidate with the "
            "highest target is handed over (the untuned model is the first), and the run stops after "
            f"{self.patience} looks in a row without a new best"
        )

    def read(self) -> tuple[str, ...]:
        """The prompts: all of the file if it has no more than `count`, else evenly spaced ones."""
        return asked(self.prompts, self.count)

    def named(self, target: Reward) -> tuple[str, dict[str, Reward]]:
        """The target's name, and every reward by name, the target first unless it is listed."""
        return named(self.rewards, target)

    def check(self, rewards: Mapping[str, Reward], prompts: int) -> None:
        """InputError if there are too few prompts to score a set of them."""
        for name, reward in rewards.items():
            if prompts < reward.minimum:
                raise InputError(
                    f"the guard's reward {name!r} needs at least {reward.minimum} items, got {prompts} prompts: raise "
                    "guard.count or add prompts"
                )

    def generations(self, rounds: int) -> tuple[int, int]:
        """The fewest and the most generations that a run of so many rounds takes; fewer if it stops early."""
        prompts, looks = len(self.read()), -(-rounds // self.every)
        return prompts * (1 + looks), prompts * (1 + looks * len(self._ordered))

    def failed(self, untuned: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
        """What makes a measured model not sound: held-out rewards by name, or `diversity`."""
        wrong = [
            name
            for name, before in untuned["rewards"].items()
            if found["rewards"][name] < before - self.tolerance * abs(before)
        ]
        return wrong + [DIVERSITY] * (found[DIVERSITY] < self.least_diversity * untuned[DIVERSITY])

    def looks(self, history: Sequence[Mapping[str, Any]], target: Reward) -> Looks | None:
        """What the report tells of the looks in a run's log; None if there are none."""
        found = of_history(history)
        if found is None:
            return None
        name, rewards = self.named(target)
        distances = {"target": rewards[name].distance, **{each: rewards[each].distance for each in self._held(name)}}
        count = sum("look" in record for record in history)
        trials, chosen, stopped = found
        return Looks(self.rule, self.tolerance, self.least_diversity, distances, count, tuple(trials), chosen, stopped)

    def post(
        self,
        generator: Generator,
        sampler: Sampler,
        target: Reward,
        seed: int,
        progress: Progress = silent,
        say: Callable[[str], None] = lambda sentence: None,
    ) -> "Lookout":
        """The guard beside the model it looks at."""
        _, rewards = self.named(target)
        prompts = self.read()
        self.check(rewards, len(prompts))
        key = Key(seed).fold("guard")
        making = Making(generator, sampler, prompts, rewards, self.micro_batch, key, progress)
        return Lookout(self, making, self.named(target)[0], say)

    def _held(self, target: str) -> list[str]:
        return [name for name in self.rewards if name != target]

    @property
    def _ordered(self) -> list[float]:
        return sorted({float(scale) for scale in self.scales}, reverse=True)


@dataclass(frozen=True, eq=False)
class Lookout:
    """Makes the looks of a guard: everything is measured on the same prompts with the same noise.

    `target` is the name of the target among the rewards of `making`; `say` tells the user something.
    """

    guard: Guard
    making: Making
    target: str
    say: Callable[[str], None]

    @property
    def every(self) -> int:
        """Rounds between looks."""
        return self.guard.every

    @property
    def patience(self) -> int:
        """Looks in a row without a new best after which the run stops."""
        return self.guard.patience

    def look(self) -> dict[str, Any]:
        """The untuned model, the scales that were tried until one was sound, and which one that was.

        Raises:
            NonFiniteError: a latent or a reward is NaN or infinite.
        """
        base, untuned = self._base
        tried: list[dict[str, Any]] = []
        for scale in self.guard._ordered:
            with self.making.generator.scaled(scale):
                made = self.making.make(f"guard: LoRA scale {scale:g}", range(len(self.making.prompts)))
            found = {"scale": scale, **self._measured(made), "distance": Comparison(self.making, base, made).change()}
            tried.append({**found, "failed": self.guard.failed(untuned, found)})
            if not tried[-1]["failed"]:
                return {"untuned": untuned, "tried": tried, "sound": scale}
        return {"untuned": untuned, "tried": tried, "sound": None}

    @cached_property
    def _base(self) -> tuple[Generations, dict[str, Any]]:
        """What the untuned model makes: the same at every look, so it is made at the first."""
        with self.making.generator.reference():
            made = self.making.make("guard: untuned model", range(len(self.making.prompts)))
        return made, self._measured(made)

    def _measured(self, made: Generations) -> dict[str, Any]:
        finite = made.latents.flatten(1).isfinite().all(1)
        if not finite.all():
            raise NonFiniteError(
                f"at the guard's look the latents of item {int((~finite).nonzero()[0])} are not finite"
            )
        found = {
            name: float(scores(name, reward, made.features[name]).mean())
            for name, reward in self.making.rewards.items()
        }
        target = found.pop(self.target)
        return {"target": target, "rewards": found, DIVERSITY: diversity(made.latents)}


def diversity(latents: Float[Tensor, " n *latent"]) -> float:
    """The Vendi score of the items' latents, averaged over all axes but the first: the effective number of items.

    Averages see a collapse that whole latents, nearly orthogonal whatever they hold, hide (docs/guard.md).
    """
    averages = latents if latents.ndim == 2 else latents.flatten(2).mean(2)
    with torch.no_grad():
        return float(vendi_score(averages))
