"""Serve a reward to other processes and machines over HTTP."""

import importlib.util
import multiprocessing
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dragontune.commands import parsing
from dragontune.errors import InputError

if TYPE_CHECKING:
    from dragontune.service.door import App

NEEDED = ("starlette", "uvicorn", "prometheus_client")


@dataclass(frozen=True)
class Factory:
    """Makes the application, in every worker process anew. `name` as on the command line."""

    name: str
    token_variable: str
    mib: int
    journal: str

    def __call__(self) -> "App":
        """Load the reward.

        Raises:
            InputError: there is no such reward, or it cannot be served.
        """
        from uvicorn.config import STARTUP_FAILURE

        from dragontune.commands.options import speak_plainly
        from dragontune.rewards.http import secret
        from dragontune.rewards.served import Work
        from dragontune.service.app import Limits, create

        speak_plainly()
        try:
            work = Work(parsing.reward(self.name))
            _ = work.digest  # loads what is slow to load, and finds what is missing
        except InputError as error:
            if multiprocessing.parent_process() is None:
                raise
            print(f"dragontune: {error}", file=sys.stderr)
            sys.exit(STARTUP_FAILURE)  # so that no worker is started in this one's place
        return create(work, secret(self.token_variable, "token"), Limits(self.mib << 20), self.journal)


def serve_reward(
    name: str, host: str, port: int, workers: int, token_variable: str, mib: int, journal: Path | None
) -> None:
    """Serve the reward `name` until SIGTERM or Ctrl-C.

    Raises:
        InputError: the extra is not installed, the reward is none that can be served, or the port is in use.
    """
    missing = [package for package in NEEDED if importlib.util.find_spec(package) is None]
    if missing:
        raise InputError(
            f"expected the packages that serving takes, got no {missing[0]}; install them with "
            "`pip install 'dragontune[serve]'`"
        )
    from dragontune.rewards.served import Work
    from dragontune.service.server import Listening

    if not 1 <= mib <= 4096:
        raise InputError(f"expected --max-mib from 1 to 4096, got {mib}; 256 is the default")
    listening = Listening(host, port, workers, token_variable)
    reward = Work(parsing.reward(name)).reward  # so that mistakes show before anything is started
    with listening.socket():
        pass
    factory = Factory(name, token_variable, mib, str(journal.absolute()) if journal else "")

    def say(address: str) -> None:
        processes = f"{workers} process{'es' if workers > 1 else ''}"
        print(f"Serving {reward.label} at {address} in {processes}; Ctrl-C ends it.", flush=True)

    if listening.serve(factory, say):
        raise InputError(f"expected a reward that can be loaded, got {name}, which cannot (see above); correct it")
