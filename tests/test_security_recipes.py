"""Recipes that were made to hurt: each ends in one sentence and exit code 2."""

import time
from itertools import pairwise
from pathlib import Path

import pytest

from dragontune import cli
from dragontune.commands import parsing, yaml_files
from dragontune.errors import InputError

LETTERS = "abcdefghij"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 9)}]\n" for before, after in pairwise(LETTERS)
)
BAD: dict[str, tuple[str | bytes, str]] = {
    "laughs": (BOMB, "aliases written out"),
    "merged": ("a: &a {x: &x {y: 1}}\n" + "b: [" + "{<<: *a}, " * 20000 + "{}]", "values|bytes"),
    "itself": ("a: &a [*a]", "alias"),
    "flow": ("a: " + "[" * 100_000, "levels"),
    "block": ("\n".join(" " * i + "a:" for i in range(200)), "levels"),
    "keys": ("? " * 10_000, "levels"),
    "large": ("a: " + "x" * (1 << 20), "bytes"),
    "many": ("a: [" + "1," * 150_000 + "1]", "values"),
    "python": ("model: !!python/object/apply:os.system ['touch pwned']", "constructor"),
    "name": ("model: !!python/name:os.system", "constructor"),
    "latin": (b"model: \xff\xfe", "utf-8"),
    "zero": ('model: "a\\0b"', "control character"),
    "escape": ('model: "a\\e[2J"', "control character"),
    "surrogate": ('model: "\\ud800"', "YAML"),
    "twice": ("model: tiny-music\nrounds: 1\nmodel: other", "the field model twice"),
    "integer": ("seed: " + "9" * 5000, "YAML"),
    "hexadecimal": ("seed: 0x" + "f" * 100, "64 bits"),
    "date": ("seed: 2001-99-99", "YAML"),
    "mapping": ("? {a: b}\n: c", "unhashable"),
    "documents": ("a: 1\n---\nb: 2", "single document"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch, name: str):
    content, words = BAD[name]
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    start = time.process_time()
    with pytest.raises(InputError):
        yaml_files.load(Path("recipe.yaml").read_bytes(), "it")
    assert time.process_time() - start < 5
    assert cli.run(["doctor", "recipe.yaml"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("dragontune: expected YAML in recipe.yaml, got")
    assert any(word in said for word in words.split("|")), said
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    "text", ["a: 1e999", "a: .inf", "a: .nan", "a: &x [1]\nb: *x", "a: {<<: {b: 1}, c: 2}", "\ufeffa: 1", "a: b\r\n"]
)
def test_what_is_not(text: str):
    assert isinstance(yaml_files.load(text, "it"), dict)


@pytest.mark.parametrize(
    "override",
    [
        "--loop.lr=1e999",
        "--loop.lr=.inf",
        "--loop.lr=.nan",
        "--loop.rounds=1e999",
        "--loop.rounds=-1",
        "--loop.rounds=" + "9" * 5000,
        "--model=../../../etc/passwd",
        "--model=a\x00b",
        "--model=" + "x" * 5000,
        "--prompts=/dev/null",
        "--prompts=/etc",
        "--lora.rank=1099511627776",
        "--lora={rank: [" + "[" * 3000,
        "--reward=!!python/object/apply:os.system [id]",
    ],
)
def test_values_that_cannot_be(capsys: pytest.CaptureFixture[str], override: str):
    assert cli.run(["doctor", str(Path(__file__).parents[1] / "recipes" / "demo.yaml"), override]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "warning" not in line]
    assert len(said) == 1, said


def test_a_class_of_another_kind_is_not_made(tmp_path: Path):
    for name in ("os.system", "builtins.exec", "subprocess.Popen", "pathlib.Path"):
        (tmp_path / "reward.yaml").write_text(f"class_path: {name}\ninit_args: {{args: [touch, pwned]}}")
        with pytest.raises(InputError):
            parsing.reward(str(tmp_path / "reward.yaml"))
    assert not (tmp_path / "pwned").exists()
    assert not Path("pwned").exists()
