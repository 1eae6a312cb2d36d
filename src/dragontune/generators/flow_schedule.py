"""What a pipeline folder says of the times of its flow, as a Schedule: the scheduler FlowMatchEulerDiscrete.

Left out: its other spacings (Karras, exponential, beta), inverted times and noise put back at each step, none of which
the supported pipelines' checkpoints use.
"""

from math import exp
from typing import Any

import torch

from dragontune.errors import InputError
from dragontune.generators.checkpoint import Checkpoint
from dragontune.schedule import ShiftedFlow

EULER = "FlowMatchEulerDiscreteScheduler"
TRAINING_TIMES = 1000
"""The networks' time is a thousandth of this scale."""
MOST_SHIFT = 1e7
"""With more all times but the last are 1."""
ODD = (
    *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"),
    *("invert_sigmas", "stochastic_sampling"),
)
"""Switches of schedulers that must be off."""


def flow_schedule(
    checkpoint: Checkpoint,
    tokens: int | None = None,
    closed: bool = True,
    times: int = TRAINING_TIMES,
    allowed: tuple[str, ...] = (),
) -> ShiftedFlow:
    """The schedule in `scheduler/scheduler_config.json`.

    `tokens` is how many the network sees of an item's latents, which decides a dynamic shift; None where the pipeline
    has no such shift. `closed` as in `ShiftedFlow`: true where the pipeline lets the scheduler space the times.
    The scheduler's scale must be `times`, and `allowed` switches may be on.

    Raises:
        InputError: another scheduler, or a setting that is left out here.
    """
    config = scheduler(checkpoint, EULER, times=times, allowed=allowed)
    dynamic, terminal = bool(config.get("use_dynamic_shifting")), config.get("shift_terminal") or None
    if config.get("_class_name") != EULER or (dynamic and tokens is None):
        raise InputError(
            f"expected {EULER}{' with a constant shift' if tokens is None else ''}, got {config.get('_class_name')} "
            f"with use_dynamic_shifting {dynamic}; restore {checkpoint.folder}"
        )
    shift = _dynamic(config, tokens, checkpoint) if dynamic and tokens else float(config.get("shift", 1.0))
    if not (0 < shift < MOST_SHIFT and 0 < (terminal or 0.5) < 1):
        raise InputError(
            f"expected a scheduler with a shift between 0 and {MOST_SHIFT:g} and a shift_terminal between 0 and 1, got "
            f"{shift:g} and {terminal} for {tokens} tokens; restore {checkpoint.folder}, or lower size"
        )
    last = torch.tensor(1 / TRAINING_TIMES, dtype=torch.float64)
    if not closed:
        last = torch.zeros_like(last)
    elif not dynamic:  # that scheduler shifts the last of its times twice
        last = ShiftedFlow(shift).shifted(last)
    return ShiftedFlow(shift, last.item(), closed, terminal)


def check_unshifted(checkpoint: Checkpoint, *allowed: str) -> None:
    """InputError if the scheduler changes times that its pipeline computes, which are told the network as they are."""
    found = flow_schedule(checkpoint, closed=False, times=1, allowed=allowed)
    if found != ShiftedFlow(1.0, 0.0, closed=False):
        raise InputError(
            f"expected a scheduler with shift 1 and no shift_terminal, got {found.shift} and {found.terminal}; restore "
            f"{checkpoint.folder}"
        )


def scheduler(
    checkpoint: Checkpoint, *kinds: str, times: int = TRAINING_TIMES, allowed: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The configuration of the scheduler, whose scale of times must be `times`; `allowed` switches may be on.

    Raises:
        InputError: one of its switches is on that must be off, or it has another scale of times.
    """
    config = checkpoint.read("scheduler/scheduler_config.json")
    odd = [name for name in ODD if config.get(name) and name not in allowed]
    found = config.get("num_train_timesteps", TRAINING_TIMES)
    if odd or found != times:
        others = [name for name in ODD if name not in allowed]
        raise InputError(
            f"expected {' or '.join(kinds)} of {times} training times without {', '.join(others)}, got {found} "
            f"and {', '.join(odd) or 'none of them'}; restore {checkpoint.folder}"
        )
    return config


def _dynamic(config: dict[str, Any], tokens: int, checkpoint: Checkpoint) -> float:
    """The shift for so many tokens: exp(mu), or mu if `time_shift_type` is linear; mu is linear in the tokens."""
    names = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
    few, many, low, high = (float(config.get(name, usual)) for name, usual in names.items())
    kind = config.get("time_shift_type", "exponential")
    if few >= many or kind not in ("exponential", "linear"):
        raise InputError(
            f"expected base_image_seq_len below max_image_seq_len and an exponential or linear time_shift_type in the "
            f"scheduler, got {few:g}, {many:g} and {kind}; restore {checkpoint.folder}"
        )
    mu = low + (high - low) * (tokens - few) / (many - few)
    return exp(min(mu, 100.0)) if kind == "exponential" else mu
