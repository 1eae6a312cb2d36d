"""From noise to clean latents, one stateless step at a time: what continuous and discrete diffusion have in common.

A step is two halves. `transition` asks the network and gives the distribution of the next state; `draw` takes one from
it. So a step can be branched: many next states for one evaluation of the network, each known by its estimate of the
clean latents.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from dragontune.data import Rows, Samples
from dragontune.generators.base import Generator
from dragontune.seeding import Key

History = TypeVar("History", bound=Rows)


@dataclass(frozen=True, eq=False)
class State(Rows, Generic[History]):
    """Partly denoised latents, each with its condition, how many steps it has taken and which item it is.

    `history` is what the next step needs to know of the last.
    """

    latents: Shaped[Tensor, " n *latent"]
    condition: Rows
    unconditional: Rows | None
    step: Int[Tensor, " n"]
    item: Int[Tensor, " n"]
    history: History

    def move(self, latents: Shaped[Tensor, " n *latent"], history: History) -> "State[History]":
        """One step on."""
        return replace(self, latents=latents, step=self.step + 1, history=history)


class Move(Rows, ABC, Generic[History]):
    """The distribution of the next state, p(x_next | x), and the clean estimate behind it, one row a state."""

    clean: Shaped[Tensor, " n *latent"]
    """What the state promises to become: latents that can be decoded."""
    history: History
    """Of the state that is drawn."""

    @abstractmethod
    def draw(self, key: Key) -> Shaped[Tensor, " n *latent"]:
        """A next state; the randomness belongs to (key, step, item)."""


class ReverseProcess(ABC):
    """A way from noise to clean latents in `steps` steps, of which the first `random_steps` draw at random."""

    steps: int

    @property
    @abstractmethod
    def random_steps(self) -> int:
        """Number of steps that can lead to different states: the first so many."""

    @abstractmethod
    def calls(self, count: int) -> int:
        """Evaluations of the denoiser, counted by item, for `count` items."""

    @abstractmethod
    def noise(self, generator: Generator, key: Key, items: Int[Tensor, " n"]) -> Shaped[Tensor, " n *latent"]:
        """Latents at t = 1, one stream an item."""

    @abstractmethod
    def start(self, generator: Generator, prompts: Sequence[str], key: Key, items: Sequence[int]) -> State:
        """States at t = 1 with the `noise` of `items`."""

    @abstractmethod
    def transition(self, generator: Generator, state: State) -> Move:
        """The distribution of the next state. Rows may be at different steps."""

    def advance(self, generator: Generator, state: State, key: Key) -> State:
        """One step: a draw from `transition`."""
        move = self.transition(generator, state)
        return state.move(move.draw(key), move.history)

    def sample(
        self,
        generator: Generator,
        prompts: Sequence[str],
        key: Key,
        *,
        items: Sequence[int] | None = None,
        steer: "Steer | None" = None,
        differentiate_last: int = 0,
        visit: Callable[[State], None] = lambda state: None,
        decode: bool = True,
    ) -> Samples:
        """Generate one item a prompt.

        `items` names the noise of each (default: its position), `visit` sees every state, `steer` walks in this
        method's place (without gradients). Only the last `differentiate_last` steps and the decoder carry gradients
        (0: nothing does).
        """
        numbers = range(len(prompts)) if items is None else items
        if steer is not None and len(prompts):
            with torch.no_grad():
                state = steer(self, generator, prompts, key, numbers, visit)
        else:
            with torch.no_grad():
                state = self.start(generator, prompts, key, numbers)
            for i in range(self.steps):
                visit(state)
                with torch.set_grad_enabled(i >= self.steps - differentiate_last):
                    state = self.advance(generator, state, key)
            visit(state)
        with torch.set_grad_enabled(differentiate_last > 0):
            media = generator.decode(state.latents) if decode else None
        return Samples(tuple(prompts), state.latents, media)


class Steer(Protocol):
    """What may walk in place of `sample`: it chooses among possible next states. `dragontune.steering` has some."""

    def __call__(
        self,
        process: ReverseProcess,
        generator: Generator,
        prompts: Sequence[str],
        key: Key,
        items: Sequence[int],
        visit: Callable[[State], None] = ...,
    ) -> State:
        """The states at t = 0, one a prompt; `visit` sees every state that is gone on from."""
        ...
