"""Composites of rewards against rescoring from scratch, what they refuse, and recipes that name them."""

import math
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from composites import COMPOSITES, PAIR, Height, Narrow, encoded, points
from dragontune import cli
from dragontune.data import Samples
from dragontune.errors import InputError
from dragontune.rewards.base import Reward
from dragontune.rewards.combine import InstanceSum, Sum
from dragontune.rewards.constrain import Constrained, Floor
from dragontune.rewards.pareto import Pareto
from dragontune.seeding import Key
from dragontune.testing import check_reward
from small_runs import make_workplace


@pytest.mark.parametrize("name", COMPOSITES)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_exchange_is_what_scoring_from_scratch_says(name: str, seed: int):
    reward, m, c = COMPOSITES[name], 6, 4
    features = reward.encode(points(m + c, seed))
    swaps = reward.swaps(features[torch.arange(m)], features[torch.arange(m, m + c)])
    for i, j in [(2, 1), (5, 3), (0, 0), (2, 2)]:
        expected = torch.empty(m, c, dtype=torch.float64)
        for a, b in product(range(m), range(c)):
            rows = swaps.members.clone()
            rows[a] = swaps.candidates[b]
            expected[a, b] = reward.score(features[rows]).item()
        assert swaps.value == pytest.approx(reward.score(features[swaps.members]).item(), rel=1e-9, abs=1e-9)
        torch.testing.assert_close(swaps.table(), expected, rtol=1e-7, atol=1e-9)
        some = torch.arange(m), torch.arange(m) % c
        torch.testing.assert_close(swaps.pairs(*some), expected[some], rtol=1e-7, atol=1e-9)
        assert torch.equal(swaps.allowed_table()[some], swaps.allowed(*some))
        swaps.accept(i, j)


@pytest.mark.parametrize("name", COMPOSITES)
def test_the_contract(name: str):
    check_reward(COMPOSITES[name], points(6))


@pytest.mark.parametrize("reward", [Sum(PAIR, standardise="running"), Pareto(PAIR, standardise="running")])
def test_the_contract_before_and_after_a_round(reward: Sum):
    check_reward(reward, points(6))
    features, _ = encoded(reward, 8, 0)
    check_reward(reward.given(reward.observe(features, Key(0), {})), points(6))


H: dict[str, Reward] = {"h": Height()}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Sum({}), ["at least one reward", "Sum"]),
        (lambda: Pareto({}), ["at least one reward", "Pareto"]),
        (lambda: Sum(H, {"x": 1.0}), ["weights", "'x'"]),
        (lambda: Sum(H, {}, {"x": 1.0}), ["scales", "'x'"]),
        (lambda: Pareto(H, means={"x": 1.0}), ["means", "'x'"]),
        (lambda: InstanceSum(H, {}, {"h": 0.0}), ["above 0", "'h'", "0.0"]),
        (lambda: Sum(H, {}, {"h": math.nan}), ["'h'", "nan"]),
        (lambda: Sum(H, {"h": math.nan}), ["weights", "'h'", "nan"]),
        (lambda: Sum(H, {"h": math.inf}), ["weights", "'h'", "inf"]),
        (lambda: Sum(H, {}, {"h": 2.0}, standardise="running"), ["scales", "running"]),
        (lambda: InstanceSum({"n": Narrow()}), ["single items", "'n'", "Narrow", "use Sum"]),
        (lambda: Pareto(H, tolerance=-1.0), ["tolerance", "-1.0"]),
        (lambda: Pareto(H, tolerance=math.nan), ["tolerance", "nan"]),
        (lambda: Pareto(H, {"h": -1.0}), ["0 or more", "'h'"]),
        (lambda: Sum({"p": Pareto(H)}), ["'p'", "Pareto", "outermost"]),
        (lambda: Pareto({"p": Pareto(H)}), ["'p'", "Pareto", "outermost"]),
        (lambda: Constrained(Pareto(H), {"h": Floor(Height(), 0.0)}), ["'reward'", "Pareto", "outermost"]),
        (lambda: Constrained(Height(), {}), ["at least one constraint"]),
        (lambda: Constrained(Height(), {"reward": Floor(Height(), 0.0)}), ["another name", "'reward'"]),
        (lambda: Constrained(Height(), {"h": Floor(Height(), 0.0)}, penalty=0.0), ["penalty", "0.0"]),
        (
            lambda: Constrained(Height(), {"s": Floor(Sum(H, standardise="running"), 0.0)}),
            ["fixed units", "'s'", "Sum"],
        ),
        (lambda: Floor(Height()), ["at_least or drop", "neither"]),
        (lambda: Floor(Height(), 0.0, 0.1), ["at_least or drop", "both"]),
        (lambda: Floor(Height(), math.nan), ["at_least", "nan"]),
        (lambda: Floor(Height(), drop=-0.1), ["drop", "-0.1"]),
        (lambda: Floor(Height(), 0.0, scale=0.0), ["scale", "0.0"]),
    ],
)
def test_what_makes_no_sense_is_said_in_one_sentence(make: Any, words: list[str]):
    with pytest.raises(InputError) as caught:
        make()
    sentence = str(caught.value)
    assert sentence.startswith("expected ")
    assert "got" in sentence
    assert ";" in sentence
    assert "\n" not in sentence
    assert all(word in sentence for word in words), sentence


def test_a_member_that_loses_rows_is_named():
    @dataclass(frozen=True)
    class Loses(Height):
        def encode(self, samples: Samples) -> Tensor:
            return super().encode(samples)[1:]

    with pytest.raises(InputError, match="'bad', got 3 for 4"):
        Sum({"h": Height(), "bad": Loses()}).encode(points(4))


CLAP = "encoder: {class_path: TinyClap, init_args: {model: clap}}"
SET = f"{{class_path: SetFrechet, init_args: {{{CLAP}, exemplars: real}}}}"
ALIGN = f"{{class_path: Alignment, init_args: {{{CLAP}}}}}"
VENDI = f"{{class_path: Vendi, init_args: {{{CLAP}}}}}"
RECIPES = {
    "running": f"{{class_path: Sum, init_args: {{rewards: {{a: {SET}, b: {ALIGN}}}, standardise: running}}}}",
    "items": f"{{class_path: InstanceSum, init_args: {{rewards: {{b: {ALIGN}}}, standardise: running}}}}",
    "pareto": f"{{class_path: Pareto, init_args: {{rewards: {{a: {SET}, b: {ALIGN}}}, tolerance: 0.1}}}}",
    "constrained": (
        f"{{class_path: Constrained, init_args: {{reward: {SET}, constraints: "
        f"{{b: {{reward: {ALIGN}, at_least: -0.9}}, v: {{reward: {VENDI}, drop: 0.05}}}}}}}}"
    ),
}


def use(folder: Path, reward: str) -> None:
    text = (folder / "recipe.yaml").read_text()
    start, end = text.index("reward:\n"), text.index("algorithm:")
    (folder / "recipe.yaml").write_text(f"{text[:start]}reward: {reward}\n{text[end:]}")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, name: str):
    monkeypatch.chdir(make_workplace(tmp_path))
    use(tmp_path, RECIPES[name])
    assert cli.run(["doctor", "recipe.yaml"]) == 0, capsys.readouterr().err
    assert cli.run(["tune", "recipe.yaml", "--evaluation", "null", "--loop.rounds", "2"]) == 0, capsys.readouterr().err
    assert (tmp_path / "runs/recipe/adapter/adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        (RECIPES["running"].replace("running", "sometimes"), ["expected", "sometimes"]),
        (RECIPES["items"].replace(ALIGN, SET), ["single items", "'b'", "SetFrechet"]),
        (RECIPES["pareto"].replace("0.1", "-0.1"), ["tolerance", "-0.1"]),
        (RECIPES["pareto"].replace("tolerance: 0.1", "weights: {c: 1}"), ["weights", "'c'"]),
        (RECIPES["constrained"].replace(", at_least: -0.9", ""), ["at_least or drop", "neither"]),
        (RECIPES["constrained"].replace("at_least", "at_most"), ["at_most"]),
        (RECIPES["constrained"].replace("drop: 0.05", "drop: .nan"), ["drop", "nan"]),
        (f"{{class_path: Sum, init_args: {{rewards: {{p: {RECIPES['pareto']}}}}}}}", ["'p'", "Pareto", "outermost"]),
    ],
)
def test_a_bad_recipe_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, reward: str, words: list[str]
):
    monkeypatch.chdir(make_workplace(tmp_path))
    use(tmp_path, reward)
    capsys.readouterr()
    assert cli.run(["doctor", "recipe.yaml"]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words), said
    assert said.count("\n") == 1, said
