"""How many bytes of tensors are alive at once: the same on every machine, whatever its allocator does."""

import gc
import weakref
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any

from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dragontune.data import Rows


class Alive(TorchDispatchMode):
    """Within it, the most bytes that were alive at once of what was made or touched within it.

    Counted operation by operation; what an operation needs inside of itself is not seen. What was there before counts
    as soon as an operation returns a view of it, unless it is among `others`.
    """

    def __init__(self, others: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref] = {}
        for tensor in others:
            storage = tensor.untyped_storage()
            self._known[storage._cdata] = weakref.ref(storage)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Count what the operation returns."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        place = storage._cdata
        if place in self._known and self._known[place]() is storage:
            return
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        self._known[place] = weakref.ref(storage, lambda gone: self._gone(place, gone, size))

    def _gone(self, place: int, gone: weakref.ref, size: int) -> None:
        self.now -= size
        if self._known.get(place) is gone:
            del self._known[place]


def everything() -> list[Tensor]:
    """All tensors on the CPU that Python can reach now."""
    gc.collect()
    return [thing for thing in gc.get_objects() if type(thing) in (Tensor, Parameter) and thing.device.type == "cpu"]


def together(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors; what shares memory is counted once."""
    return sum({each.untyped_storage()._cdata: each.untyped_storage().nbytes() for each in tensors}.values())


def peak(work: Callable[[], object]) -> int:
    """Bytes, at most, of what `work` makes."""
    with Alive() as alive:
        work()
    return alive.peak


def size(column: Any) -> int:  # noqa: ANN401 - a column is of any kind
    """Bytes of the tensors in a record."""
    match column:
        case Tensor():
            return column.nbytes
        case Rows():
            return sum(size(getattr(column, field.name)) for field in fields(column))
        case _:
            return 0
