"""Several processes of a test: forked, so that nothing is imported again, and joined by gloo with a short patience."""

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from dragontune.generators import sharding
from dragontune.testing import Toy

PATIENCE = timedelta(seconds=60)


def company(count: int, work: Callable[[], Any], folder: Path, *, failing: bool = False) -> list[Any]:
    """What `work` returns in each of `count` processes (None where one was lost); it must not fail unless `failing`."""
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    children = [_child(rank, count, work, folder) for rank in range(count)]
    codes = [os.waitpid(child, 0)[1] for child in children]
    assert failing or not any(codes), f"exit statuses {codes}"
    found = [folder / f"{rank}.pt" for rank in range(count)]
    return [torch.load(path, weights_only=False) if path.exists() else None for path in found]


def _child(rank: int, count: int, work: Callable[[], Any], folder: Path) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=count, timeout=PATIENCE)
        torch.save(work(), folder / f"{rank}.pt")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


@dataclass(frozen=True, eq=False)
class ShardedToy(Toy):
    """Its network's frozen weights lie in pieces, if there are processes to hold them."""

    @cached_property
    def network(self) -> nn.Sequential:
        network = Toy(lora=self.lora).network
        if dist.is_initialized():
            sharding.shard(network, self.device)
        return network

    @property
    def sharded(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return sharding.sharded(self.network)


@contextmanager
def noted(owner: type, name: str, note: Callable[..., object]) -> Iterator[None]:
    """Within it every call of a method is also shown to `note`, with what it returned."""
    original = getattr(owner, name)

    def method(*arguments: Any, **named: Any) -> Any:
        found = original(*arguments, **named)
        note(found, *arguments)
        return found

    setattr(owner, name, method)
    try:
        yield
    finally:
        setattr(owner, name, original)
