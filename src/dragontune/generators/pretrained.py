"""Open a pretrained generator: the embedded one, a local diffusers folder, or a hub name. Only safetensors are read."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from dragontune.embedded import is_embedded, locate
from dragontune.errors import InputError
from dragontune.generators import adapters, sequences, stable_audio, tiny_music, token_music, wan
from dragontune.generators.adapters import Lora
from dragontune.generators.pipeline import Adapted, Codec, Precision

INDEX = "model_index.json"
HUB_FILES = [INDEX, "*/*.json", "*/*.safetensors", "*/*.model", "*/*.txt"]


@dataclass(frozen=True)
class Family:
    """How the pipelines of one class are opened."""

    open_generator: Callable[[str, str, torch.device, Precision], Adapted]
    open_codec: Callable[[str, torch.device], Codec]
    tokens: bool = False
    """Whether its latents are tokens, which are unmasked instead of denoised."""


FAMILIES = {
    "TinyMusicPipeline": Family(tiny_music.open_generator, tiny_music.open_codec),
    "StableAudioPipeline": Family(stable_audio.open_generator, stable_audio.open_codec),
    "WanPipeline": Family(wan.open_generator, wan.open_codec),
    "LettersPipeline": Family(sequences.open_generator, sequences.open_codec, tokens=True),
    "TokenMusicPipeline": Family(token_music.open_generator, token_music.open_codec, tokens=True),
}


def load(
    model: str, lora: Lora | None = None, device: str | torch.device = "auto", precision: Precision = "float32"
) -> Adapted:
    """The generator, frozen; with `lora`, a fresh adapter that changes nothing yet.

    Args:
        model: `tiny-music`, a folder with a `model_index.json`, or a hub name such as `owner/model`.
        lora: the adapter to train; None for none.
        device: where to put it; `auto` is a CUDA device if there is one.
        precision: in what the denoiser computes; `bf16` saves memory and time on GPUs.

    Raises:
        InputError: there is no such model, its files are torn, or its kind is not known.
    """
    folder = find(model)
    with _quiet(), _readable(folder):
        generator = _family(folder).open_generator(str(folder), model, pick(device), precision)
    if lora is not None:
        adapters.attach(generator.network, lora)
    return generator


def of_tokens(model: str) -> bool:
    """Whether the latents of a model are tokens. Its weights are not read."""
    return _family(find(model)).tokens


def load_codec(model: str, device: str | torch.device = "auto") -> Codec:
    """The model's autoencoder without the rest."""
    folder = find(model)
    with _quiet(), _readable(folder):
        return _family(folder).open_codec(str(folder), pick(device))


def find(model: str) -> Path:
    """The local folder of a model; one with a hub name is downloaded into the hub's cache."""
    if is_embedded(model) or Path(model).expanduser().exists():
        return locate(model)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", model):
        raise InputError(
            f"expected tiny-music, tiny-tokens, a model folder or a hub name (owner/model), got {model}; check it"
        )
    try:
        return Path(snapshot_download(model, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"expected a model folder or a hub name, got {model}, which is neither here nor to be had from the hub "
            f"({reason}); check the name, the connection and whether the model asks for a login"
        ) from error


def pick(device: str | torch.device) -> torch.device:
    """The device asked for; `auto` is CUDA where there is one, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def _family(folder: Path) -> Family:
    try:
        kind = json.loads((folder / INDEX).read_text())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"expected a diffusers folder with a {INDEX}, got {folder}; check the path") from error
    if kind not in FAMILIES:
        raise InputError(f"expected a model of {', '.join(FAMILIES)}, got {kind} in {folder}; choose another model")
    return FAMILIES[kind]


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Whatever is wrong with the files is the input's fault; loading leaves the global random stream alone."""
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"expected a complete model in {folder}, got a defect ({reason}); restore it") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Loading from a disk is too quick for progress bars."""
    shown = [library for library in (diffusers_logging, transformers_logging) if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()
