"""Open a pretrained generator: the embedded one, a local diffusers folder, or a hub name. Only safetensors are read."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from logging import CRITICAL
from pathlib import Path
from typing import get_args

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import logging as diffusers_logging
from torch import nn
from transformers.utils import logging as transformers_logging

from dragontune import json_files, tensor_files
from dragontune.embedded import is_embedded, locate, there
from dragontune.errors import InputError
from dragontune.generators import adapters, hub, sharding
from dragontune.generators.adapters import Lora
from dragontune.generators.checkpoint import Checkpoint, Plan, Precision, Size
from dragontune.generators.codec import Codec
from dragontune.generators.pipeline import Adapted

INDEX = "model_index.json"
HUB_FILES = [INDEX, "*/*.json", "*/*.safetensors", "*/*.model", "*/*.txt"]


@dataclass(frozen=True)
class Family:
    """How the pipelines of one class are opened."""

    pipeline: str
    """The class that a folder's `model_index.json` names."""
    open_generator: Callable[[Checkpoint], Adapted]
    open_codec: Callable[[Checkpoint], Codec]
    tokens: bool = False
    """Whether its latents are tokens, which are unmasked instead of denoised."""


FAMILIES = {
    "TinyMusicPipeline": "tiny_music",
    "StableAudioPipeline": "stable_audio",
    "StableAudio3Pipeline": "stable_audio_3",
    "AceStepPipeline": "ace_step",
    "LongCatAudioDiTPipeline": "longcat_audio",
    "WanPipeline": "wan",
    "StableDiffusionPipeline": "stable_diffusion",
    "StableDiffusionXLPipeline": "stable_diffusion_xl",
    "AudioLDM2Pipeline": "audioldm2",
    "MusicLDMPipeline": "musicldm",
    "StableDiffusion3Pipeline": "stable_diffusion_3",
    "FluxPipeline": "flux",
    "LTXPipeline": "ltx",
    "LettersPipeline": "sequences",
    "TokenMusicPipeline": "token_music",
}
"""The modules of `generators` by the pipelines they open; a module is imported when it is needed."""
OF_TOKENS = ("sequences", "token_music")
ADDED: dict[str, Family] = {}
"""Families that the user brought (`add`)."""


def add(family: Family) -> None:
    """Let models of another pipeline be opened from now on, or those of a known one in another way."""
    ADDED[family.pipeline] = family


def load(
    model: str,
    lora: Lora | None = None,
    device: str | torch.device = "auto",
    precision: Precision = "float32",
    size: Size | None = None,
    plan: Plan | None = None,
    allow_pickle: bool = False,
) -> Adapted:
    """The generator, frozen; with `lora`, a fresh adapter that changes nothing yet.

    Args:
        model: `tiny-music`, a folder with a `model_index.json`, or a hub name such as `owner/model`.
        lora: the adapter to train; None for none.
        device: where to put it; `auto` is a CUDA device if there is one.
        precision: `float32` or `bf16`, in which its networks compute; `bf16` saves memory and time on GPUs.
        size: how large what it makes is; by default as it was trained to.
        plan: how it saves memory; by default not at all.
        allow_pickle: also read weights in `.bin` files. Torch then loads tensors only, yet that format was made to
            carry code; a folder with safetensors needs none.

    Raises:
        InputError: there is no such model, its files are torn, or its kind is not known.
    """
    if precision not in get_args(Precision):
        raise InputError(f"expected precision {' or '.join(get_args(Precision))}, got {precision}; choose one")
    folder = find(model, allow_pickle)
    checkpoint = Checkpoint(folder, model, pick(device), precision, size or Size(), plan or Plan(), allow_pickle)
    with _quiet(), _readable(folder, allow_pickle):
        generator = _family(folder).open_generator(checkpoint)
    if checkpoint.plan.checkpointing:
        checkpointed(generator.network)
    if lora is not None:
        adapters.attach(generator.network, lora)
    if checkpoint.plan.shared:
        sharding.shard(generator.network, checkpoint.device)
    if checkpoint.plan.compile:
        generator.network.compile(dynamic=False)
    return generator


def of_tokens(model: str) -> bool:
    """Whether the latents of a model are tokens. Its weights are not read."""
    return _family(find(model)).tokens


def load_codec(model: str, device: str | torch.device = "auto") -> Codec:
    """The model's autoencoder without the rest."""
    folder = find(model)
    with _quiet(), _readable(folder, allow_pickle=False):
        return _family(folder).open_codec(Checkpoint(folder, model, pick(device)))


def checkpointed(network: nn.Module) -> None:
    """Let the network compute its activations again on the way back.

    Raises:
        InputError: it is of a kind that cannot.
    """
    if not isinstance(network, ModelMixin) or not network._supports_gradient_checkpointing:
        raise InputError(
            f"expected a network that can compute activations again, got {type(network).__name__}; leave out "
            "plan.checkpointing and lower loop.micro_batch"
        )
    network.enable_gradient_checkpointing(partial(adapters.computed_again, network))


def find(model: str, allow_pickle: bool = False) -> Path:
    """The local folder of a model; one with a hub name is downloaded into the hub's cache."""
    if is_embedded(model) or there(Path(model).expanduser()):
        return locate(model)
    if not hub.named(model):
        raise InputError(
            f"expected tiny-music, tiny-tokens, a model folder or a hub name (owner/model), got {model}; check it"
        )
    return hub.download(model, HUB_FILES + ["*/*.bin"] * allow_pickle, "a model folder")


def pick(device: str | torch.device) -> torch.device:
    """The device asked for; `auto` is CUDA where there is one, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def _family(folder: Path) -> Family:
    if not (folder / INDEX).is_file():
        raise InputError(f"expected a diffusers folder with a {INDEX}, got {folder}; check the path")
    try:
        kind = str(json_files.read(folder / INDEX)["_class_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"expected a readable {INDEX} that names a pipeline, got {folder / INDEX}; restore it"
        ) from error
    if kind in ADDED:
        return ADDED[kind]
    if kind not in FAMILIES:
        raise InputError(
            f"expected a model of {', '.join([*FAMILIES, *ADDED])}, got {kind} in {folder}; choose another model, or "
            "add a family of your own (docs/extend.md)"
        )
    module = import_module(f"dragontune.generators.{FAMILIES[kind]}")
    return Family(kind, module.open_generator, module.open_codec, FAMILIES[kind] in OF_TOKENS)


@contextmanager
def _readable(folder: Path, allow_pickle: bool) -> Iterator[None]:
    """Whatever is wrong with the files is the input's fault; loading leaves the global random stream alone."""
    if not allow_pickle:
        _refuse_pickles(folder)
    try:
        tensor_files.check_folder(folder)
        json_files.check_folder(folder)
        with torch.random.fork_rng(devices=[]):
            yield
    except InputError:
        raise
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the libraries raise anything where files do not fit together
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"expected a complete model in {folder}, got a defect ({reason}); restore it") from error


def _refuse_pickles(folder: Path) -> None:
    """InputError if a part of a model has its weights in pickles only, which can run code when they are read."""
    for part in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        pickles = sorted(part.glob("*.bin")) + sorted(part.glob("*.ckpt")) + sorted(part.glob("*.pt"))
        if pickles and not any(part.glob("*.safetensors")):
            raise InputError(
                f"expected weights in safetensors, got {pickles[0]}, whose format can run code when it is read; "
                "convert it, or set allow_pickle if you trust where it is from"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Loading from a disk is too quick for progress bars, and what is wrong is said once, by us."""
    shown = [library for library in (diffusers_logging, transformers_logging) if library.is_progress_bar_enabled()]
    levels = [(library, library.get_verbosity()) for library in (diffusers_logging, transformers_logging)]
    for library in shown:
        library.disable_progress_bar()
    for library, _ in levels:
        library.set_verbosity(CRITICAL)
    try:
        yield
    finally:
        for library, level in levels:
            library.set_verbosity(level)
        for library in shown:
            library.enable_progress_bar()
