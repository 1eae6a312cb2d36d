"""How the value of noisy latents is learnt: from finished generations, of which every state on the way is a row."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dragontune.algorithms.rollouts import Rollouts, Steps
from dragontune.algorithms.value import Regression, Value, Visits, explained
from dragontune.data import Rows
from dragontune.embedded import locate
from dragontune.errors import InputError
from dragontune.schedule import Schedule
from dragontune.seeding import Key

FEWEST_ROLLOUTS = 20
"""A fifth is held out."""
LEAST_R2 = 0.05
"""Of a fit to held-out rollouts: less may be the luck of having stopped at the best moment."""


@dataclass(frozen=True, eq=False)
class Passed(Rows):
    """Latents that generations went through, the clean ones among them."""

    latents: Float[Tensor, " n *latent"]
    step: Int[Tensor, " n"]
    item: Int[Tensor, " n"]

    @classmethod
    def of(cls, steps: Steps) -> "Passed":
        """The starts of all steps, and the ends of the last."""
        stop, last = steps.stop, (steps.stop.step == steps.stop.step.max()).nonzero()[:, 0]
        latents = torch.cat([stop.latents, steps.ahead[last]])
        return cls(latents, torch.cat([stop.step, stop.step[last] + 1]), torch.cat([stop.item, stop.item[last]]))

    def visits(self, rollouts: Rollouts, scores: Float[Tensor, " items"], prompts: Sequence[str]) -> Visits:
        """What V learns from; each prompt is encoded once."""
        known = {text: row for row, text in enumerate(dict.fromkeys(prompts))}
        texts = [list(known)[row : row + rollouts.micro_batch] for row in range(0, len(known), rollouts.micro_batch)]
        generator, x = rollouts.generator, self.latents
        vectors = torch.cat([generator.prompt_vectors(generator.encode_prompts(part)) for part in texts])
        rows = torch.tensor([known[text] for text in prompts])[self.item].to(vectors.device)
        t = generator.schedule.times(rollouts.sampler.steps)[self.step].to(x)
        return Visits(x, t, vectors[rows], scores[self.item].to(x))


@dataclass(frozen=True, eq=False)
class Learnt:
    """A value, and the held-out rows that told when to stop: all, those of the noisier and of the cleaner half."""

    value: Value
    held: tuple[Visits, Visits, Visits]

    def fit(self, schedule: Schedule, size: int) -> Float[Tensor, " 3"]:
        """R^2 on each; of a soft value it is that of its squared errors, too."""
        return torch.tensor([explained(self.value, part, schedule, size) for part in self.held])


@dataclass(frozen=True)
class Lesson:
    """Generations to learn from, of prompts in random order, a fifth of them held out; and the network to be taught."""

    rollouts: int = 400
    width: int = 64
    depth: int = 3
    regression: Regression = field(default_factory=Regression)

    def __call__(self, rollouts: Rollouts, prompts: list[str], key: Key) -> Learnt:
        """Generate with the frozen model and fit."""
        generator, count = rollouts.generator, self.rollouts
        order = key.fold("prompts").permutation(len(prompts)).tolist()
        texts = [prompts[order[item % len(prompts)]] for item in range(count)]
        with torch.no_grad(), generator.reference():
            passed, scores = rollouts(texts, key, Passed.of)
        visits = passed.visits(rollouts, scores, texts)
        rank = key.fold("held out").permutation(count)[passed.item]
        shown, held = (rows.nonzero()[:, 0] for rows in (rank >= count // 5, rank < count // 5))
        clean = passed.latents[(passed.step == rollouts.sampler.steps).nonzero()[:, 0].to(passed.latents.device)]
        value = Value.fresh(visits[shown], clean, self.width, self.depth, key)
        self.regression.fit(value, visits[shown], generator.schedule, key.fold("regression"), visits[held])
        early = 2 * passed.step[held] < rollouts.sampler.steps
        return Learnt(value, (visits[held], visits[held[early]], visits[held[~early]]))


def lesson_prompts(prompts: str | Sequence[str], place: str) -> list[str]:
    """A text file's lines, or the prompts themselves; `place` is the field that says so.

    Raises:
        InputError: the file cannot be read, or has no prompt in it.
    """
    if not isinstance(prompts, str):
        return list(prompts)
    try:
        lines = locate(prompts).read_text("utf-8").splitlines()
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise InputError(f"expected a text file as {place}, got {prompts} ({error}); check it") from error
    if found := [line.strip() for line in lines if line.strip()]:
        return found
    raise InputError(f"expected prompts in {place}, got none in {prompts}; write some")
