"""The value of noisy latents: a small network that predicts the reward of what a generator will make of them.

Its minimum in mean squared error is E[r(x_0) | x_t, prompt], so that neither the reward nor the sampler needs a
gradient; in exponential (LINEX) error it is the soft value alpha log E[exp(r(x_0) / alpha) | x_t, prompt]. Left out:
neighbourhoods in two dimensions (the axes after the channels are one row of positions) and attention.
"""

from dataclasses import dataclass
from math import ceil, exp, inf, log

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from dragontune.data import Rows
from dragontune.schedule import Schedule, expand
from dragontune.seeding import Key

FREQUENCIES = 8
NOTHING, PROMPT_NOTHING = 1e-7, 1e-4
"""A spread below this share of the mean (of the vector's own spread, too) is rounding, in single precision."""
MOST_PROMPT = 3.0
"""Standard deviations that a prompt may differ from those that V was fitted to."""
MOST_LOG_SNR = 12.0
"""Beyond it noise or data are as good as all there is; log-SNRs are infinite at both ends."""


@dataclass(frozen=True, eq=False)
class Visits(Rows):
    """Noisy latents at times `t` of generations for prompts, and the scores of what became of them."""

    latents: Float[Tensor, " n *latent"]
    t: Float[Tensor, " n"]
    prompt: Float[Tensor, " n width"]
    score: Float[Tensor, " n"]


class Value(nn.Module):
    """V(x_t, t, prompt) in standard deviations of the reward from its mean, by strided 1-D convolutions over positions.

    Latents are scaled to unit size by their time; the log-SNR and a prompt vector scale and shift every layer (FiLM,
    Perez et al. 2018). What it standardises by is fixed by the first data and kept among its buffers.
    """

    mean: Tensor
    std: Tensor
    spread: Tensor
    prompt_mean: Tensor
    prompt_std: Tensor

    def __init__(self, channels: int, prompt_width: int, width: int, depth: int) -> None:
        super().__init__()
        self.enter = nn.Conv1d(channels, width, 1)
        self.layers = nn.ModuleList(nn.Conv1d(width, width, 5, stride=2, padding=2) for _ in range(depth))
        self.told = nn.Linear(2 * FREQUENCIES + 1 + prompt_width, width)
        self.film = nn.Linear(width, 2 * width * depth)
        self.hidden = nn.Linear(width, width)
        self.leave = nn.Linear(width, 1)
        for name, shape in (("mean", ()), ("std", ()), ("spread", ())):
            self.register_buffer(name, torch.ones(shape))
        for name in ("prompt_mean", "prompt_std"):
            self.register_buffer(name, torch.ones(prompt_width))

    @classmethod
    def fresh(cls, data: Visits, clean: Float[Tensor, " m *latent"], width: int, depth: int, key: Key) -> "Value":
        """An untrained one, standardised by `data` and scaled by `clean` latents; global random state is left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key.generator().initial_seed())
            value = cls(clean.shape[1], data.prompt.shape[1], width, depth)
        nn.init.zeros_(value.leave.weight)  # it starts as the mean, and stays there where nothing is learnt
        nn.init.zeros_(value.leave.bias)
        value.mean = data.score.mean()
        value.std = _or_one(data.score.std(correction=0), NOTHING * value.mean.abs())
        value.spread = _or_one(clean.std(), clean.new_zeros(()))
        prompt = data.prompt.double()
        mean, std = prompt.mean(0), prompt.std(0, correction=0)
        value.prompt_mean = mean.float()
        value.prompt_std = _or_one(std, PROMPT_NOTHING * (mean.abs() + prompt.std(correction=0))).float()
        return value.to(clean)

    @classmethod
    def of(cls, weights: dict[str, Tensor], device: torch.device) -> "Value":
        """A frozen copy of the one whose `state_dict` this was."""
        width, channels = weights["enter.weight"].shape[:2]
        depth = sum(name.startswith("layers.") and name.endswith(".weight") for name in weights)
        with torch.device("meta"):
            value = cls(channels, len(weights["prompt_mean"]), width, depth)
        value.load_state_dict({name: weight.to(device, copy=True) for name, weight in weights.items()}, assign=True)
        return value.requires_grad_(False)

    def forward(
        self,
        latents: Float[Tensor, " n *latent"],
        t: Float[Tensor, " n"],
        prompt: Float[Tensor, " n width"],
        schedule: Schedule,
    ) -> Float[Tensor, " n"]:
        """Gradients pass to the latents."""
        alpha, sigma = self.spread * schedule.alpha(t).to(latents), schedule.sigma(t).to(latents)
        scaled = latents / expand((alpha**2 + sigma**2).sqrt(), latents)
        x = self.enter(scaled.flatten(2) if latents.ndim > 2 else scaled[..., None])
        level = 2 * (alpha.clamp(min=1e-6).log() - sigma.clamp(min=1e-6).log())
        asked = ((prompt - self.prompt_mean) / self.prompt_std).clamp(-MOST_PROMPT, MOST_PROMPT)
        told = torch.cat([_features(level), asked], 1)
        scales, shifts = (
            self.film(functional.silu(self.told(told))).view(len(latents), 2, len(self.layers), -1).unbind(1)
        )
        for number, layer in enumerate(self.layers):
            film = layer(x) * (1 + scales[:, number, :, None]) + shifts[:, number, :, None]
            x = functional.avg_pool1d(x, 2, ceil_mode=True) + functional.silu(film)
        return self.leave(functional.silu(self.hidden(x.mean(2))))[:, 0]

    def errors(self, data: Visits, schedule: Schedule, alpha: float = inf) -> Float[Tensor, " n"]:
        """Squared, in variances of the reward; with a finite `alpha`, in units of the reward, LINEX (Varian 1975).

        LINEX of the difference d is 2 alpha^2 (exp(d / alpha) - d / alpha - 1), near d^2 for small d, and beyond
        `LINEAR_FROM` temperatures a straight line, lest single rows decide.
        """
        short = (data.score - self.mean) / self.std - self(data.latents, data.t, data.prompt, schedule)
        if alpha == inf:
            return short.square()
        share = alpha / self.std
        z = short / share
        beyond = (z - LINEAR_FROM).clamp(min=0)
        return 2 * share**2 * (z.clamp(max=LINEAR_FROM).expm1() - z + exp(LINEAR_FROM) * beyond)


LINEAR_FROM = 5.0
LOOK_EVERY, PATIENCE = 20, 5
"""Steps between looks at held-out rows, and looks without a new best after which a regression stops."""


@dataclass(frozen=True)
class Regression:
    """At most so many steps of Adam on so many rows each, at a rate that falls to 0."""

    steps: int = 500
    batch: int = 64
    lr: float = 1e-3
    alpha: float = inf
    """Of the soft value, in units of the reward; infinite: the expected one."""

    @torch.enable_grad()
    def fit(self, value: Value, data: Visits, schedule: Schedule, key: Key, held: Visits | None = None) -> None:
        """Improve `value` in place; with rows `held` out it ends as it was when it predicted those best.

        Every row is used once before any is used again.
        """
        value.requires_grad_(True)
        optimizer = torch.optim.Adam(value.parameters(), lr=self.lr)
        decks = ceil(self.steps * self.batch / len(data))
        cards = torch.cat([key.fold("rows", deck).permutation(len(data)) for deck in range(decks)])
        best, waited = inf if held is None else mean_error(value, held, schedule, self.batch, self.alpha), 0
        kept = value.state_dict() if held is None else {n: weight.clone() for n, weight in value.state_dict().items()}
        for step, rows in enumerate(cards[: self.steps * self.batch].split(self.batch), 1):
            for group in optimizer.param_groups:
                group["lr"] = self.lr * (1 - (step - 1) / self.steps)
            loss = value.errors(data[rows], schedule, self.alpha).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(value.parameters(), 1.0)
            optimizer.step()
            if held is not None and (step % LOOK_EVERY == 0 or step == self.steps):
                error, waited = mean_error(value, held, schedule, self.batch, self.alpha), waited + 1
                if error < best:
                    best, waited = error, 0
                    kept = {name: weight.clone() for name, weight in value.state_dict().items()}
                if waited == PATIENCE:
                    break
        value.load_state_dict(kept)
        value.requires_grad_(False)


@torch.no_grad()
def mean_error(value: Value, data: Visits, schedule: Schedule, size: int, alpha: float = inf) -> float:
    """Mean of `Value.errors`, `size` rows at a time."""
    return torch.cat([value.errors(part, schedule, alpha) for part in data.chunks(size)]).mean().item()


@torch.no_grad()
def explained(value: Value, data: Visits, schedule: Schedule, size: int) -> float:
    """R^2: the share of the variance of the scores that is predicted, at most 1; 0 if they do not vary."""
    variance = (data.score / value.std).var(correction=0).item()
    return 1 - mean_error(value, data, schedule, size) / variance if variance > 1e-12 else 0.0


def _features(level: Float[Tensor, " n"]) -> Float[Tensor, " n features"]:
    """Of log-SNRs: themselves, and sines and cosines of wavelengths from 3 to 60."""
    level = level.clamp(-MOST_LOG_SNR, MOST_LOG_SNR)[:, None]
    angles = level * torch.linspace(log(0.1), log(2.0), FREQUENCIES, device=level.device).exp()
    return torch.cat([level / MOST_LOG_SNR, angles.sin(), angles.cos()], 1)


def _or_one(sizes: Float[Tensor, " *n"], nothing: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
    """1 where there is no spread to divide by, or none that is more than rounding."""
    return torch.where(sizes > nothing, sizes, torch.ones_like(sizes))
