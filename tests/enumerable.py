"""A masked diffusion model whose every distribution is known: p(x_0 | x_t) by enumeration of a random joint."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dragontune.data import Media, Rows
from dragontune.generators.checkpoint import Precision
from dragontune.generators.tokens import TokenGenerator
from dragontune.schedule import Flow, Schedule


@dataclass(frozen=True, eq=False)
class Which(Rows):
    joint: Int[Tensor, " n"]


@dataclass(frozen=True, eq=False)
class Enumerable(TokenGenerator):
    """Sequences of `latent_shape[0]` of `vocabulary` tokens.

    The prompt "b" has a joint of its own, any other the first. Its media are the tokens. There is nothing to train.
    """

    vocabulary: int = 3
    latent_shape: tuple[int, ...] = (3,)
    seed: int = 0
    spread: float = 1.0
    schedule: Schedule = field(default_factory=Flow)
    name: str = "enumerable"
    precision: Precision = "float32"
    sample_rate: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def network(self) -> nn.Module:
        return nn.Identity()

    def all(self) -> Int[Tensor, " sequences length"]:
        """Every sequence, the last token changing fastest."""
        return torch.tensor(list(itertools.product(range(self.vocabulary), repeat=self.latent_shape[0])))

    def joint(self, prompt: str = "") -> Float[Tensor, " sequences"]:
        """The probability of each sequence, float64."""
        count = self.vocabulary ** self.latent_shape[0]
        draws = torch.Generator().manual_seed(self.seed + (prompt == "b"))
        return (self.spread * torch.randn(count, dtype=torch.float64, generator=draws)).softmax(0)

    def index(self, tokens: Int[Tensor, " n length"]) -> Int[Tensor, " n"]:
        """The row in `all` of each sequence."""
        powers = self.vocabulary ** torch.arange(tokens.shape[1] - 1, -1, -1)
        return (tokens * powers).sum(1)

    def consistent(self, tokens: Int[Tensor, " n length"], condition: Rows) -> Float[Tensor, " n sequences"]:
        """p(sequence | revealed tokens)."""
        assert isinstance(condition, Which)
        fits = ((tokens[:, None] == self.all()) | (tokens[:, None] == self.mask)).all(2)
        joints = torch.stack([self.joint(), self.joint("b")])[condition.joint] * fits
        return joints / joints.sum(1, keepdim=True)

    def encode_prompts(self, prompts: Sequence[str]) -> Which:
        return Which(torch.tensor([int(prompt == "b") for prompt in prompts], dtype=torch.long))

    def logits(self, tokens: Int[Tensor, " n length"], condition: Rows) -> Float[Tensor, " n length vocabulary"]:
        shown = torch.nn.functional.one_hot(self.all(), self.vocabulary).double()
        return torch.einsum("ns,slv->nlv", self.consistent(tokens, condition), shown).log()

    def decode(self, latents: Int[Tensor, " n length"]) -> Media:
        return latents * 1

    def encode(self, media: Media) -> Int[Tensor, " n length"]:
        assert isinstance(media, Tensor)
        return media
