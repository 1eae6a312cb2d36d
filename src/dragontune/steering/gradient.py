"""Gradient guidance: every clean estimate is moved along the gradient of a differentiable reward.

If a reward tilts the law to p(x) exp(r(x) / alpha), then the score at x_t gains grad V / alpha, with V the soft value,
and by Tweedie's formula the clean estimate gains (sigma^2 / alpha_t) grad V / alpha (classifier guidance, Dhariwal &
Nichol 2021, arXiv 2105.05233). V is taken to be the reward of the clean estimate (DPS, Chung et al. 2023, arXiv
2209.14687), exact up to a constant for a reward that is linear in the latents of a Gaussian. Works with every sampler,
deterministic or not. Left out: several gradient steps at one time, and steps in the space of clean latents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import torch
from jaxtyping import Float
from torch import Tensor

from dragontune.algorithms.objectives import Maximise
from dragontune.algorithms.slopes import Judge, check_differentiable
from dragontune.costs import Costs
from dragontune.errors import InputError
from dragontune.process import ReverseProcess, State
from dragontune.rewards.base import DifferentiableReward, DistributionReward, Features
from dragontune.sampling import Sampler
from dragontune.schedule import expand
from dragontune.seeding import Key
from dragontune.steering.base import Steering, Visit, check_alpha, check_counts, check_reward
from dragontune.steering.walk import Walk


@dataclass(frozen=True, eq=False)
class GradientGuidance(Steering):
    """`alpha` (above 0, in units of the reward) is the temperature: smaller pulls harder.

    A shift of the clean estimate is cut to `limit` times the estimate's own Euclidean norm: estimates from pure noise
    have steep and senseless gradients. A reward of a whole set looks at the items of one call.

    >>> GradientGuidance(Alignment(TinyClap()), alpha=0.02)
    """

    reward: DifferentiableReward  # pyright: ignore[reportIncompatibleVariableOverride] - frozen, so it may be narrower
    alpha: float
    limit: float = 0.5
    micro_batch: int = 40

    def __post_init__(self) -> None:
        check_counts(self)
        check_alpha(self, self.alpha)
        check_differentiable(self.reward, self)
        check_reward(self, sets=True)
        if self.alpha == 0:
            raise InputError("expected alpha above 0 in GradientGuidance, got 0, an infinite pull; 0.1 may be a start")
        if not 0 < self.limit <= inf:
            raise InputError(f"expected GradientGuidance's limit above 0, got {self.limit}; 0.5 is the default")

    def check(self, process: ReverseProcess) -> None:
        """Its states must be continuous."""
        _continuous(process)

    def item_costs(self, process: ReverseProcess, key: Key) -> Costs:
        """One differentiated evaluation, decode and reward call a step; two of the latter for a reward of sets."""
        looks = process.steps * (2 if isinstance(self.reward, DistributionReward) else 1)
        calls = process.calls(1)
        return Costs(gradient_calls=calls, decodes=looks if self.reward.needs_media else 0, encodes=looks)

    def run(
        self, walk: Walk, prompts: Sequence[str], items: Sequence[int], visit: Visit, made: Features | None
    ) -> State:
        """One state a prompt, moved at every step."""
        sampler = _continuous(walk.process)
        state = sampler.start(walk.generator, prompts, walk.key, items)
        size = len(state) if isinstance(self.reward, DistributionReward) else walk.rows
        for _ in range(sampler.steps):
            visit(state)
            parts, first = [], 0
            for part in state.chunks(size) if len(state) > size else [state]:
                texts = tuple(prompts[first : first + len(part)])
                parts.append(self._step(walk, sampler, part, texts))
                first += len(part)
            state = State.join(parts)
        visit(state)
        return state

    def _step(self, walk: Walk, sampler: Sampler, state: State, prompts: tuple[str, ...]) -> State:
        generator = walk.generator
        with torch.enable_grad():
            noisy = state.latents.detach().requires_grad_()
            free_to_move = State(noisy, state.condition, state.unconditional, state.step, state.item, state.history)
            conditional, free = sampler.estimates(generator, free_to_move)
            clean = sampler.onward(generator, free_to_move, conditional, free).clean
        judge = Judge(generator, self.reward, Maximise(), self.micro_batch)
        uphill = -judge.slopes(prompts, clean.detach(), state.item, walk.key).slope
        if isinstance(self.reward, DistributionReward):
            uphill = uphill / len(state)
        (gradient,) = torch.autograd.grad(clean, noisy, uphill.to(clean))
        shift = self._shift(sampler, walk, state, gradient, clean.detach())
        move = sampler.onward(generator, state, conditional.detach() + shift, free.detach() + shift)
        return state.move(move.draw(walk.key), move.history)

    def _shift(
        self,
        sampler: Sampler,
        walk: Walk,
        state: State,
        gradient: Float[Tensor, " n *latent"],
        clean: Float[Tensor, " n *latent"],
    ) -> Float[Tensor, " n *latent"]:
        """Of the clean estimates, which gives the tilted score."""
        schedule = walk.generator.schedule
        t = schedule.times(sampler.steps)[state.step]
        gain = (schedule.sigma(t) ** 2 / schedule.alpha(t).clamp(min=1e-4) / self.alpha).to(clean)
        shift = expand(gain, clean) * gradient
        if self.limit == inf:  # times a norm of 0 it would be undefined
            return shift
        longest = self.limit * clean.flatten(1).norm(dim=1)
        length = shift.flatten(1).norm(dim=1).clamp(min=1e-30)
        return shift * expand((longest / length).clamp(max=1.0), shift)


def _continuous(process: ReverseProcess) -> Sampler:
    if not isinstance(process, Sampler):
        raise InputError(
            "expected a continuous diffusion model for GradientGuidance, got one of tokens, which have no gradient; "
            "use Svdd, DSearch, Smc or BestOfN"
        )
    return process
