"""LoRA files as diffusers and the community write them, beside peft's own: one file, the layers' names behind a prefix.

Other trainers' layouts (kohya's and more) are converted by diffusers' own loaders, where the pipeline has one. Left
out: what such files hold for text encoders, which are not tuned here (a warning says so).
"""

import json
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from safetensors.torch import save_file
from torch import Tensor, nn

from dragontune import json_files, tensor_files
from dragontune.errors import InputError

FILE = "pytorch_lora_weights.safetensors"
METADATA = "lora_adapter_metadata"
"""Where diffusers keeps peft's configuration in a file's header."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
OTHER_PARTS = ("text_encoder", "lora_te")
ALPHA = re.compile(r"(\.lora_A|\.lora\.|\.lora_linear_layer|_lora\.).*$")
"""What follows the layer's name in what diffusers' converters call an alpha."""


@dataclass(frozen=True)
class Found:
    """Arguments of peft's configuration, and the weights by the names that peft gives them."""

    settings: dict[str, Any]
    weights: dict[str, Tensor]


def find(source: Path) -> Path | None:
    """The one file of that kind that `source` is or holds, if there is one.

    Raises:
        InputError: there are only pickles, which can run code when they are read.
    """
    if source.is_file():
        files = [source]
    elif (source / FILE).is_file():
        files = [source / FILE]
    else:
        files = sorted(entry for entry in source.glob("*") if entry.suffix in (".safetensors", *PICKLES))
    safe = [file for file in files if file.suffix == ".safetensors"]
    if files and not safe:
        raise InputError(
            f"expected a LoRA in safetensors, got {files[0]}, whose format can run code when it is read; convert it "
            "(allow_pickle is for models only)"
        )
    return safe[0] if len(safe) == 1 else None


def read(file: Path, kind: type[DiffusionPipeline], part: str, network: nn.Module) -> Found:
    """What a file holds for the `network`, which pipelines of a `kind` call `part` (`unet`, `transformer`).

    Raises:
        InputError: the file cannot be read, or is no LoRA that is understood.
    """
    try:
        weights, alphas, metadata = _converted(file, kind, part, network)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"expected a LoRA for this model, got {file} ({reason}); use another") from error
    others = [name for name in weights if name.startswith(OTHER_PARTS)]
    if others and len(others) < len(weights):
        warnings.warn(f"{file} also holds a LoRA of a text encoder, which is left out here", stacklevel=1)
    own = {name.removeprefix(f"{part}."): value for name, value in weights.items() if name not in others}
    own = {name.removeprefix("base_model.model."): value for name, value in own.items()}
    if not any("lora_A" in name for name in own):
        own = convert_unet_state_dict_to_peft(own)
    if not own or not all(".lora_" in name for name in own):
        raise InputError(f"expected a LoRA for this model, got {file} with {_first(own, weights)}; use another")
    said = {name[len(part) + 1 :]: value for name, value in (metadata or {}).items() if name.startswith(f"{part}.")}
    if said:
        return Found(said, own)
    scales = {name.removeprefix(f"{part}."): float(value) for name, value in (alphas or {}).items()}
    return Found(_settings(file, own, {n: value for n, value in scales.items() if not n.startswith(OTHER_PARTS)}), own)


def _settings(file: Path, weights: Mapping[str, Tensor], alphas: Mapping[str, float]) -> dict[str, Any]:
    """Of peft's configuration, from the shapes of weights and the alphas of layers, which are their ranks if not said.

    Layers are named by expressions that match them alone: peft takes plain names for endings.

    Raises:
        InputError: an alpha is of no layer that has weights.
    """
    ranks = {name.partition(".lora_A.")[0]: len(value) for name, value in weights.items() if ".lora_A." in name}
    if not ranks:
        raise InputError(f"expected a LoRA for this model, got {file} without down-projections; use another")
    scales: dict[str, float] = {name: float(rank) for name, rank in ranks.items()}
    for name, alpha in alphas.items():
        layer = ALPHA.sub("", name.removesuffix(".alpha")).replace(".processor.", ".")
        found = next((each for each in (layer, f"{layer}.0") if each in ranks), None)
        if found is None:
            raise InputError(f"expected a LoRA whose alphas go with its layers, got {file} with {name}; use another")
        scales[found] = alpha
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, scales))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": "|".join(re.escape(name) for name in sorted(ranks)),
        "rank_pattern": {f"^{re.escape(name)}": value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {f"^{re.escape(name)}": value for name, value in scales.items() if value != alpha},
        "use_dora": any("lora_magnitude_vector" in name for name in weights),
        "lora_bias": any(".lora_B.bias" in name for name in weights),
    }


def write(config: Mapping[str, Any], weights: Mapping[str, Tensor], folder: Path, part: str) -> None:
    """So that `load_lora_weights(folder)` of a plain pipeline restores it; the same adapter gives the same bytes."""
    settings = {f"{part}.{name}": value for name, value in config.items()}
    metadata = {METADATA: json.dumps(settings, default=sorted, indent=2, sort_keys=True), "format": "pt"}
    save_file({f"{part}.{name}": value for name, value in weights.items()}, folder / FILE, metadata=metadata)


def loads_lora(kind: type[DiffusionPipeline]) -> bool:
    """Whether pipelines of a kind read such files themselves."""
    return callable(getattr(kind, "load_lora_weights", None))


def _converted(
    file: Path, kind: type[DiffusionPipeline], part: str, network: nn.Module
) -> tuple[dict[str, Tensor], dict[str, Any] | None, dict[str, Any] | None]:
    """Weights, alphas and peft's configuration, by diffusers' loader where the pipeline has one."""
    found = tensor_files.read(file)
    tensor_files.check_finite(found.tensors)
    settings = json_files.loads(found.metadata.get(METADATA, "{}"))
    if not isinstance(settings, dict):
        raise ValueError("settings that are none in its header")
    convert = getattr(kind, "lora_state_dict", None)
    if convert is None:
        return dict(found.tensors), None, settings or None
    extra: dict[str, Any] = {"return_alphas": True} if "return_alphas" in signature(convert).parameters else {}
    extra |= {"unet_config": network.config} if part == "unet" else {}
    weights, *alphas, metadata = convert(
        str(file.parent), weight_name=file.name, use_safetensors=True, return_lora_metadata=True, **extra
    )
    return weights, alphas[0] if alphas else None, metadata


def _first(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    odd = [name for name in own if ".lora_" not in name] or list(weights)
    return f"{odd[0]} in it" if odd else "nothing in it"
