"""DRaFT (Clark, Vicol, Swersky & Fleet 2024, arXiv 2309.17400): the reward's own gradient through the sampler.

An update generates a batch and follows the gradient of its reward through the decoder and the last K steps into the
adapter: K = all is DRaFT, less is DRaFT-K, and DRaFT-LV lowers the variance of K = 1 by noising each result again.

The gradient is taken in two parts, so that their activations never meet in memory: first of the loss with respect to
the clean latents (slopes.py), then, through the last steps, of the inner product of those with the latents. Rewards of
whole sets work like all others. Left out: the annealed guidance of DRaFT+.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dragontune.algorithms.base import Algorithm, Metrics
from dragontune.algorithms.objectives import Maximise, Objective
from dragontune.algorithms.slopes import Judge, Slopes, check_differentiable
from dragontune.algorithms.spread import spread
from dragontune.data import Rows
from dragontune.errors import InputError
from dragontune.generators.base import Generator
from dragontune.parallel import gather_rows, portions, share
from dragontune.process import State
from dragontune.rewards import standardise
from dragontune.rewards.base import DifferentiableReward, DistributionReward
from dragontune.sampling import Estimates, Sampler, Stop
from dragontune.schedule import expand
from dragontune.seeding import Key

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Asked(Rows):
    """What a round generates from: nothing is generated before an update, so that every update is on-policy."""

    prompts: tuple[str, ...]
    item: Int[Tensor, " n"]


@dataclass(frozen=True, eq=False)
class Tail(Rows):
    """Generations before their last steps, and where the reward pulls what those will make of them."""

    stop: Stop
    slopes: Slopes
    weight: Float[Tensor, " n"]
    """In the mean reward that is logged: none for the renoised copies, so that it is that of the generations."""
    key: Key
    numbers: Mapping[str, float]
    """Of the whole batch, to log."""


@dataclass(frozen=True, eq=False)
class Draft(Algorithm[Asked, Tail]):
    """Gradients through the last `last` steps of the sampler: K of DRaFT-K, or `all`.

    >>> Draft(generator, Alignment(TinyClap()), sampler=Sampler(steps=12), last=2)
    """

    generator: Generator
    reward: DifferentiableReward  # pyright: ignore[reportIncompatibleVariableOverride] - frozen, so read only
    sampler: Sampler = field(default_factory=Sampler)
    last: int | Literal["all"] = 1
    renoised: int = 0
    """n of DRaFT-LV: how many times each result is noised again to the level before the last steps, and judged again.

    The loss is the mean over all n + 1 results of an item (the paper's sum, divided by n + 1: a factor that Adam
    divides out).
    """
    objective: Objective = field(default_factory=Maximise)
    kl: float = 0.0
    """Weight of the mean over the differentiated steps of |eps - eps_ref|^2 / 2, a mean over elements: the KL
    divergence of two Gaussians of unit variance about the noise that the model and the frozen one predict (DRaFT+)."""
    micro_batch: int = 40
    """Items generated, decoded or encoded at once: memory only, never the result."""

    def __post_init__(self) -> None:
        steps, kind = self.sampler.steps, type(self).__name__
        check_differentiable(self.reward, self)
        if standardise.learns(self.reward):
            raise InputError(
                f"expected fixed scales in the reward of {kind}, got standardise: running, which only Dragon keeps up; "
                "give scales"
            )
        if self.last != "all" and not 1 <= self.last <= steps:
            raise InputError(
                f"expected {kind}'s last from 1 to the sampler's {steps} steps, or `all`, got {self.last}; lower it or "
                "raise sampler.steps"
            )
        if self.renoised < 0:
            raise InputError(f"expected {kind}'s renoised of 0 or more, got {self.renoised}; 2 is usual")
        if not 0 <= self.kl < float("inf"):
            raise InputError(f"expected {kind}'s kl finite and 0 or more, got {self.kl}; 0 turns it off")
        if self.micro_batch < 1:
            raise InputError(f"expected {kind}'s micro_batch of 1 or more, got {self.micro_batch}; raise it")

    def depth(self, key: Key) -> int:
        """How many steps of an update carry gradients."""
        return self.sampler.steps if self.last == "all" else self.last

    @torch.no_grad()
    def collect(self, prompts: Sequence[str], key: Key) -> tuple[Asked, Metrics]:
        """The prompts as they are."""
        return Asked(tuple(prompts), torch.arange(len(prompts))), {}

    @torch.no_grad()
    def prepare(self, batch: Asked, key: Key) -> Tail:
        """Generate, judge, and find where the reward pulls each item. Shared among the processes."""
        depth = self.depth(key.fold("depth"))
        batch = Asked(batch.prompts, _distinct(batch.item))
        own = batch[share(len(batch))]
        stop, ends = self._generate(own, depth, key.fold("noise"))
        judge = Judge(self.generator, self.reward, self.objective, self.micro_batch)
        judged = [(stop, judge.slopes(stop.prompts, ends, stop.item, key.fold("judge")))]
        varied = spread(gather_rows(ends))
        for number in range(1, self.renoised + 1):
            again = self._renoise(stop, ends, int(batch.item.max() + 1) * number, key.fold("again", number))
            noised = torch.cat(self._by_portions(len(own), partial(self._ends, again, key.fold("noise"))))
            judged.append((again, judge.slopes(again.prompts, noised, again.item, key.fold("judge"))))
        members = {f"member_{name}": score for name, score in judged[0][1].members.items()}
        numbers = {**self._counts(len(batch), depth), **members, **varied}
        weights = [torch.full((len(own),), float(weight)) for weight in (1 + self.renoised, *[0] * self.renoised)]
        tails = [
            Tail(one, replace(slopes, members={}), weight, key.fold("noise"), numbers)
            for (one, slopes), weight in zip(judged, weights, strict=True)
        ]
        return Tail.join(tails)

    def budget(self, pairs: int, batch: int, updates: int) -> Metrics:
        """Every update generates its batch."""
        typical = Counter(self.depth(Key(0).fold("budget", draw)) for draw in range(9)).most_common(1)[0][0]
        return {name: updates * count for name, count in self._counts(batch, typical).items()}

    def loss(self, batch: Tail) -> tuple[Float[Tensor, ""], Metrics]:
        """The objective's losses, whose gradient passes through the last steps, and the divergence."""
        latents, divergence = self._finish(batch.stop, batch.key)
        losses = batch.slopes.loss.to(latents) + _pulled(latents, batch.slopes.slope)
        loss = (losses + self.kl * divergence).mean()
        metrics = {"reward": (batch.weight * batch.slopes.score).mean().item(), **batch.numbers}
        return loss, metrics | ({"divergence": divergence.mean().item()} if self.kl else {})

    def _generate(self, batch: Asked, depth: int, key: Key) -> tuple[Stop, Float[Tensor, " n *latent"]]:
        """All items of this process, a micro-batch at a time."""
        parts = self._by_portions(len(batch), lambda rows: self._rollout(batch[rows], depth, key))
        return Stop.join([stop for stop, _ in parts]), torch.cat([ends for _, ends in parts])

    def _by_portions(self, count: int, work: Callable[[Int[Tensor, " k"]], T]) -> list[T]:
        """What `work` makes of this process's rows, a micro-batch at a time."""
        rows = portions(torch.arange(count), self.micro_batch, self.generator.sharded)
        made = [(work(portion.rows), portion.real) for portion in rows]
        return [part for part, real in made if real]

    def _ends(self, stop: Stop, key: Key, rows: Int[Tensor, " k"]) -> Float[Tensor, " k *latent"]:
        return self._finish(stop[rows], key)[0]

    def _rollout(self, batch: Asked, depth: int, key: Key) -> tuple[Stop, Float[Tensor, " n *latent"]]:
        """Where the last steps begin, and what they lead to."""
        state = self.sampler.start(self.generator, batch.prompts, key, batch.item.tolist())
        for _ in range(self.sampler.steps - depth):
            state = self.sampler.advance(self.generator, state, key)
        stop = self.sampler.pause(state, batch.prompts)
        return stop, self._finish(stop, key)[0]

    def _renoise(self, stop: Stop, ends: Float[Tensor, " n *latent"], offset: int, key: Key) -> Stop:
        """The results, noised to the level before the last steps, of which the first is then of first order."""
        schedule = self.generator.schedule
        t = schedule.times(self.sampler.steps)[stop.step].to(ends)
        noise = key.normal(stop.item, ends.shape[1:]).to(ends)
        noisy = schedule.diffuse(ends, noise, t)
        return replace(stop, latents=noisy, item=stop.item + offset, known=torch.zeros_like(stop.known))

    def _finish(self, stop: Stop, key: Key) -> tuple[Float[Tensor, " n *latent"], Float[Tensor, " n"]]:
        """The last steps, and their mean divergence from the frozen model's."""
        state = self.sampler.resume(self.generator, stop)
        divergence, left = state.latents.new_zeros(len(state)), self.sampler.steps - int(state.step[0])
        for _ in range(left):
            if left > 1 and torch.is_grad_enabled():
                state, more = self._again(state, key)
            else:
                state, more = self._step(state, key)
            divergence = divergence + more / left
        return state.latents, divergence

    def _again(self, state: State, key: Key) -> tuple[State, Float[Tensor, " n"]]:
        """A step whose activations are computed again on the way back, so that only one step's are kept at a time."""

        def step(
            latents: Tensor, guided: Tensor, unconditional: Tensor, average: Tensor | None
        ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
            given = Estimates(guided, unconditional, state.history.known, average)
            ahead, more = self._step(replace(state, latents=latents, history=given), key)
            return ahead.latents, ahead.history.guided, ahead.history.unconditional, ahead.history.average, more

        history = state.history
        latents, guided, unconditional, average, more = checkpoint(  # pyright: ignore[reportGeneralTypeIssues]
            step,
            state.latents,
            history.guided,
            history.unconditional,
            history.average,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        return state.move(latents, Estimates.of(guided, unconditional, average)), more

    def _step(self, state: State, key: Key) -> tuple[State, Float[Tensor, " n"]]:
        """One step and its divergence."""
        move = self.sampler.transition(self.generator, state)
        return state.move(move.draw(key), move.history), self._divergence(state, move.clean)

    def _divergence(self, state: State, clean: Float[Tensor, " n *latent"]) -> Float[Tensor, " n"]:
        """Half the mean squared difference of the predicted noise from the frozen model's."""
        if not (self.kl and torch.is_grad_enabled()):
            return clean.new_zeros(len(clean))
        with self.generator.reference():
            frozen = self.sampler.transition(self.generator, state).clean
        schedule = self.generator.schedule
        t = schedule.times(self.sampler.steps)[state.step].to(clean)
        ratio = expand(schedule.alpha(t) / schedule.sigma(t).clamp(min=1e-3), clean)
        return (ratio * (clean - frozen)).square().flatten(1).mean(1) / 2

    def _counts(self, items: int, depth: int) -> dict[str, float]:
        """What an update on `items` prompts costs."""
        branches, judged = 1 + self.sampler.guided, items * (1 + self.renoised)
        calls = self.sampler.calls(items) + items * self.renoised * depth * branches
        frozen = judged * depth * branches if self.kl else 0
        looks = judged * (2 if isinstance(self.reward, DistributionReward) else 1)
        return {
            "generations": float(items),
            "denoiser_calls": float(calls + frozen),
            "gradient_calls": float(judged * depth * branches),
            "decodes": float(looks) if self.reward.needs_media else 0.0,
            "encodes": float(looks),
        }


@dataclass(frozen=True, eq=False)
class DraftLv(Draft):
    """DRaFT-LV: `renoised` results more of each item, for the price of their last steps (Clark et al. 2024, alg. 1)."""

    renoised: int = 2


def _distinct(item: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """An item that was dealt twice gets another number, and so another noise, the second time."""
    earlier = (item[:, None] == item).tril(-1).sum(1)
    return item + earlier * (item.max() + 1)


def _pulled(latents: Float[Tensor, " n *latent"], slope: Float[Tensor, " n *latent"]) -> Float[Tensor, " n"]:
    """0 in value, with the gradient of the inner product."""
    return (slope * (latents - latents.detach())).flatten(1).sum(1)
