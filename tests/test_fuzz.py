"""A small sample of every target of benchmarks/fuzz.py."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import fuzz  # pyright: ignore[reportMissingImports]
import fuzz_targets  # pyright: ignore[reportMissingImports]

COUNTS = {"recipes": 15, "commands": 6, "models": 3, "adapters": 20, "service": 20}


@pytest.mark.parametrize("name", fuzz_targets.TARGETS)
def test_a_sample_of(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("DRAGONTUNE_MOST_SAMPLES", str(1 << 24))
    monkeypatch.chdir(tmp_path)
    tally = fuzz.run_target(name, COUNTS.get(name, 60), tmp_path / "scratch", hooked=False)
    assert tally.inputs >= COUNTS.get(name, 60)
    assert not tally.failures


def test_what_is_written_elsewhere_is_seen(tmp_path: Path):
    watch = fuzz.Watch((str(tmp_path / "in"),), on=True)
    watch.hook("open", (str(tmp_path / "in" / "a"), "w", 0))
    watch.hook("open", (str(tmp_path / "out"), "r", 0))
    assert not watch.seen
    for event, arguments in (
        ("open", (str(tmp_path / "out"), "w", 0)),
        ("open", (str(tmp_path / "in" / ".." / "out"), None, 1)),
        ("os.mkdir", (str(tmp_path / "x"), 0, 0)),
        ("subprocess.Popen", ("sh",)),
        ("pickle.find_class", ("os", "system")),
    ):
        watch.seen.clear()
        watch.hook(event, arguments)
        assert watch.seen, event


@pytest.mark.parametrize("wrong", [lambda draw: 1 / 0, lambda draw: print(draw.nothing), lambda draw: fuzz._hang()])
def test_a_defect_is_a_failure(wrong):
    tally = fuzz.Tally("x")
    fuzz.attempt(wrong, lambda strategy: None, (), fuzz.Watch(("/",)), tally)
    assert tally.failed == 1
    assert tally.failures
