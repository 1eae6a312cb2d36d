"""Which model, and how it is opened: from a recipe, or from the options of a verb."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from dragontune.embedded import there
from dragontune.errors import InputError
from dragontune.generators import hub, pretrained
from dragontune.generators.adapters import Lora
from dragontune.generators.base import Generator
from dragontune.generators.checkpoint import Plan, Precision, Size
from dragontune.generators.pretrained import Family
from dragontune.rewards import source

ADAPTER_FILES = ["*.safetensors", "adapter_config.json"]
SIZES = {
    "seconds": "of audio",
    "height": "of images and videos, in pixels",
    "width": "of images and videos, in pixels",
    "frames": "of videos",
    "fps": "frames a second of videos",
}
PLANS = ("offload", "tiling", "compile")


@dataclass(frozen=True)
class Opening:
    """A model by its name, and how it is opened; the fields are those of `Recipe`."""

    model: str
    precision: Precision = "float32"
    size: Size = field(default_factory=Size)
    plan: Plan = field(default_factory=Plan)
    family: str | None = None
    allow_pickle: bool = False

    def load(self, lora: Lora | None = None, start: str | None = None) -> Generator:
        """The generator, with a fresh adapter, or one to go on from.

        Raises:
            InputError: the model, the adapter or the family is wrong.
        """
        self._add_family()
        generator = pretrained.load(
            self.model, lora, "auto", self.precision, self.size, self.plan, allow_pickle=self.allow_pickle
        )
        if start is not None:
            generator.load_adapter(str(_adapter(start)))
        return generator

    def of_tokens(self) -> bool:
        """Whether the model's latents are tokens."""
        self._add_family()
        return pretrained.of_tokens(self.model)

    def said(self) -> dict[str, Any]:
        """What differs from the defaults, to be stored with what was made."""
        usual = asdict(Opening(self.model))
        return {"model": self.model} | {name: value for name, value in asdict(self).items() if value != usual[name]}

    def _add_family(self) -> None:
        if self.family is None:
            return
        found = source.find(self.family)
        if not isinstance(found, Family):
            raise InputError(
                f"expected a Family by the name {self.family}, got a {type(found).__name__}; docs/extend.md shows one"
            )
        pretrained.add(found)


def add_options(options: argparse.ArgumentParser) -> None:
    """Those of the verbs that open a model without a recipe."""
    how = options.add_argument_group("how the model is opened (default: as the run says)")
    how.add_argument("--precision", choices=get_args(Precision), help="bf16 takes half the memory")
    for name, meaning in SIZES.items():
        whole = name in ("height", "width", "frames")
        how.add_argument(f"--{name}", type=int if whole else float, metavar="N" if whole else "X", help=meaning)
    how.add_argument("--offload", action="store_true", help="keep text encoders in main memory")
    how.add_argument("--tiling", action="store_true", help="decode in tiles, item by item")
    how.add_argument("--compile", action="store_true", help="compile the network first")
    how.add_argument("--family", metavar="FILE.py", help="opens a pipeline that dragontune does not know")
    how.add_argument("--allow-pickle", action="store_true", help="read weights in .bin files, too")


def from_options(given: argparse.Namespace, model: str, runs: Sequence[Mapping[str, Any]]) -> Opening:
    """What the options say, else the first of the recipes `runs` (as they stand in their files), else the default.

    A run that was handed on is data: what would run code, `family` and `allow_pickle`, is asked for by an option only.

    Raises:
        InputError: a recipe was edited into nonsense, or asks for code.
    """
    recipe = runs[0] if runs else {}
    size = _part(Size, recipe, "size") | {name: value for name in SIZES if (value := getattr(given, name)) is not None}
    plan = _part(Plan, recipe, "plan") | {name: True for name in PLANS if getattr(given, name)}
    family = given.family
    if family is None and recipe.get("family") is not None:
        raise InputError(
            f"expected --family, since the run's recipe names code ({recipe['family']}), got none; add --family "
            f"{str(recipe['family']).removesuffix(':FAMILY')} if you trust that file"
        )
    if recipe.get("allow_pickle") and not given.allow_pickle:
        raise InputError(
            "expected --allow-pickle, since the run's recipe asks for it, got none; add it if you trust it"
        )
    return Opening(
        model,
        given.precision or recipe.get("precision", "float32"),
        Size(**size),
        Plan(**plan),
        family if family is None or ":" in family else f"{family}:FAMILY",
        given.allow_pickle,
    )


def _part(kind: type[Size] | type[Plan], recipe: Mapping[str, Any], name: str) -> dict[str, Any]:
    known = {member.name for member in fields(kind)}
    values = recipe.get(name) or {}
    if not isinstance(values, dict) or not known.issuperset(values):
        raise InputError(f"expected {', '.join(sorted(known))} under {name} of a recipe, got {values}; correct it")
    return dict(values)


def _adapter(text: str) -> Path:
    """A local file or folder, or one from the hub."""
    path = Path(text).expanduser()
    if there(path):
        inside = path / "adapter"
        return inside if inside.is_dir() else path
    if not hub.named(text):
        raise InputError(f"expected a LoRA's file or folder, a run, or a hub name in start, got {text}; check the path")
    return hub.download(text, ADAPTER_FILES, "a LoRA's file or folder")
