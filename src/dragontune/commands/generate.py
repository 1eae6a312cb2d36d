"""Make clips from prompts, with or without an adapter."""

import json
import warnings
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

from dragontune.commands import media
from dragontune.commands.media import Item
from dragontune.errors import InputError, InterruptedRun
from dragontune.generators.base import Generator
from dragontune.generators.pretrained import load
from dragontune.media.audio import Audio
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from dragontune.training import files, guard
from dragontune.training.listening import file_name
from dragontune.training.progress import reporter

SETTINGS = "generation.json"


@dataclass(frozen=True)
class Request:
    """What is made: the same request gives the same clips."""

    model: str
    prompts: tuple[str, ...]
    adapter: str | None
    scale: float
    seed: int
    sampler: Sampler

    def __post_init__(self) -> None:
        if not 0 <= self.scale <= 10:
            raise InputError(f"expected --scale from 0 (untuned) to 10, got {self.scale}; 1 is as tuned")
        if self.adapter is None and self.scale not in (0, 1):
            raise InputError(f"expected --adapter with --scale {self.scale:g}, got none; name a run or drop --scale")
        if self.seed < 0:
            raise InputError(f"expected --seed of 0 or more, got {self.seed}; choose another")

    def text(self) -> str:
        """The request as it is stored beside the clips."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    def generator(self) -> Generator:
        """The model, with the adapter of a run folder or of a folder in peft's format."""
        generator = load(self.model)
        if self.adapter is not None:
            inside = Path(self.adapter) / "adapter"
            generator.load_adapter(str(inside if inside.is_dir() else self.adapter))
        return generator


def generate(request: Request, out: Path) -> None:
    """Write one .flac a prompt, and `prompts.csv`; clips that the same request has written are kept.

    Raises:
        InputError: `out` holds something else.
        InterruptedRun: Ctrl-C or SIGTERM; what is written is whole.
    """
    _check(request, out)
    generator = request.generator()
    _claim(request, out)
    items = [Item(out / f"{file_name(i, prompt)}.flac", prompt) for i, prompt in enumerate(request.prompts)]
    media.write_table(out, items)
    try:
        with reporter() as report, generator.scaled(request.scale) if request.adapter else nullcontext():
            _warn_if_inaudible(request, generator)
            for number, item in enumerate(items):
                report("generating", number, len(items))
                if not item.path.exists():
                    files.make(item.path, _clip(request, generator, number).write)
            report("generating", len(items), len(items))
    except KeyboardInterrupt as stop:
        raise InterruptedRun(f"interrupted; run the same command again for the clips that {out} lacks") from stop
    print(f"{len(items)} clips are in {out}.")


def _clip(request: Request, generator: Generator, number: int) -> Audio:
    key = Key(request.seed).fold("generate")
    media = request.sampler.sample(generator, [request.prompts[number]], key, items=[number]).media
    if not isinstance(media, Audio):
        raise TypeError(f"expected a model of audio, got one of {type(media).__name__}")
    return media


def _check(request: Request, out: Path) -> None:
    """Whether the clips may be written to `out`; nothing is written yet."""
    if out.exists() and not out.is_dir():
        raise InputError(f"expected a folder for the clips, got {out}, which is a file; choose another --out")
    marker = out / SETTINGS
    if not out.exists() or (marker.exists() and marker.read_text() == request.text()):
        return
    if any(not entry.name.startswith(".") for entry in out.iterdir()):
        raise InputError(f"expected an empty or new folder, got {out}, which holds other files; choose another --out")


def _claim(request: Request, out: Path) -> None:
    """Take the folder, which `_check` allowed, for this request."""
    files.make_folder(out)
    files.write(out / SETTINGS, request.text().encode())


def _warn_if_inaudible(request: Request, generator: Generator) -> None:
    """Compare the first clip with the untuned model's."""
    if request.adapter is None or request.scale == 0:
        return
    with generator.reference():
        before = _clip(request, generator, 0)
    if guard.inaudible([before], [_clip(request, generator, 0)]):
        warnings.warn(
            f"THE ADAPTER CHANGES NOTHING AUDIBLE: with {request.adapter} the first clip differs from the untuned one "
            f"by less than {guard.AUDIBLE:.0f} dB; try a larger --scale or tune longer",
            stacklevel=2,
        )
