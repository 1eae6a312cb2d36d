"""VARD (Dai et al. 2025, arXiv 2505.15791): learn the value of noisy latents, then climb it, one step at a time.

First a network learns, from generations of the frozen model, what reward to expect of a noisy latent (value.py). Then
every step of the sampler is trained to lead to latents of high value, with a pull back to the frozen model's step. The
reward may be a black box, and no gradient passes through more than one step. What the network expects is the mean of
the reward, so the optimum is not exactly the frozen model's distribution times exp(reward / kl). Left out: the
soft value, and items of earlier rounds when V is refreshed.

The steps that are trained are first-order, also where the sampler that makes the states is of second order. That one
extrapolates from the estimates of two steps, so that what is won at a step is taken back at the next, which a value of
the latents alone does not see; a change that is the same at all steps does under both what a first-order step says.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf

import torch
from jaxtyping import Float
from torch import Tensor

from dragontune.algorithms.base import Algorithm, Metrics
from dragontune.algorithms.rollouts import Rollouts, check_instance_reward, first_order
from dragontune.algorithms.value import Regression, Value, explained
from dragontune.algorithms.value_lesson import FEWEST_ROLLOUTS, LEAST_R2, Lesson, Passed, lesson_prompts
from dragontune.data import Rows
from dragontune.errors import InputError
from dragontune.generators.base import Generator
from dragontune.parallel import from_main, share
from dragontune.rewards.base import InstanceReward
from dragontune.sampling import Sampler, Stop
from dragontune.schedule import Schedule, expand
from dragontune.seeding import Key


@dataclass(frozen=True, eq=False)
class Climb(Rows):
    """Where steps of the model began; they are taken anew, with the noise of `key`."""

    stop: Stop
    key: Key
    total: int = 0
    """Rows of the whole batch."""


@dataclass(frozen=True, eq=False)
class Vard(Algorithm[Climb, Climb]):
    """The loss of a step is -V(x_next) + kl KL(step | frozen model's step), V in standard deviations of the reward.

    The first round also generates `value_rollouts` items with the frozen model and fits V to them. The experience of a
    round has prompts x steps rows, which the loop's updates draw from. All numbers are our choice: the paper's are not
    known to us.

    >>> Vard(generator, KeyStrength(), sampler=Sampler(steps=12), value_prompts="tiny-music/prompts/train.txt")
    """

    generator: Generator
    reward: InstanceReward  # pyright: ignore[reportIncompatibleVariableOverride] - frozen, so it may be narrower
    sampler: Sampler = field(default_factory=Sampler)
    kl: float = 0.01
    """Weight of |mean - mean_ref|^2 / (2 s^2), a sum over elements, with the ancestral sampler's s for every sampler. A
    reward that is linear in the latents rises by about 1 / kl standard deviations under the ancestral sampler, by more
    under deterministic ones of many steps."""
    floor: float = 0.1
    """Least s, in standard deviations of clean latents: the last steps of a sampler have next to none."""
    emphasis: float = 2.0
    """Power of the share of data in the variance of the latents that a step leads to: what its value weighs. V hardly
    depends on latents that are all but noise, so its slope there says nothing. 0: all steps weigh the same."""
    value_prompts: str | tuple[str, ...] = ()
    """What the value is learnt on: a text file, one prompt a line, or prompts; none: those of the first round."""
    value_rollouts: int = 400
    value_width: int = 64
    value_depth: int = 3
    value_steps: int = 500
    """At most; the fit stops when it predicts held-out rollouts no better."""
    value_batch: int = 64
    value_lr: float = 1e-3
    refresh: int = 0
    """Every so many rounds V learns from that round's generations, too; 0: never."""
    refresh_steps: int = 20
    refresh_lr: float = 1e-4
    micro_batch: int = 40
    """Items generated, decoded or encoded at once: memory only, never the result."""
    _memory: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        check_instance_reward(self.reward, self)
        for name in ("kl", "emphasis"):
            if not 0 <= (value := getattr(self, name)) < inf:
                raise InputError(f"expected Vard's {name} finite and 0 or more, got {value}; 0 turns it off")
        for name in ("floor", "value_lr", "refresh_lr"):
            if not 0 < (value := getattr(self, name)) < inf:
                raise InputError(
                    f"expected Vard's {name} finite and above 0, got {value}; leave it out for the default"
                )
        least = {"value_rollouts": FEWEST_ROLLOUTS, "refresh": 0}
        names = ("value_width", "value_depth", "value_steps", "value_batch", "refresh_steps", "micro_batch")
        for name, low in {**least, **dict.fromkeys(names, 1)}.items():
            if (value := getattr(self, name)) < low:
                raise InputError(f"expected Vard's {name} of {low} or more, got {value}; raise it")
        self._asked()

    def memory(self) -> dict[str, Tensor]:
        """The value network, how well it predicted held-out rollouts, and the number of rounds."""
        return self._memory

    def together(self, pairs: int) -> int:
        """The rollouts for the value, if they are more than the prompts."""
        return max(pairs, self.value_rollouts)

    def rehearsal(self, rows: int, share: float) -> "Vard":
        """With fewer rollouts for the value, whose states are all kept while it is fitted, in two steps."""
        rollouts = max(FEWEST_ROLLOUTS, round(self.value_rollouts * share))
        return replace(self, micro_batch=rows, value_rollouts=rollouts, value_steps=min(2, self.value_steps))

    @torch.no_grad()
    def collect(self, prompts: Sequence[str], key: Key) -> tuple[Climb, Metrics]:
        """The steps of a generation for each prompt; in the first round, V before that.

        `value_r2` is V's on these generations; `value_fit_r2` was its on the held-out rollouts of the frozen model
        that told when to stop, of all latents and of the noisier and the cleaner half of the times.
        """
        costs = [] if self._memory else [self._learn(prompts, key.fold("value"))]
        rollouts = self._rollouts()
        steps, scores = rollouts(prompts, key, lambda steps: steps)
        visits = Passed.of(steps).visits(rollouts, scores, prompts)
        r2 = explained(self._value(), visits, self.generator.schedule, self.value_batch)
        number = int(self._memory["rounds"]) + 1
        if self.refresh and number > 1 and number % self.refresh == 0:
            value = self._value()
            again = Regression(self.refresh_steps, self.value_batch, self.refresh_lr)
            again.fit(value, visits, self.generator.schedule, key.fold("refresh"))
            self._remember(value)
        self._memory["rounds"] = torch.tensor(number)
        every, noisy, clean = self._memory["fit"].tolist()
        costs.append(rollouts.counts(len(prompts)))
        return Climb(steps.stop, key), {
            "reward": scores.mean().item(),
            "reward_std": scores.std(correction=0).item(),
            "value_r2": r2,
            "value_fit_r2": every,
            "value_fit_r2_noisy": noisy,
            "value_fit_r2_clean": clean,
            **{name: sum(cost[name] for cost in costs) for name in costs[0]},
        }

    def budget(self, pairs: int, batch: int, updates: int) -> Metrics:
        """A generation of each prompt, and each update's rows; not what the first round learns from."""
        calls = float(updates * batch * (1 + self.sampler.guided))
        rollouts = self._rollouts().counts(pairs)
        frozen = calls if self.kl else 0.0
        return {**rollouts, "denoiser_calls": rollouts["denoiser_calls"] + frozen, "gradient_calls": calls}

    @torch.no_grad()
    def prepare(self, batch: Climb, key: Key) -> Climb:
        """Noise for the steps."""
        return replace(batch[share(len(batch))], key=key.fold("noise"), total=len(batch))

    def loss(self, batch: Climb) -> tuple[Float[Tensor, ""], Metrics]:
        """How low the value is that the steps lead to, and how far they are from the frozen model's."""
        value, schedule = self._value(), self.generator.schedule
        sampler = first_order(self.sampler)
        state = sampler.resume(self.generator, batch.stop)
        move = sampler.transition(self.generator, state)
        t = schedule.times(self.sampler.steps)[batch.stop.step + 1].to(move.mean)
        prompt = self.generator.prompt_vectors(state.condition)
        values = value(move.draw(batch.key), t, prompt, schedule)
        alpha, sigma = value.spread * schedule.alpha(t), schedule.sigma(t)
        losses = -values * (alpha**2 / (alpha**2 + sigma**2)) ** self.emphasis
        metrics = {
            "value": (value.mean + value.std * values.detach().mean()).item(),
            "gradient_calls": float(batch.total * (1 + self.sampler.guided)),
        }
        if self.kl:
            metrics["denoiser_calls"] = metrics["gradient_calls"]
            with torch.no_grad(), self.generator.reference():
                frozen = sampler.transition(self.generator, state).mean
            std = ancestral_std(schedule, self.sampler.steps)[batch.stop.step].to(frozen)
            std = std.maximum(self.floor * value.spread)
            divergence = ((move.mean - frozen) / expand(std, frozen)).square().flatten(1).sum(1) / 2
            losses = losses + self.kl * divergence
            metrics["divergence"] = divergence.mean().item()
        return losses.mean(), metrics

    def _learn(self, prompts: Sequence[str], key: Key) -> Mapping[str, float]:
        """Fit V to generations of the frozen model, a fifth of them held out, and say what they cost."""
        asked, rollouts = self._asked() or list(prompts), self._rollouts()
        regression = Regression(self.value_steps, self.value_batch, self.value_lr)
        learnt = Lesson(self.value_rollouts, self.value_width, self.value_depth, regression)(rollouts, asked, key)
        self._remember(learnt.value)
        known = replace(learnt, value=self._value())
        self._memory["fit"] = from_main(lambda: known.fit(self.generator.schedule, self.value_batch))
        self._memory["rounds"] = torch.tensor(0)
        if self._memory["fit"][0] < LEAST_R2:
            warnings.warn(
                f"the value network predicts {self.reward.label} of held-out rollouts no better than their mean, so "
                "there is nothing to climb; raise algorithm.value_rollouts, name value_prompts, or use Dragon",
                stacklevel=1,
            )
        return rollouts.counts(self.value_rollouts)

    def _asked(self) -> list[str]:
        """The prompts that the value is learnt on; none: not said."""
        return lesson_prompts(self.value_prompts, "Vard's value_prompts")

    def _rollouts(self) -> Rollouts:
        return Rollouts(self.generator, self.reward, self.sampler, self.micro_batch)

    def _value(self) -> Value:
        """V, frozen; a copy of what is remembered."""
        start = "value."
        weights = {name: weight for name, weight in self._memory.items() if name.startswith(start)}
        return Value.of({name.removeprefix(start): w for name, w in weights.items()}, self.generator.device)

    def _remember(self, value: Value) -> None:
        """Of all processes' the main one's, should rounding have made them differ."""
        weights = from_main(lambda: {name: weight.detach().clone() for name, weight in value.state_dict().items()})
        self._memory.update({f"value.{name}": weight for name, weight in weights.items()})


def ancestral_std(schedule: Schedule, steps: int) -> Float[Tensor, " steps"]:
    """The noise that the ancestral sampler adds at each step (float64, CPU); 0 at the last."""
    times = schedule.times(steps)
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    ratio = alpha[:-1] * sigma[1:] / (alpha[1:] * sigma[:-1])
    return sigma[1:] * (1 - ratio**2).clamp(min=0).sqrt()
