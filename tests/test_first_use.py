"""At first use: heads of one's own in a recipe, prompts that are not there, abbreviations, constant rewards."""

import yaml

from dragontune import cli
from dragontune.commands import parsing
from dragontune.encoders.log_mel import LogMel
from dragontune.rewards.aesthetics import FINE, Aesthetics
from dragontune.rewards.base import Reward
from small_runs import make_workplace


def made(settings: dict) -> Reward:
    parsing.import_parts()
    return parsing.make(Reward, "reward", settings)


def test_the_encoder_named_in_a_recipe_is_that_encoder():
    """Not with the settings of the encoder that would have been the default."""
    named = made({"class_path": "Aesthetics", "init_args": {"encoder": {"class_path": "LogMel"}, "head": "x"}})
    assert isinstance(named, Aesthetics)
    assert named.embedder.digest == LogMel().digest
    plain = made({"class_path": "Aesthetics"})
    assert isinstance(plain, Aesthetics)
    assert plain.embedder.digest == FINE.digest


def test_a_reward_of_prompts_refuses_files_without(tmp_path, monkeypatch, capsys):
    make_workplace(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert cli.run(["score", "real", "--reward", "reward.yaml"]) == 2
    assert "a prompt for every file" in capsys.readouterr().err
    (tmp_path / "twelve.txt").write_text("a reel\n" * 12)
    assert cli.run(["score", "real", "--reward", "reward.yaml", "--prompts", "twelve.txt"]) == 0
    both = {"rewards": {"fit": yaml.safe_load((tmp_path / "reward.yaml").read_text())}}
    (tmp_path / "sum.yaml").write_text(yaml.safe_dump({"class_path": "Sum", "init_args": both}))
    assert cli.run(["score", "real", "--reward", "sum.yaml"]) == 2


def test_fields_are_not_abbreviated(tmp_path, monkeypatch, capsys):
    make_workplace(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert cli.run(["doctor", "recipe.yaml", "--loop.round", "3"]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_a_reward_that_never_differs_is_said(tmp_path, monkeypatch, capsys):
    make_workplace(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "same.py").write_text("def same(media, prompts):\n    return [1.0] * len(prompts)\n")
    arguments = ["tune", "recipe.yaml", "--reward", "same.py:same", "--evaluation", "null", "--out", "run"]
    assert cli.run(arguments) == 0
    assert "nothing to learn" in capsys.readouterr().err
    assert "same.py:same" in (tmp_path / "run" / "README.md").read_text()
