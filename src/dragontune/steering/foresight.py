"""What a noisy state promises: the reward of its clean estimate, or of where a few more steps would lead.

Both estimate the soft value alpha log E[exp(r(x_0) / alpha) | x_t], for which one would have to finish the generation
many times. The reward of the mean is not the mean of the reward: for a concave reward it is too high, and too eager
(SVDD, Li et al. 2024, arXiv 2408.08252). A third kind, learnt from finished generations, is in learned.py.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from dragontune.costs import Costs
from dragontune.data import join_columns
from dragontune.errors import InputError
from dragontune.process import ReverseProcess
from dragontune.rewards.base import DistributionReward, Features, Reward
from dragontune.steering.choice import judged
from dragontune.steering.walk import Beams, Walk


class Foresight(ABC):
    """The value of states before they are finished."""

    @property
    def of_sets(self) -> bool:
        """Whether what it sees can be put into a set."""
        return True

    @abstractmethod
    def look(self, walk: Walk, reward: Reward, beams: Beams) -> Features:
        """What is seen ahead of each beam, one row a beam."""

    def values(
        self, reward: Reward, seen: Features, prompts: tuple[str, ...], shape: tuple[int, ...]
    ) -> Float[Tensor, " *shape"]:
        """The values of beams, from what was seen; the last axis of `shape` holds those that compete."""
        return judged(reward, seen, prompts, shape)

    @abstractmethod
    def costs(self, process: ReverseProcess, reward: Reward, step: int) -> Costs:
        """Of a look at one beam that has taken `step` steps, its own next step not counted."""

    def preparation(self, process: ReverseProcess, reward: Reward) -> Costs:
        """What comes once, before the first look: here nothing."""
        return Costs()

    def fit_to(self, reward: Reward) -> None:
        """InputError if this cannot look ahead for the reward."""
        if isinstance(reward, DistributionReward) and not self.of_sets:
            raise InputError(
                f"expected single futures for {reward.label}, which scores whole sets, got {type(self).__name__} with "
                "several or none; use PosteriorMean, or a Lookahead with 1 sample"
            )


@dataclass(frozen=True)
class PosteriorMean(Foresight):
    """The reward of the clean estimate E[x_0 | x_t] (for tokens: of the likeliest ones). It costs no step."""

    def look(self, walk: Walk, reward: Reward, beams: Beams) -> Features:
        """The reward's features of the clean estimates."""
        return walk.features(reward, beams)

    def costs(self, process: ReverseProcess, reward: Reward, step: int) -> Costs:
        """One decode (if the reward looks at media) and one reward call."""
        return look_costs(reward)


@dataclass(frozen=True)
class Lookahead(Foresight):
    """The mean over `samples` of the reward of clean estimates `steps` steps ahead (DSearch, Li et al. 2025).

    Less biased than the posterior mean, which it is with no steps, and dearer: each sample takes `steps` steps.
    Source: arXiv 2503.02039; the released image code has no lookahead.
    """

    steps: int = 1
    samples: int = 1

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise InputError(f"expected a lookahead of 0 steps or more, got {self.steps}; 0 is the posterior mean")
        if self.samples < 1:
            raise InputError(f"expected at least 1 sample in a lookahead, got {self.samples}; raise it")

    @property
    def of_sets(self) -> bool:
        """Only single futures make a set."""
        return self.samples == 1

    def look(self, walk: Walk, reward: Reward, beams: Beams) -> Features:
        """The features of all samples, the first sample of every beam before the second."""
        found = []
        for sample in range(self.samples):
            ahead = Walk(walk.process, walk.generator, walk.key.fold("lookahead", sample), walk.rows)
            there = beams
            for _ in range(min(self.steps, walk.process.steps - beams.step)):
                there = ahead.branch(there)
            found.append(walk.features(reward, there))
        return found[0] if len(found) == 1 else join_columns(found)

    def values(
        self, reward: Reward, seen: Features, prompts: tuple[str, ...], shape: tuple[int, ...]
    ) -> Float[Tensor, " *shape"]:
        """The mean over the samples."""
        return judged(reward, seen, prompts * self.samples, (self.samples, *shape)).mean(0)

    def costs(self, process: ReverseProcess, reward: Reward, step: int) -> Costs:
        """One evaluation a step of each sample, except of the state at the end, which needs none."""
        evaluations = max(0, min(self.steps, process.steps - step - 1))
        calls = process.calls(1) // process.steps * evaluations
        return (look_costs(reward) + Costs(calls=calls)) * self.samples


def look_costs(reward: Reward) -> Costs:
    """Of one look at one item."""
    return Costs(decodes=int(reward.needs_media), encodes=1)
