"""Tune, steer and judge generative media models with any reward: of one item, or of a whole set.

Importing this is light: a name below is loaded from its module when it is first used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "InputError": "errors",
    "Key": "seeding",
    "Rows": "data",
    "Samples": "data",
    "Demonstrations": "data",
    "Audio": "media.audio",
    "Images": "media.image",
    "Video": "media.video",
    "Edm": "schedule",
    "Cosine": "schedule",
    "Flow": "schedule",
    "Sampler": "sampling",
    "Generator": "generators.base",
    "Lora": "generators.adapters",
    "load": "generators.pretrained",
    "Encoder": "encoders.base",
    "TextEncoder": "encoders.base",
    "TinyClap": "encoders.clap",
    "Latents": "encoders.latents",
    "LogMel": "encoders.log_mel",
    "Clap": "encoders.laion_clap",
    "Mert": "encoders.mert",
    "Encodec": "encoders.encodec",
    "Vggish": "encoders.vggish",
    "Clip": "encoders.clip",
    "Siglip": "encoders.siglip",
    "Dinov2": "encoders.dinov2",
    "Reference": "reference",
    "Reward": "rewards.base",
    "InstanceReward": "rewards.base",
    "DistributionReward": "rewards.base",
    "DifferentiableReward": "rewards.base",
    "ExemplarReward": "rewards.exemplar",
    "SetFrechet": "rewards.frechet",
    "SongFrechet": "rewards.frechet",
    "Alignment": "rewards.alignment",
    "Vendi": "rewards.diversity",
    "SetKernel": "rewards.kernel",
    "SongKernel": "rewards.kernel",
    "Similarity": "rewards.similarity",
    "Coverage": "rewards.neighbours",
    "Recall": "rewards.neighbours",
    "Aesthetics": "rewards.aesthetics",
    "AudioboxAesthetics": "rewards.audiobox",
    "PickScore": "rewards.preference",
    "CleanSound": "rewards.clean_sound",
    "Loudness": "rewards.signal",
    "SpectralCentroid": "rewards.signal",
    "Tempo": "rewards.signal",
    "KeyStrength": "rewards.signal",
    "Brightness": "rewards.picture",
    "Sharpness": "rewards.picture",
    "Function": "rewards.function",
    "SetFunction": "rewards.function",
    "Sum": "rewards.combine",
    "InstanceSum": "rewards.combine",
    "DifferentiableSum": "rewards.combine",
    "SetCrop": "rewards.crop",
    "InstanceCrop": "rewards.crop",
    "Pareto": "rewards.pareto",
    "Constrained": "rewards.constrain",
    "Floor": "rewards.constrain",
    "contrast": "demonstrations",
    "Dpo": "losses",
    "Kto": "losses",
    "Algorithm": "algorithms.base",
    "Dragon": "algorithms.dragon",
    "Draft": "algorithms.draft",
    "DraftLv": "algorithms.draft",
    "AlignProp": "algorithms.alignprop",
    "Refl": "algorithms.refl",
    "Ddpo": "algorithms.ddpo",
    "Vard": "algorithms.vard",
    "Maximise": "algorithms.objectives",
    "Target": "algorithms.objectives",
    "Capped": "algorithms.objectives",
    "ImageRewardLoss": "algorithms.objectives",
    "Steering": "steering.base",
    "BestOfN": "steering.best_of_n",
    "Svdd": "steering.svdd",
    "DSearch": "steering.dsearch",
    "Smc": "steering.smc",
    "Free2Guide": "steering.free2guide",
    "GradientGuidance": "steering.gradient",
    "Ensemble": "steering.ensemble",
    "PosteriorMean": "steering.foresight",
    "Lookahead": "steering.foresight",
    "Steered": "evaluation.generations",
    "Loop": "training.loop",
    "Guard": "evaluation.guard",
    "evaluate": "evaluation.evaluate",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the table leads to
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return ["__version__", *sorted(_HOME)]
