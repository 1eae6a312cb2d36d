"""Encoders made of a published checkpoint: a local folder or a hub name.

Only safetensors and JSON are read, unless a file is named. Left out: remote code, quantised weights, and networks in
half precision (weights are read as float32).
"""

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import cached_property
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from dragontune import json_files, tensor_files
from dragontune.embedded import there
from dragontune.encoders.base import Encoder
from dragontune.encoders.fingerprint import fingerprint
from dragontune.errors import InputError
from dragontune.generators import hub

HUB_FILES = ("*.json", "*.txt", "*.model")
HUB_WEIGHTS = ("model.safetensors", "model-*.safetensors")
WORDS = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
ADDED = "added_tokens.json"
WAYS = ("tokenizer_config.json", "special_tokens_map.json")
"""How texts are cut, framed and filled up; none of it is needed."""
PLACES = ("model", "processor", "weights")
"""Fields that say where files are: what is in them counts, not these."""
VOLATILE = ("transformers_version", "architectures", "dtype", "torch_dtype", "auto_map", "tokenizer_class")
VOLATILE_WAYS = ("name_or_path", "special_tokens_map_file", "tokenizer_file", "processor_class", "backend", "is_local")
NO_WEIGHTS = ("masked_spec_embed", "position_ids", "token_type_ids", "relative_position_index", "num_batches_tracked")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


class CheckpointEncoder(Encoder):
    """An encoder whose network is that of the checkpoint `model`, loaded frozen when it is first used."""

    model: str
    weights: str | None
    """A file of the checkpoint to take the weights from; None: its safetensors. A pickle is read only if it is named
    here, and of it only tensors and plain values."""

    @abstractmethod
    def open(self) -> Any:  # noqa: ANN401 - of a class that is imported when it is needed
        """Load the network, frozen."""

    @cached_property
    def network(self) -> Any:  # noqa: ANN401
        """What `open` gave when the network was first used."""
        return self.open()

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The last part of the checkpoint's name."""
        return self.model.rstrip("/").rpartition("/")[2]

    @cached_property
    def folder(self) -> Path:
        """Where the checkpoint is."""
        return find(self.model, self.weights)

    @property
    def digest(self) -> str:
        """Of the weights, the checkpoint's settings and words, and the fields that are not names of files."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in PLACES}  # pyright: ignore
        return fingerprint(self.network, {"encoder": type(self).__name__, **own, **self.settings})

    @property
    def settings(self) -> dict[str, object]:
        """What the files of the checkpoint say, apart from weights."""
        return contents(self.folder)


def find(model: str, weights: str | None = None) -> Path:
    """The local folder of a checkpoint; one with a hub name is downloaded into the hub's cache.

    Raises:
        InputError: it is neither here nor on the hub, or there is no connection.
    """
    local = Path(model).expanduser()
    if there(local) and local.is_dir():
        return local
    if there(local) or not hub.named(model):
        raise InputError(f"expected the folder of a checkpoint or a hub name (owner/model), got {model}; check it")
    return hub.download(model, [*HUB_FILES, *([weights] if weights else HUB_WEIGHTS)], "the folder of a checkpoint")


def load(folder: Path, kind: str, weights: str | None = None, kinds: tuple[str, ...] = ()) -> Any:  # noqa: ANN401
    """The network of class `kind` of transformers, in float32, frozen; its `model_type` must be one of `kinds`.

    Raises:
        InputError: files are missing or torn, of another kind of model, or pickles only.
    """
    settings_of(folder, kinds)
    with readable(folder), quiet():
        maker = getattr(import_module("transformers"), kind)
        if weights is not None:
            config = maker.config_class.from_pretrained(str(folder), local_files_only=True)
            return made(maker, config, read_weights(folder, weights))
        _refuse_pickles(folder)
        network, said = maker.from_pretrained(
            str(folder), use_safetensors=True, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
        _complete(said)
    return network.requires_grad_(False).eval()


def settings_of(folder: Path, kinds: tuple[str, ...]) -> dict[str, Any]:
    """The `config.json` of a checkpoint; InputError where its `model_type` is none of `kinds`."""
    said = read_json(folder, "config.json")
    if said.get("model_type") not in kinds:
        got = said.get("model_type", "none")
        raise InputError(f"expected a checkpoint of {' or '.join(kinds)}, got one of {got} in {folder}; choose another")
    return said


def made(maker: Any, config: Any, state: Mapping[str, Tensor]) -> Any:  # noqa: ANN401
    """A network of transformers with these weights, frozen; ValueError where some are missing."""
    network, said = maker.from_pretrained(
        None, config=config, state_dict=dict(state), dtype=torch.float32, output_loading_info=True
    )
    _complete(said)
    return network.requires_grad_(False).eval()


def read_weights(folder: Path, name: str | None) -> dict[str, Any]:
    """The tensors of a file: safetensors (`model.safetensors` if None), or a pickle whose name is given.

    Raises:
        InputError: the file is missing or torn, or a pickle holds more than tensors and plain values.
    """
    if name is None:
        _refuse_pickles(folder)
    path = folder / (name or "model.safetensors")
    try:
        if path.suffix in PICKLES:
            return torch.load(path, map_location="cpu", weights_only=True)
        return dict(tensor_files.read(path).tensors)
    except (OSError, SafetensorError, UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"expected the weights of a network in {path} ({reason}); restore the file") from error


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of a checkpoint; InputError where it is not there or torn."""
    try:
        found = json_files.read(folder / name)
    except (OSError, ValueError) as error:
        raise InputError(f"expected {name} in the checkpoint {folder} ({error}); restore the file") from error
    if not isinstance(found, dict):
        raise InputError(f"expected a JSON object in {folder / name}, got another value; restore the file")
    return found


def preparation(folder: Path, part: str) -> dict[str, Any]:
    """How media are prepared: `preprocessor_config.json`, or the `part` of a newer `processor_config.json`."""
    if not (folder / "preprocessor_config.json").exists() and (folder / "processor_config.json").exists():
        found = read_json(folder, "processor_config.json").get(part)
        if isinstance(found, dict):
            return found
    return read_json(folder, "preprocessor_config.json")


def tokenizer(folder: Path) -> Any:  # noqa: ANN401 - of any class
    """Text to numbers, as the checkpoint says.

    Raises:
        InputError: its files are missing or torn, or it needs a package that is not there.
    """
    if not any((folder / name).exists() for name in WORDS):
        raise InputError(f"expected a tokenizer ({', '.join(WORDS)}) in {folder}, got none; restore its files")
    with readable(folder), quiet():
        try:
            return import_module("transformers").AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except ImportError as error:
            needed = "sentencepiece" if "sentencepiece" in str(error).lower() else "tokenizers"
            raise InputError(
                f"expected the package {needed} for the tokenizer of {folder}, got none; run `pip install {needed}`"
            ) from error


def contents(folder: Path) -> dict[str, object]:
    """Settings and tokenizer of a checkpoint, in a form that can be hashed; what changes nothing is left out."""
    found: dict[str, object] = {}
    for name in ("config.json", "preprocessor_config.json", "processor_config.json"):
        if (folder / name).exists():
            found[name] = _lasting(read_json(folder, name))
    for name in WAYS:
        if (folder / name).exists():
            said = read_json(folder, name)
            found[name] = _lasting({key: value for key, value in said.items() if key not in VOLATILE_WAYS})
    for name in (*WORDS, ADDED):
        if (folder / name).exists():
            found[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    return found


def follow(network: nn.Module, media: Tensor) -> Tensor:
    """The media in float32, with the network moved to their device."""
    nn.Module.to(network, media.device)
    return media.float()


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Whatever is wrong with the files is the input's fault; loading leaves the global random stream alone."""
    try:
        tensor_files.check_folder(folder)
        json_files.check_folder(folder)
        with torch.random.fork_rng(devices=[]):
            yield
    except InputError:
        raise
    except (torch.OutOfMemoryError, ImportError):
        raise
    except Exception as error:  # the libraries raise anything where files do not fit together
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"expected a complete checkpoint in {folder}, got a defect ({reason}); restore it") from error


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no reports: what matters of them is an error here."""
    logging = import_module("transformers.utils.logging")
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _complete(said: Any) -> None:  # noqa: ANN401 - transformers' report
    """Nothing may be left as it was drawn; what masks inputs in pretraining is never used, what counts is no weight."""
    missing = [name for name in said["missing_keys"] if not name.endswith(NO_WEIGHTS)]
    if missing or said["mismatched_keys"]:
        first = sorted(missing)[0] if missing else str(next(iter(said["mismatched_keys"])))
        raise ValueError(f"{len(missing) + len(said['mismatched_keys'])} weights are missing or misshapen, as {first}")


def _refuse_pickles(folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    got = f"only {', '.join(pickles)}, a pickle" if pickles else "none"
    name = pickles[0] if pickles else "pytorch_model.bin, if it has only that pickle"
    remedy = f"restore them, or set weights: {name}; of a pickle that is named tensors and plain values are read"
    raise InputError(f"expected the weights of {folder} in safetensors, got {got}; {remedy}")


def _lasting(value: Any) -> Any:  # noqa: ANN401 - any JSON
    if isinstance(value, dict):
        return {
            key: _lasting(member) for key, member in value.items() if key not in VOLATILE and not key.startswith("_")
        }
    return [_lasting(member) for member in value] if isinstance(value, list) else value
