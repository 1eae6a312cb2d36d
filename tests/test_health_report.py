import json
import re
from html import unescape

import pytest
import yaml

from dragontune import cli
from dragontune.commands.parsing import read_recipe
from dragontune.evaluation.evaluate import Evaluation, evaluate
from dragontune.health import Health, findings
from dragontune.sampling import Sampler
from dragontune.training.card import Card
from fakes import Centre, Tones
from small_runs import make_workplace

EVIL = "<img src=x onerror=alert(1)> | `x` [y](z)"


def history():
    """A run that collapses and saturates, skips an update in round 3 and leaves out an item in round 5."""
    rows = []
    for i in range(12):
        metrics = {
            "updates": 4.0,
            "skipped": 1.0 if i == 2 else 0.0,
            "dropped_share": 0.0125 if i == 4 else 0.0,
            "saturated": min(0.9, 0.08 * i),
            "clipped_updates": 0.25,
            "adapter_norm": 15 + 0.1 * i,
            "diversity": 22.0 - 1.6 * i,
            "latent_variance": 0.25,
            **{
                f"beta_a_{side}_q{q:02d}": (i + 1) * (q - 50) / 90
                for side in ("positive", "negative")
                for q in QUANTILES
            },
        }
        rows.append({"round": i + 1, "seconds": 2.0, "peak_memory": 3 * 2**30, "reward": -3 + 0.1 * i, "loss": 0.4})
        rows[-1]["metrics"] = metrics
    rows[2]["skips"] = [{"update": 1, "found": "the gradient norm was nan"}]
    rows[4]["dropped"] = [f"item 3 ({EVIL!r})"]
    return rows


QUANTILES, SIDES = (5, 25, 50, 75, 95), ("positive", "negative")
OLD = [{"round": i, "seconds": 30.0, "reward": -3.0 + i, "loss": 0.5, "metrics": {}} for i in range(3)]


def report(folder, rows, health=None):
    folder.mkdir(parents=True, exist_ok=True)
    prompts = folder / "p.txt"
    prompts.write_text("\n".join(f"prompt {i}" for i in range(8)))
    evaluation = Evaluation(str(prompts), 8, 4, 10, (0.0, 1.0), {}, 8, 1)
    metrics = evaluate(Tones(shift=0.4), evaluation, Centre(1.0), Sampler(steps=3), 0, folder, rows, health=health)
    return (folder / "index.html").read_text(), metrics


def test_the_page_and_the_metrics_tell_of_every_finding(tmp_path):
    page, metrics = report(tmp_path, history())
    found = findings(history(), Health())
    assert len(found) == 7
    verdicts = {finding.key: finding.verdict for finding in found}
    assert verdicts == {
        "skipped": "warning",
        "dropped": "warning",
        "saturated": "warning",
        "clipped": "fine",
        "growth": "fine",
        "diversity": "warning",
        "variance": "fine",
    }
    section = page[page.index('id="health"') :]
    section = section[: section.index("</section>")]
    for finding in found:
        assert finding.name in section
        assert finding.meaning in unescape(section)
        assert f"health-{finding.key}-" in section
        assert metrics["health"][finding.key]["verdict"] == finding.verdict
        assert metrics["health"][finding.key]["worst"] == finding.worst
    assert section.count("<svg") == len(found)
    assert "the gradient norm was nan" in section
    assert "<img src=x" not in section
    assert "&lt;img src=x" in section
    assert "Quantiles of the implicit rewards" in section
    assert metrics["peak_memory"] == 3 * 2**30
    assert metrics["health"]["diversity"]["warns"] == "below 50 % for 3 rounds in a row"
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics


def test_logs_without_the_numbers_render_without_the_section(tmp_path):
    page, metrics = report(tmp_path, OLD)
    assert 'id="health"' not in page
    assert "health" not in metrics
    one, metrics = report(tmp_path / "one", history()[:1])
    assert 'id="health"' in one
    assert "health-diversity-" not in one  # a plot of one point
    assert metrics["health"]["diversity"]["verdict"] == "fine"


def test_a_round_without_a_loss_or_a_reward_renders(tmp_path):
    rows = history()
    rows[0]["loss"] = rows[0]["reward"] = None
    page, _ = report(tmp_path, rows)
    assert "While tuning" in page
    card = Card("model", "Dragon", "Sum", "run", rows, None).text()
    assert "unknown in the first round" in card


def test_the_card_has_one_line():
    card = Card("model", "Dragon", "Sum", "run", history(), None).text()
    (line,) = [line for line in card.splitlines() if line.startswith("Health: ")]
    assert "warning, Skipped updates: 25 % in round 3 (the gradient norm was nan)" in line
    assert r"\<img src=x" in line
    assert not re.search(r"(?<!\\)<img", card)
    fine = Card("model", "Dragon", "Sum", "run", history()[:2], None).text()
    assert "Health: all of 7 checks were fine." in fine
    assert "Health" not in Card("model", "Dragon", "Sum", "run", OLD, None).text()


def test_runs_that_were_started_before_there_was_a_health_go_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(make_workplace(tmp_path))
    assert cli.run(["tune", "recipe.yaml", "--out", "run", "--loop.rounds", "1", "--evaluation", "null"]) == 0
    marker = tmp_path / "run" / "checkpoints" / "recipe.json"
    assert "bad_items" not in marker.read_text()
    assert "health" not in marker.read_text()
    again = ["tune", "recipe.yaml", "--out", "run", "--resume", "--loop.rounds", "2", "--evaluation", "null"]
    assert cli.run([*again, "--health.skips", "9"]) == 0, capsys.readouterr().err
    assert cli.run([*again, "--loop.rounds", "3", "--algorithm.bad_items", "drop"]) == 2
    assert "bad_items" in capsys.readouterr().err
    assert "Health: " in (tmp_path / "run" / "README.md").read_text()


def test_the_command_says_what_is_not_well_when_it_happens(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(make_workplace(tmp_path))
    absurd = ["--algorithm.init_args.beta", "1e9", "--health.patience", "1", "--evaluation", "null"]
    assert cli.run(["tune", "recipe.yaml", "--out", "run", *absurd]) == 0
    assert "dragontune: warning: health, after round 2: " in capsys.readouterr().err


def test_the_recipe_has_a_health_section(tmp_path, monkeypatch):
    monkeypatch.chdir(make_workplace(tmp_path))
    given = yaml.safe_load((tmp_path / "recipe.yaml").read_text()) | {"health": {"skips": 2, "stop_on_collapse": True}}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(given))
    recipe, text, _ = read_recipe(tmp_path / "other.yaml", [])
    assert recipe.health == Health(skips=2, stop_on_collapse=True)
    assert "stop_on_collapse: true" in text


@pytest.mark.parametrize("wrong", ["skips=0", "least_diversity=2"])
def test_wrong_thresholds_are_one_sentence(tmp_path, monkeypatch, capsys, wrong):
    monkeypatch.chdir(make_workplace(tmp_path))
    assert cli.run(["tune", "recipe.yaml", "--out", "run", f"--health.{wrong}"]) == 2
    assert f"expected health.{wrong.split('=')[0]} between" in capsys.readouterr().err
