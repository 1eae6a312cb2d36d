"""Make clips from prompts, with an adapter, with a mixture of adapters, or without; plainly, or steered."""

import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from dragontune import json_files
from dragontune.commands.clips import BATCHES, Clips, Wanted, called
from dragontune.commands.mistakes import read_yaml
from dragontune.commands.opening import Opening
from dragontune.commands.recipe import check_prompt
from dragontune.commands.steer import budget
from dragontune.data import Rows
from dragontune.errors import InputError, InterruptedRun
from dragontune.evaluation.generations import Steered
from dragontune.generators import lora_files
from dragontune.generators.adapters import CONFIG_FILE
from dragontune.generators.base import Generator
from dragontune.media.kinds import kind_of
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from dragontune.training import files, guard, links
from dragontune.training.listening import file_name
from dragontune.training.progress import reporter
from dragontune.unmasking import Unmasking

SETTINGS = "generation.json"
LARGEST_WEIGHT = 10.0
MOST = 10_000
"""Clips of one prompt; more is a slip."""


@dataclass(frozen=True)
class Adapter:
    """A run's folder, or a folder in peft's format, and how much of its change is wanted (1: as tuned).

    >>> Adapter.read("runs/demo:0.5")
    Adapter(folder='runs/demo', weight=0.5)
    """

    folder: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.folder:
            raise InputError("expected a folder in --adapter, got none; name a run, as in runs/demo or runs/demo:0.5")
        if not -LARGEST_WEIGHT <= self.weight <= LARGEST_WEIGHT:
            raise InputError(
                f"expected a weight from -{LARGEST_WEIGHT:g} to {LARGEST_WEIGHT:g} after the colon of --adapter, got "
                f"{self.weight:g} for {self.folder}; 1 is as tuned"
            )

    @classmethod
    def read(cls, text: str) -> "Adapter":
        """FOLDER or FOLDER:WEIGHT; a last colon that no number follows belongs to the folder."""
        folder, colon, last = text.rpartition(":")
        try:
            weight = float(last)
        except ValueError:
            return cls(text)
        return cls(folder, weight) if colon else cls(text)

    def __str__(self) -> str:
        return self.folder if self.weight == 1 else f"{self.folder}:{self.weight:g}"

    @property
    def weights(self) -> Path:
        """The folder in peft's format."""
        inside = Path(self.folder) / "adapter"
        return inside if inside.is_dir() else Path(self.folder)

    @property
    def recipe(self) -> Path:
        """The recipe, if this is a run's folder."""
        return Path(self.folder) / "recipe.yaml"

    @property
    def base(self) -> str | None:
        """The model that peft's configuration names, if it names one.

        Raises:
            InputError: there is no such folder, or it is a file that can carry code.
        """
        if Path(self.folder).suffix == ".safetensors" and Path(self.folder).is_file():
            return None  # such files do not name their model
        if Path(self.folder).suffix in lora_files.PICKLES and Path(self.folder).is_file():
            raise InputError(
                f"expected a LoRA in safetensors, got {self.folder}, whose format can run code when it is read; "
                "convert it (--allow-pickle is for models only)"
            )
        if not Path(self.folder).is_dir():
            raise InputError(
                f"expected a run's folder or an adapter's, got {self.folder}, which is none; check the path (a weight "
                "after a colon is a number)"
            )
        try:
            base = json_files.read(self.weights / CONFIG_FILE).get("base_model_name_or_path")
        except (OSError, ValueError, AttributeError):
            return None
        return base if isinstance(base, str) else None


@dataclass(frozen=True)
class Request:
    """What is made: `count` clips of each prompt. The same request gives the same clips.

    The change of the model is `scale` times the weighted sum of those of the adapters. `steered`, which walks the same
    `sampler`, cannot be compared or stored, so `steering` says it in plain words.
    """

    opening: Opening
    prompts: tuple[str, ...]
    adapters: tuple[Adapter, ...]
    scale: float
    seed: int
    sampler: Sampler | Unmasking
    count: int = 1
    steered: Steered | None = None
    steering: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.scale <= 10:
            raise InputError(f"expected --scale from 0 (untuned) to 10, got {self.scale}; 1 is as tuned")
        for prompt in self.prompts:
            check_prompt(prompt)
        if not self.adapters and self.scale not in (0, 1):
            raise InputError(f"expected --adapter with --scale {self.scale:g}, got none; name a run or drop --scale")
        if self.seed < 0:
            raise InputError(f"expected --seed of 0 or more, got {self.seed}; choose another")
        if not 1 <= self.count <= MOST:
            raise InputError(f"expected --count from 1 to {MOST}, got {self.count}; 1 makes a clip of each prompt")
        if self.steered is not None:
            self.steered.check(self.count * len(self.prompts))

    def text(self) -> str:
        """The request as it is stored beside the clips."""
        said = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in ("steered", "opening")}
        said |= {"adapters": [asdict(adapter) for adapter in self.adapters], "sampler": asdict(self.sampler)}
        said |= self.opening.said()
        newer = {"count": 1, "steering": None}
        return json.dumps({k: v for k, v in said.items() if v != newer.get(k, ...)}, indent=2, sort_keys=True) + "\n"

    def clips(self, out: Path) -> Clips:
        """What is to be made in a folder; the first clip of a prompt has the noise that it has without others."""
        wanted = [
            Wanted(self._stem(place, copy), prompt, copy * len(self.prompts) + place)
            for place, prompt in enumerate(self.prompts)
            for copy in range(self.count)
        ]
        return Clips(out, wanted, self.sampler, Key(self.seed).fold("generate"), self.steered)

    def _stem(self, place: int, copy: int) -> str:
        stem = file_name(place, self.prompts[place])
        return f"{stem}-{copy + 1:0{max(2, len(str(self.count)))}d}" if self.count > 1 else stem

    @property
    def gamma(self) -> float:
        """The scale, which is 0 if the adapters add up to nothing because each has weight 0."""
        return self.scale if any(adapter.weight for adapter in self.adapters) else 0.0

    def generator(self) -> Generator:
        """The model with its adapters."""
        generator = self.opening.load()
        if self.adapters:
            generator.mix_adapters([(str(adapter.weights), adapter.weight) for adapter in self.adapters])
        return generator


def origin(model: str | None, adapters: Sequence[Adapter]) -> tuple[str, list[tuple[Adapter, dict[str, Any]]]]:
    """The model, `model` or else the adapters' common one, and the recipes of those adapters that are runs.

    Raises:
        InputError: nobody names a model, or the adapters name different ones.
    """
    bases = [(adapter, adapter.base) for adapter in adapters]
    # not their rewards, whose files need not be here
    runs = [(adapter, read_yaml(adapter.recipe)) for adapter in adapters if adapter.recipe.is_file()]
    found = model or common_model([(adapter, settings.get("model")) for adapter, settings in runs] or bases)
    if found is None:
        raise InputError("expected a model to generate with, got none; add --model, such as --model tiny-music")
    return found, runs


def fitting(opening: Opening, sampler: Sampler) -> Sampler | Unmasking:
    """The process of a model: that sampler, or, for a model of tokens, one that unmasks in as many steps."""
    return Unmasking(sampler.steps, sampler.guidance) if opening.of_tokens() else sampler


def common_model(named: Sequence[tuple[Adapter, str | None]]) -> str | None:
    """The model that the recipes of the adapters name, if any does.

    Raises:
        InputError: they name different ones.
    """
    known = [(adapter, model) for adapter, model in named if model is not None]
    for adapter, model in known:
        if model != known[0][1]:
            raise InputError(
                f"expected adapters of one model, got {known[0][0].folder} of {known[0][1]} and {adapter.folder} of "
                f"{model}; mix runs of the same model, or add --model if these names mean the same"
            )
    return known[0][1] if known else None


def first_sampler(known: Sequence[tuple[Adapter, Sampler]]) -> Sampler | None:
    """The sampler of the first adapter that has one; a warning where another has a different one."""
    for adapter, sampler in known:
        if sampler != known[0][1]:
            warnings.warn(
                f"the recipe of {adapter.folder} has other sampler settings than that of {known[0][0].folder}, "
                "which are used; set --steps and --guidance to choose",
                stacklevel=1,
            )
    return known[0][1] if known else None


def generate(request: Request, out: Path) -> None:
    """Write the clips, `prompts.csv` and, if they are steered, `scores.csv`; what the same request has made is kept.

    Raises:
        InputError: `out` holds something else.
        InterruptedRun: Ctrl-C or SIGTERM; what is written is whole.
    """
    _check(request, out)
    clips = request.clips(out)
    if request.steered is not None:
        print(budget(request.steered, clips.costs(), clips.missing(), len(clips.wanted)), flush=True)
    generator = request.generator()
    if clips.steered is not None:
        clips = replace(clips, steered=clips.steered.fitted(generator, 1))
    _claim(request, out)
    try:
        with reporter() as report, generator.scaled(request.gamma):
            _warn_if_unnoticed(request, generator, clips)
            said = clips.make(generator, report)
    except KeyboardInterrupt as stop:
        raise InterruptedRun(f"interrupted; run the same command again for what {out} lacks") from stop
    count = len(clips.wanted)
    print(f"{clips.counted()} {'is' if count == 1 else 'are'} in {out}.{f' {said}' if said else ''}")


def _check(request: Request, out: Path) -> None:
    """Whether the clips may be written to `out`; leftovers of another request, without clips, are removed."""
    if out.exists() and not out.is_dir():
        raise InputError(f"expected a folder to write to, got {out}, which is a file; choose another --out")
    links.refuse(out)
    marker = out / SETTINGS
    if not out.exists() or (marker.exists() and marker.read_text() == request.text()):
        return
    if any(entry.name != SETTINGS and not entry.name.startswith(".") for entry in out.iterdir()):
        if other := _difference(request, marker):
            raise InputError(
                f"expected the settings that {out} was made with, got another {other}; choose another "
                "--out, or the same settings"
            )
        raise InputError(f"expected an empty or new folder, got {out}, which holds other files; choose another --out")
    shutil.rmtree(out / BATCHES, ignore_errors=True)  # of another request, whose clips are gone


def _difference(request: Request, marker: Path) -> str:
    """The settings that differ from those that a folder was made with; none if they are not known."""
    try:
        before, now = _flat(json.loads(marker.read_text())), _flat(json.loads(request.text()))
    except (OSError, ValueError):
        return ""
    return ", ".join(sorted(name for name in {*before, *now} if before.get(name) != now.get(name)))


def _flat(value: object, name: str = "") -> dict[str, object]:
    """Settings by their last names."""
    if not isinstance(value, dict):
        return {name: value}
    return {key: found for each, member in value.items() for key, found in _flat(member, each).items()}


def _claim(request: Request, out: Path) -> None:
    """Take the folder, which `_check` allowed, for this request."""
    files.make_folder(out)
    files.write(out / SETTINGS, request.text().encode())


def _warn_if_unnoticed(request: Request, generator: Generator, clips: Clips) -> None:
    """Compare the first clip with the untuned model's, both without steering."""
    if request.gamma == 0:
        return
    with generator.reference():
        before = clips.plain(generator, 0)
    after = clips.plain(generator, 0)
    if not (isinstance(before, Rows) and isinstance(after, Rows)):
        return
    if sense := guard.unnoticed([before], [after]):
        one = called(kind_of(after), 1).partition(" ")[2]
        warnings.warn(
            f"THE ADAPTER CHANGES NOTHING {sense}: with {' '.join(map(str, request.adapters))} the first {one} differs "
            f"from the untuned one by less than {guard.SENSES[sense]}; try a larger --scale or tune longer",
            stacklevel=1,
        )
