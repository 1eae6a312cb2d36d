"""How many candidates fit a memory budget: measured on a few, since networks, decoders and encoders differ."""

from math import floor

from dragontune.alive import peak, size
from dragontune.errors import InputError
from dragontune.generators.base import Generator
from dragontune.process import ReverseProcess
from dragontune.rewards.base import Reward
from dragontune.seeding import Key
from dragontune.steering.foresight import Foresight
from dragontune.steering.walk import Walk

FEW, MORE = 2, 4
MARGIN = 0.05
"""Of the budget, for what differs between the steps."""
MEBIBYTE = 2**20


def rows_within(
    memory: float, process: ReverseProcess, generator: Generator, reward: Reward, foresight: Foresight, held: int
) -> int:
    """The most rows whose branching and looking fit `memory` MiB beside the models, while `held` beams wait.

    Raises:
        InputError: not one does.
    """
    key = Key(0).fold("room")

    def work(count: int) -> None:
        walk = Walk(process, generator, key, count)
        foresight.look(walk, reward, walk.branch(walk.start([""], [0]), count))

    work(1)  # loads what is loaded once
    few, more = peak(lambda: work(FEW)), peak(lambda: work(MORE))
    row = max(1.0, (more - few) / (MORE - FEW))
    rest = max(0.0, few - FEW * row) + 2 * held * size(Walk(process, generator, key, 1).start([""], [0]))
    rows = floor((memory * MEBIBYTE * (1 - MARGIN) - rest) / row)
    if rows < 1:
        least = (rest + row) / MEBIBYTE / (1 - MARGIN)
        raise InputError(
            f"expected memory for at least one candidate at a time, {least:.0f} MiB, got {memory:g} MiB; raise "
            "memory, or lower batch or the number of beams or candidates"
        )
    return rows
