"""A bed with known answers for steering of tokens: a small masked chain as a table of its transitions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor

from beds import uniforms
from dragontune.costs import Costs
from dragontune.data import Samples
from dragontune.generators.base import Generator
from dragontune.process import Move, ReverseProcess, State
from dragontune.rewards.base import Features, InstanceReward, Reward
from dragontune.seeding import Key
from dragontune.steering import walk
from dragontune.steering.foresight import Foresight, look_costs
from dragontune.unmasking import NoHistory, Unmasking
from enumerable import Enumerable


@dataclass(frozen=True, eq=False)
class Row(Move[NoHistory]):
    """One row of a table of transitions."""

    clean: Int[Tensor, " n length"]
    place: Int[Tensor, " n"]
    """Where it is: a state of the table."""
    step: Int[Tensor, " n"]
    item: Int[Tensor, " n"]
    history: NoHistory
    table: "Table"

    def draw(self, key: Key) -> Tensor:
        step = int(self.step[0])
        sums = self.table.sums[step][self.place]
        luck = uniforms(key.fold("step", step), self.item)[:, None] * sums[:, -1:]
        return self.table.states[torch.searchsorted(sums, luck, right=True)[:, 0]]


@dataclass(frozen=True, eq=False)
class Table(ReverseProcess):
    """`Unmasking` of an `Enumerable` as matrices: the probabilities of its own transitions, drawn from quickly."""

    generator: Enumerable
    steps: int = 4

    @property
    def random_steps(self) -> int:
        return self.steps

    def calls(self, count: int) -> int:
        return count * self.steps

    @cached_property
    def states(self) -> Tensor:
        """All partly masked sequences; the mask is the last letter."""
        wide = replace(self.generator, vocabulary=self.generator.vocabulary + 1)
        return wide.all()

    def index(self, tokens: Tensor) -> Tensor:
        return replace(self.generator, vocabulary=self.generator.vocabulary + 1).index(tokens)

    @cached_property
    def tables(self) -> tuple[Tensor, Tensor]:
        """Probabilities [steps, from, to] and clean estimates [states, length]."""
        states, process = self.states, Unmasking(self.steps)
        count = len(states)
        start = process.start(self.generator, [""] * count, Key(0), range(count))
        found, clean = [], states
        for k in range(self.steps):
            move = process.transition(self.generator, replace(start, latents=states, step=torch.full((count,), k)))
            clean = move.clean
            every = move[torch.arange(count).repeat_interleave(count)]
            found.append(every.log_prob(states.repeat(count, 1)).exp().view(count, count))
        return torch.stack(found), clean

    @cached_property
    def sums(self) -> Tensor:
        return self.tables[0].cumsum(2)

    def law(self) -> Tensor:
        """Of what the plain process makes, in the order of `generator.all()`."""
        chances = torch.zeros(len(self.states), dtype=torch.float64)
        chances[-1] = 1.0
        for table in self.tables[0]:
            chances = chances @ table
        return chances[self.index(self.generator.all())]

    def soft_values(self, reward: Tensor, alpha: float) -> Tensor:
        """alpha log E[exp(r(x_0) / alpha) | x_k] of every state, backwards [steps + 1, states]."""
        value = torch.zeros(len(self.states), dtype=torch.float64)
        value[self.index(self.generator.all())] = (reward / alpha).exp()
        found = [value]
        for table in self.tables[0].flip(0):
            found.append(table @ found[-1])
        return alpha * torch.stack(found[::-1]).log()

    def noise(self, generator: Generator, key: Key, items: Tensor) -> Tensor:
        return torch.full((len(items), *self.generator.latent_shape), self.generator.mask)

    def start(self, generator: Generator, prompts: Sequence[str], key: Key, items: Sequence[int]) -> State[NoHistory]:
        item = torch.tensor(list(items), dtype=torch.long)
        condition = generator.encode_prompts(prompts)
        return State(self.noise(generator, key, item), condition, None, torch.zeros_like(item), item, NoHistory(item))

    def transition(self, generator: Generator, state: State[NoHistory]) -> Row:
        at = self.index(state.latents)
        return Row(self.tables[1][at], at, state.step, state.item, NoHistory(state.item), self)


@dataclass(frozen=True, eq=False)
class Listed(InstanceReward[Tensor]):
    """A number for every finished sequence."""

    generator: Enumerable
    numbers: Tensor

    def encode(self, samples: Samples) -> Tensor:
        assert isinstance(samples.media, Tensor)
        return self.numbers[self.generator.index(samples.media)]

    def score(self, features: Tensor) -> Tensor:
        return features


@dataclass(frozen=True, eq=False)
class TableValue(Foresight):
    """The exact soft value on a `Table`."""

    table: Table
    soft: Tensor

    def look(self, walk: walk.Walk, reward: Reward, beams: walk.Beams) -> Features:
        return self.soft[beams.step][self.table.index(beams.state.latents)]

    def values(self, reward: Reward, seen: Features, prompts: tuple[str, ...], shape: tuple[int, ...]) -> Tensor:
        assert isinstance(seen, Tensor)
        return seen.view(shape)

    def costs(self, process: ReverseProcess, reward: Reward, step: int) -> Costs:
        return look_costs(reward)


def tilted(law: Tensor, reward: Tensor, alpha: float) -> Tensor:
    found = law * (reward / alpha).exp()
    return found / found.sum()


def shares(generator: Enumerable, tokens: Tensor) -> Tensor:
    return generator.index(tokens).bincount(minlength=len(generator.all())).double() / len(tokens)


def variation(first: Tensor, second: Tensor) -> float:
    """Total variation."""
    return (first - second).abs().sum().item() / 2
