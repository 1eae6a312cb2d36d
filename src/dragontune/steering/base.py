"""Steering: walk from noise to clean latents and choose on the way. No weight changes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch

from dragontune.algorithms.rollouts import check_fixed
from dragontune.costs import Costs
from dragontune.data import Samples, join_columns
from dragontune.errors import InputError
from dragontune.generators.base import Generator
from dragontune.process import ReverseProcess, State
from dragontune.rewards.base import DistributionReward, Features, InstanceReward, Reward
from dragontune.seeding import Key
from dragontune.steering.foresight import Foresight, PosteriorMean
from dragontune.steering.room import rows_within
from dragontune.steering.walk import Walk

S = TypeVar("S", bound="Steering")
Visit = Callable[[State], None]


def nothing(state: State) -> None:
    """No visit."""


class Steering(ABC):
    """A way to get items of higher reward from a model as it is; it stands for `steer` in `Sampler.sample`.

    `micro_batch` rows are denoised, decoded or encoded at once (or as many as there are prompts, if these are more):
    memory only, never the result. `within` chooses it for a number of bytes.

    >>> Sampler(steps=12, order=1, eta=1).sample(generator, prompts, Key(0), steer=Svdd(reward, candidates=8))
    """

    reward: Reward
    micro_batch: int

    @abstractmethod
    def check(self, process: ReverseProcess) -> None:
        """InputError if this process cannot be steered so."""

    @abstractmethod
    def item_costs(self, process: ReverseProcess, key: Key) -> Costs:
        """Of one item under the randomness of `key`, without decoding the result."""

    @abstractmethod
    def run(
        self, walk: Walk, prompts: Sequence[str], items: Sequence[int], visit: Visit, made: Features | None
    ) -> State:
        """Finished states, one a prompt."""

    @property
    def foresight(self) -> Foresight:
        """How it looks ahead."""
        return PosteriorMean()

    def held(self, prompts: int) -> int:
        """Beams that are kept in memory, apart from those at work, when so many prompts walk together."""
        return prompts

    def within(self: S, memory: float, process: ReverseProcess, generator: Generator, prompts: int = 1) -> S:
        """The same with the largest `micro_batch` that keeps a call for so many prompts within `memory` MiB.

        The models' weights are not counted. A few candidates are made in order to measure.

        Raises:
            InputError: not one candidate fits.
        """
        self.check(process)
        rows = rows_within(memory, process, generator, self.reward, self.foresight, self.held(prompts))
        if rows < prompts:
            raise InputError(
                f"expected memory for {prompts} prompts at once, got {memory:g} MiB, which fits {rows}; raise memory "
                "or ask for fewer prompts at once"
            )
        return replace(self, micro_batch=rows)  # pyright: ignore[reportArgumentType] - every steering is a dataclass

    def preparation(self, process: ReverseProcess) -> Costs:
        """What comes once, before the first item, and is not part of `budget`: a value to be learnt."""
        return self.foresight.preparation(process, self.reward)

    def budget(self, process: ReverseProcess, count: int, key: Key) -> Costs:
        """What `sample` spends on `count` items, exactly, decoding the results included.

        Raises:
            InputError: this process cannot be steered so.
        """
        self.check(process)
        return (self.item_costs(process, key) + Costs(items=1, decodes=1)) * count

    @torch.no_grad()
    def __call__(
        self,
        process: ReverseProcess,
        generator: Generator,
        prompts: Sequence[str],
        key: Key,
        items: Sequence[int],
        visit: Visit = nothing,
        made: Features | None = None,
    ) -> State:
        """Finished states, one a prompt; a reward of sets takes account of what was `made` before (see `remember`).

        Raises:
            InputError: the process cannot be steered so, or the reward does not fit.
            NonFiniteError: a value is NaN or infinite.
        """
        self.check(process)
        return self.run(Walk(process, generator, key, max(self.micro_batch, len(prompts))), prompts, items, visit, made)

    def remember(self, made: Features | None, samples: Samples) -> Features | None:
        """The features of all that was made, with `samples`, for a reward of sets; None for others."""
        if not isinstance(self.reward, DistributionReward):
            return None
        features = self.reward.encode(samples)
        return features if made is None else join_columns([made, features])


def check_reward(steering: Steering, sets: bool) -> None:
    """InputError unless the reward is one that can be asked about candidates; `sets`: also one of whole sets."""
    kind, reward = type(steering).__name__, steering.reward
    if not sets and not isinstance(reward, InstanceReward):
        raise InputError(
            f"expected an InstanceReward as reward of {kind}, got {reward.label}, which scores whole sets; choose "
            "another reward, or BestOfN, Svdd or Free2Guide, which take sets"
        )
    check_fixed(reward, kind)


def check_counts(steering: Steering, **counts: int) -> None:
    """InputError unless each is 1 or more."""
    for name, count in {**counts, "micro_batch": steering.micro_batch}.items():
        if count < 1:
            raise InputError(f"expected {name} of 1 or more in {type(steering).__name__}, got {count}; raise it")


def check_alpha(steering: Steering, alpha: float) -> None:
    """InputError unless it is 0 or more."""
    if not alpha >= 0:
        raise InputError(f"expected alpha of 0 or more in {type(steering).__name__}, got {alpha}; more is softer")


def check_random(steering: Steering, process: ReverseProcess) -> None:
    """InputError unless steps lead to different places."""
    if process.random_steps == 0:
        raise InputError(
            f"expected a process whose steps draw at random for {type(steering).__name__}, got one with eta 0 or a "
            "single step, where all candidates are the same; set the sampler's eta to 1 and its order to 1, or use "
            "BestOfN"
        )


def evaluations(process: ReverseProcess, rows: int) -> Costs:
    """Of the network on so many rows."""
    return Costs(calls=process.calls(1) // process.steps * rows)
