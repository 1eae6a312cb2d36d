"""Clips to follow a run by ear: the same prompts and the same noise after 0, 5, 10 ... rounds."""

import re
from dataclasses import dataclass
from pathlib import Path

from dragontune.data import Samples
from dragontune.generators.base import Generator
from dragontune.media.audio import Audio, read
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from dragontune.training import files


@dataclass(frozen=True, eq=False)
class Listening:
    """What is listened to. The folder of round 0 is the untuned model."""

    generator: Generator
    sampler: Sampler
    prompts: tuple[str, ...]
    seed: int = 0

    def generate(self) -> list[Audio]:
        """One clip a prompt, from the model as it is; nothing from a model whose media are not audio."""
        clips: list[Audio] = []
        for item, prompt in enumerate(self.prompts):
            key = Key(self.seed).fold("samples")
            samples = self.sampler.sample(self.generator, [prompt], key, items=[item])
            clips += _audio(samples)
        return clips

    def write(self, folder: Path) -> None:
        """Generate into `folder`; a folder that is there was written whole, by the same model, and is kept."""
        if folder.exists():
            return
        clips = self.generate()
        files.write_folder(folder, lambda inside: self._fill(inside, clips))

    def read(self, folder: Path) -> list[Audio]:
        """The clips as they were written, as far as they are still there."""
        paths = [folder / name for name in self._names()]
        return [read(path) for path in paths if path.exists()]

    def _fill(self, folder: Path, clips: list[Audio]) -> None:
        for name, clip in zip(self._names(), clips, strict=False):
            clip.write(folder / name)

    def _names(self) -> list[str]:
        return [f"{file_name(i, prompt)}.flac" for i, prompt in enumerate(self.prompts)]


def file_name(number: int, prompt: str) -> str:
    """A name for the clip of a prompt, safe in any file system.

    >>> file_name(3, "A lively reel, for Flute!")
    '0003-a-lively-reel-for-flute'
    """
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60].strip("-")
    return f"{number:04d}-{words}" if words else f"{number:04d}"


def _audio(samples: Samples) -> list[Audio]:
    match samples.media:
        case Audio() as audio:
            return audio.chunks(1)
        case _:
            return []
