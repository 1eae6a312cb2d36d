"""Generations made by actors of a Ray cluster, each with the model; they get the adapter's weights with every request.

Noise belongs to (key, item), so who makes an item does not matter: the result is the sampler's own, up to what other
batches round differently. Left out: steering, gradients, and adapters that are more than `parameters()`.
"""

import hashlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import safetensors.torch
import torch

from dragontune.cluster import Actors, LostActor
from dragontune.data import Samples
from dragontune.errors import InputError, LostService
from dragontune.generators.base import Generator
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from dragontune.wire import Message, pack, unpack

ATTEMPTS = 5
"""At one part of the items, each by another actor where there are several."""


class Studio:
    """A model in an actor."""

    def __init__(self, make: Callable[[], Generator]) -> None:
        self.generator, self.loaded = make(), ""

    def sample(
        self,
        sampler: Sampler,
        weights: bytes,
        digest: str,
        prompts: tuple[str, ...],
        key: Key,
        items: list[int],
        decode: bool,
    ) -> bytes:
        """Generations as a message; `digest` is the weights', so that they are put in place once."""
        if digest != self.loaded:
            found = safetensors.torch.load(weights)
            own = list(self.generator.parameters())
            if [tuple(found[f"{i}"].shape) for i in range(len(found))] != [tuple(weight.shape) for weight in own]:
                raise InputError(
                    "expected actors with the adapter that is tuned, got one of another shape; make both alike"
                )
            with torch.no_grad():
                for i, weight in enumerate(own):
                    weight.copy_(found[f"{i}"])
            self.loaded = digest
        with torch.no_grad():
            samples = sampler.sample(self.generator, prompts, key, items=items, decode=decode)
        tensors: dict[str, torch.Tensor] = {}
        return Message({"samples": pack(samples, "s", tensors)}, tensors).dump()


@dataclass(frozen=True, eq=False)
class RayRollouts:
    """`sampler` walked by `actors` actors, each with a model that `make` makes there; `micro_batch` items a call.

    `sample` is called as that of `Sampler`, and `make` must make the same model with an adapter of the same shape.
    `timeout` is in seconds, for a call; `address`, `cpus` and `gpus` as in `RayReward`.

    >>> RayRollouts(Sampler(steps=40), lambda: load("tiny-music"), actors=4).sample(generator, prompts, Key(0))

    Raises:
        LostService: a part of the items could not be made, whichever actor was asked.
    """

    sampler: Sampler
    make: Callable[[], Generator]
    actors: int = 1
    micro_batch: int = 20
    timeout: float = 600.0
    cpus: float = 1.0
    gpus: float = 0.0
    address: str = ""

    def sample(
        self,
        generator: Generator,
        prompts: Sequence[str],
        key: Key,
        *,
        items: Sequence[int] | None = None,
        decode: bool = True,
    ) -> Samples:
        """One item a prompt, in order, by the adapter that `generator` has now."""
        numbers = list(range(len(prompts)) if items is None else items)
        weights = {f"{i}": w.detach().cpu().contiguous().clone() for i, w in enumerate(generator.parameters())}
        content = safetensors.torch.save(weights)
        digest, stop = hashlib.sha256(content).hexdigest(), threading.Event()
        starts = list(range(0, len(numbers), self.micro_batch))

        def part(order: int) -> Samples:
            rows = slice(starts[order], starts[order] + self.micro_batch)
            said = (self.sampler, content, digest, tuple(prompts[rows]), key, numbers[rows], decode)
            trouble = ""
            for attempt in range(ATTEMPTS):
                try:
                    reply = self.pool.call(
                        (order + attempt) % self.actors, "sample", *said, timeout=self.timeout, stop=stop
                    )
                except LostActor as error:
                    trouble = str(error)
                    if stop.wait(0.5 * attempt):
                        break
                    continue
                message = Message.load(reply)
                return unpack(message.header["samples"], message.tensors)
            raise LostService(f"expected generations of {self.actors} Ray actors, got {trouble}; see to the cluster")

        pool = ThreadPoolExecutor(self.actors, "rollouts")
        try:
            return Samples.join(list(pool.map(part, range(len(starts)))))
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)

    @cached_property
    def pool(self) -> Actors:
        """The actors, started at the first use."""
        make = self.make
        return Actors(lambda: Studio(make), self.actors, self.cpus, self.gpus, self.address)
