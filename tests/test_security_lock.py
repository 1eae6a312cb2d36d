"""requirements.lock says what pyproject.toml and constraints.txt say, with hashes, and nothing of a machine."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text()
PINNED = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+) \\$", LOCK, re.MULTILINE))


def canonical(name: str) -> str:
    """As indexes write names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_is_locked():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {canonical(re.match(r"[A-Za-z0-9._-]+", each)[0]) for each in wanted}  # pyright: ignore[reportOptionalSubscript]
    assert names <= set(PINNED), f"run `make lock`: {sorted(names - set(PINNED))}"


def test_versions_are_those_of_the_constraints():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    wanted = {canonical(name): version for name, _, version in (line.partition("==") for line in lines if "==" in line)}
    odd = {name: version for name, version in PINNED.items() if wanted.get(name, version) != version}
    assert not odd, f"run `make lock`: {odd}"


def test_every_pin_has_hashes():
    for block in re.split(r"^(?=[A-Za-z0-9])", LOCK, flags=re.MULTILINE)[1:]:
        assert "--hash=sha256:" in block, block.splitlines()[0]
        assert all(len(digest) == 64 for digest in re.findall(r"sha256:([0-9a-f]+)", block))


def test_nothing_of_a_machine_is_in_it():
    assert not re.search(r"https?://|file:|index-url|find-links|/home|/root|/tmp|/opt|@ ", LOCK)
    assert not re.search(r"--(?!hash=sha256:)", LOCK)
