"""Clips or pictures to follow a run by ear or eye: the same prompts and the same noise after 0, 5, 10 ... rounds."""

import re
from dataclasses import dataclass
from pathlib import Path

from dragontune.data import Rows
from dragontune.generators.base import Generator
from dragontune.media.audio import Audio
from dragontune.media.image import Images
from dragontune.media.kinds import KINDS, kind_of
from dragontune.media.video import Video
from dragontune.parallel import from_main, is_main
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from dragontune.training import files

Media = Audio | Images | Video


@dataclass(frozen=True, eq=False)
class Listening:
    """What is listened to, or looked at. The folder of round 0 is the untuned model."""

    generator: Generator
    sampler: Sampler
    prompts: tuple[str, ...]
    seed: int = 0

    def generate(self) -> list[Media]:
        """One item a prompt, from the model as it is; nothing from a model whose media are no files."""
        clips: list[Media] = []
        for item, prompt in enumerate(self.prompts):
            key = Key(self.seed).fold("samples")
            samples = self.sampler.sample(self.generator, [prompt], key, items=[item])
            if isinstance(samples.media, Audio | Images | Video):
                clips += samples.media.chunks(1)
        return clips

    def write(self, folder: Path) -> None:
        """Generate into `folder`; a folder that is there was written whole, by the same model, and is kept.

        Of several processes the main one does, with the others where they share the network's weights.
        """
        if from_main(folder.exists):
            return
        clips = self.generate() if is_main() or self.generator.sharded else []
        from_main(lambda: files.write_folder(folder, lambda inside: self._fill(inside, clips)))

    def read(self, folder: Path) -> list[Rows]:
        """The items as they were written, as far as they are still there."""
        paths = [(kind, folder / f"{stem}{kind.suffix}") for stem in self._stems() for kind in KINDS]
        return [kind.read(path) for kind, path in paths if path.exists()]

    def _fill(self, folder: Path, clips: list[Media]) -> None:
        for stem, clip in zip(self._stems(), clips, strict=False):
            if (kind := kind_of(clip)) is not None:
                clip.write(folder / f"{stem}{kind.suffix}")

    def _stems(self) -> list[str]:
        return [file_name(i, prompt) for i, prompt in enumerate(self.prompts)]


def file_name(number: int, prompt: str) -> str:
    """A name for the clip of a prompt, safe in any file system.

    >>> file_name(3, "A lively reel, for Flute!")
    '0003-a-lively-reel-for-flute'
    """
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60].strip("-")
    return f"{number:04d}-{words}" if words else f"{number:04d}"
