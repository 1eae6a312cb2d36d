"""Folders by their names on the Hugging Face hub, downloaded into its cache."""

import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from dragontune.errors import InputError


def named(text: str) -> bool:
    """Whether a text has the form of a hub name, `owner/model`."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", text) is not None


VARIANTS = ["*.fp16.*", "*.bf16.*", "*.non_ema.*", "*/openvino_*", "*/flax_*"]
"""Other copies of the same weights, which are left where they are unless a pattern names them."""


def download(name: str, patterns: Sequence[str], what: str) -> Path:
    """The local copy of what matches the patterns; `what` says in a message what was looked for.

    Raises:
        InputError: it is not to be had.
    """
    others = [variant for variant in VARIANTS if not any(fnmatch(pattern, variant) for pattern in patterns)]
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns), ignore_patterns=others))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().partition("\n")[0].partition(". ")[0]
        raise InputError(
            f"expected {what} or a hub name, got {name}, which is neither here nor to be had from the hub ({reason}); "
            "check the name, the connection and whether it asks for a login"
        ) from error
