"""DDPO (Black, Janner, Du, Kostrikov & Levine 2023, arXiv 2305.13301): a policy gradient on the steps of the sampler.

Each step that adds noise is an action with a Gaussian density, so the gradient of a reward that may be a black box is
that of the log densities, weighted by how much better than its group a generation was: DDPO-IS, with a clipped ratio of
densities as in PPO. The group is the generations of one prompt, as in GRPO (Shao et al. 2024) and Flow-GRPO (Liu et al.
2025, arXiv 2505.05470). Left out: baselines that remember earlier rounds, and a critic.

The gradient of a log density grows as noise gets less, while what the noise tries out gets smaller: steps with hardly
any noise, as the last ones of EDM are, bring variance and no news. They are taken, but not learnt from (`least_noise`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf

import torch
from jaxtyping import Float
from torch import Tensor

from dragontune.algorithms.base import Algorithm, Metrics
from dragontune.algorithms.rollouts import Rollouts, Steps, check_instance_reward
from dragontune.data import Rows
from dragontune.errors import InputError
from dragontune.generators.base import Generator
from dragontune.parallel import share
from dragontune.rewards.base import InstanceReward
from dragontune.sampling import Sampler, Stop
from dragontune.schedule import expand
from dragontune.seeding import Key

SMALLEST = 1e-6
"""This share of a group's mean is added to its standard deviation: rewards that differ by less are as good as equal."""


@dataclass(frozen=True, eq=False)
class Moves(Rows):
    """Steps with noise: where from, where to, how likely that was (mean over elements) and how good an idea."""

    stop: Stop
    ahead: Float[Tensor, " n *latent"]
    log_prob: Float[Tensor, " n"]
    advantage: Float[Tensor, " n"]
    total: int = 0
    """Rows of the whole batch."""


@dataclass(frozen=True, eq=False)
class Ddpo(Algorithm[Moves, Moves]):
    """The experience of a round has prompts x group x noisy steps rows, which the loop's updates draw from.

    >>> Ddpo(generator, KeyStrength(), sampler=Sampler(steps=12, order=1, eta=1.0))
    """

    generator: Generator
    reward: InstanceReward  # pyright: ignore[reportIncompatibleVariableOverride] - frozen, so it may be narrower
    sampler: Sampler = field(default_factory=lambda: Sampler(order=1, eta=1.0))
    group: int = 8
    """Generations of each prompt of a round, judged against each other; 1: against the round's."""
    clip: float = 1e-4
    """How far the ratio of densities may leave 1 before the gradient stops; for densities that are means over elements,
    as in the code that the authors of DDPO released."""
    most_advantage: float = 5.0
    least_noise: float = 0.02
    """Steps whose standard deviation is no larger than this times alpha are not learnt from; for latents of about unit
    size. 0: all but the last, as in the paper."""
    kl: float = 0.0
    """Weight of the KL divergence of a step from the frozen model's, a mean over elements (Flow-GRPO)."""
    micro_batch: int = 40
    """Items generated, decoded or encoded at once: memory only, never the result."""

    def __post_init__(self) -> None:
        sampler = self.sampler
        check_instance_reward(self.reward, self)
        if sampler.order != 1 or not sampler.eta > 0 or sampler.steps < 2:
            raise InputError(
                "expected a sampler for Ddpo that adds noise on the way (2 steps or more, order 1, eta above 0), got "
                f"{sampler.steps} steps, order {sampler.order} and eta {sampler.eta:g}; set sampler.order to 1 and "
                "sampler.eta to 1"
            )
        if self.group < 1 or self.micro_batch < 1:
            raise InputError(
                f"expected Ddpo's group and micro_batch of 1 or more, got {self.group} and {self.micro_batch}; raise it"
            )
        if not (0 < self.clip < inf and 0 < self.most_advantage < inf):
            raise InputError(
                f"expected Ddpo's clip and most_advantage finite and above 0, got {self.clip} and "
                f"{self.most_advantage}; 1e-4 and 5 are usual"
            )
        if not 0 <= self.least_noise < inf:
            raise InputError(f"expected Ddpo's least_noise finite and 0 or more, got {self.least_noise}; 0.02 is usual")
        if not 0 <= self.kl < inf:
            raise InputError(f"expected Ddpo's kl finite and 0 or more, got {self.kl}; 0 turns it off")

    def together(self, pairs: int) -> int:
        """All groups."""
        return pairs * self.group

    @torch.no_grad()
    def collect(self, prompts: Sequence[str], key: Key) -> tuple[Moves, Metrics]:
        """A group of generations for each prompt, their noisy steps and their advantages."""
        if self.group * len(prompts) < 2:
            raise InputError(
                "expected two generations or more to compare in Ddpo, got group 1 and one prompt; raise "
                "algorithm.group or loop.pairs"
            )
        texts = [prompt for prompt in prompts for _ in range(self.group)]
        rollouts = Rollouts(self.generator, self.reward, self.sampler, self.micro_batch)
        moves, scores = rollouts(texts, key, self._learnt_from)
        advantage = self.advantages(scores)
        metrics = {
            "reward": scores.mean().item(),
            "reward_std": scores.std(correction=0).item(),
            "advantage_size": advantage.abs().mean().item(),
            **rollouts.counts(len(texts)),
        }
        return replace(moves, advantage=advantage[moves.stop.item].to(moves.log_prob)), metrics

    def _learnt_from(self, steps: Steps) -> Moves:
        """Those that add enough noise, without advantages yet."""
        schedule = self.generator.schedule
        alpha = schedule.alpha(schedule.times(self.sampler.steps))[steps.stop.step + 1]
        chosen = (steps.std.cpu() > self.least_noise * alpha).nonzero()[:, 0]
        if not len(chosen):
            raise InputError(
                f"expected Ddpo's least_noise below the noise of some step, got {self.least_noise} for steps with at "
                f"most {steps.std.max().item():.2g}; lower it, or raise sampler.eta or sampler.steps"
            )
        steps = steps[chosen]
        return Moves(steps.stop, steps.ahead, steps.log_prob, torch.zeros_like(steps.log_prob))

    def advantages(self, scores: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """How many standard deviations better than its group each is, within `most_advantage`; groups are adjacent."""
        groups = scores.view(-1, self.group) if self.group > 1 else scores[None]
        off = groups - groups.mean(1, keepdim=True)
        scale = SMALLEST * groups.mean(1, keepdim=True).abs() + 1e-30
        relative = off / (groups.std(1, correction=0, keepdim=True) + scale)
        return relative.flatten().clamp(-self.most_advantage, self.most_advantage)

    def budget(self, pairs: int, batch: int, updates: int) -> Metrics:
        """A group of each prompt, and each update's rows."""
        rollouts = Rollouts(self.generator, self.reward, self.sampler, self.micro_batch).counts(pairs * self.group)
        calls = float(updates * batch * (1 + self.sampler.guided))
        frozen = calls if self.kl else 0.0
        return {**rollouts, "denoiser_calls": rollouts["denoiser_calls"] + frozen, "gradient_calls": calls}

    @torch.no_grad()
    def prepare(self, batch: Moves, key: Key) -> Moves:
        """As it is."""
        return replace(batch[share(len(batch))], total=len(batch))

    def loss(self, batch: Moves) -> tuple[Float[Tensor, ""], Metrics]:
        """-min(ratio A, clipped ratio A); `clipped` is the share of rows that have lost their gradient."""
        state = self.sampler.resume(self.generator, batch.stop)
        move = self.sampler.transition(self.generator, state)
        change = move.log_prob(batch.ahead) / batch.ahead[0].numel() - batch.log_prob
        ratio, advantage = change.exp(), batch.advantage
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - self.clip, 1 + self.clip) * advantage)
        beyond = torch.where(advantage > 0, ratio > 1 + self.clip, ratio < 1 - self.clip) & (advantage != 0)
        losses, metrics = (
            -gain,
            {
                "clipped": beyond.float().mean().item(),
                "approx_kl": change.detach().square().mean().item() / 2,
                "gradient_calls": float(batch.total * (1 + self.sampler.guided)),
            },
        )
        if self.kl:
            metrics["denoiser_calls"] = metrics["gradient_calls"]
            with torch.no_grad(), self.generator.reference():
                frozen = self.sampler.transition(self.generator, state).mean
            off = (move.mean - frozen) / expand(move.std.to(frozen), frozen)
            divergence = off.square().flatten(1).mean(1) / 2
            losses = losses + self.kl * divergence
            metrics["divergence"] = divergence.mean().item()
        return losses.mean(), metrics
