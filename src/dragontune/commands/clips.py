"""Make the clips of a request: one at a time, or, where a reward of sets steers, batch by batch.

Whatever is interrupted goes on where it stopped and ends with the same files. A batch is stored as the latents it ends
with: its clips, and what the next batches must know of it, come from these.
"""

import csv
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Shaped
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dragontune.commands import media
from dragontune.commands.media import Item
from dragontune.costs import Costs
from dragontune.data import Media, Samples
from dragontune.errors import InputError
from dragontune.evaluation.comparison import scores
from dragontune.evaluation.generations import Steered
from dragontune.evaluation.report import duration
from dragontune.generators.base import Generator
from dragontune.media.audio import Audio
from dragontune.media.image import Images
from dragontune.media.kinds import AUDIO, KINDS, Kind, kind_of
from dragontune.media.video import Video
from dragontune.process import ReverseProcess, State
from dragontune.rewards.base import DistributionReward, Features, Reward
from dragontune.seeding import Key
from dragontune.training import files
from dragontune.training.progress import Reporter

SCORES = "scores.csv"
SUFFIXES = tuple(kind.suffix for kind in KINDS)
BATCHES = ".batches"
PHASE = "generating"


@dataclass(frozen=True)
class Wanted:
    """A clip: the name of its file without the suffix, its prompt, and the number of its noise."""

    stem: str
    prompt: str
    number: int


@dataclass(frozen=True, eq=False)
class Clips:
    """What is made, by what, and where to."""

    out: Path
    wanted: Sequence[Wanted]
    process: ReverseProcess
    key: Key
    steered: Steered | None

    @property
    def sets(self) -> bool:
        """Whether clips are judged together."""
        return self.steered is not None and self.steered.sets

    def missing(self) -> int:
        """How many clips are still to be sampled."""
        if self.steered is not None and self.sets:
            batches = enumerate(self.steered.batches(len(self.wanted)))
            return sum(len(batch) for number, batch in batches if not self._stored(number).exists())
        return len(self._missing(self._scores()))

    def counted(self) -> str:
        """How many there are once all are made, by what they are: `1 image`, `4 videos`, `2 clips`."""
        found = next((path for each in self.wanted if (path := self._there(each))), None)
        return called(next((kind for kind in KINDS if found and kind.suffix == found.suffix), None), len(self.wanted))

    def make(self, generator: Generator, report: Reporter) -> str:
        """Every clip that is not there yet; returns what there is to say of their scores.

        Raises:
            InputError: the model makes neither audio nor images nor video, or the reward does not fit.
            NonFiniteError: a score is NaN or infinite.
        """
        if self.steered is not None and self.sets:
            return self._together(generator, report, self.steered)
        return self._singly(generator, report)

    def costs(self) -> Costs:
        """Of the clips that are missing, exactly, with the look at each that gives its score."""
        if self.steered is None:
            return Costs()
        left = self.missing()
        return self.steered.steering.budget(self.process, left, self.key) + Costs(encodes=left)

    def plain(self, generator: Generator, number: int) -> Media | None:
        """A clip without steering."""
        return replace(self, steered=None)._clip(generator, self.wanted[number], None).media

    def _singly(self, generator: Generator, report: Reporter) -> str:
        known, reward = self._scores(), self.steered and self.steered.steering.reward
        missing, start = self._missing(known), time.perf_counter()
        there, total = len(self.wanted) - len(missing), len(self.wanted)
        if (suffix := next((path.suffix for each in self.wanted if (path := self._there(each))), None)) is not None:
            self._table(suffix)
        report(PHASE, there, total)
        for number, each in enumerate(missing):
            samples = self._clip(generator, each, report if reward and not number else None)
            suffix = _suffix(samples.media)
            if not number:
                self._table(suffix)
            if reward:
                known[f"{each.stem}{suffix}"] = _score(reward, reward.encode(samples))
                self._write(("file", "score"), list(known.items()))
            self._save(samples.media, each)
            left = (time.perf_counter() - start) / (number + 1) * (len(missing) - number - 1)
            report(PHASE, there + number + 1, total, f"about {duration(left)} left" if left else "")
        if not reward:
            return ""
        mean = sum(known[f"{each.stem}{suffix}"] for each in self.wanted) / total
        return f"Mean {reward.label}: {mean:.6g} (higher is better); {self.out / SCORES} has every one's."

    @torch.no_grad()
    def _clip(self, generator: Generator, wanted: Wanted, report: Reporter | None) -> Samples:
        """One clip; it is told step by step if anything is told."""
        steer = self.steered and self.steered.steering
        tell = partial(report, "first one") if report else lambda done, total: None
        visit = _by_step(self.process, [wanted.number], tell)
        return self.process.sample(
            generator, [wanted.prompt], self.key, items=[wanted.number], steer=steer, visit=visit
        )

    def _together(self, generator: Generator, report: Reporter, steered: Steered) -> str:
        made, rows, reward = None, [], steered.steering.reward
        report(PHASE, 0, len(self.wanted))
        for number, batch in enumerate(steered.batches(len(self.wanted))):
            wanted = self.wanted[batch.start : batch.stop]
            latents = self._latents(generator, report, steered, number, batch, made)
            made = self._unpack(generator, steered, wanted, latents, made)
            if made is None:
                raise ValueError("a reward of sets remembers what was made")
            rows.append((batch.stop, _score(reward, made)))
            report(PHASE, batch.stop, len(self.wanted))
        self._write(("clips", "score"), rows)
        return (
            f"{reward.label} of all {len(self.wanted)}: {rows[-1][1]:.6g} (higher is better); {self.out / SCORES} has "
            "it after every batch."
        )

    def _latents(
        self,
        generator: Generator,
        report: Reporter,
        steered: Steered,
        number: int,
        batch: range,
        made: Features | None,
    ) -> Shaped[Tensor, " n *latent"]:
        """Of a batch: those that are stored, or else new ones, which are stored."""
        place = self._stored(number)
        try:
            return load_file(place)["latents"].to(generator.device)
        except (FileNotFoundError, SafetensorError, KeyError):
            wanted = self.wanted[batch.start : batch.stop]
        numbers = [each.number for each in wanted]

        def tell(done: int, total: int) -> None:
            clips = batch.start + len(batch) * done // total
            if clips > 0:
                report(PHASE, clips, len(self.wanted))

        prompts, steer = [each.prompt for each in wanted], partial(steered.steering, made=made)
        samples = self.process.sample(
            generator,
            prompts,
            self.key,
            items=numbers,
            steer=steer,
            visit=_by_step(self.process, numbers, tell),
            decode=False,
        )
        files.make_folder(place.parent)
        files.make(place, lambda path: save_file({"latents": samples.latents.cpu().contiguous()}, path))
        return samples.latents

    def _unpack(
        self,
        generator: Generator,
        steered: Steered,
        wanted: Sequence[Wanted],
        latents: Shaped[Tensor, " n *latent"],
        made: Features | None,
    ) -> Features | None:
        """Write the clips of a batch that are missing; returns the features of all that was made."""
        for first in range(0, len(wanted), steered.steering.micro_batch):
            part = wanted[first : first + steered.steering.micro_batch]
            rows = latents[first : first + len(part)]
            with torch.no_grad():
                samples = Samples(tuple(each.prompt for each in part), rows, generator.decode(rows))
                made = steered.steering.remember(made, samples)
            if not (self.out / media.TABLE).exists():
                self._table(_suffix(samples.media))
            for row, each in enumerate(part):
                if not self._there(each):
                    self._save(samples[torch.tensor([row])].media, each)
        return made

    def _missing(self, known: dict[str, float]) -> list[Wanted]:
        """Clips to make: not there, or without the score that a steered one has."""
        paths = [(each, self._there(each)) for each in self.wanted]
        return [each for each, path in paths if path is None or (self.steered and path.name not in known)]

    def _there(self, wanted: Wanted) -> Path | None:
        paths = (self.out / f"{wanted.stem}{suffix}" for suffix in SUFFIXES)
        return next((path for path in paths if path.exists()), None)

    def _stored(self, number: int) -> Path:
        return self.out / BATCHES / f"{number:04d}.safetensors"

    def _table(self, suffix: str) -> None:
        media.write_table(self.out, [Item(self.out / f"{each.stem}{suffix}", each.prompt) for each in self.wanted])

    def _save(self, clip: Media | None, wanted: Wanted) -> None:
        if isinstance(clip, Audio | Images | Video):
            files.make(self.out / f"{wanted.stem}{_suffix(clip)}", clip.write)

    def _scores(self) -> dict[str, float]:
        """What is known of clips, by file."""
        place = self.out / SCORES
        if self.steered is None or not place.exists():
            return {}
        with place.open(newline="", encoding="utf-8") as file:
            return {row["file"]: float(row["score"]) for row in csv.DictReader(file) if "file" in row}

    def _write(self, columns: tuple[str, str], rows: Sequence[tuple[object, float]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([columns, *rows])
        files.write(self.out / SCORES, text.getvalue().encode())


def called(kind: Kind | None, count: int) -> str:
    """That many of a kind of media, of which audio is called clips."""
    one = kind.one.partition(" ")[2] if kind and kind is not AUDIO else "clip"
    many = kind.many if kind and kind is not AUDIO else "clips"
    return f"{count:,} {one if count == 1 else many}"


def _by_step(
    process: ReverseProcess, numbers: Sequence[int], report: Callable[[int, int], None]
) -> Callable[[State], None]:
    """Told of every state that is gone on from, tells how many steps are done of how many, over all numbers."""
    reached = dict.fromkeys(numbers, 0)

    def visit(state: State) -> None:
        reached.update(zip(state.item.tolist(), state.step.tolist(), strict=True))
        report(sum(reached.values()), len(reached) * process.steps)

    return visit


def _score(reward: Reward, features: Features) -> float:
    """Of one clip, or of one set."""
    found = scores(reward.label, reward, features)
    if found.shape != (() if isinstance(reward, DistributionReward) else (1,)):
        raise InputError(
            f"expected one score for one {'set' if isinstance(reward, DistributionReward) else 'item'} from "
            f"{reward.label}, got shape {tuple(found.shape)}; correct its score"
        )
    return float(found)


def _suffix(clip: Media | None) -> str:
    kind = kind_of(clip)
    if kind is None:
        raise InputError(
            f"expected a model of audio, images or video, got one of {type(clip).__name__}; sample it from Python"
        )
    return kind.suffix
