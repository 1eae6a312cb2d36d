"""Objects that live in processes of a Ray cluster, one an actor: the only file that knows of Ray (extra `ray`).

Ray moves its own objects with pickle, between processes of one user on machines of one user; nothing that was received
from elsewhere comes that way. Its usage statistics are turned off. An actor that dies is started again by Ray, on
another node if its own is gone. Left out: GPUs shared by fractions, and placement by hand.
"""

import importlib.util
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from dragontune.errors import InputError

TURN = 0.2
"""Seconds between looks at whether a call was given up."""


class LostActor(RuntimeError):  # noqa: N818 - a loss, not an error
    """A call did not come back: its actor died, is being started again, or takes too long."""


class Host:
    """What runs in an actor: it makes an object and calls its methods."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.held = make()

    def do(self, method: str, arguments: tuple[Any, ...]) -> Any:  # noqa: ANN401 - the method's
        """Call a method of the object."""
        return getattr(self.held, method)(*arguments)


@dataclass(frozen=True, eq=False)
class Actors:
    """`count` actors with an object that `make` makes in each; each gets `cpus` and `gpus`.

    `address` is of a running cluster (`auto`: of this machine's); empty: what RAY_ADDRESS names, else a small cluster
    of this process alone.

    Raises:
        InputError: Ray is not installed, or there is no such cluster.
    """

    make: Callable[[], Any]
    count: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    address: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __post_init__(self) -> None:
        if importlib.util.find_spec("ray") is None:
            raise InputError("expected Ray for actors, got none; install it with `pip install 'dragontune[ray]'`")
        if not 1 <= self.count <= 4096:
            raise InputError(f"expected 1 to 4096 actors, got {self.count}; change it")
        if not (0 <= self.cpus <= 1024 and 0 <= self.gpus <= 64):
            raise InputError(f"expected 0 CPUs and GPUs an actor or more, got {self.cpus} and {self.gpus}; change them")

    def call(self, number: int, method: str, *arguments: Any, timeout: float, stop: threading.Event) -> Any:  # noqa: ANN401 - the method's
        """What a method of an actor's object returns.

        Raises:
            LostActor: it does not, in `timeout` seconds or at all, or `stop` was set. Whatever the method raises is
                raised too.
        """
        import ray
        from ray.exceptions import ActorDiedError, RayError, RayTaskError

        with self._lock:
            actor = self._handles[number]
        until = time.monotonic() + timeout
        answer = actor.do.remote(method, arguments)
        try:
            while not ray.wait([answer], timeout=max(0.0, min(TURN, until - time.monotonic())))[0]:
                if stop.is_set() or time.monotonic() >= until:
                    raise LostActor("a call that was given up" if stop.is_set() else f"no answer within {timeout:g} s")
            return ray.get(answer)
        except ActorDiedError:
            with self._lock:
                if self._handles[number] is actor:
                    self._handles[number] = self._start()
            raise LostActor("an actor that died") from None
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None
        except RayError as error:
            raise LostActor(f"a lost call ({type(error).__name__})") from None

    def process(self, number: int) -> int:
        """The id of an actor's process, on its node."""
        import ray

        with self._lock:
            return ray.get(self._handles[number].__ray_call__.remote(lambda host: os.getpid()))

    @cached_property
    def _handles(self) -> list[Any]:
        connect(self.address)
        return [self._start() for _ in range(self.count)]

    def _start(self) -> Any:  # noqa: ANN401 - a handle of Ray's
        import ray

        _by_value()
        kind = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_restarts=-1, scheduling_strategy="SPREAD")
        return kind(Host).remote(self.make)


def connect(address: str) -> None:
    """Join a cluster, unless this process is in one.

    Raises:
        InputError: there is none at that address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        return
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(address=address or None, include_dashboard=None if address else False, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(
            f"expected a Ray cluster at {address or 'RAY_ADDRESS'}, got none ({str(error).splitlines()[0][:200]}); "
            "start one with `ray start --head`, or leave the address out"
        ) from error
    finally:
        if main:  # signals save a run's state here; Ray would end the process instead
            for number, handler in before.items():
                signal.signal(number, handler)


def _by_value() -> None:
    """Modules made from the user's files can be imported in this process only: their code travels."""
    from ray import cloudpickle

    for name, module in list(sys.modules.items()):
        if name.startswith("user_file_"):
            cloudpickle.register_pickle_by_value(module)
