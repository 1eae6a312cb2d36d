"""The noise schedule of a pipeline in discrete time (Ho et al. 2020), as its scheduler's configuration says.

Our samplers stand in for the scheduler itself: order 1 is DDIM and Euler, with `eta` 1 DDPM and Euler ancestral, order
2 the multistep DPM-Solver++. Of PNDM, LMS, DEIS and UniPC only the times are kept. Left out: spacings of Karras' kind,
clipping and thresholding of what is predicted, networks that predict the data itself.
"""

from collections.abc import Mapping
from math import inf, log
from types import MappingProxyType
from typing import Any, Literal

import torch
from diffusers import schedulers
from jaxtyping import Float
from torch import Tensor

from dragontune.errors import InputError
from dragontune.generators.checkpoint import Checkpoint
from dragontune.schedule import Discrete

CONFIG = "scheduler/scheduler_config.json"
OF_EULER = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "LMSDiscreteScheduler")
"""Their evenly spaced times are not rounded, and they start from as much noise as there is at the first."""
OF_DPM = ("DPMSolverMultistepScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler")
"""They leave the last time out."""
KNOWN = ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler", *OF_EULER, *OF_DPM)
ODD = (
    *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas"),
    *("clip_sample", "thresholding", "use_dynamic_shifting"),
)
LEAST = 2.0**-24
"""The smallest product where a schedule is rescaled to begin with nothing but noise (Lin et al. 2024), as diffusers has
it."""
PREDICTIONS: dict[str, Literal["epsilon", "velocity"]] = {"epsilon": "epsilon", "v_prediction": "velocity"}


def discrete(checkpoint: Checkpoint, forced: Mapping[str, object] = MappingProxyType({})) -> Discrete:
    """The schedule of a local pipeline folder; `forced` is what its pipeline insists on, whatever the file says.

    Raises:
        InputError: its scheduler is of another kind, or does what our samplers do not.
    """
    said = checkpoint.read(CONFIG) | dict(forced)
    kind = said.get("_class_name")
    if kind not in KNOWN:
        raise InputError(
            f"expected a scheduler of {checkpoint.folder} in discrete time ({', '.join(KNOWN)}), got {kind}; choose "
            "another model"
        )
    scheduler = getattr(schedulers, kind).from_config(said)
    config = dict(scheduler.config)
    _check(config, checkpoint)
    products = scheduler.alphas_cumprod
    if config.get("rescale_betas_zero_snr"):
        products = products.clamp(min=LEAST)
    clipped = config["lambda_min_clipped"] if kind == "DPMSolverMultistepScheduler" else -inf
    _check_levels(products, clipped, checkpoint)
    return Discrete(
        products,
        config["timestep_spacing"],
        config["steps_offset"],
        to_clean=_to_clean(kind, config),
        prediction=PREDICTIONS[config["prediction_type"]],
        whole=kind not in OF_EULER,
        short=kind in OF_DPM,
        unit=kind not in OF_EULER or config["timestep_spacing"] == "leading",
    )


def _check(config: dict[str, Any], checkpoint: Checkpoint) -> None:
    """InputError if it does what our samplers do not."""
    file = checkpoint.folder / CONFIG
    for name in ODD:
        if config.get(name):
            raise InputError(f"expected a scheduler without {name}, got {config[name]} in {file}; set it to false")
    if config.get("interpolation_type", "linear") != "linear" or config.get("timestep_type", "discrete") != "discrete":
        raise InputError(f"expected linear interpolation of discrete times in {file}, got another; correct it")
    prediction = config["prediction_type"]
    if prediction not in PREDICTIONS:
        raise InputError(f"expected prediction_type {' or '.join(PREDICTIONS)} in {file}, got {prediction}; correct it")
    if config.get("rescale_betas_zero_snr") and prediction == "epsilon":
        raise InputError(f"expected v_prediction where nothing but noise is left at first, got epsilon in {file}")


def _check_levels(products: Float[Tensor, " N"], clipped: float, checkpoint: Checkpoint) -> None:
    """InputError if there are times without any of the data, or some below `clipped`, which are never visited."""
    file, least = checkpoint.folder / CONFIG, products.min().item()
    if not torch.finfo(torch.float32).tiny <= least < 1:
        raise InputError(
            f"expected betas in {file} that add noise but leave some of the data at every time, got a share of "
            f"{least:.4g}; correct them"
        )
    lowest = log(least / (1 - least)) / 2
    if lowest < clipped:
        raise InputError(
            f"expected a scheduler that visits every noise level, down to log(alpha / sigma) = {lowest:.4g}, got "
            f"lambda_min_clipped {clipped} in {file}; leave it out"
        )


def _to_clean(kind: str, config: dict[str, Any]) -> bool:
    """Whether the last step ends without noise."""
    if kind == "DEISMultistepScheduler":
        return False
    if "final_sigmas_type" in config:
        return config["final_sigmas_type"] == "zero"
    return bool(config.get("set_alpha_to_one", True))
