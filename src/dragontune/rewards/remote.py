"""Rewards that another process computes, over HTTP: `dragontune serve-reward` is the other side.

The slow half of a reward, `encode`, runs there; of a reward of items also `score`. Left out: gradients, and rewards
that learn (put `standardise: running` around remote rewards, not into the service).
"""

from dataclasses import dataclass
from functools import cached_property

from dragontune.rewards.elsewhere import Elsewhere, F, ItemsElsewhere, SetElsewhere
from dragontune.rewards.link import Link


@dataclass(frozen=True, eq=False)
class Remote(Elsewhere[F]):
    """`addresses` are of services of one reward, asked by turns and in place of each other.

    `token_variable` names the environment variable with their token; `connect` is in seconds, until there is a
    connection. All other fields are those of `Elsewhere`.
    """

    addresses: list[str]
    token_variable: str = ""
    connect: float = 10.0

    @property
    def line(self) -> Link:
        """Over HTTP."""
        return self._line

    @cached_property
    def _line(self) -> Link:
        return Link(tuple(self.addresses), self.token_variable, self.connect, self.patience)


@dataclass(frozen=True, eq=False)
class RemoteReward(Remote, ItemsElsewhere):
    """A reward of single items, computed by services.

    >>> RemoteReward(["http://gpu-1:8750", "http://gpu-2:8750"], token_variable="REWARD_TOKEN")
    """


@dataclass(frozen=True, eq=False)
class RemoteSetReward(Remote, SetElsewhere):
    """A reward of a set, computed by services.

    >>> RemoteSetReward(["http://gpu-1:8750"])
    """
