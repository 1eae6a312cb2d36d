"""Generations, scored, with the single steps that led to them: what is needed where no gradient of the reward is.

Left out: noising generations again, which would make any number of states of each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dragontune.data import Rows, Samples, join_columns
from dragontune.errors import InputError, NonFiniteError
from dragontune.generators.base import Generator
from dragontune.parallel import from_main, gather_rows, portions, processes, share
from dragontune.rewards import standardise
from dragontune.rewards.base import Features, InstanceReward, Reward
from dragontune.rewards.crop import Crop
from dragontune.sampling import Sampler, Stop
from dragontune.seeding import Key

R = TypeVar("R", bound=Rows)


@dataclass(frozen=True, eq=False)
class Steps(Rows):
    """Steps of the sampler: from where, to where, with how much noise, and how likely that was.

    From the starts one can go on by first-order steps only.
    """

    stop: Stop
    ahead: Float[Tensor, " n *latent"]
    std: Float[Tensor, " n"]
    log_prob: Float[Tensor, " n"]
    """Log density of the step, the mean over elements; 0 for steps without noise, which have none."""


@dataclass(frozen=True, eq=False)
class Rollouts:
    """Generates and scores; `micro_batch` items at once."""

    generator: Generator
    reward: InstanceReward
    sampler: Sampler
    micro_batch: int

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[str], key: Key, keep: Callable[[Steps], R]
    ) -> tuple[R, Float[Tensor, " items"]]:
        """What `keep` leaves of the steps, by item and then by step, and the score of each item (float64, CPU).

        The item of a row, `stop.item`, is its prompt's position. Shared among the processes; every one has all of it.

        Raises:
            InputError: there are fewer prompts than processes.
            NonFiniteError: a score is NaN or infinite; the message names the item.
        """
        if len(prompts) < processes():
            raise InputError(
                f"expected at least as many rollouts as there are processes ({processes()}), got {len(prompts)}; ask "
                "for more, or start fewer processes"
            )
        kept: list[R] = []
        features: list[Features] = []
        for portion in portions(share(len(prompts)), self.micro_batch, self.generator.sharded):
            texts = tuple(prompts[int(item)] for item in portion.rows)
            steps = self._walk(texts, portion.rows, key)
            if not portion.real:
                continue
            latents = steps.ahead[steps.stop.step == self.sampler.steps - 1]
            media = self.generator.decode(latents) if self.reward.needs_media else None
            features.append(self.reward.encode(Samples(texts, latents, media)))
            kept.append(keep(steps))
        every = gather_rows(join_columns(features))
        scores = from_main(lambda: self.reward.score(every).double().cpu())
        for row in (~scores.isfinite()).nonzero()[:1, 0].tolist():
            raise NonFiniteError(f"{self.reward.label} is {scores[row].item()} for item {row} ({prompts[row]!r})")
        return gather_rows(join_columns(kept)), scores

    def counts(self, items: int) -> dict[str, float]:
        """What rollouts of so many items cost."""
        return {
            "generations": float(items),
            "denoiser_calls": float(self.sampler.calls(items)),
            "decodes": float(items) if self.reward.needs_media else 0.0,
            "encodes": float(items),
        }

    def _walk(self, prompts: tuple[str, ...], items: Int[Tensor, " n"], key: Key) -> Steps:
        state = self.sampler.start(self.generator, prompts, key, items.tolist())
        steps: list[Steps] = []
        for _ in range(self.sampler.steps):
            move = self.sampler.transition(self.generator, state)
            ahead = move.draw(key)
            noisy = bool((move.std > 0).all())
            log_prob = move.log_prob(ahead) / ahead[0].numel() if noisy else ahead.new_zeros(len(ahead))
            steps.append(Steps(first_order(self.sampler).pause(state, prompts), ahead, move.std, log_prob))
            state = state.move(ahead, move.history)
        by_step = torch.arange(len(items) * len(steps)).view(len(steps), len(items))
        return Steps.join(steps)[by_step.T.flatten()]


def first_order(sampler: Sampler) -> Sampler:
    """The same steps without extrapolation from earlier ones: what a step leads to is then a matter of that step."""
    return replace(sampler, order=1)


def check_instance_reward(reward: Reward, algorithm: object) -> None:
    """InputError unless the reward scores single items, the same way in every round."""
    kind = type(algorithm).__name__
    if not isinstance(reward, InstanceReward):
        raise InputError(
            f"expected an InstanceReward as reward of {kind}, got {reward.label}, which scores whole sets; choose "
            "another reward, or Dragon as algorithm"
        )
    check_fixed(reward, kind)


def check_fixed(reward: Reward, kind: str) -> None:
    """InputError unless the reward says the same of an item whenever it is asked."""
    if isinstance(reward, Crop):
        raise InputError(
            f"expected a reward of whole items in {kind}, got {reward.label}; crops are for algorithms that follow "
            "gradients, so give the reward itself"
        )
    if standardise.learns(reward):
        raise InputError(
            f"expected fixed scales in the reward of {kind}, got standardise: running, which only Dragon keeps up; "
            "give the sum scales"
        )
