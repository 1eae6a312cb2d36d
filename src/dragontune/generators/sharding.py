"""A network whose frozen weights lie in pieces on all processes (FSDP2, PyTorch's `fully_shard`).

Each process keeps its part of every frozen weight; a block's weights are put together when the block is called, and let
go afterwards. Adapters stay whole on every process and are trained as they would be without sharding, so checkpoints
and adapter files are the same. All processes must call the network equally often. Left out: pieces in main memory.
"""

from collections.abc import Iterator
from datetime import timedelta

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from dragontune.parallel import processes

LONGEST = timedelta(hours=24)
"""How long a process waits for the others' pieces; one that ends is noticed at once."""


def shard(network: nn.Module, device: torch.device) -> None:
    """Share the frozen weights among the processes, block by block; the network ends up on `device`."""
    adapters = {weight for weight in network.parameters() if weight.requires_grad}
    for weight in adapters:
        weight.data = weight.data.to(device)
    if device.type == "cpu":  # apart from what processes say to each other, as it is on GPUs
        group = dist.new_group(timeout=LONGEST)
        mesh = DeviceMesh.from_group(group, "cpu")  # pyright: ignore[reportArgumentType] - every process is a member
    else:
        mesh = init_device_mesh(device.type, (processes(),))
    for part in (*blocks(network), network):
        if any(not weight.requires_grad for weight in part.parameters()):
            fully_shard(part, mesh=mesh, reshard_after_forward=True, ignored_params=adapters)


def sharded(network: nn.Module) -> bool:
    """Whether its weights lie in pieces."""
    return isinstance(network, FSDPModule)


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The members of its outermost lists of modules, which is how networks hold what they repeat."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from _members(child)
        elif not isinstance(child, FSDPModule):
            yield from blocks(child)


def _members(modules: nn.ModuleList) -> Iterator[nn.Module]:
    for member in modules:
        if isinstance(member, nn.ModuleList):
            yield from _members(member)
        else:
            yield member
