"""One stateless sampler for every schedule, so that a step can be branched, scored or differentiated.

First order: DDIM and Euler (eta 0), ancestral (eta 1), ping-pong (eta inf). Second order: DPM-Solver++ 2M (Lu et al.
2022, arXiv 2211.01095). Guidance: classifier-free (Ho & Salimans 2022) and, on chosen steps, CFG++ (Chung et al. 2024,
arXiv 2406.08070). Left out: Heun and third-order solvers, dynamic thresholding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, log, pi

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dragontune.data import Rows
from dragontune.errors import InputError
from dragontune.generators.base import Generator
from dragontune.process import Move, ReverseProcess, State
from dragontune.schedule import expand
from dragontune.seeding import Key


@dataclass(frozen=True, eq=False)
class Estimates(Rows):
    """The clean estimates of a step, which the next second-order step extrapolates from, if they are `known`."""

    guided: Float[Tensor, " n *latent"]
    unconditional: Float[Tensor, " n *latent"]
    known: Bool[Tensor, " n"]
    average: Float[Tensor, " n *latent"] | None = None
    """Of the differences between outputs with the prompt and without, for models that are guided by projection."""

    @classmethod
    def none(cls, latents: Float[Tensor, " n *latent"], projected: bool = False) -> "Estimates":
        """Where no step was taken before: the next one is of first order."""
        nothing = torch.zeros_like(latents)
        return cls(nothing, nothing, torch.zeros(len(latents), dtype=torch.bool), nothing if projected else None)

    @classmethod
    def of(
        cls,
        guided: Float[Tensor, " n *latent"],
        unconditional: Float[Tensor, " n *latent"],
        average: Float[Tensor, " n *latent"] | None = None,
    ) -> "Estimates":
        """Those of a step."""
        return cls(guided, unconditional, torch.ones(len(guided), dtype=torch.bool), average)


@dataclass(frozen=True, eq=False)
class Stop(Rows):
    """A `State` to come back to: prompts in place of their conditions, and of the history what is still needed."""

    prompts: tuple[str, ...]
    latents: Float[Tensor, " n *latent"]
    step: Int[Tensor, " n"]
    item: Int[Tensor, " n"]
    known: Bool[Tensor, " n"]
    guided: Float[Tensor, " n *latent"] | None
    unconditional: Float[Tensor, " n *latent"] | None
    average: Float[Tensor, " n *latent"] | None = None


@dataclass(frozen=True, eq=False)
class Transition(Move[Estimates]):
    """p(x_next | x) = N(mean, std^2) and the clean estimate behind it."""

    mean: Float[Tensor, " n *latent"]
    std: Float[Tensor, " n"]
    """On the CPU, so that asking whether there is noise does not wait for a GPU."""
    clean: Float[Tensor, " n *latent"]
    step: Int[Tensor, " n"]
    item: Int[Tensor, " n"]
    history: Estimates

    def draw(self, key: Key) -> Float[Tensor, " n *latent"]:
        """A next state; the noise belongs to (key, step, item)."""
        if not self.std.any():
            return self.mean
        shape = self.mean.shape[1:]
        pairs = zip(self.step.tolist(), self.item, strict=True)
        noise = torch.cat([key.fold("step", step).normal(item[None], shape) for step, item in pairs])
        return self.mean + expand(self.std.to(self.mean), self.mean) * noise.to(self.mean)

    def log_prob(self, latents: Float[Tensor, " n *latent"]) -> Float[Tensor, " n"]:
        """Log density of next states, summed over the latent; `std` must not be 0 (eta > 0, not the last step)."""
        std = expand(self.std.to(latents), latents)
        z = (latents - self.mean) / std
        return (-0.5 * z**2 - std.log() - 0.5 * log(2 * pi)).flatten(1).sum(1)


MOST_STEPS = 10_000
"""Nobody needs more, so a larger number is a slip."""


@dataclass(frozen=True)
class Sampler(ReverseProcess):
    """Walk from noise to clean latents.

    `guidance` is the classifier-free scale (1: off). `eta` is the noise put back at each first-order step: 0 none, 1 as
    much as the ancestral sampler, inf all. On the steps listed in `plus_steps` CFG++ is used instead, with scale `plus`
    in [0, 1]: the unconditional estimate gives the noise, the guided one the clean part.

    >>> Sampler(steps=40, guidance=2.0).calls(10)
    800
    """

    steps: int = 40
    guidance: float = 1.0
    eta: float = 0.0
    order: int = 2
    plus: float = 0.6
    plus_steps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MOST_STEPS:
            raise InputError(f"expected sampler steps from 1 to {MOST_STEPS}, got {self.steps}; 12 to 40 are usual")
        if self.order not in (1, 2):
            raise InputError(f"a sampler's order is 1 or 2, got {self.order}")
        if not self.eta >= 0:
            raise InputError(f"a sampler's eta is 0 or more, got {self.eta}")
        if self.order == 2 and self.eta != 0:
            raise InputError(f"second-order sampling is deterministic, got eta {self.eta}: set eta 0, or order 1")
        if not 0 <= self.guidance < inf:
            raise InputError(f"expected a finite guidance of 0 or more, got {self.guidance}; 1 turns it off")
        if not 0 <= self.plus <= 1:
            raise InputError(f"plus is a number in [0, 1], got {self.plus}")
        if any(not 0 <= step < self.steps for step in self.plus_steps):
            raise InputError(f"plus_steps are step numbers from 0 to {self.steps - 1}, got {list(self.plus_steps)}")

    @property
    def guided(self) -> bool:
        """Whether the unconditional estimate is needed."""
        return self.guidance != 1 or bool(self.plus_steps)

    @property
    def random_steps(self) -> int:
        """All but the last, if `eta` is not 0."""
        return self.steps - 1 if self.eta else 0

    def calls(self, count: int) -> int:
        """Evaluations of the denoiser, counted by item, for `count` items."""
        return count * self.steps * (2 if self.guided else 1)

    def noise(self, generator: Generator, key: Key, items: Int[Tensor, " n"]) -> Float[Tensor, " n *latent"]:
        """Gaussian noise at t = 1, one stream an item."""
        noise = key.fold("start").normal(items, generator.latent_shape).to(generator.device)
        return generator.schedule.start() * noise

    def start(self, generator: Generator, prompts: Sequence[str], key: Key, items: Sequence[int]) -> State:
        """States at t = 1, without a step before."""
        item = torch.tensor(list(items), dtype=torch.long)
        latents = self.noise(generator, key, item)
        condition, unconditional = self.conditions(generator, prompts)
        history = Estimates.none(latents, self.guided and generator.projection is not None)
        return State(latents, condition, unconditional, torch.zeros_like(item), item, history)

    def conditions(self, generator: Generator, prompts: Sequence[str]) -> tuple[Rows, Rows | None]:
        """What the network is told of each prompt, and of none (None where guidance is off)."""
        condition, unconditional = generator.conditions(prompts)
        return condition, unconditional if self.guided else None

    def pause(self, state: State, prompts: Sequence[str]) -> Stop:
        """What `resume` goes on from, without gradients; `prompts` are what the conditions were made of."""
        first_order = self.order == 1 or bool((state.step == self.steps - 1).all())
        guided = None if first_order else state.history.guided.detach()
        unconditional = None if first_order or not self.plus_steps else state.history.unconditional.detach()
        known, average = state.history.known, state.history.average
        average = None if average is None else average.detach()
        latents = state.latents.detach()
        return Stop(tuple(prompts), latents, state.step, state.item, known, guided, unconditional, average)

    def resume(self, generator: Generator, stop: Stop) -> State:
        """Go on from where `pause` was called."""
        condition, unconditional = self.conditions(generator, stop.prompts)
        history = replace(Estimates.none(stop.latents), average=stop.average)
        if stop.guided is not None:
            unknown = stop.guided if stop.unconditional is None else stop.unconditional
            history = Estimates(stop.guided, unknown, stop.known, stop.average)
        return State(stop.latents, condition, unconditional, stop.step, stop.item, history)

    def transition(self, generator: Generator, state: State) -> Transition:
        """The distribution of the next state. Rows may be at different steps."""
        return self.onward(generator, state, *self.estimates(generator, state))

    def onward(
        self,
        generator: Generator,
        state: State,
        conditional: Float[Tensor, " n *latent"],
        free: Float[Tensor, " n *latent"],
    ) -> Transition:
        """The distribution of the next state under clean estimates: with the prompt, and without."""
        x, c = state.latents, self._coefficients(generator, state)
        history = self._guided(generator, state, conditional, free)
        clean, base, previous = history.guided, history.guided, state.history.guided
        if self.plus_steps:
            plus = expand(torch.isin(state.step, torch.tensor(self.plus_steps)).to(x.device), x)
            clean = torch.where(plus, free + self.plus * (conditional - free), clean)
            base, previous = torch.where(plus, free, base), torch.where(plus, state.history.unconditional, previous)
        ahead = base + c.extrapolation * (base - previous)
        mean = c.keep * x + (c.alpha_next - c.alpha * c.keep) * ahead + c.alpha_next * (clean - base)
        return Transition(mean, c.std, clean, state.step, state.item, history)

    def estimates(
        self, generator: Generator, state: State
    ) -> tuple[Float[Tensor, " n *latent"], Float[Tensor, " n *latent"]]:
        """The conditional and the unconditional clean estimate, in one call of the network; the same where unguided."""
        t = generator.schedule.times(self.steps)[state.step].to(state.latents)
        if state.unconditional is None:
            clean = generator.denoise(state.latents, t, state.condition)
            return clean, clean
        conditions = type(state.condition).join([state.condition, state.unconditional])
        conditional, free = generator.denoise(torch.cat([state.latents] * 2), t.repeat(2), conditions).chunk(2)
        return conditional, free

    def _guided(
        self,
        generator: Generator,
        state: State,
        conditional: Float[Tensor, " n *latent"],
        free: Float[Tensor, " n *latent"],
    ) -> Estimates:
        """What guidance makes of the estimates with the prompt and without."""
        if not self.guided:
            return Estimates.of(free, free)
        if generator.projection is None:
            return Estimates.of(free + self.guidance * (conditional - free), free)
        t, x = expand(generator.schedule.times(self.steps)[state.step].to(state.latents), state.latents), state.latents
        average = torch.zeros_like(x) if state.history.average is None else state.history.average
        flow, average = generator.projection.guide((x - conditional) / t, (x - free) / t, average, self.guidance)
        return Estimates.of(x - t * flow, free, average)

    def _coefficients(self, generator: Generator, state: State) -> "_Coefficients":
        """Numbers of each row's step, computed in float64 on the CPU."""
        schedule, k, x = generator.schedule, state.step, state.latents
        times = schedule.times(self.steps)
        a, s, half_log_snr = schedule.alpha(times), schedule.sigma(times), schedule.log_snr(times) / 2
        ancestral = s[k + 1] * (1 - (a[k] * s[k + 1] / (a[k + 1] * s[k])) ** 2).clamp(min=0).sqrt()
        std = s[k + 1] if self.eta == inf else torch.minimum(self.eta * ancestral, s[k + 1])
        std = torch.where(k < self.steps - 1, std, 0.0)  # also where a model's last time has some noise left
        keep = (s[k + 1] ** 2 - std**2).clamp(min=0).sqrt() / s[k]
        h, h_before = half_log_snr[k + 1] - half_log_snr[k], half_log_snr[k] - half_log_snr[(k - 1).clamp(min=0)]
        multistep = (k > 0) & (k < self.steps - 1) & (self.order == 2) & state.history.known
        extrapolation = torch.where(multistep, h / (2 * h_before), 0.0)
        keep, alpha, alpha_next, extrapolation = (expand(v.to(x), x) for v in (keep, a[k], a[k + 1], extrapolation))
        return _Coefficients(keep, alpha, alpha_next, extrapolation, std.to(x.dtype))


@dataclass(frozen=True, eq=False)
class _Coefficients:
    """mean = keep x + (alpha_next - alpha keep) ahead + ...: what one step multiplies by what."""

    keep: Tensor
    alpha: Tensor
    alpha_next: Tensor
    extrapolation: Tensor
    std: Tensor
