import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import dragontune

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_version_is_one():
    assert dragontune.__version__ == PROJECT["version"] == version("dragontune")
    assert f"version: {PROJECT['version']}" in (ROOT / "CITATION.cff").read_text()


def test_every_dependency_is_pinned_and_torch_in_the_makefile_too():
    pinned = {plain(name) for name in PINS}
    extras = PROJECT["optional-dependencies"]
    for requirement in [*PROJECT["dependencies"], *extras["dev"], *extras["assets"]]:
        assert plain(re.split(r"[\[<>=]", requirement)[0]) in pinned, requirement
    assert f"TORCH := torch=={PINS['torch']}" in (ROOT / "Makefile").read_text()


def test_what_is_installed_is_what_is_pinned():
    for requirement in PROJECT["dependencies"]:
        name = re.split(r"[\[<>=]", requirement)[0]
        pin = next(pin for pinned, pin in PINS.items() if plain(pinned) == plain(name))
        assert version(name).split("+")[0] == pin, name
