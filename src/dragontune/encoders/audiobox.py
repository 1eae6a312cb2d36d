"""The network of Audiobox Aesthetics (Tjandra et al. 2025, arXiv 2502.05139): WavLM, one head for each of four axes.

The trunk is transformers' `WavLMModel`; the released checkpoint names its weights as WavLM's authors do, and they are
renamed here. Structure, names and windows follow the public code (github.com/facebookresearch/audiobox-aesthetics); the
released weights themselves were not at hand, so `load` refuses whatever it does not know. Licences: this code and
`WavLMModel` Apache-2.0; Meta's code and weights CC BY 4.0, the WavLM part of its code MIT: check the model card. Left
out: bfloat16, which the released code may compute in, checkpoints without a learnt sum of layers.
"""

import math
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from dragontune.encoders import checkpoint, waves
from dragontune.errors import InputError

AXES = ("CE", "CU", "PC", "PQ")
"""Content enjoyment, content usefulness, production complexity, production quality."""
RATE = 16000
SECONDS = 10
STRIDES = (5, 2, 2, 2, 2, 2, 2)
"""Of the trunk's convolutions: they leave no trace in the weights. The others do."""
NAMES = (
    (r"^feature_extractor\.conv_layers\.(\d+)\.0\.", r"feature_extractor.conv_layers.\1.conv."),
    (r"^feature_extractor\.conv_layers\.0\.2\.", "feature_extractor.conv_layers.0.layer_norm."),
    (r"^layer_norm\.", "feature_projection.layer_norm."),
    (r"^post_extract_proj\.", "feature_projection.projection."),
    (r"^mask_emb$", "masked_spec_embed"),
    (r"^encoder\.pos_conv\.0\.", "encoder.pos_conv_embed.conv."),
    (r"\.conv\.weight_g$", ".conv.parametrizations.weight.original0"),
    (r"\.conv\.weight_v$", ".conv.parametrizations.weight.original1"),
    (r"\.self_attn_layer_norm\.", ".layer_norm."),
    (r"\.self_attn\.grep_linear\.", ".attention.gru_rel_pos_linear."),
    (r"\.self_attn\.grep_a$", ".attention.gru_rel_pos_const"),
    (r"\.self_attn\.relative_attention_bias\.", ".attention.rel_attn_embed."),
    (r"\.self_attn\.", ".attention."),
    (r"\.fc1\.", ".feed_forward.intermediate_dense."),
    (r"\.fc2\.", ".feed_forward.output_dense."),
)
"""From the names of WavLM's authors to transformers'."""


class AudioboxNetwork(nn.Module):
    """The trunk, and for each axis weights of its layers, a head, and the mean and deviation of its ratings."""

    def __init__(self, state: Mapping[str, Tensor], settings: Mapping[str, Any], target: Mapping[str, Any]) -> None:
        super().__init__()
        trunk = {
            _renamed(name.partition(".")[2]): value for name, value in state.items() if name.startswith("wavlm_model.")
        }
        transformers = import_module("transformers")
        self.trunk = checkpoint.made(transformers.WavLMModel, transformers.WavLMConfig(**_shape(trunk)), trunk)
        self.unit = bool(settings.get("normalize_embed", True))
        layers = len(self.trunk.encoder.layers) + 1
        weights = {axis: state[f"layer_weights.{axis}"] for axis in AXES}
        if any(value.shape != (layers,) for value in weights.values()):
            raise ValueError(f"not {layers} weights of layers for each axis")
        self.layer_weights = nn.ParameterDict(weights)
        self.heads = nn.ModuleDict({axis: _head(state, f"proj_layer.{axis}.", settings) for axis in AXES})
        self.target = {axis: (float(target[axis]["mean"]), float(target[axis]["std"])) for axis in AXES}

    def forward(self, waveform: Float[Tensor, " n samples"], axis: str) -> Float[Tensor, " n"]:
        """The rating of each 16 kHz clip on `axis`: the mean of its windows of 10 s, weighted by their length."""
        length, samples = RATE * SECONDS, waveform.shape[1]
        count = -(-samples // length)
        windows = pad(waveform, (0, count * length - samples)).unflatten(1, (count, length))
        lengths = [min(length, samples - k * length) for k in range(count)]
        ratings = torch.stack([self._rated(windows[:, k], lengths[k], axis) for k in range(count)], 1)
        weights = torch.tensor(lengths).to(ratings) / samples
        mean, std = self.target[axis]
        return (ratings * weights).sum(1) * std + mean

    def _rated(self, window: Float[Tensor, " n samples"], heard: int, axis: str) -> Float[Tensor, " n"]:
        """Of one window, of whose samples `heard` are no padding."""
        frames = int(self.trunk._get_feat_extract_output_lengths(window.shape[1]))
        real = min(frames, math.ceil(heard / (window.shape[1] // frames)))
        mask = None
        if real < frames:  # the samples that give so many frames
            mask = torch.zeros(window.shape, dtype=torch.long, device=window.device)
            mask[:, : waves.reach(self.trunk.config) + (real - 1) * math.prod(STRIDES)] = 1
        layers = self.trunk(window, attention_mask=mask, output_hidden_states=True).hidden_states
        share = self.layer_weights[axis].softmax(0)
        mean = torch.stack([layer[:, :real].mean(1) for layer in layers], 2) @ share
        return self.heads[axis](normalize(mean, dim=1) if self.unit else mean)[:, 0]


def load(folder: Path, weights: str | None) -> AudioboxNetwork:
    """The network of a checkpoint: safetensors with `config.json`, or by its name Meta's own `checkpoint.pt`.

    Raises:
        InputError: a file is missing or torn, or the checkpoint is of another structure.
    """
    state: Any = checkpoint.read_weights(folder, weights)
    if isinstance(state, dict) and "state_dict" in state:
        settings, target, state = state.get("model_cfg", {}), state.get("target_transform"), state["state_dict"]
    else:
        settings = checkpoint.read_json(folder, "config.json")
        target = settings.get("target_transform")
    if not settings.get("use_weighted_layer_sum", True) or target is None:
        raise InputError(
            f"expected Audiobox Aesthetics with a learnt sum of layers and target_transform in {folder}, got neither "
            "or one; take facebook/audiobox-aesthetics"
        )
    state = {
        re.sub(r"^((model|encoder)\.)+(?=wavlm_model|proj_layer|layer_weights)", "", k): v for k, v in state.items()
    }
    with checkpoint.readable(folder), checkpoint.quiet():
        return AudioboxNetwork(state, settings, target).requires_grad_(False).eval()


def _renamed(name: str) -> str:
    for pattern, other in NAMES:
        name = re.sub(pattern, other, name)
    return name


def _shape(trunk: Mapping[str, Tensor]) -> dict[str, Any]:
    """The settings of WavLM that the weights show; the rest are those of its base size."""
    convolutions = [trunk[f"feature_extractor.conv_layers.{k}.conv.weight"] for k in range(len(STRIDES))]
    position = trunk["encoder.pos_conv_embed.conv.parametrizations.weight.original1"]
    bias = trunk["encoder.layers.0.attention.rel_attn_embed.weight"]
    return {
        "hidden_size": len(position),
        "num_hidden_layers": 1
        + max(int(found[1]) for name in trunk if (found := re.match(r"encoder\.layers\.(\d+)", name))),
        "num_attention_heads": bias.shape[1],
        "num_buckets": bias.shape[0],
        "intermediate_size": len(trunk["encoder.layers.0.feed_forward.intermediate_dense.weight"]),
        "conv_dim": [len(weight) for weight in convolutions],
        "conv_kernel": [weight.shape[2] for weight in convolutions],
        "conv_stride": list(STRIDES),
        "num_conv_pos_embeddings": position.shape[2],
        "num_conv_pos_embedding_groups": len(position) // position.shape[1],
    }


def _head(state: Mapping[str, Tensor], prefix: str, settings: Mapping[str, Any]) -> nn.Sequential:
    """Full layers, with an optional norm and GELU between them (the released code also has dropout, a place each)."""
    depth, norm = int(settings.get("proj_num_layer", 1)), bool(settings.get("proj_ln", False))
    dropout = float(settings.get("proj_dropout", 0))
    parts: list[nn.Module] = []
    for k in range(depth):
        weight = state[f"{prefix}{len(parts)}.weight"]
        parts.append(nn.Linear(weight.shape[1], len(weight)))
        if k < depth - 1:
            parts += [nn.LayerNorm(len(weight))] if norm else []
            parts += [nn.GELU(), *([nn.Dropout(dropout)] if dropout else [])]
    head = nn.Sequential(*parts)
    head.load_state_dict({name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)})
    return head
