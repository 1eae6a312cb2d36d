"""peft's configuration as somebody else wrote it: what may not be asked for, before peft acts on it.

peft matches names of layers with the expressions in it, imports a module that it names, and copies layers as often as
it says; a file of settings must be able to do none of that at will.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dragontune import json_files

LARGEST_RANK = 4096
"""More than the width of the layers of any model of today, so it can only be a slip."""
MOST_SCALE = 1e6
MOST_NAMES = 20_000
LONGEST_PATTERN = 1 << 20
MOST_REPEATS = 3
"""Open-ended repetitions in one expression; each multiplies the time of a match by the length of a name."""
REFUSED = ("megatron_config", "layer_replication", "trainable_token_indices")
"""Fields that import code by name or copy layers."""
PATTERNS = ("target_modules", "exclude_modules", "modules_to_save", "target_parameters", "layers_pattern")
BY_PATTERN = ("rank_pattern", "alpha_pattern")


def read(path: Path) -> dict[str, Any]:
    """The settings in a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds no settings, or ones that are refused.
    """
    found = json_files.read(path)
    if not isinstance(found, dict):
        raise ValueError(f"a {type(found).__name__} where settings belong")
    check(found)
    return found


def check(settings: Mapping[str, Any]) -> None:
    """ValueError for what is refused."""
    for name in REFUSED:
        if settings.get(name):
            raise ValueError(f"{name}, which is not supported")
    for name in PATTERNS:
        _check_patterns(name, settings.get(name))
    ranks, scales = ({} if settings.get(name) is None else settings[name] for name in BY_PATTERN)
    if not isinstance(ranks, dict) or not isinstance(scales, dict):
        raise ValueError("patterns that are no names with numbers")
    _check_patterns(BY_PATTERN[0], list(ranks))
    _check_patterns(BY_PATTERN[1], list(scales))
    for rank in (settings.get("r", 8), *ranks.values()):
        if type(rank) is not int or not 1 <= rank <= LARGEST_RANK:
            raise ValueError(f"a rank of {str(rank)[:40]}, where 1 to {LARGEST_RANK} can be")
    for alpha in (settings.get("lora_alpha", 8), *scales.values()):
        if not isinstance(alpha, int | float) or not -MOST_SCALE <= alpha <= MOST_SCALE:
            raise ValueError(f"an alpha of {str(alpha)[:40]}")


def _check_patterns(name: str, value: object) -> None:
    patterns = [value] if isinstance(value, str) else value
    if patterns is None:
        return
    if not isinstance(patterns, list | tuple | set) or not all(isinstance(pattern, str) for pattern in patterns):
        raise ValueError(f"no names in {name}")
    if len(patterns) > MOST_NAMES or sum(map(len, patterns)) > LONGEST_PATTERN:
        raise ValueError(f"more names in {name} than a model has")
    for pattern in patterns:
        _check_pattern(name, pattern)


def _check_pattern(name: str, pattern: str) -> None:
    """ValueError for no expression, or one that can take for ever: a repeated group, or many repetitions."""
    plain = re.sub(r"\\.|\[\^?\]?[^\]]*\]", "x", pattern, flags=re.DOTALL)
    repeats = [len(re.findall(r"[*+{]", part)) for part in ([plain] if "(" in plain else plain.split("|"))]
    if re.search(r"\)[*+{]", plain) or max(repeats) > MOST_REPEATS:
        raise ValueError(f"an expression in {name} that could take for ever ({pattern[:60]})")
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"no expression in {name} ({str(error)[:60]})") from error
