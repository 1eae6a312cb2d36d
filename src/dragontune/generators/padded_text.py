"""What networks are told of prompts of different lengths: text tokens, filled up with zeros."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from dragontune.data import Rows

STEP = 64
"""Lengths are multiples of it, so that networks meet few different ones."""


@dataclass(frozen=True, eq=False)
class PaddedText(Rows):
    """Tokens of prompts, `real` where they are; the last is never. Rows of different lengths can be joined."""

    tokens: Float[Tensor, " n tokens width"]
    real: Bool[Tensor, " n tokens"]

    @classmethod
    def of(cls, prompts: Sequence[Float[Tensor, " _tokens width"]]) -> "PaddedText":
        """Those of one prompt after the other, all of one length."""
        length = (max(map(len, prompts)) // STEP + 1) * STEP
        tokens = torch.stack([pad(prompt, (0, 0, 0, length - len(prompt))) for prompt in prompts])
        counts = torch.tensor([len(prompt) for prompt in prompts])
        return cls(tokens, (torch.arange(length) < counts[:, None]).to(tokens.device))

    @classmethod
    def join(  # pyright: ignore[reportIncompatibleMethodOverride] - joins only its own kind, as all do
        cls, parts: "Sequence[PaddedText]"
    ) -> "PaddedText":
        """All rows, as long as the longest."""
        length = max(part.real.shape[1] for part in parts)
        tokens = [pad(part.tokens, (0, 0, 0, length - part.real.shape[1])) for part in parts]
        return cls(torch.cat(tokens), torch.cat([pad(part.real, (0, length - part.real.shape[1])) for part in parts]))

    def mean(self) -> Float[Tensor, " n width"]:
        """Of the real tokens of each prompt."""
        real = self.real.to(self.tokens)
        return torch.einsum("ntw,nt->nw", self.tokens, real) / real.sum(1, keepdim=True).clamp(min=1)
