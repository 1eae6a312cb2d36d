"""Partial generations: several beams a prompt, branched and looked at, a bounded number of rows at once.

The step that a beam will take is known from the moment that the beam is looked at, since both need the same evaluation
of the network. So a step with M candidates costs M evaluations, not M + 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from dragontune.data import Rows, Samples, join_columns
from dragontune.generators.base import Generator
from dragontune.process import Move, ReverseProcess, State
from dragontune.rewards.base import Features, Reward
from dragontune.seeding import Key, gumbels

R = TypeVar("R", bound=Rows)


@dataclass(frozen=True, eq=False)
class Beams(Rows):
    """States, a prompt's adjacent and equally many for each, and the step that each takes next (None: all are over).

    `lane` numbers the beams of a prompt. The randomness of lane 0 is the plain sampler's.
    """

    prompts: tuple[str, ...]
    state: State
    move: Move | None
    lane: Int[Tensor, " n"]

    @property
    def clean(self) -> Shaped[Tensor, " n *latent"]:
        """What each promises to become, or has become."""
        return self.state.latents if self.move is None else self.move.clean

    @property
    def step(self) -> int:
        """How many steps have been taken."""
        return int(self.state.step[0])

    def numbered(self, width: int) -> "Beams":
        """With the lanes of each prompt's `width` beams counted anew."""
        return replace(self, lane=torch.arange(width).repeat(len(self) // width))


@dataclass(frozen=True, eq=False)
class Walk:
    """A model, a process and a seed; at most `rows` are denoised, decoded or encoded at once."""

    process: ReverseProcess
    generator: Generator
    key: Key
    rows: int

    def start(self, prompts: Sequence[str], items: Sequence[int], width: int = 1, first: int = 0) -> Beams:
        """`width` beams a prompt, each with noise of its own, in lanes from `first` on."""
        plain = self.process.start(self.generator, prompts, self.source(first), items)
        lanes = range(first + 1, first + width)
        noises = [self.process.noise(self.generator, self.source(lane), plain.item) for lane in lanes]
        latents = torch.stack([plain.latents, *noises], 1).flatten(0, 1)
        state = replace(wide(plain, width), latents=latents)
        texts = tuple(text for text in prompts for _ in range(width))
        return Beams(texts, state, self.moves(state), first + torch.arange(width).repeat(len(prompts)))

    def branch(self, beams: Beams, count: int = 1, first: int = 0, most: int | None = None) -> Beams:
        """`count` next states of each beam, adjacent; of `most` (default: no more) those from `first` on."""
        move = wide(_going(beams), count)
        lane = (beams.lane[:, None] * (most or count) + first + torch.arange(count)).flatten()
        texts = tuple(text for text in beams.prompts for _ in range(count))
        return self.follow(Beams(texts, wide(beams.state, count), move, lane), self._draws(move, lane))

    def follow(self, beams: Beams, latents: Shaped[Tensor, " n *latent"]) -> Beams:
        """The beams go on to `latents`, which need not be draws."""
        state = beams.state.move(latents, _going(beams).history)
        over = beams.step + 1 == self.process.steps
        return replace(beams, state=state, move=None if over else self.moves(state))

    def features(self, reward: Reward, beams: Beams) -> Features:
        """What the reward sees of what the beams promise."""
        parts = []
        for first in range(0, len(beams), self.rows):
            rows = slice(first, first + self.rows)
            clean = beams.clean[rows]
            media = self.generator.decode(clean) if reward.needs_media else None
            parts.append(reward.encode(Samples(beams.prompts[rows], clean, media)))
        return parts[0] if len(parts) == 1 else join_columns(parts)

    def groups(self, beams: Beams, children: int, together: int = 1) -> list[Beams]:
        """Consecutive beams whose `children` fit the rows; `together` of them are never parted."""
        return beams.chunks(max(1, self.rows // (children * together)) * together)

    def shares(self, count: int) -> list[tuple[int, int]]:
        """First and number of each part of `count` rows that is handled at once."""
        return [(first, min(self.rows, count - first)) for first in range(0, count, self.rows)]

    def source(self, lane: int) -> Key:
        """The randomness of a lane."""
        return self.key.fold("lane", lane) if lane else self.key

    def moves(self, state: State) -> Move:
        """The next step of each."""
        parts = [self.process.transition(self.generator, part) for part in _parts(state, self.rows)]
        return type(parts[0]).join(parts)

    def luck(self, beams: Beams, count: int) -> Float[Tensor, " n count"]:
        """Gumbel noise for a choice among `count` things after each beam's next step."""
        name, items = ("choice", beams.step), beams.state.item
        return self._by_lane(beams.lane, lambda key, rows: gumbels(key.fold(*name), items[rows], count))

    def _draws(self, move: Move, lane: Int[Tensor, " n"]) -> Shaped[Tensor, " n *latent"]:
        return self._by_lane(lane, lambda key, rows: move[rows].draw(key))

    def _by_lane(self, lane: Int[Tensor, " n"], draw: Callable[[Key, Int[Tensor, " k"]], Tensor]) -> Tensor:
        """Something random for each row, with the randomness of its lane."""
        lanes = lane.unique().tolist()
        rows = [(lane == number).nonzero()[:, 0] for number in lanes]
        drawn = torch.cat([draw(self.source(number), index) for number, index in zip(lanes, rows, strict=True)])
        return drawn[torch.cat(rows).argsort().to(drawn.device)]


def wide(rows: R, count: int) -> R:
    """Each row `count` times, adjacent."""
    return rows if count == 1 else rows[torch.arange(len(rows)).repeat_interleave(count)]


def _parts(state: State, size: int) -> list[State]:
    return [state] if len(state) <= size else state.chunks(size)


def _going(beams: Beams) -> Move:
    if beams.move is None:
        raise ValueError("generations that are over do not go on")
    return beams.move
