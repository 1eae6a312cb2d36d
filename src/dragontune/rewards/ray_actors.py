"""Rewards computed by actors of a Ray cluster, where one is running anyway (Moritz et al. 2018, arXiv 1712.05889).

What is sent, checked and tried again is what a reward service does (served.py); only the way there is another. Left
out: gradients, and rewards that learn.
"""

import json
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from typing import Any

from dragontune.cluster import Actors, LostActor
from dragontune.data import Rows
from dragontune.errors import InputError, NonFiniteError
from dragontune.rewards.base import DistributionReward, InstanceReward, Reward
from dragontune.rewards.circuits import Circuits
from dragontune.rewards.elsewhere import Elsewhere, F, ItemsElsewhere, SetElsewhere
from dragontune.rewards.http import Answer, Stop, Trouble
from dragontune.rewards.link import Line, Patience
from dragontune.rewards.served import AnotherReward, Work
from dragontune.wire import WireError

MOST = 1 << 30
"""Bytes of a request."""


@dataclass(frozen=True, eq=False)
class Served:
    """A reward in an actor. Verdicts come back as words, so that no exception has to travel."""

    reward: Reward

    @cached_property
    def work(self) -> Work:
        """Loaded at the first use, in the actor."""
        return Work(self.reward)

    def ask(self, path: str, body: bytes | None) -> tuple[str, bytes | str]:
        """`ok` and the reply, or what kind of verdict and its sentence."""
        try:
            if body is None:
                return "ok", json.dumps(self.work.info(MOST)).encode()
            return "ok", self.work.do(path, body)[0]
        except InputError as error:
            return "input", str(error)
        except NonFiniteError as error:
            return "not finite", str(error)
        except WireError as error:
            return "damaged", str(error)
        except AnotherReward:
            return "damaged", "an actor with another reward"


@dataclass(frozen=True, eq=False)
class RayLine(Line):
    """The way to actors."""

    actors: Actors
    patience: Patience

    @property
    def places(self) -> tuple[str, ...]:
        """Their numbers."""
        return tuple(f"Ray actor {number}" for number in range(self.actors.count))

    @property
    def circuits(self) -> Circuits:
        """Of each actor."""
        return self._circuits

    @cached_property
    def _circuits(self) -> Circuits:
        return Circuits(self.actors.count, rest=self.patience.rest)

    def once(
        self, number: int, method: str, path: str, body: bytes | None, key: str, timeout: float, stop: Stop
    ) -> Answer:
        """One call."""
        try:
            verdict, said = self.actors.call(number, "ask", path, body, timeout=timeout, stop=stop)
        except LostActor as error:
            raise Trouble(str(error)) from None
        match verdict, said:
            case "ok", bytes():
                return Answer(200, {}, said)
            case "input", str():
                raise InputError(said)
            case "not finite", str():
                raise NonFiniteError(said)
            case _:
                raise WireError(str(said)[:200])


@dataclass(frozen=True, eq=False)
class Ray(Elsewhere[F]):
    """`reward` in `actors` actors of a Ray cluster, each with `cpus` and `gpus`.

    `address` is of the cluster (`auto`: this machine's; empty: RAY_ADDRESS, or a small one of this process alone). All
    other fields are those of `Elsewhere`.
    """

    reward: Reward
    actors: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    address: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = Work(self.reward)
        wanted = DistributionReward if self.scope == "set" else InstanceReward
        if not isinstance(self.reward, wanted):
            other = "RayReward" if self.scope == "set" else "RaySetReward"
            raise InputError(f"expected a {wanted.__name__} in {type(self).__name__}, got another kind; use {other}")

    @property
    def line(self) -> RayLine:
        """Over Ray."""
        return self._line

    @cached_property
    def _line(self) -> RayLine:
        bare = Served(unloaded(self.reward))
        return RayLine(Actors(lambda: bare, self.actors, self.cpus, self.gpus, self.address), self.patience)


@dataclass(frozen=True, eq=False)
class RayReward(Ray, ItemsElsewhere):
    """A reward of single items, computed by actors.

    >>> RayReward(CleanSound(), actors=4)
    """


@dataclass(frozen=True, eq=False)
class RaySetReward(Ray, SetElsewhere):
    """A reward of a set, computed by actors.

    >>> RaySetReward(SetFrechet(TinyClap(), "my songs"), actors=4)
    """


def unloaded(value: Any) -> Any:  # noqa: ANN401 - a part of a reward
    """The same without what was loaded since it was made: what travels is the configuration."""
    match value:
        case dict():
            return {name: unloaded(member) for name, member in value.items()}
        case list() | tuple():
            return type(value)(unloaded(member) for member in value)
        case _ if is_dataclass(value) and not isinstance(value, type | Rows):
            return replace(
                value, **{entry.name: unloaded(getattr(value, entry.name)) for entry in fields(value) if entry.init}
            )
        case _:
            return value
