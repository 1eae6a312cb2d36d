"""A reward that learns its scales, through the command line: the report judges with what was learnt."""

import json
import os

import pytest
import yaml

from dragontune import cli
from dragontune.rewards.standardise import Spread
from dragontune.training.run_folder import RunFolder
from small_runs import make_workplace


def test_tune_and_evaluate_report_the_reward_as_it_was_learnt(tmp_path, monkeypatch):
    make_workplace(tmp_path)
    monkeypatch.chdir(tmp_path)
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    alignment = recipe["evaluation"]["rewards"]["alignment"]
    members = {"distance": recipe["reward"], "alignment": alignment}
    recipe["reward"] = {"class_path": "Sum", "init_args": {"rewards": members, "standardise": "running"}}
    (tmp_path / "learning.yaml").write_text(yaml.safe_dump(recipe))
    assert cli.run(["tune", "learning.yaml", "--out", "learning"]) == 0
    report = tmp_path / "learning" / "report" / "metrics.json"
    tuned = json.loads(report.read_text())["rewards"]
    os.remove(report)
    assert cli.run(["evaluate", "learning"]) == 0
    assert json.loads(report.read_text())["rewards"] == tuned
    seen = RunFolder(tmp_path / "learning").checkpoints(2).latest()
    assert seen is not None
    spreads = [Spread.read(seen.tensors[f"memory.{name}"]) for name in ("distance", "alignment")]
    scores = [_distance(tmp_path, recipe), tuned["alignment"]["before"]]
    expected = sum((score - spread.mean) / spread.scale for score, spread in zip(scores, spreads, strict=True))
    assert tuned["target"]["before"] == pytest.approx(expected, rel=1e-4)


def _distance(folder, recipe):
    """Before tuning, by itself: the set distance of the same prompts and noise."""
    members = recipe["reward"]["init_args"]["rewards"]
    (folder / "plain.yaml").write_text(yaml.safe_dump({**recipe, "reward": members["distance"]}))
    assert cli.run(["tune", "plain.yaml", "--out", "plain"]) == 0
    return json.loads((folder / "plain" / "report" / "metrics.json").read_text())["rewards"]["target"]["before"]
