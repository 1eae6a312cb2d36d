"""LoRA (Hu et al. 2021) on the linear layers of any network, through peft. This is the only file that knows peft.

The adapter lives in the network: `attach` puts it there, and the other functions find it there. A network without one
is its own reference and has nothing to train. Left out: mixtures of anything but plain LoRA on linear layers.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, TypeVar

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.helpers import rescale_adapter_scale
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dragontune import tensor_files
from dragontune.errors import InputError
from dragontune.generators import adapter_settings, lora_files
from dragontune.generators.adapter_settings import LARGEST_RANK

T = TypeVar("T")
ADAPTER = "default"
PREFIX = "base_model.model."  # what a PeftModel puts before the names of the network it wraps
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"

PLAIN = (
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "target_modules"),
    *("exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout", "fan_in_fan_out", "megatron_core"),
    *("init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config"),
    "qalora_group_size",
)
"""The fields of peft's configuration that leave the change of a layer a scaled product of two matrices."""

PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""The ways to draw the first weights of a LoRA that leave the base model's weights alone."""


@dataclass(frozen=True)
class Lora:
    """The change of a linear layer is `alpha / rank` times an up- and a down-projection; it starts at zero.

    `targets` names layers by their last path components, as peft does.

    >>> Lora(rank=8, targets=("to_q", "to_v")).alpha
    16.0
    """

    rank: int = 16
    alpha: float = 16.0
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= LARGEST_RANK:
            raise InputError(f"expected a LoRA rank from 1 to {LARGEST_RANK}, got {self.rank}; set lora.rank")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise InputError(f"expected a positive LoRA alpha, got {self.alpha}; set lora.alpha")


def attach(network: nn.Module, lora: Lora) -> None:
    """Freeze `network` and add a fresh adapter, the same for the same seed; global random state is left alone.

    Raises:
        InputError: a target is not a linear layer of the network.
    """
    if attached(network):
        raise ValueError("the network has an adapter already")
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    targets = linear if lora.targets == "all-linear" else list(lora.targets)
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            last = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise InputError(f"expected LoRA targets among the linear layers ({last}), got {target}; set lora.targets")
    # peft's type asks for an integer alpha, its arithmetic does not
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets)  # pyright: ignore[reportArgumentType]
    _inject(network, config, lora.seed)


def attached(network: nn.Module) -> bool:
    """Whether the network has an adapter."""
    return any(_layers(network))


def parameters(network: nn.Module) -> Iterator[nn.Parameter]:
    """The adapter's weights, in the network's order; none without an adapter."""
    for layer in _layers(network):
        for name in layer.adapter_layer_names:
            yield from getattr(layer, name).parameters()


@contextmanager
def disabled(network: nn.Module) -> Iterator[None]:
    """Within it the network computes what it would without the adapter, bit for bit. May be nested."""
    layers = [layer for layer in _layers(network) if not layer.disable_adapters]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def computed_again(network: nn.Module, work: Callable[..., T], *inputs: object) -> T:
    """What `work`, a part of the network, makes of its inputs; its activations are computed again on the way back.

    They are with the adapter off if it is off now, though by then it is on again.
    """
    off = any(layer.disable_adapters for layer in _layers(network))

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), disabled(network) if off else nullcontext()

    made: T = checkpoint(work, *inputs, use_reentrant=False, context_fn=contexts)  # pyright: ignore[reportAssignmentType]
    return made


@contextmanager
def scaled(network: nn.Module, gamma: float) -> Iterator[None]:
    """Within it the adapter's change is multiplied by `gamma`; 0 is exactly `disabled`."""
    with ExitStack() as stack:
        if gamma == 0:
            stack.enter_context(disabled(network))
        elif attached(network):
            stack.enter_context(rescale_adapter_scale(network, gamma))
        yield


@dataclass(frozen=True)
class Home:
    """The pipeline that a network is a part of, for LoRA files in the format of diffusers."""

    pipeline: type[DiffusionPipeline]
    part: str
    """What the pipeline calls the network: `unet` or `transformer`."""


def save(network: nn.Module, folder: str | Path, base: str, home: Home | None = None) -> None:
    """Write the adapter so that `PeftModel.from_pretrained(network, folder)` restores it; `base` names the model.

    If the network is at `home` in a pipeline that can read LoRA files, its `load_lora_weights(folder)` does, too. The
    same adapter gives the same bytes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = _config(network).to_dict() | {"base_model_name_or_path": base, "inference_mode": True}
    (folder / CONFIG_FILE).write_text(json.dumps(config, default=sorted, indent=2, sort_keys=True) + "\n")
    weights = {name: value.contiguous().cpu() for name, value in _weights(network).items()}
    save_file({f"{PREFIX}{name}": value for name, value in weights.items()}, folder / WEIGHTS_FILE, {"format": "pt"})
    if home is not None and lora_files.loads_lora(home.pipeline):
        lora_files.write(config, weights, folder, home.part)


def load(network: nn.Module, source: str | Path, home: Home | None = None) -> None:
    """Give the network the adapter in `source`, in place where it fits the present one, else instead of it.

    It is a folder in peft's format, or, for a network at `home` in a pipeline, a file or a folder with a file in the
    format of diffusers or of another trainer that diffusers can convert.

    Raises:
        InputError: there is no readable LoRA, or one of another network.
    """
    _put(network, *_read(network, Path(source), home), source)


def mix(network: nn.Module, adapters: Sequence[tuple[str | Path, float]], home: Home | None = None) -> None:
    """Give the network the change sum_j gamma_j s_j B_j A_j, of pairs (folder_j, gamma_j), instead of the present one.

    LoRA mixing as in DRaFT (Clark et al. 2024): the products are added, not the factors. The sum is one LoRA of scale 1
    whose A holds the A_j one above the other and whose B holds the gamma_j s_j B_j side by side; a layer's rank is the
    sum over the adapters that have it. One adapter with weight 1 is loaded as it is. A folder may be named twice.

    Raises:
        InputError: no adapter, a weight that is not finite, or an adapter that is no plain LoRA on linear layers of
            this network.
    """
    if not adapters:
        raise InputError("expected at least one adapter to mix, got none; name one")
    for folder, gamma in adapters:
        _check_finite(gamma, f"of {folder} in a mixture")
    if [gamma for _, gamma in adapters] == [1]:
        load(network, adapters[0][0], home)
        return
    down: dict[str, list[Tensor]] = {}
    up: dict[str, list[Tensor]] = {}
    try:
        for folder, gamma in adapters:
            for name, a, b in _factors(network, Path(folder), home):
                down.setdefault(name, []).append(a)
                up.setdefault(name, []).append(gamma * b)
    except InputError:
        detach(network)
        raise
    weights = {f"{name}.lora_A.weight": torch.cat(parts) for name, parts in down.items()}
    weights |= {f"{name}.lora_B.weight": torch.cat(parts, 1) for name, parts in up.items()}
    _put(network, _mixture({name: sum(map(len, parts)) for name, parts in down.items()}), weights, "a mixture")


def rescale(network: nn.Module, gamma: float) -> None:
    """Multiply the adapter's change by `gamma` for good, in place: the up-projections become `gamma` times themselves.

    Raises:
        InputError: `gamma` is not finite.
    """
    _check_finite(gamma, "of an adapter")
    with torch.no_grad():
        for layer in _layers(network):
            for weight in (*layer.lora_B.parameters(), *layer.lora_embedding_B.parameters()):
                weight.mul_(gamma)


def detach(network: nn.Module) -> None:
    """Take the adapter out; the network is what it was before, and frozen."""
    for name, layer in [(name, module) for name, module in network.named_modules() if isinstance(module, LoraLayer)]:
        network.set_submodule(name, layer.get_base_layer())
        network.__dict__.pop("peft_config", None)


def _layers(network: nn.Module) -> Iterator[LoraLayer]:
    return (module for module in network.modules() if isinstance(module, LoraLayer))


def _config(network: nn.Module) -> LoraConfig:
    return network.__dict__["peft_config"][ADAPTER]


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return get_peft_model_state_dict(network, adapter_name=ADAPTER, save_embedding_layers=False)


def _key(config: LoraConfig) -> str:
    """What decides the adapter's shape and scale."""
    names = ("r", "lora_alpha", "target_modules", "use_rslora", "rank_pattern", "alpha_pattern", "use_dora", "bias")
    names += ("exclude_modules", "layers_to_transform", "layers_pattern", "lora_bias")
    return json.dumps({name: getattr(config, name) for name in names}, default=sorted, sort_keys=True)


def _read(network: nn.Module, folder: Path, home: Home | None) -> tuple[LoraConfig, dict[str, Tensor]]:
    if not (folder / CONFIG_FILE).is_file() and (folder / "adapter" / CONFIG_FILE).is_file():
        folder = folder / "adapter"  # of a run
    if home is not None and not (folder / CONFIG_FILE).is_file() and (file := lora_files.find(folder)):
        found = lora_files.read(file, home.pipeline, home.part, network)
        try:
            adapter_settings.check(found.settings)
            return LoraConfig(**found.settings), found.weights
        except (TypeError, ValueError) as error:
            raise InputError(f"expected a LoRA, got {file} with settings of something else ({error})") from error
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise InputError(f"expected an adapter in peft's format, got {folder} without {name}; check the folder")
    try:
        adapter_settings.read(folder / CONFIG_FILE)
        config = LoraConfig.from_pretrained(str(folder))
        weights = dict(tensor_files.read(folder / WEIGHTS_FILE).tensors)
        tensor_files.check_finite(weights)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise InputError(f"expected a readable adapter, got {folder} ({error}); restore the folder") from error
    if not isinstance(config, LoraConfig):
        raise InputError(f"expected a LoRA adapter, got {folder} of another kind; only LoRA is supported")
    return config, {name.removeprefix(PREFIX): value for name, value in weights.items()}


def _put(network: nn.Module, config: LoraConfig, weights: dict[str, Tensor], source: str | Path) -> None:
    """What `load` does with what it has read from `source`."""
    config.inference_mode = False
    config.lora_dropout = 0.0  # noise belongs to items here, and what is computed twice must be the same
    config.init_lora_weights = True  # other starts may touch the base weights; what is loaded replaces any start
    if not (attached(network) and _key(_config(network)) == _key(config)):
        detach(network)
        try:
            _inject(network, config, seed=0)
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
            detach(network)
            layers = sorted(name for name in config.target_modules or () if len(name) > 1)
            raise InputError(
                f"expected an adapter for this model, got {source} for one with other layers"
                f"{f' ({layers[0]})' if layers else ''}; use the model that the adapter was trained on"
            ) from error
    expected = {name: value.shape for name, value in _weights(network).items()}
    got = {name: value.shape for name, value in weights.items()}
    if expected != got:
        odd = sorted(set(expected.items()) ^ set(got.items()))[0]
        raise InputError(
            f"expected an adapter for this model, got {source}, which differs in {odd[0]} {tuple(odd[1])}; "
            "use the model that the adapter was trained on"
        )
    set_peft_model_state_dict(network, weights, ADAPTER)


def _factors(network: nn.Module, folder: Path, home: Home | None) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Layer, A (rank, inputs) and s B (outputs, rank) of the adapter in `folder`, which is loaded on the way."""
    config, weights = _read(network, folder, home)
    usual = LoraConfig()
    odd = {f.name for f in fields(config) if getattr(config, f.name) != getattr(usual, f.name)} - set(PLAIN)
    odd |= {"init_lora_weights"} if config.init_lora_weights not in PLAIN_STARTS else set()
    if odd:
        said = ", ".join(f"{name} = {getattr(config, name)}" for name in sorted(odd))
        raise InputError(f"expected a plain LoRA to mix, got {folder} with {said}; use it alone, with weight 1")
    _put(network, config, weights, folder)
    for name, layer in network.named_modules():
        if isinstance(layer, LoraLayer):
            if not isinstance(layer.get_base_layer(), nn.Linear):
                kind = type(layer.get_base_layer()).__name__
                raise InputError(
                    f"expected LoRA on linear layers to mix, got {folder} with one on {name}, a {kind}; "
                    "use it alone, with weight 1"
                )
            a, b = (getattr(layer, part)[ADAPTER].weight.detach() for part in ("lora_A", "lora_B"))
            yield name, a.clone(), layer.scaling[ADAPTER] * b


def _mixture(ranks: dict[str, int]) -> LoraConfig:
    """A LoRA of scale 1 on exactly these layers with these ranks; peft takes names for regular expressions."""
    names = {name: re.escape(name) for name in sorted(ranks)}
    most = max(ranks.values())
    pattern = {f"^{names[name]}": ranks[name] for name in names if ranks[name] != most}
    targets = "|".join(names.values())
    return LoraConfig(r=most, lora_alpha=most, target_modules=targets, rank_pattern=pattern, alpha_pattern=pattern)


def _check_finite(gamma: float, what: str) -> None:
    if not math.isfinite(gamma):
        raise InputError(f"expected a finite weight {what}, got {gamma}; 1 is as tuned")


def _inject(network: nn.Module, config: LoraConfig, seed: int) -> None:
    """Let peft draw the down-projections from the CPU's global random stream, and put that back as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        inject_adapter_in_model(config, network, ADAPTER)
    for layer in _layers(network):
        if next(layer.get_base_layer().parameters()).dtype == torch.bfloat16:
            for name in layer.adapter_layer_names:
                getattr(layer, name).to(torch.float32)  # in bfloat16 the steps of Adam would be lost
            layer.cast_input_dtype_enabled = False  # autocast does that, without a copy in single precision
