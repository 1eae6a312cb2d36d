"""A model in diffusers' format on this disk, and how to open it: on what, how precisely, how large, how thriftily."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from diffusers import pipelines
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import nn

from dragontune import json_files
from dragontune.errors import InputError
from dragontune.parallel import processes

P = TypeVar("P", bound=DiffusionPipeline)

Precision = Literal["float32", "bf16"]
"""In what networks multiply matrices. With `bf16` (bfloat16) the frozen weights are kept in it, too, which halves them;
it has the range of single precision, so losses need no scaling. The adapter, the autoencoder and all that passes
between the parts stay in single precision."""

SPARED = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts that text to media can do without."""
SETTINGS = {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"}
"""Files of a tokenizer that hold no vocabulary."""
AUTOENCODER = ("vae", "vocoder")
"""Parts of pipelines between latents and media, which stay in single precision."""


MOST = {
    "seconds": (False, 3600),
    "height": (True, 8192),
    "width": (True, 8192),
    "frames": (True, 10_000),
    "fps": (False, 1000),
}
"""Whether a size is a whole number, and the largest that is no slip."""


@dataclass(frozen=True)
class Size:
    """How large what is made is; where nothing is said, as large as the model was trained to make it.

    Audio has `seconds`, images `height` and `width` in pixels, videos also `frames` and `fps`.

    >>> Size(seconds=20.0)
    """

    seconds: float | None = None
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    fps: float | None = None

    def __post_init__(self) -> None:
        for name, value in self.given().items():
            whole, most = MOST[name]
            if not 0 < value <= most or (whole and value != int(value)):
                kind = f"a whole number from 1 to {most}" if whole else f"a number above 0 and up to {most}"
                raise InputError(f"expected size.{name} to be {kind}, got {value}; leave it out for the model's own")

    def given(self) -> dict[str, float]:
        """What is said, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def check(self, medium: str, *allowed: str) -> None:
        """InputError if something is said that a model of this medium does not have."""
        for name in self.given():
            if name not in allowed:
                raise InputError(
                    f"expected {'only ' + ', '.join(allowed) if allowed else 'nothing'} in size for a model of "
                    f"{medium}, got {name}; leave it out"
                )


@dataclass(frozen=True)
class Plan:
    """What a model does to fit on its device, at a cost of time; none of it changes what is computed, up to rounding.

    `checkpointing` computes the network's activations again on the way back instead of keeping them. `offload` keeps
    the text encoders in main memory, but for the moment in which a prompt is seen for the first time; each is encoded
    once. `tiling` decodes item by item and long or large ones in overlapping tiles, whose seams are blended: this alone
    changes results a little. `compile` runs the network through `torch.compile`: quicker after a slow first call.
    `shard` lets the processes of a run share the network's frozen weights (`sharding.py`); one process has them all.
    """

    checkpointing: bool = False
    offload: bool = False
    tiling: bool = False
    compile: bool = False
    shard: bool = False

    @property
    def shared(self) -> bool:
        """Whether there are processes to share the network's weights."""
        return self.shard and processes() > 1


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a `model_index.json`, what the user calls it, and how to open it."""

    folder: Path
    name: str
    device: torch.device
    precision: Precision = "float32"
    size: Size = Size()
    plan: Plan = Plan()
    allow_pickle: bool = False

    def read(self, file: str) -> dict[str, Any]:
        """The content of one of its JSON files, such as `scheduler/scheduler_config.json`.

        Raises:
            InputError: it is not there or is no JSON object.
        """
        try:
            content = json_files.read(self.folder / file)
        except (OSError, ValueError) as error:
            raise InputError(f"expected {file} in {self.folder} ({error}); restore the folder") from error
        if not isinstance(content, dict):
            raise InputError(f"expected an object in {self.folder / file}, got a {type(content).__name__}; restore it")
        return content

    def seconds(self, longest: float, usual: float | None = None) -> float:
        """How long clips are to be: as asked, else `usual`, else `longest`.

        Raises:
            InputError: longer than the model can.
        """
        self.size.check("audio", "seconds")
        asked = self.size.seconds or usual or longest
        if asked > longest + 1e-6:
            raise InputError(f"expected size.seconds of at most {longest:.6g} for {self.name}, got {asked}; lower it")
        return asked

    def dtype(self, part: str) -> torch.dtype:
        """In what the weights of a part are kept."""
        return torch.bfloat16 if self.precision == "bf16" and part not in AUTOENCODER else torch.float32

    def open(self, kind: type[P], **parts: object) -> P:
        """The pipeline, its networks frozen and on the device (text encoders not, if they are to be offloaded).

        `parts` replace those of the folder, or, where they are None, leave them out. Our samplers stand in for its
        scheduler, which is left out.
        """
        self._check_parts(parts)
        network = frozenset({"transformer", "unet"})
        dtypes = {"default": self.dtype("transformer")} | {part: self.dtype(part) for part in AUTOENCODER}
        if "scheduler" in self.read("model_index.json"):
            parts = {"scheduler": None, **parts}
        safe = None if self.allow_pickle else True
        pipeline = kind.from_pretrained(str(self.folder), dtype=dtypes, use_safetensors=safe, **parts)
        for name, part in pipeline.components.items():
            if isinstance(part, nn.Module):
                away = self.plan.shared if name in network else self.plan.offload and name not in AUTOENCODER
                frozen(part, torch.device("cpu") if away else self.device)
        return pipeline

    def _check_parts(self, others: Mapping[str, object]) -> None:
        """InputError if a part that the index names is not there: some libraries would make do without it.

        Nor may the index name a library that nobody has imported yet: that would run its code.
        """
        for name, kind in self.read("model_index.json").items():
            if isinstance(kind, list) and kind and not _known(kind[0]):
                raise InputError(
                    f"expected parts of diffusers and transformers in {self.folder}, got {name} of {kind[0]}; if you "
                    "trust it, open it by a family of your own that imports this (docs/extend.md)"
                )
            wanted = isinstance(kind, list) and len(kind) == 2 and None not in kind and name not in others
            if not wanted or name in ("scheduler", *SPARED):
                continue
            files = {file.name for file in (self.folder / name).glob("*")}
            if not files - (SETTINGS if name.startswith("tokenizer") else set()):
                raise InputError(f"expected {name} in {self.folder}, which its index names, got none; restore it")


def _known(library: object) -> bool:
    """Whether a part's library is one of diffusers' own pipelines, or is loaded already."""
    return library is None or (
        isinstance(library, str) and (library.partition(".")[0] in sys.modules or hasattr(pipelines, library))
    )


N = TypeVar("N", bound=nn.Module)


def frozen(network: N, device: torch.device) -> N:
    """The network on `device`, in evaluation mode, its weights not to be trained."""
    nn.Module.to(network, device)
    return network.requires_grad_(False).eval()
