"""An Algorithm answers two questions: what to collect on-policy, and what to minimise on it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

from jaxtyping import Float
from torch import Tensor, nn

from dragontune.data import Rows
from dragontune.generators.base import Generator
from dragontune.rewards.base import Reward
from dragontune.sampling import Sampler
from dragontune.seeding import Key

Experience = TypeVar("Experience", bound=Rows)
Batch = TypeVar("Batch", bound=Rows)
Metrics = Mapping[str, float]
Logged = Mapping[str, Any]
"""Metrics and, beside them, what is no number: a tensor (from `loss`) is a number for each row, whose quantiles over
all rows of a round the loop logs as NAME_q05 to NAME_q95; a tuple of texts (from `collect`) goes into the record."""
COUNTS = ("generations", "denoiser_calls", "gradient_calls", "decodes", "encodes")
"""Metrics that count, by item: the loop adds them up over the updates of a round, where it averages all others.

`gradient_calls` are the evaluations of the denoiser that are differentiated, `denoiser_calls` all others, those of the
frozen model among them. What is computed again on the way back, to save memory, is not counted.
"""


class Algorithm(ABC, Generic[Experience, Batch]):
    """One round: `collect` once, then a few updates, each of which is `prepare` on a batch and `loss` on its parts."""

    generator: Generator
    reward: Reward
    sampler: Sampler
    micro_batch: int
    """Items generated, decoded or evaluated at once without gradients: memory only, never the result."""

    @abstractmethod
    def collect(self, prompts: Sequence[str], key: Key) -> tuple[Experience, Logged]:
        """Generate and score, without gradients.

        Its metrics or those of `loss` hold `reward`: before the updates of this round, or before each of them.
        """

    @abstractmethod
    def prepare(self, batch: Experience, key: Key) -> Batch:
        """What the loss must know of the whole batch before it is split into micro-batches; no gradients.

        Every process calls it with the same batch and returns what becomes of its share of the rows.
        """

    @abstractmethod
    def loss(self, batch: Batch) -> tuple[Float[Tensor, ""], Logged]:
        """A scalar to minimise, the mean over the rows of a part of what `prepare` returned, and numbers to log.

        The numbers are means over the rows of the part, but for those of `COUNTS`, which are of the whole batch. What
        must not be averaged is a tensor, with a number for each row of the part.
        """

    @abstractmethod
    def budget(self, pairs: int, batch: int, updates: int) -> Metrics:
        """About what a usual round costs: some of `COUNTS`, for that many prompts, rows an update, and updates."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """What the optimiser moves."""
        return self.generator.parameters()

    def together(self, pairs: int) -> int:
        """The most items that `collect` makes in one go for a round of so many prompts, before they are divided."""
        return pairs

    def rehearsal(self, rows: int, share: float) -> "Algorithm[Experience, Batch]":
        """The same with so many rows at once, and with less of what memory does not depend on.

        What is collected beside the prompts of a round is cut to `share`, in (0, 1].
        """
        return replace(self, micro_batch=rows)  # pyright: ignore[reportArgumentType, reportCallIssue] - a dataclass

    def memory(self) -> dict[str, Tensor]:
        """What `collect` remembers of earlier rounds beside the weights: here nothing.

        One dictionary, changed in place: the loop empties it for a new run, saves it and puts it back. Every process
        must hold the same.
        """
        return {}

    def current_reward(self) -> Reward:
        """The reward as it stands after the rounds so far; the one given unless it depends on them."""
        return self.reward
