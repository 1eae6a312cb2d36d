"""The embedded default: the model, encoder, exemplars and prompts that ship inside the package."""

from pathlib import Path

from dragontune.errors import InputError

ASSETS = Path(__file__).parent / "assets"
NAMES = ("tiny-music", "tiny-clap", "tiny-tokens")


def locate(path: str | Path) -> Path:
    """A local path as it is if something is there; else a name that begins with an embedded folder, inside the package.

    >>> locate("tiny-music/prompts/test.txt").name
    'test.txt'

    Raises:
        InputError: there is nothing under that name in either place.
    """
    path = Path(path).expanduser()
    if there(path):
        return path
    if not is_embedded(path):
        raise InputError(
            f"expected an existing path or one that begins with {' or '.join(f'{name}/' for name in NAMES)}, "
            f"got {path}, which is not there; check the spelling and the folder it is relative to"
        )
    inside = ASSETS / path
    if not inside.exists():
        raise InputError(f"expected {path} among the embedded files, got nothing there; {_remedy(inside)}")
    return inside


def is_embedded(path: str | Path) -> bool:
    """Whether a path begins with the name of an embedded folder and stays inside it."""
    path = Path(path)
    return not path.is_absolute() and path.parts[:1] != () and path.parts[0] in NAMES and ".." not in path.parts


def there(path: Path) -> bool:
    """Whether something is at a path; a text that can be none, because it is too long, say, names nothing."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _remedy(missing: Path) -> str:
    parent = next(folder for folder in missing.parents if folder.exists())
    if parent == ASSETS or not ASSETS.exists():
        return "build them with `make assets`"
    return f"there is: {', '.join(sorted(entry.name for entry in parent.iterdir()))}"
