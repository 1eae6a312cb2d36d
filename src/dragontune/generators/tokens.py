"""Generators of token sequences by masked diffusion, a small network for them, and the loss that trains it.

The network is a bidirectional transformer with a convolution before each block. It is not told the time, which the
optimal one need not know: how many tokens are masked says it (Ou et al. 2024, arXiv 2406.03736). Several tokens may
share a position ("patch"), as the codes of one audio frame do. Left out: other kernels than the absorbing one, variable
lengths.
"""

from abc import abstractmethod

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from dragontune.data import Media, Rows
from dragontune.generators.pipeline import Adapted
from dragontune.generators.tiny import ConvNext, DitBlock, sinusoid


class TokenGenerator(Adapted):
    """A masked diffusion model: latents are integers [n, length] below `vocabulary`, or `mask` where still unknown.

    `schedule.alpha(t)` is the probability that a token is revealed at t.
    """

    vocabulary: int
    """How many tokens there are, the mask not counted."""

    @property
    def mask(self) -> int:
        """The token of what is not known yet: the first number that is no token."""
        return self.vocabulary

    @abstractmethod
    def logits(self, tokens: Int[Tensor, " n length"], condition: Rows) -> Float[Tensor, " n length vocabulary"]:
        """Log-probabilities of each masked token, up to a constant a place; where revealed they mean nothing."""

    def denoise(  # pyright: ignore[reportIncompatibleMethodOverride] - tokens in, their probabilities out
        self, noisy: Int[Tensor, " n length"], t: Float[Tensor, " n"], condition: Rows
    ) -> Float[Tensor, " n length vocabulary"]:
        """E[one-hot x_0 | x_t]: probabilities, and what is revealed as it is (MDLM's carry-over)."""
        known = (noisy != self.mask)[..., None]
        probabilities = self.logits(noisy, condition).softmax(2)
        shown = functional.one_hot(noisy.clamp(max=self.vocabulary - 1), self.vocabulary)
        return torch.where(known, shown.to(probabilities), probabilities)

    @abstractmethod
    def decode(self, latents: Int[Tensor, " n length"]) -> Media:  # pyright: ignore[reportIncompatibleMethodOverride] - tokens
        """Tokens, none masked, to media; no gradients."""

    @abstractmethod
    def encode(self, media: Media) -> Int[Tensor, " n length"]:  # pyright: ignore[reportIncompatibleMethodOverride] - tokens
        """Media to tokens."""


def masked_cross_entropy(
    generator: TokenGenerator,
    tokens: Int[Tensor, " n length"],
    rate: Float[Tensor, " n"],
    uniforms: Float[Tensor, " n length"],
    condition: Rows,
) -> Float[Tensor, " n"]:
    """A sample of MDLM's continuous-time bound on -log p(tokens), in nats a sequence.

    Each token is masked with probability `rate` in (0, 1], decided by its number in `uniforms`, and the cross entropies
    of the masked ones are divided by the rate. With uniform rates the mean is the bound, whatever the schedule: -alpha'
    / (1 - alpha) dt is the same as d(rate) / rate.
    """
    hidden = uniforms < rate[:, None]
    logits = generator.logits(tokens.masked_fill(hidden, generator.mask), condition)
    losses = functional.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view(tokens.shape)
    return (losses * hidden).sum(1) / rate


class TokenTransformer(ModelMixin, ConfigMixin):
    """Logits of every token from all tokens, masked or not, and text; `patch` consecutive tokens share a position.

    The tokens of a patch have vocabularies of their own, each of size `vocabulary`. Text may have no tokens.
    """

    @register_to_config
    def __init__(
        self,
        vocabulary: int = 4,
        length: int = 64,
        patch: int = 1,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        text_width: int = 8,
    ) -> None:
        super().__init__()
        self.enter = nn.Embedding(patch * (vocabulary + 1), width)
        self.places = nn.Parameter(sinusoid(torch.arange(length // patch).float(), width, 1000.0))
        self.level_in = nn.Linear(text_width, width)
        self.level_out = nn.Linear(width, 6 * width)
        self.near = nn.ModuleList(ConvNext(width) for _ in range(depth))
        self.blocks = nn.ModuleList(DitBlock(width, text_width, heads) for _ in range(depth))
        self.last_norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, patch * vocabulary)

    def forward(
        self, tokens: Int[Tensor, " n length"], text: Float[Tensor, " n words text"], mask: Int[Tensor, " n words"]
    ) -> Float[Tensor, " n length vocabulary"]:
        """One pass; a masked token is `vocabulary`, and `mask` is 1 where the word is real."""
        patch, vocabulary = self.config["patch"], self.config["vocabulary"]
        shifts = torch.arange(patch, device=tokens.device) * (vocabulary + 1)
        x = self.enter(tokens.unflatten(1, (-1, patch)) + shifts).sum(2) + self.places
        real = mask.to(text)[..., None]
        mean = (text * real).sum(1) / real.sum(1).clamp(min=1)
        level = self.level_out(functional.silu(self.level_in(mean))).unflatten(1, (6, -1))
        for near, block in zip(self.near, self.blocks, strict=True):
            x = block(near(x.transpose(1, 2)).transpose(1, 2), level, text, mask)
        return self.leave(self.last_norm(x)).unflatten(2, (patch, vocabulary)).flatten(1, 2)
