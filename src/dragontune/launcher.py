"""What `torchrun` or `accelerate launch` told this process, from the environment. Imports nothing heavy.

Left out: launchers that set other variables, such as `mpirun` and `srun`; they can start `torchrun`.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from dragontune.errors import InputError

TOLD = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
REFUSED = {"ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM"}
DECIDED = {
    "ACCELERATE_MIXED_PRECISION": ("precision", ("no",)),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("loop.micro_batch", ("1",)),
    "ACCELERATE_DYNAMO_BACKEND": ("plan.compile", ("no",)),
}
"""Fields of a recipe that launchers have a say of their own about, and what they say by default."""
HEARD = 10.0
"""Seconds that the others leave the first process to say what all of them found: a launcher ends all when one ends."""


def count() -> int:
    """How many processes were started to work together; 1 without a launcher."""
    told = all(name in os.environ for name in TOLD) and os.environ["WORLD_SIZE"].isdecimal()
    return int(os.environ["WORLD_SIZE"]) if told else 1


def first() -> bool:
    """Whether this is the process that speaks to the user."""
    return count() == 1 or os.environ["RANK"] == "0"


@contextmanager
def _said_first() -> Iterator[None]:
    """Within it the others wait for the first process before they fail as well."""
    try:
        yield
    except InputError:
        if not first():
            time.sleep(HEARD)
        raise


@_said_first()
def check(verb: str) -> None:
    """InputError if several processes were started for a verb, or in a way, that cannot use them."""
    if count() == 1:
        return
    if verb != "tune":
        raise InputError(
            f"expected one process for {verb}, got {count()} from a launcher; run `dragontune {verb}` without it, as "
            "only tune works with several"
        )
    for name, what in REFUSED.items():
        if _set(name):
            raise InputError(
                f"expected a launcher that only starts processes, got one with {what}; use torchrun, and plan.shard: "
                "true if the model is too large for one GPU"
            )
    if _set("ACCELERATE_USE_FSDP") and not sharded():
        raise InputError(
            f"expected version 2 of FSDP from the launcher, got {os.environ.get('FSDP_VERSION', '1')}; add "
            "--fsdp_version 2, or use torchrun and plan.shard: true"
        )


def sharded() -> bool:
    """Whether the launcher asks for FSDP, version 2."""
    return count() > 1 and _set("ACCELERATE_USE_FSDP") and os.environ.get("FSDP_VERSION", "1") == "2"


def ignored() -> list[str]:
    """What the launcher asks for that a recipe decides: the field, and what was asked."""
    asked = {name: os.environ.get(name, "").lower() for name in DECIDED}
    return [f"{DECIDED[name][0]} {value}" for name, value in asked.items() if value not in ("", *DECIDED[name][1])]


def _set(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("1", "true", "yes")
