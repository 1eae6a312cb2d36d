"""Kinds of media: audio, images, video. What each is called, which files hold it, and what a folder of files holds."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dragontune.data import Media, Rows
from dragontune.errors import InputError
from dragontune.media import audio, image, video
from dragontune.media.audio import Audio
from dragontune.media.image import Images
from dragontune.media.video import Video

ANIMATED = (".webp", ".gif", ".png")
"""Suffixes of pictures that may move."""


@dataclass(frozen=True)
class Kind:
    """A kind of media, in words and files. `name` is what a model makes; `one` and `many` are files of it."""

    name: str
    one: str
    many: str
    media: type[Rows]
    readable: tuple[str, ...]
    read: Callable[[Path], Rows]
    """A file as one row; InputError that names it where it cannot be read."""
    suffix: str
    """Of the files that are written, without loss."""


AUDIO = Kind("audio", "an audio file", "audio files", Audio, audio.READABLE, audio.read, ".flac")
IMAGES = Kind("images", "an image", "images", Images, (*image.READABLE, ".gif"), Images.read, ".png")
VIDEO = Kind("video", "a video", "videos", Video, video.READABLE, video.read, ".webp")
KINDS = (AUDIO, IMAGES, VIDEO)

M = TypeVar("M", bound=Rows)


def kind_of(media: Media | None) -> Kind | None:
    """The kind of some media; None for plain tensors, sequences and what was not decoded."""
    return next((kind for kind in KINDS if isinstance(media, kind.media)), None)


def called(media: Media | None) -> str:
    """What messages call some media."""
    kind = kind_of(media)
    return kind.name if kind else type(media).__name__


def expect(media: Media | None, wanted: type[M], who: str) -> M:
    """The media, which must be `wanted` (`Audio`, `Images` or `Video`) for `who` asks.

    Raises:
        InputError: they are something else.
    """
    if isinstance(media, wanted):
        return media
    name = next((kind.name for kind in KINDS if kind.media is wanted), wanted.__name__)
    raise InputError(
        f"expected {name} for {who}, got {called(media)}; choose a reward, an encoder or a model that goes with it"
    )


def folder(path: str | Path) -> tuple[Kind, list[Path]]:
    """The kind of media in a folder and its sub-folders, and its files in sorted order, hidden ones left out.

    Raises:
        InputError: there is no such folder, it holds no media, or media of several kinds.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"expected a folder of audio, images or video, got {path}, which is not a folder; check it")
    found = sorted(_files(path))
    if not found:
        known = "; ".join(f"{kind.many}: {', '.join(kind.readable)}" for kind in KINDS)
        raise InputError(f"expected audio, images or video in {path}, got none ({known}); choose another folder")
    return one_kind(found, path)


def one_kind(paths: Sequence[Path], where: Path) -> tuple[Kind, list[Path]]:
    """The kind of media that files hold, and those files; what no suffix tells is taken to be audio.

    Animated pictures are videos, and so are the still ones with the same suffix: videos in which nothing moves. Images
    beside more audio files are taken to be covers and left out with a warning.

    Raises:
        InputError: they are of several kinds.
    """
    suffixes = {path.suffix.lower() for path in paths}
    kinds = {suffix: _kind(suffix, [p for p in paths if p.suffix.lower() == suffix]) for suffix in sorted(suffixes)}
    groups: dict[str, list[Path]] = {}
    for path in paths:
        groups.setdefault(kinds[path.suffix.lower()].name, []).append(path)
    covers, clips = groups.get(IMAGES.name, []), groups.get(AUDIO.name, [])
    if covers and len(groups) == 2 and len(covers) < len(clips):
        some = f"{len(covers)} image{'s' if len(covers) > 1 else ''}"
        warnings.warn(f"left out of the {len(clips)} audio files in {where}: {some} ({covers[0].name})", stacklevel=1)
        return AUDIO, clips
    if len(groups) > 1:
        (one, first), (other, second), *_ = groups.items()
        raise InputError(
            f"expected media of one kind in {where}, got {one} ({first[0].name}) and {other} ({second[0].name}); put "
            "each kind into a folder of its own"
        )
    return kinds[paths[0].suffix.lower()], list(paths)


def _kind(suffix: str, paths: Sequence[Path]) -> Kind:
    if suffix in ANIMATED:
        return VIDEO if any(image.animated(path) for path in paths) else IMAGES
    return next((kind for kind in KINDS if suffix in kind.readable), AUDIO)


def _files(path: Path) -> Iterator[Path]:
    for file in path.rglob("*"):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if any(file.suffix.lower() in kind.readable for kind in KINDS) and file.is_file() and not hidden:
            yield file
