"""Store the statistics of exemplars, so that a reward can be computed without them."""

from functools import partial
from pathlib import Path

from dragontune.embedding_cache import EmbeddingCache
from dragontune.encoders.base import Encoder
from dragontune.errors import InputError
from dragontune.reference import open_reference
from dragontune.streaming import Reading
from dragontune.training import files
from dragontune.training.progress import reporter


def reference(
    exemplars: str,
    encoder: Encoder,
    out: Path,
    cache: EmbeddingCache | None = None,
    workers: int | None = None,
    batch: int = 1,
) -> None:
    """Embed a folder of audio, images or video or a file of captions and write `out`.

    What cannot be read is listed in `<out>.unreadable.txt`. With a cache, whatever interrupts it loses seconds of work.
    """
    if out.suffix != ".safetensors":
        raise InputError(f"expected --out to end in .safetensors, got {out}; rename it")
    files.make_folder(out.parent)
    with reporter() as report:
        reading = Reading(workers, batch, cache, partial(report, "embedding"))
        found = open_reference(encoder, exemplars, reading)
    files.make(out, found.save)
    said = f"{out}: {found.items} items ({found.modality}), {found.count} frames, encoder {found.encoder}."
    if cache is not None and cache.found:
        said += f" {cache.found} embeddings were in the cache."
    listed = out.with_name(f"{out.name}.unreadable.txt")
    if reading.unreadable.files:
        files.write(listed, reading.unreadable.text().encode("utf-8", "backslashreplace"))
        said += f" {len(reading.unreadable)} files could not be read: {listed}."
    else:
        listed.unlink(missing_ok=True)  # of an earlier run
    print(said)
