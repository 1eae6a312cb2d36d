"""One thread that does one thing after another, and keeps no process from ending.

The threads of `concurrent.futures` are waited for when Python ends: a reward that hangs would hold a service for ever.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
Job = tuple[Future[Any], Callable[[], Any]]


class Lone(Executor):
    """What is asked for is done in order. `shutdown` does not wait for what hangs longer than `patience` seconds.

    >>> Lone("counting").submit(sum, [1, 2]).result()
    3
    """

    def __init__(self, name: str, patience: float = 0.0) -> None:
        self.patience = patience
        self._jobs = SimpleQueue[Job | None]()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:  # noqa: ANN401 - the function's
        """Do it later."""
        future = Future[T]()
        self._jobs.put((future, lambda: fn(*args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take nothing more; what waits is given up, if it shall be."""
        while cancel_futures and not self._jobs.empty():
            if (job := self._jobs.get()) is not None:
                job[0].cancel()
        self._jobs.put(None)
        if wait:
            self._thread.join(self.patience)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, do = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = do()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
