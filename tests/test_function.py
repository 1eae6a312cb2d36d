"""The user's own function as a reward: what it may return, how it is named, what is said when it is wrong."""

import json
import math
import sys
from functools import partial

import numpy as np
import pytest
import torch

from dragontune.data import Samples
from dragontune.errors import InputError, InterruptedRun, NonFiniteError
from dragontune.media.audio import Audio
from dragontune.rewards import source
from dragontune.rewards.combine import InstanceSum
from dragontune.rewards.function import Function, SetFunction
from dragontune.testing import check_reward
from own_files import REWARDS, draws, level, own_files, samples


def trl_level(samples, prompts, metadata):
    return [float(wave.square().mean()) for wave in samples], {}


def whole(media, prompts):
    return media.waveform.double().std()


class Callable:
    def __call__(self, media, prompts):
        return media.loudness()


@pytest.fixture
def folder(tmp_path):
    with own_files(tmp_path) as path:
        yield path


@pytest.mark.parametrize(
    "reward",
    [Function(level), Function(trl_level), Function(Callable()), SetFunction(whole), SetFunction(whole, least=2)],
)
def test_contract(reward):
    check_reward(reward, samples())


def test_on_points():
    points = torch.randn(5, 2, generator=draws())
    check_reward(Function(lambda media, prompts: media[:, 0]), Samples(("a",) * 5, points, points))
    check_reward(Function(lambda samples, prompts, rows: (samples.sum(1), rows)), Samples(("a",) * 5, points, points))


@pytest.mark.parametrize(
    "scores",
    [
        [1, 0, 2, 3],
        (1.0, 0.0, 2.0, 3.0),
        np.array([1, 0, 2, 3], dtype=np.int16),
        np.array([1, 0, 2, 3], dtype=np.float16)[::1],
        np.array([3, 2, 0, 1])[::-1],
        torch.tensor([1, 0, 2, 3], dtype=torch.bfloat16),
        torch.tensor([1.0, 0.0, 2.0, 3.0], requires_grad=True),
        [np.float32(1), np.int64(0), torch.tensor(2.0), np.array(3.0)],
        [True, False, 2, 3.0],
    ],
)
def test_every_kind_of_numbers(scores):
    found = Function(lambda media, prompts: scores)(samples())
    assert found.dtype == torch.float64
    assert not found.requires_grad
    assert found.tolist() == [1, 0, 2, 3]


def test_booleans():
    assert Function(lambda media, prompts: media.loudness() > -12)(samples()).tolist() == [0, 0, 1, 1]
    assert Function(lambda media, prompts: np.array([True, False, False, True]))(samples()).tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize(
    ("scores", "got"),
    [
        (None, "None"),
        ("loud", "str 'loud'"),
        (0.5, "float 0.5"),
        ({0: 1.0}, "dict"),
        ([1.0, 2.0, 3.0], "a list of 3"),
        ([1.0, 2.0, 3.0, None], "of which one is None"),
        ([1.0, 2.0, 3.0, "4"], "of which one is str '4'"),
        ([[1.0], [2.0], [3.0], [4.0]], "of which one is a list of 1"),
        ((1.0, 2.0, 3.0, 1j), "complex"),
        (torch.zeros(4, 1), "(4, 1)"),
        (torch.zeros(()), "()"),
        (torch.zeros(4, dtype=torch.complex64), "complex64"),
        (np.zeros((1, 4)), "(1, 4)"),
        (np.array(["a"] * 4), "an array"),
        (np.array([1.0, None, 2.0, 3.0]), "object"),
        (np.zeros(4, dtype=complex), "complex128"),
        (iter([1.0, 2.0, 3.0, 4.0]), "iterator"),
    ],
)
def test_what_are_no_scores(scores, got):
    with pytest.raises(InputError) as error:
        Function(lambda media, prompts: scores)(samples())
    sentence = str(error.value)
    assert "expected 4 numbers from " in sentence
    assert got in sentence
    assert "return a list" in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400])
def test_not_finite_names_item_and_prompt(value):
    with pytest.raises(NonFiniteError, match=r"for item 3 of the 4 it was given \(prompt 'clip 2'\)"):
        Function(lambda media, prompts: [0.0, 1.0, value, 2.0])(samples())
    with pytest.raises(NonFiniteError, match="set of 4 items"):
        SetFunction(lambda media, prompts: value)(samples())


def test_what_a_trl_function_is_given():
    seen = []

    def function(given, prompts, metadata):
        seen.append((given.shape, prompts, metadata))
        return np.arange(4.0), {"ignored": object()}

    assert Function(function)(samples()).tolist() == [0, 1, 2, 3]
    assert seen == [((4, 1, 800), ("clip 0", "clip 1", "clip 2", "clip 3"), ({"sample_rate": 16000},) * 4)]
    for wrong in ([0.0] * 4, ([0.0] * 4,), None):
        with pytest.raises(InputError, match=r"expected a pair \(scores, metadata\)"):
            Function(lambda a, b, c, wrong=wrong: wrong)(samples())
    with pytest.raises(InputError, match="expected 4 numbers"):
        Function(lambda a, b, c: (0.5, {}))(samples())


def test_the_number_of_parameters_decides():
    assert Function(lambda a, b, c=None: [1.0] * 4).form == "plain"
    assert Function(lambda a, b, c, d=1: ([1.0] * 4, {})).form == "trl"
    assert Function(lambda *all: [1.0] * 4).form == "plain"
    assert Function(lambda *all: ([1.0] * 4, {}), "trl")(samples()).tolist() == [1] * 4
    assert Function(partial(lambda a, b, c: [c] * 4, c=7))(samples()).tolist() == [7] * 4
    for wrong in (lambda: 1, lambda a: 1, lambda a, b, c, d: 1, lambda a, b, *, c: 1):
        with pytest.raises(InputError, match=r"expected a function of \(media, prompts\) or \(samples, prompts, meta"):
            Function(wrong)
    with pytest.raises(InputError, match=r"expected a function of \(media, prompts\), got"):
        Function(trl_level, "plain")
    with pytest.raises(InputError, match=r"expected a function of \(media, prompts\), got"):
        SetFunction(trl_level)


def test_a_function_cannot_change_what_other_rewards_see():
    def silences(media, prompts):
        media.waveform.zero_()
        return media.loudness()

    given = samples()
    both = InstanceSum({"first": Function(silences), "second": Function(level)})
    expected = level(given.media, ()) - 120
    torch.testing.assert_close(both(given), expected.double())
    features = SetFunction(lambda media, prompts: float(media.waveform.zero_().sum())).encode(given)
    SetFunction(lambda media, prompts: float(media.waveform.zero_().sum())).score(features)
    assert isinstance(features.media, Audio)
    assert features.media.waveform.abs().sum() > 0


def test_a_set_function():
    given = samples()
    reward = SetFunction(whole, least=2)
    assert reward(given).item() == pytest.approx(whole(given.media, ()).item())
    features = reward.encode(given)
    swaps = reward.swaps(features[torch.tensor([0, 1])], features[torch.tensor([2, 3])])
    expected = reward.score(features[torch.tensor([0, 3])]).item()
    assert swaps.pairs(1, 1).item() == pytest.approx(expected)
    with pytest.raises(InputError, match="at least 2"):
        reward.score(features[torch.tensor([0])])
    for wrong in (None, [1.0], "1", torch.zeros(1), 1j):
        with pytest.raises(InputError, match="expected one number for the whole set"):
            SetFunction(lambda media, prompts, wrong=wrong: wrong)(given)
    with pytest.raises(InputError, match="800 samples in 1 channels at 16000 Hz and 400 samples"):
        type(features).join([features, reward.encode(samples(length=400))])


def test_what_is_raised_is_named_by_its_line(folder):
    with pytest.raises(InputError) as error:
        Function("my_rewards.py:raises")(samples())
    line = REWARDS.splitlines().index('        raise ValueError("no\\n  such beat")') + 1
    assert f"ValueError: no such beat (my_rewards.py, line {line})" in str(error.value)
    assert isinstance(error.value.__cause__, ValueError)
    with pytest.raises(InputError, match=r"SystemExit: 0 \(my_rewards.py, line"):
        Function("my_rewards.py:quits")(samples())


def test_the_line_is_the_users_beneath_decorators_and_libraries():
    def plainly(media, prompts):
        return torch.zeros(2) @ torch.zeros(3)

    line, fails = plainly.__code__.co_firstlineno + 1, torch.no_grad()(plainly)
    with pytest.raises(InputError, match=rf"RuntimeError: .*test_function.py, line {line}\)"):
        Function(fails)(samples())
    with pytest.raises(InputError, match=rf"RuntimeError: .*test_function.py, line {line}\)"):
        Function(partial(fails))(samples())


def test_an_interruption_is_no_mistake():
    for kind in (InterruptedRun, KeyboardInterrupt, NonFiniteError):

        def stops(media, prompts, kind=kind):
            raise kind("stop")

        with pytest.raises(kind, match="stop"):
            Function(stops)(samples())


def test_a_file_is_run_once_and_again_when_it_was_edited(folder):
    for _ in range(3):
        Function("my_rewards.py:level")
        Function(f"{folder}/my_rewards.py:trl")
    assert (folder / "executed.txt").read_text() == "x"
    assert Function("my_rewards.py:level")(samples()).tolist() == pytest.approx(
        (2 * level(samples().media, ())).tolist(), rel=1e-6
    )
    (folder / "my_rewards.py").write_text(REWARDS + "\n\ndef level(media, prompts):\n    return [9] * len(prompts)\n")
    assert Function("my_rewards.py:level")(samples()).tolist() == [9] * 4
    assert (folder / "executed.txt").read_text() == "xx"


def test_a_file_hides_no_module(folder):
    (folder / "json.py").write_text("def f(media, prompts):\n    return [1] * len(prompts)\n")
    assert Function("json.py:f")(samples()).tolist() == [1] * 4
    assert sys.modules["json"] is json


def test_a_name_in_a_module(folder):
    (folder / "pack").mkdir()
    (folder / "pack" / "inner.py").write_text(
        "class Box:\n    @staticmethod\n    def f(media, prompts):\n        return [1] * len(prompts)\n"
    )
    assert Function("pack.inner:Box.f")(samples()).tolist() == [1] * 4
    with pytest.raises(InputError, match=r"expected a module nowhere\.at_all to import, got ModuleNotFoundError"):
        Function("nowhere.at_all:f")


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("gone.py:level", ["gone.py", "not there", "check the path"]),
        ("my_rewards.py:levels", ["'my_rewards.py:levels'", "there is Quiet,", "level", "words"]),
        ("my_rewards.py:number", ["expected a function", "int 3"]),
        ("my_rewards.py:Quiet", ["the class my_rewards.py:Quiet", "class_path"]),
        ("my_rewards.py", ["file.py:name", "add what is missing"]),
        ("level", ["file.py:name", "add what is missing"]),
        ("unfinished.py:f", ["unfinished.py", "SyntaxError", "line 1"]),
        ("fails.py:f", ["fails.py", "ZeroDivisionError: division by zero (fails.py, line 3)"]),
        ("lacks.py:f", ["ModuleNotFoundError: No module named 'not_installed' (lacks.py, line 1)"]),
        ("leaves.py:f", ["SystemExit: 0 (leaves.py, line 1)"]),
        ("my_rewards.py:one", ["(media, prompts) or (samples, prompts, metadata)", "one(media)"]),
        ("my_rewards.py:four", ["(media, prompts) or (samples, prompts, metadata)", "four(a, b, c, d)"]),
    ],
)
def test_what_cannot_be_called(folder, named, words):
    (folder / "unfinished.py").write_text("def f(media, prompts:\n")
    (folder / "fails.py").write_text("\n\n1 / 0\n")
    (folder / "lacks.py").write_text("import not_installed\n")
    (folder / "leaves.py").write_text("raise SystemExit(0)\n")
    with pytest.raises(InputError) as error:
        Function(named)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)
    assert not [name for name in sys.modules if name.startswith(source.PREFIX) and "fails" in str(sys.modules[name])]
