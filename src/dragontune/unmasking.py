"""Masked (absorbing-state) diffusion over tokens: from all masks to a sequence, one stateless step at a time.

D3PM's absorbing kernel (Austin et al. 2021, arXiv 2107.03006) with the reverse step of MDLM (Sahoo et al. 2024, arXiv
2406.07524): a step from t to s reveals each masked token with probability (alpha_s - alpha_t) / (1 - alpha_t),
and what it reveals is drawn from the network's p(x_0 | x_t). Numbers are drawn in double precision: Gumbel noise in
single precision is cut short, which lowers the temperature (Zheng et al. 2024, arXiv 2409.02908). Left out: revealed
tokens that are masked again, confidence-ordered unmasking, other kernels than the absorbing one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dragontune.data import Rows
from dragontune.errors import InputError
from dragontune.generators.base import Generator
from dragontune.generators.tokens import TokenGenerator
from dragontune.process import Move, ReverseProcess, State
from dragontune.seeding import Key

MOST_STEPS = 10_000
"""Nobody needs more, so a larger number is a slip."""


@dataclass(frozen=True, eq=False)
class NoHistory(Rows):
    """What the next step needs to know of the last: nothing."""

    item: Int[Tensor, " n"]


@dataclass(frozen=True, eq=False)
class Unmask(Move[NoHistory]):
    """The distribution of the next tokens, each on its own: of a masked one, and of a revealed one, which stays."""

    clean: Int[Tensor, " n length"]
    """The likeliest token of each masked place, merged with the revealed ones."""
    tokens: Int[Tensor, " n length"]
    masked: Bool[Tensor, " n length"]
    """The places still to reveal."""
    probabilities: Float[Tensor, " n length vocabulary"]
    """What a masked place becomes, if it is revealed; float64."""
    reveal: Float[Tensor, " n"]
    """The probability that it is; float64 on the CPU, 1 at the last step."""
    step: Int[Tensor, " n"]
    item: Int[Tensor, " n"]
    history: NoHistory

    def draw(self, key: Key) -> Int[Tensor, " n length"]:
        """Next tokens, by inverse distribution functions; the randomness belongs to (key, step, item)."""
        uniforms = self._uniforms(key).to(self.tokens.device)
        shown = self.masked & (uniforms[:, 0] < self.reveal.to(uniforms)[:, None])
        sums = self.probabilities[shown].cumsum(1)
        places = torch.searchsorted(sums, uniforms[:, 1][shown][:, None] * sums[:, -1:], right=True)[:, 0]
        tokens = self.tokens.clone()
        tokens[shown] = places.clamp(max=self.probabilities.shape[2] - 1)
        return tokens

    def log_prob(self, tokens: Int[Tensor, " n length"]) -> Float[Tensor, " n"]:
        """Log probability of next tokens, float64; minus infinity if a revealed token differs."""
        reveal = self.reveal.to(self.probabilities)[:, None]
        stay = self.masked & (tokens == self.tokens)
        index = torch.where(self.masked & ~stay, tokens, 0)[..., None]
        shown = reveal * self.probabilities.gather(2, index)[..., 0]
        kept = (tokens == self.tokens).to(shown)
        return torch.where(self.masked, torch.where(stay, 1 - reveal, shown), kept).log().sum(1)

    def _uniforms(self, key: Key) -> Float[Tensor, " n 2 length"]:
        """Numbers in [0, 1), float64: one stream a step and item."""
        rows = torch.empty(len(self.tokens), 2, self.tokens.shape[1], dtype=torch.float64)
        for i, (step, item) in enumerate(zip(self.step.tolist(), self.item.tolist(), strict=True)):
            torch.rand(rows.shape[1:], generator=key.fold("step", step, "item", item).generator(), out=rows[i])
        return rows


@dataclass(frozen=True)
class Unmasking(ReverseProcess):
    """Walk from masks to tokens, on the times of the generator's schedule.

    `guidance` is classifier-free on log-probabilities: p is proportional to p_free (p_prompt / p_free)^guidance (1:
    off). `temperature` then sharpens (below 1) or flattens what is drawn: p^(1 / temperature). More steps than tokens
    do no harm; with far fewer, tokens are drawn together that ought to know of each other.

    >>> Unmasking(steps=64, guidance=2.0).calls(10)
    1280

    Raises:
        InputError: no steps or too many, a negative guidance, a temperature that is not positive.
    """

    steps: int = 64
    guidance: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MOST_STEPS:
            raise InputError(f"expected unmasking steps from 1 to {MOST_STEPS}, got {self.steps}; 32 to 256 are usual")
        if not 0 <= self.guidance < inf:
            raise InputError(f"expected a finite guidance of 0 or more, got {self.guidance}; 1 turns it off")
        if not 0 < self.temperature < inf:
            raise InputError(f"expected a positive temperature, got {self.temperature}; 1 leaves the model as it is")

    @property
    def guided(self) -> bool:
        """Whether the unconditional estimate is needed."""
        return self.guidance != 1

    @property
    def random_steps(self) -> int:
        """All: the last one draws tokens, too."""
        return self.steps

    def calls(self, count: int) -> int:
        """Evaluations of the denoiser, counted by item, for `count` items."""
        return count * self.steps * (2 if self.guided else 1)

    def noise(self, generator: Generator, key: Key, items: Int[Tensor, " n"]) -> Int[Tensor, " n length"]:
        """All masks: there is nothing random at t = 1."""
        tokens = _tokens(generator)
        return torch.full((len(items), *tokens.latent_shape), tokens.mask, device=tokens.device)

    def start(self, generator: Generator, prompts: Sequence[str], key: Key, items: Sequence[int]) -> State[NoHistory]:
        """States at t = 1."""
        item = torch.tensor(list(items), dtype=torch.long)
        count = len(prompts)
        both = generator.encode_prompts([*prompts, ""])
        condition, free = both[torch.arange(count)], both[torch.full((count,), count)] if self.guided else None
        return State(self.noise(generator, key, item), condition, free, torch.zeros_like(item), item, NoHistory(item))

    def transition(self, generator: Generator, state: State[NoHistory]) -> Unmask:
        """The distribution of the next state. Rows may be at different steps."""
        tokens, k = _tokens(generator), state.step
        alpha = tokens.schedule.alpha(tokens.schedule.times(self.steps))
        reveal = (alpha[k + 1] - alpha[k]) / (1 - alpha[k])
        probabilities = self.probabilities(tokens, state)
        masked = state.latents == tokens.mask
        clean = torch.where(masked, probabilities.argmax(2), state.latents)
        return Unmask(clean, state.latents, masked, probabilities, reveal, k, state.item, NoHistory(state.item))

    def probabilities(self, generator: TokenGenerator, state: State) -> Float[Tensor, " n length vocabulary"]:
        """p(x_0 | x_t) of each place as it is drawn from: guided, at the temperature; float64."""
        t = generator.schedule.times(self.steps)[state.step].to(generator.device, torch.float32)
        if state.unconditional is None:
            found = generator.denoise(state.latents, t, state.condition).double()
            if self.temperature == 1:
                return found
            logs = found.log()
        else:
            conditions = type(state.condition).join([state.condition, state.unconditional])
            both = generator.denoise(state.latents.repeat(2, 1), t.repeat(2), conditions).double()
            found, free = both.chunk(2)
            smallest = torch.finfo(torch.float64).tiny
            logs = (
                free.log()
                if self.guidance == 0
                else torch.where(
                    found > 0, (1 - self.guidance) * free.clamp(min=smallest).log() + self.guidance * found.log(), -inf
                )
            )
        return (logs / self.temperature).softmax(2)


def _tokens(generator: Generator) -> TokenGenerator:
    if not isinstance(generator, TokenGenerator):
        raise InputError(
            f"expected a generator of tokens for unmasking, got {generator.name}, which makes continuous latents; use "
            "a Sampler"
        )
    return generator
