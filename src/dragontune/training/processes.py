"""The processes that a launcher has started find each other. Accelerate picks the device of each.

The group is made here, not by Accelerate, which takes one backend: rows and messages travel over CPU memory (gloo),
sums of gradients and pieces of weights over GPU memory (NCCL). What a launcher says of precision, gradient accumulation
or compiling is not followed, since the recipe says it. Left out: other accelerators than CUDA, and joining later.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from dragontune import launcher
from dragontune.errors import InputError, InterruptedRun
from dragontune.parallel import in_company, is_main

PATIENCE = timedelta(hours=24)
"""How long a process waits for the others, while the main one evaluates, for one; one that ends is noticed at once."""


@contextmanager
def joined() -> Iterator[None]:
    """Within it this process works together with the others that its launcher has started; alone, nothing changes.

    Raises:
        InputError: there are fewer GPUs than processes.
        InterruptedRun: the others cannot be reached.
    """
    if launcher.count() == 1 or dist.is_initialized():
        yield
        return
    with warnings.catch_warnings():
        _join()
        if not is_main():
            warnings.simplefilter("ignore")
        if said := launcher.ignored():
            warnings.warn(
                f"the launcher asks for {', '.join(said)}, which is not followed: the recipe decides", stacklevel=1
            )
        with in_company():
            yield
    dist.destroy_process_group()


def _join() -> None:
    from accelerate import PartialState  # takes a second, which a run on one process can do without

    cuda = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "false").lower() != "true"
    local, devices = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if cuda and local >= devices:
        raise InputError(
            f"expected a GPU for each process, got {devices} for {local + 1} or more; start fewer, or hide the GPUs "
            "with CUDA_VISIBLE_DEVICES= to work on the CPU"
        )
    try:
        if cuda:
            torch.cuda.set_device(local)
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0][:160]
        raise InterruptedRun(f"the processes of this run did not find each other ({reason})") from error
    PartialState(cpu=not cuda)
