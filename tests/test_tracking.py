import sys
from types import ModuleType

import pytest
from rich.console import Console

from dragontune.errors import InputError
from dragontune.training.loop import Loop
from dragontune.training.progress import Bars, Lines
from dragontune.training.run_folder import RunFolder
from dragontune.training.tracking import TensorBoard, Tracker, Trackio, Wandb
from small_runs import TOY_PROMPTS, toy_dragon


def test_every_round_is_told(tmp_path):
    told = []

    class Told(Tracker):
        def log(self, round, values, folder):
            told.append((round, values, folder))

    loop = Loop(rounds=2, pairs=4, updates=1, batch=4)
    history = loop.run(toy_dragon(), TOY_PROMPTS, RunFolder(tmp_path), trackers=[Told()])
    assert [number for number, _, _ in told] == [1, 2]
    assert told[0][1] == {name: history[0][name] for name in ("reward", "loss")} | history[0]["metrics"]


@pytest.mark.parametrize(
    ("tracker", "module"),
    [(TensorBoard(), "torch.utils.tensorboard"), (Wandb(), "wandb"), (Trackio(), "trackio")],
)
def test_a_tracker_that_is_not_installed(tmp_path, monkeypatch, tracker, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match="pip install"):
        tracker.log(1, {"reward": 1.0}, tmp_path)


def test_wandb_is_started_once(tmp_path, monkeypatch):
    calls = []
    wandb = ModuleType("wandb")

    def init(**named):
        calls.append(named)
        vars(wandb)["run"] = named

    vars(wandb).update(run=None, init=init, log=lambda values, step: calls.append((step, values)))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for number in (3, 4):
        Wandb("songs").log(number, {"reward": 1.0}, tmp_path / "demo")
    assert calls[0]["project"] == "songs"
    assert calls[0]["id"] == "demo"
    assert calls[1:] == [(3, {"reward": 1.0}), (4, {"reward": 1.0})]


def test_lines_and_bars(capsys):
    lines = Lines(Console(stderr=True), pause=1000)
    for done in range(5):
        lines("tuning", done, 4, "reward [1]" if done else "")
    said = capsys.readouterr().err.splitlines()
    assert said == ["tuning: 0 of 4", "tuning: 4 of 4, reward [1]"]
    with Bars(Console(stderr=True, force_terminal=True, width=100)) as bars:
        for done in range(5):
            bars("tuning", done, 4, "reward -1.5")
    assert "reward -1.5" in capsys.readouterr().err
