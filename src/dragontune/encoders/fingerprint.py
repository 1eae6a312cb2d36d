"""What identifies a network: a digest of its weights and of the settings that decide what it computes."""

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import nn


def fingerprint(network: nn.Module, settings: Mapping[str, object]) -> str:
    """SHA-256 (hex) of every parameter and persistent buffer and of `settings`; the same on every device."""
    digest = hashlib.sha256(json.dumps(dict(settings), sort_keys=True, default=str).encode())
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
