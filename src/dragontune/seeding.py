"""Noise by (seed, round, item): the same whatever the batch split, the order or the number of processes.

A `Key` is a path of numbers and names from which random streams are made. It holds no state: the same key always gives
the same numbers, and keys folded differently give independent ones (a SHA-256 of the path seeds PyTorch's generator,
whose CPU kind keeps 32 bits of a seed: of N keys, about N^2 / 2^33 pairs share a stream by chance).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Key:
    """A stateless source of randomness.

    >>> key = Key(0).fold("round", 3)
    >>> torch.equal(key.normal(torch.tensor([7]), (2,)), key.normal(torch.tensor([5, 7]), (2,))[1:])
    True
    """

    seed: int
    path: tuple[int | str, ...] = ()

    def fold(self, *names: int | str) -> "Key":
        """A key of its own for a purpose, a round, a step."""
        return Key(self.seed, (*self.path, *names))

    def generator(self) -> torch.Generator:
        """A fresh PyTorch generator on the CPU; each call starts the same stream."""
        digest = hashlib.sha256(repr((self.seed, self.path)).encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    def normal(self, items: Int[Tensor, " n"] | Sequence[int], shape: Sequence[int]) -> Float[Tensor, " n *shape"]:
        """Standard normal noise, one stream an item (CPU, float32)."""
        rows = [torch.randn(*shape, generator=self.fold("item", int(item)).generator()) for item in items]
        return torch.stack(rows) if rows else torch.empty(0, *shape)

    def uniform(self, items: Int[Tensor, " n"] | Sequence[int]) -> Float[Tensor, " n"]:
        """A number in [0, 1) for each item (CPU, float32)."""
        rows = [torch.rand((), generator=self.fold("item", int(item)).generator()) for item in items]
        return torch.stack(rows) if rows else torch.empty(0)

    def permutation(self, count: int) -> Int[Tensor, " count"]:
        """A random order of 0 .. count - 1."""
        return torch.randperm(count, generator=self.generator())


def gumbels(key: Key, items: Int[Tensor, " n"], count: int) -> Float[Tensor, " n count"]:
    """Standard Gumbel noise (float64, CPU), `count` numbers an item: the largest of log p + noise is a draw from p."""
    uniform = torch.special.ndtr(key.normal(items, (count,)).double())
    return -(-uniform.clamp(1e-300, 1 - 1e-16).log()).log()
