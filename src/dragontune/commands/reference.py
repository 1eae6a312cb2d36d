"""Store the statistics of exemplars, so that a reward can be computed without them."""

from pathlib import Path

from dragontune.encoders.base import Encoder
from dragontune.errors import InputError
from dragontune.reference import open_reference
from dragontune.training import files


def reference(exemplars: str, encoder: Encoder, out: Path) -> None:
    """Embed a folder of audio, images or video or a file of captions and write `out`."""
    if out.suffix != ".safetensors":
        raise InputError(f"expected --out to end in .safetensors, got {out}; rename it")
    files.make_folder(out.parent)
    found = open_reference(encoder, exemplars)
    files.make(out, found.save)
    print(f"{out}: {found.items} items ({found.modality}), {found.count} frames, encoder {found.encoder}.")
