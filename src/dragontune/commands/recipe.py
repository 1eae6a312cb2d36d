"""A recipe: the constructor arguments of a run, and what can be built and checked from them before anything is run."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_type_hints

import torch

from dragontune.algorithms.base import Algorithm
from dragontune.algorithms.draft import Draft
from dragontune.commands.opening import Opening
from dragontune.data import Samples
from dragontune.embedded import locate
from dragontune.errors import InputError
from dragontune.evaluation.evaluate import TARGET, Evaluation
from dragontune.evaluation.generations import Progress
from dragontune.evaluation.guard import Guard, Lookout
from dragontune.generators.adapters import Lora
from dragontune.generators.base import Generator
from dragontune.generators.checkpoint import Plan, Precision, Size
from dragontune.health import Health
from dragontune.rewards import standardise
from dragontune.rewards.base import InstanceReward, Reward
from dragontune.rewards.combine import InstanceSum, Sum
from dragontune.seeding import Key
from dragontune.training.loop import Loop
from dragontune.training.tracking import Tracker

LONGEST_PROMPT = 100_000
"""Letters; models read a few hundred at most and leave out the rest."""
START = "start"
"""The folder of a run with the LoRA that it was begun with."""


@dataclass(frozen=True, eq=False)
class Recipe:
    """One run: a model, what to tune it towards, how, on which prompts, and how to judge the result.

    `prompts` is a text file, one prompt a line. `start` is a LoRA to go on from, in place of the fresh one that `lora`
    describes: a folder in peft's format, a file of diffusers or of another trainer, or a hub name. `family` is a file
    of the user's that opens a pipeline which dragontune does not know (docs/extend.md). Without `evaluation` there is
    no report, without `guard` no round is looked at and the last one's weights are the result. `health` says what is
    no longer well while tuning (docs/health.md).
    """

    model: str
    reward: Reward
    algorithm: Callable[[Generator, Reward], Algorithm]
    prompts: str
    lora: Lora = field(default_factory=Lora)
    start: str | None = None
    precision: Precision = "float32"
    size: Size = field(default_factory=Size)
    plan: Plan = field(default_factory=Plan)
    family: str | None = None
    allow_pickle: bool = False
    loop: Loop = field(default_factory=Loop)
    evaluation: Evaluation | None = None
    guard: Guard | None = None
    health: Health = field(default_factory=Health)
    trackers: list[Tracker] = field(default_factory=list)

    @property
    def opening(self) -> Opening:
        """The model, and how it is opened."""
        return Opening(self.model, self.precision, self.size, self.plan, self.family, self.allow_pickle)

    def within(self, run: Path) -> "Recipe":
        """The same with the `start` that a run's folder keeps, if it does: what it was begun with may be gone."""
        kept = run / START
        return replace(self, start=str(kept)) if self.start and kept.is_dir() else self

    def build(self) -> Algorithm[Any, Any]:
        """Load the model and make the algorithm, checked against the reward.

        Raises:
            InputError: the parts do not fit together.
        """
        if self.loop.pairs < self.reward.minimum:
            raise InputError(
                f"expected loop.pairs of at least {self.reward.minimum}, which {type(self.reward).__name__} needs to "
                f"score a set, got {self.loop.pairs}; raise it"
            )
        if self.opening.of_tokens():
            raise InputError(
                f"expected a continuous diffusion model to tune, got {self.model}, one of tokens; it can be steered"
            )
        algorithm = self.algorithm(self.opening.load(None if self.start else self.lora, self.start), self.reward)
        check_fit(type(algorithm), self.reward)
        if isinstance(algorithm, Draft) and self.loop.batch < self.reward.minimum:
            raise InputError(
                f"expected loop.batch of at least {self.reward.minimum}, which {self.reward.label} needs to score a "
                f"set, got {self.loop.batch}; raise it"
            )
        if self.guard and standardise.learns(self.reward) and TARGET not in self.guard.rewards:
            raise InputError(
                f"expected a {TARGET} under guard.rewards beside a reward with standardise: running, whose scales "
                "change while the guard compares, got none; name one with fixed scales"
            )
        if not any(True for _ in algorithm.parameters()):
            raise InputError("expected an adapter to tune, got a model without one; set lora")
        return algorithm

    def rehearse(self, algorithm: Algorithm[Any, Any], prompts: Sequence[str]) -> "Seconds":
        """Try every reward, also the evaluation's and the guard's, on a few noise latents, before anything is run.

        Raises:
            InputError: bad exemplars, or too few prompts.
        """
        seconds = rehearse(algorithm.generator, self.reward, prompts)
        for part in (self.evaluation, self.guard):
            if part is None:
                continue
            chosen = part.read()
            _, rewards = part.named(self.reward)
            part.check(rewards, len(chosen))
            for reward in rewards.values():
                rehearse(algorithm.generator, reward, chosen)
        return seconds

    def watch(self, algorithm: Algorithm[Any, Any], progress: Progress, say: Callable[[str], None]) -> Lookout | None:
        """The guard beside the model, if the recipe has one."""
        if self.guard is None:
            return None
        return self.guard.post(
            algorithm.generator, algorithm.sampler, self.reward, self.loop.seed, progress=progress, say=say
        )

    def listened(self, prompts: Sequence[str]) -> tuple[str, ...]:
        """The prompts whose clips are written while tuning: those of the evaluation, if there is one."""
        chosen = self.evaluation.read() if self.evaluation else prompts
        count = min(self.loop.sample_count, len(chosen))
        return tuple(chosen[i * len(chosen) // count] for i in range(count))


@dataclass(frozen=True)
class Seconds:
    """What one item costs, measured on a few, once everything is loaded."""

    decode: float
    encode: float


def rehearse(generator: Generator, reward: Reward, prompts: Sequence[str]) -> Seconds:
    """Decode, encode and score a few noise latents, so that bad exemplars and broken rewards show before a run starts.

    Raises:
        InputError: whatever the reward finds wrong with its input.
    """
    count = max(2, reward.minimum)
    asked = tuple(prompts[i % len(prompts)] for i in range(count))
    latents = 0.5 * Key(0).fold("rehearsal").normal(range(count), generator.latent_shape).to(generator.device)
    with torch.no_grad():
        media = generator.decode(latents) if reward.needs_media else None
        reward(Samples(asked, latents, media))  # loads the encoder and embeds the exemplars, which is done once a run
        start = time.perf_counter()
        media = generator.decode(latents) if reward.needs_media else None
        decoded = time.perf_counter()
        reward(Samples(asked, latents, media))
        scored = time.perf_counter()
    return Seconds((decoded - start) / count, (scored - decoded) / count)


def read_prompts(path: str) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        InputError: there is no such file, it is not text, or it has no prompt in it.
    """
    try:
        lines = [line.strip() for line in locate(path).read_text("utf-8").splitlines()]
    except (UnicodeDecodeError, IsADirectoryError, PermissionError) as error:
        raise InputError(f"expected a text file of prompts, one a line, got {path} ({error}); check it") from error
    prompts = [line for line in lines if line]
    if not prompts:
        raise InputError(f"expected at least one prompt, one a line, got none in {path}; write some into it")
    for prompt in prompts:
        check_prompt(prompt)
    return prompts


def check_prompt(prompt: str) -> None:
    """InputError for a text that no model reads: one that is no Unicode, holds a NUL, or is as long as a book."""
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"expected a prompt in UTF-8, got {prompt[:40]!r}; correct it") from error
    if "\0" in prompt or len(prompt) > LONGEST_PROMPT:
        raise InputError(
            f"expected a prompt of at most {LONGEST_PROMPT} letters without NUL, got {prompt[:40]!r}...; correct it"
        )


def check_fit(algorithm: object, reward: Reward) -> None:
    """InputError unless the reward is of the kind that the algorithm, if it is a class of one, takes."""
    if not isinstance(algorithm, type):
        return
    wanted = get_type_hints(algorithm)["reward"]
    if not isinstance(reward, wanted):
        article = "an" if wanted.__name__.startswith("I") else "a"
        raise InputError(
            f"expected {article} {wanted.__name__} as reward of {algorithm.__name__}, got {reward.label}, which is "
            f"none; {_way_out(wanted, reward)}"
        )


def _way_out(wanted: type, reward: Reward) -> str:
    if issubclass(wanted, InstanceReward):
        return "it scores whole sets, which Dragon can follow, and Draft where gradients pass"
    if isinstance(reward, Sum | InstanceSum):
        return "use DifferentiableSum, if gradients pass through all of its members, or Dragon"
    others = "Dragon, Vard or Ddpo" if isinstance(reward, InstanceReward) else "Dragon"
    return f"choose another reward, or {others} as algorithm, where none are needed"
