"""Generate for an evaluation, keeping little: features for the rewards, latents, and the media of a few items."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil

import torch
from jaxtyping import Shaped
from torch import Tensor

from dragontune.costs import Costs
from dragontune.data import Samples, join_columns
from dragontune.errors import InputError
from dragontune.evaluation.pictures import Kept, kept
from dragontune.generators.base import Generator
from dragontune.process import ReverseProcess
from dragontune.rewards.base import DistributionReward, Features, Reward
from dragontune.seeding import Key
from dragontune.steering.base import Steering

Progress = Callable[[str, int, int], None]
"""Called with what is going on, how much is done and how much there is."""


@dataclass(frozen=True, eq=False)
class Steered:
    """Generation that is steered: how, and the sampler that is walked.

    With a reward of sets, items are made up to `batch` at a time, each batch judged together with all before it.
    `memory` in MiB is what `fitted` keeps to.

    >>> Steered(Svdd(reward, candidates=8), Sampler(steps=12, guidance=2.0, order=1, eta=1))

    Raises:
        InputError: this sampler cannot be steered so, or a batch is empty.
    """

    steering: Steering
    sampler: ReverseProcess
    batch: int = 40
    memory: float | None = None

    def __post_init__(self) -> None:
        self.steering.check(self.sampler)
        if self.batch < 1:
            raise InputError(f"expected a batch of 1 or more items, got {self.batch}; 40 is the default")
        if self.memory is not None and not self.memory > 0:
            raise InputError(f"expected memory above 0 MiB, got {self.memory:g}; raise it, or leave it out")

    @property
    def sets(self) -> bool:
        """Whether items are judged together."""
        return isinstance(self.steering.reward, DistributionReward)

    def fitted(self, generator: Generator, together: int) -> "Steered":
        """The same with the `micro_batch` that `memory` allows, if there is any, for so many items at a time."""
        if self.memory is None:
            return self
        count = self.batch if self.sets else together
        return replace(self, steering=self.steering.within(self.memory, self.sampler, generator, count), memory=None)

    def costs(self, count: int, key: Key) -> Costs:
        """Of so many items; a set that steers looks once more at each that is finished."""
        remembered = Costs(encodes=count) if self.sets else Costs()
        return self.steering.budget(self.sampler, count, key) + remembered

    def check(self, count: int) -> None:
        """InputError if so few items cannot be judged together."""
        reward, least = self.steering.reward, min((len(batch) for batch in self.batches(count)), default=0)
        if self.sets and least < reward.minimum:
            raise InputError(
                f"expected at least {reward.minimum} items at once for {reward.label}, which scores sets, got {least}; "
                "ask for more items, or raise batch"
            )

    def batches(self, count: int) -> list[range]:
        """Positions of the items that are made together: as few batches as `batch` allows, of nearly one size."""
        parts = ceil(count / self.batch)
        return [range(i * count // parts, (i + 1) * count // parts) for i in range(parts)]


@dataclass(frozen=True, eq=False)
class Generations:
    """What one model made of the prompts, as far as it is kept."""

    features: Mapping[str, Features]
    latents: Shaped[Tensor, " n *latent"]
    clips: Mapping[int, Kept]
    costs: Costs


@dataclass(frozen=True, eq=False)
class Making:
    """How items are made: item `i` is prompt `i` with noise `i`, whichever model makes it, however it is batched.

    With `steered` the untuned or tuned model is steered over its own sampler, and `sampler` is not used. A set that
    steers is made batch by batch, in the order of the items.
    """

    generator: Generator
    sampler: ReverseProcess
    prompts: Sequence[str]
    rewards: Mapping[str, Reward]
    micro_batch: int
    key: Key
    progress: Progress
    steered: Steered | None = None

    @torch.no_grad()
    def make(self, phase: str, items: Sequence[int], players: Sequence[int] = ()) -> Generations:
        """Generate and encode `items` with the generator as it is now; keep those of `players` that can be shown."""
        self.progress(phase, 0, len(items))
        parts, done = [], 0
        for samples, part in self._batches(items, players):
            heard = [item for item in part if item in players]
            features = {name: reward.encode(samples) for name, reward in self.rewards.items()}
            shown = {item: kept(samples.media, part.index(item)) for item in heard}
            clips = {item: each for item, each in shown.items() if each is not None}
            parts.append(Generations(features, samples.latents.cpu(), clips, self._costs(samples)))
            done += len(part)
            self.progress(phase, done, len(items))
        return Generations(
            {name: join_columns([part.features[name] for part in parts]) for name in self.rewards},
            torch.cat([part.latents for part in parts]),
            {item: each for part in parts for item, each in part.clips.items()},
            sum((part.costs for part in parts), Costs()),
        )

    def _batches(self, items: Sequence[int], players: Sequence[int]) -> Iterator[tuple[Samples, Sequence[int]]]:
        """Micro-batches of the items, decoded where a reward or a player wants it."""
        made, steered, size = None, self.steered, self.micro_batch
        if steered is None or not steered.sets:
            for start in range(0, len(items), size):
                part = items[start : start + size]
                yield self._decoded(self._walk(part, None), part, players), part
            return
        for batch in steered.batches(len(items)):
            together = items[batch.start : batch.stop]
            latents = self._walk(together, made)
            for start in range(0, len(together), size):
                part = together[start : start + size]
                samples = self._decoded(latents[start : start + size], part, players)
                made = steered.steering.remember(made, samples)
                yield samples, part

    def _walk(self, items: Sequence[int], made: Features | None) -> Shaped[Tensor, " n *latent"]:
        """Latents of items that are made together."""
        sampler, steer = self.sampler, None
        if self.steered:
            sampler, steer = self.steered.sampler, partial(self.steered.steering, made=made)
        asked = [self.prompts[item] for item in items]
        return sampler.sample(self.generator, asked, self.key, items=items, steer=steer, decode=False).latents

    def _decoded(self, latents: Shaped[Tensor, " n *latent"], items: Sequence[int], players: Sequence[int]) -> Samples:
        asked = tuple(self.prompts[item] for item in items)
        judges = [
            *self.rewards.values(),
            *([self.steered.steering.reward] if self.steered and self.steered.sets else []),
        ]
        decode = any(item in players for item in items) or any(reward.needs_media for reward in judges)
        return Samples(asked, latents, self.generator.decode(latents) if decode else None)

    def _costs(self, samples: Samples) -> Costs:
        """Of making the samples, and of showing them to every reward."""
        count = len(samples)
        decodes, encodes = count * (samples.media is not None), count * len(self.rewards)
        if self.steered is None:
            return Costs(count, self.sampler.calls(count), decodes, encodes)
        spent = self.steered.costs(count, self.key)
        return replace(spent, decodes=spent.decodes - count + decodes, encodes=spent.encodes + encodes)
