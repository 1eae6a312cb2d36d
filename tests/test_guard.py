import json
import os
import random
import shutil
import signal
import time
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from dragontune import cli
from dragontune.algorithms.dragon import Dragon
from dragontune.data import Samples
from dragontune.errors import InputError, InterruptedRun, NonFiniteError
from dragontune.evaluation.evaluate import Evaluation, evaluate
from dragontune.evaluation.guard import Guard, Lookout, diversity
from dragontune.rewards.base import InstanceReward
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from dragontune.testing import Toy
from dragontune.training import watch
from dragontune.training.card import Card
from dragontune.training.loop import Loop
from dragontune.training.run_folder import RunFolder
from fakes import Centre, Pitch, Tones
from small_runs import TOY_PROMPTS, make_workplace
from test_bad_input import refused
from test_report import Tags
from test_resume import in_child

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SAMPLER = Sampler(steps=4)
HOT = Loop(rounds=12, pairs=16, updates=2, batch=16, lr=1e-2, max_norm=1.0)
"""So fast that the target ruins what is not in it after a few rounds."""


@dataclass(frozen=True)
class Height(InstanceReward[Tensor]):
    """How far up a point of the toy is: what is tuned towards."""

    @property
    def needs_media(self) -> bool:
        return False

    def encode(self, samples: Samples) -> Float[Tensor, " n"]:
        return samples.latents[:, 1]

    def score(self, features: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return features


@dataclass(frozen=True)
class Near(Height):
    """At most 1, on the axis that the toy's data lie on: what must not fall."""

    def score(self, features: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return (-features.square()).exp()


@dataclass(frozen=True)
class Low(Height):
    """The opposite of the target."""

    def score(self, features: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return -features


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "asked.txt"
    path.write_text("\n".join(["left", "right", "both", "either"] * 8))
    return str(path)


def guard(prompts, **changes):
    settings = {"count": 32, "every": 1, "patience": 2, "least_diversity": 0.5, "rewards": {"near": Near()}}
    return Guard(prompts, **(settings | changes))


def toy():
    return Dragon(Toy(), Height(), beta=2.0, sampler=SAMPLER)


def run(loop, chosen=None, folder=None):
    """Tune a toy, with a guard or without, and write its adapter if there is a folder: algorithm and history."""
    algorithm = toy()
    post = chosen and chosen.post(algorithm.generator, SAMPLER, algorithm.reward, 0)
    history = loop.run(algorithm, TOY_PROMPTS, folder, watch=post)
    if folder:
        folder.save_adapter(algorithm.generator)
    return algorithm, history


def weights(algorithm):
    return torch.cat([weight.detach().flatten() for weight in algorithm.parameters()])


def measured(algorithm, key=None):
    """Means of (height, near) of the untuned and the tuned model on the same noise, which no look has seen."""
    asked, found = ["left", "right", "both", "either"] * 100, []
    for context in (algorithm.generator.reference(), algorithm.generator.scaled(1)):
        with context:
            points = SAMPLER.sample(algorithm.generator, asked, key or Key(77)).latents
        found.append((points[:, 1].mean().item(), (-points[:, 1].square()).exp().mean().item()))
    return found


def without_seconds(history):
    """What two runs of the same course have in common."""
    cut = [{**record, "look": {**record["look"], "seconds": 0}} if "look" in record else record for record in history]
    return [{**record, "seconds": 0, "peak_memory": 0} for record in cut]


# what it is for


def test_over_optimisation_is_stopped_and_what_is_handed_over_is_sound(prompts):
    ruined, history = run(HOT)
    (height, near), (high, far) = measured(ruined)
    assert high > height + 0.3
    assert far < 0.95 * near  # without a guard the run ends far beyond what it tolerates
    assert not any({"look", "stopped"} & set(record) for record in history)

    with pytest.warns(UserWarning, match="not sound at LoRA scale 1 \\(near\\)"):
        guarded, history = run(HOT, guard(prompts))
    assert len(history) < HOT.rounds
    assert "no new best in 2 looks" in history[-1]["stopped"]
    (height, near), (high, far) = measured(guarded)
    assert high > height + 0.1
    assert far > 0.95 * near


def test_the_best_is_restored_and_not_the_last(prompts):
    guarded, history = run(HOT, guard(prompts, scales=(1.0,)))
    best = watch.best(history)
    assert best is not None
    assert (0 < best.round < len(history), best.scale) == (True, 1)
    expected, _ = run(replace(HOT, rounds=best.round))
    assert torch.equal(weights(guarded), weights(expected))
    targets = [look["tried"][0]["target"] for _, look in watch.looks(history) if look["sound"]]
    assert best.target == max(targets)


def test_a_smaller_scale_is_handed_over_for_good(prompts):
    guarded, history = run(replace(HOT, rounds=8), guard(prompts, every=8, scales=(0.25, 1, 0.5)))
    look = history[-1]["look"]
    assert [one["scale"] for one in look["tried"]] == [1, 0.5]  # the largest first, none after the first sound one
    assert [one["failed"] for one in look["tried"]] == [["near"], []]
    assert look["best"] == {"round": 8, "scale": 0.5, "target": look["tried"][1]["target"]}
    whole, _ = run(replace(HOT, rounds=8))
    with whole.generator.scaled(0.5):
        expected = SAMPLER.sample(whole.generator, TOY_PROMPTS, Key(5)).latents
    got = SAMPLER.sample(guarded.generator, TOY_PROMPTS, Key(5)).latents
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_without_a_sound_model_that_is_better_nothing_changes(prompts):
    """The held-out reward falls by what the target rises, and must not fall at all."""
    strict = guard(prompts, rewards={"low": Low()}, tolerance=0.0)
    with pytest.warns(UserWarning, match="THE ADAPTER CHANGES NOTHING"):
        guarded, history = run(replace(HOT, rounds=4), strict)
    assert watch.best(history) == watch.Candidate(0, 0.0, history[0]["look"]["untuned"]["target"])
    before, after = measured(guarded)
    assert before == after
    assert "changes nothing" in watch.summary(history)


def test_diversity_is_watched_with_no_reward_at_all(prompts):
    asked = guard(prompts, rewards={}, least_diversity=1.0, scales=(1.0,))
    algorithm = toy()
    look = asked.post(algorithm.generator, SAMPLER, algorithm.reward, 0).look()
    assert look["sound"] == 1.0
    assert look["tried"][0]["diversity"] == look["untuned"]["diversity"]
    right = torch.tensor([[1.0, 0.1], [1.0, -0.1], [1.0, 0.0], [0.9, 0.0]])
    assert 1 <= diversity(right) < 1.2 < 1.9 < diversity(torch.eye(2).repeat(2, 1)) <= 2.0001
    frames = torch.randn(6, 3, 50, generator=torch.Generator().manual_seed(0))
    assert diversity(frames) == pytest.approx(diversity(frames.mean(2)))
    assert diversity(frames) == pytest.approx(diversity(frames.unflatten(2, (5, 10))))


def test_the_diversity_that_must_be_left_is_a_share_of_the_untuned_models(prompts):
    asked = guard(prompts, least_diversity=0.9)
    untuned = {"rewards": {"near": 1.0}, "diversity": 10.0}
    assert asked.failed(untuned, {"rewards": {"near": 1.0}, "diversity": 9.01}) == []
    assert asked.failed(untuned, {"rewards": {"near": 1.0}, "diversity": 8.99}) == ["diversity"]


@pytest.mark.parametrize("before", [2.0, -2.0])
def test_the_tolerance_is_a_share_of_the_untuned_value_whatever_its_sign(prompts, before):
    asked = guard(prompts, tolerance=0.1)
    untuned = {"rewards": {"near": before}, "diversity": 1.0}
    for change, failed in ((-0.19, []), (-0.21, ["near"]), (5.0, [])):
        assert asked.failed(untuned, {"rewards": {"near": before + change}, "diversity": 1.0}) == failed


def test_what_a_look_measures(prompts):
    """Tones: the adapter adds 1 to every latent, so that at scale g the pitch rises by g on the same noise."""
    generator, sampler = Tones(shift=1.0), Sampler(steps=30)
    chosen = guard(prompts, scales=(1, 0.5), rewards={"low": Pitch(-1.0)}, tolerance=0.6, least_diversity=0.0)
    look = chosen.post(generator, sampler, Pitch(), 0).look()
    untuned, tried = look["untuned"], look["tried"]
    assert untuned["rewards"]["low"] == -untuned["target"]
    for one, scale in zip(tried, (1, 0.5), strict=False):
        assert one["target"] - untuned["target"] == pytest.approx(scale, abs=0.02)
        bound = untuned["rewards"]["low"] - 0.6 * abs(untuned["rewards"]["low"])
        assert one["failed"] == (["low"] if one["rewards"]["low"] < bound else [])
    assert tried[0]["failed"] == ["low"]
    assert tried[0]["distance"] > 0
    assert generator.gamma == 1
    json.dumps(look, allow_nan=False)


def test_a_named_target_takes_the_targets_place(prompts):
    generator = Tones()
    other = guard(prompts, rewards={"target": Pitch(-1.0), "pitch": Pitch()}).post(generator, SAMPLER, Pitch(), 0)
    look = other.look()
    assert set(look["untuned"]["rewards"]) == {"pitch"}
    assert look["untuned"]["target"] == -look["untuned"]["rewards"]["pitch"]


def test_numbers_that_are_not_finite(prompts):
    generator = Tones()
    with torch.no_grad():
        generator.shift.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="item 0"):
        guard(prompts).post(generator, SAMPLER, Pitch(), 0).look()


# patience


class Scripted:
    """A watch whose looks find these targets at scale 1; None: nothing sound."""

    def __init__(self, targets, every, patience):
        self.targets, self.every, self.patience = list(targets), every, patience
        self.said = []

    def look(self) -> dict[str, Any]:
        target = self.targets.pop(0)
        untuned = {"target": 0.0, "rewards": {}, "diversity": 2.0}
        failed = ["held"] if target is None else []
        one = {**untuned, "scale": 1.0, "target": target or 0.0, "distance": 0.1, "failed": failed}
        return {"untuned": untuned, "tried": [one], "sound": None if target is None else 1.0}

    def say(self, sentence: str) -> None:
        self.said.append(sentence)


@pytest.mark.parametrize(
    ("targets", "every", "patience", "rounds", "best", "stopped"),
    [
        ([1, 2, 3, 4, 5, 6], 1, 1, 6, 6, False),
        ([1, 2, 2, 9, 9, 9], 1, 1, 3, 2, True),  # equal is no new best
        ([1, 0, None, 3, 9, 9], 1, 2, 3, 1, True),  # what is not sound counts as well
        ([1, 0, 2, 0, 0, 9], 1, 2, 5, 3, True),  # the count starts again
        ([-1, -1, 5, 5, 5, 5], 1, 3, 6, 3, True),  # after the last round as well: a longer run stops there
        ([-1, -1, -1, 5, 5, 5], 1, 3, 3, 0, True),  # the untuned model is the first candidate
        ([None, 3, 2], 2, 2, 6, 4, False),
        ([1, 0], 4, 1, 6, 4, False),  # the look after the last round is one more, and stops nothing
        ([1], 9, 1, 6, 6, False),
    ],
)
def test_patience(targets, every, patience, rounds, best, stopped):
    post, algorithm = Scripted(targets, every, patience), toy()
    loop = replace(HOT, rounds=6, pairs=2, updates=1, batch=2)
    history = loop.run(algorithm, TOY_PROMPTS, watch=post)
    found = watch.best(history)
    assert found is not None
    assert (len(history), found.round) == (rounds, best)
    assert [number for number, _ in watch.looks(history)][:-1] == list(range(every, rounds, every))
    assert "look" in history[-1]
    assert ("stopped" in history[-1]) == stopped
    assert len([sentence for sentence in post.said if "new best" in sentence]) == len(
        {look["best"]["round"] for _, look in watch.looks(history)} - {0}
    )


# interruptions


def test_resuming_a_guarded_run_finds_the_same_bits(tmp_path, prompts):
    """Parts of a run that is stopped early, each by new objects, end with what one run ends with."""
    chosen, whole, parts = guard(prompts), RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    _, history = run(HOT, chosen, whole)
    assert len(history) < HOT.rounds
    for rounds in (*range(1, len(history)), HOT.rounds):
        run(replace(HOT, rounds=rounds), chosen, parts)
    assert (parts.adapter / "adapter_model.safetensors").read_bytes() == (
        whole.adapter / "adapter_model.safetensors"
    ).read_bytes()
    assert without_seconds(parts.history()) == without_seconds(whole.history()) == without_seconds(history)


@pytest.mark.parametrize("every", [1, 3])
def test_looks_between_those_of_a_longer_run_leave_no_trace(tmp_path, prompts, every):
    chosen = guard(prompts, every=4)
    whole, _ = run(replace(HOT, rounds=9), chosen)
    parts = RunFolder(tmp_path / "parts")
    for rounds in (3, 6, 9):
        resumed, history = run(replace(HOT, rounds=rounds, checkpoint_every=every), chosen, parts)
        assert "look" in history[-1]
        assert parts.history() == history
    assert torch.equal(weights(resumed), weights(whole))
    assert [number for number, _ in watch.looks(parts.history())] == [4, 8, 9]


def test_a_run_that_was_stopped_does_not_go_on(tmp_path, prompts, monkeypatch):
    """Killed between the early stop and the writing of the adapter: no round and no look is repeated."""
    folder = RunFolder(tmp_path / "run")
    loop = replace(HOT, checkpoint_every=50, sample_every=0)
    whole, history = run(loop, guard(prompts))

    def kill(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_adapter", kill)
        with pytest.raises(KeyboardInterrupt):
            run(loop, guard(prompts), folder)
    monkeypatch.setattr("dragontune.evaluation.guard.Lookout.look", kill)
    monkeypatch.setattr(Dragon, "collect", kill)
    for rounds in (loop.rounds, 10 * loop.rounds):
        again, found = run(replace(loop, rounds=rounds), guard(prompts), folder)
        assert without_seconds(found) == without_seconds(history)
        assert torch.equal(weights(again), weights(whole))


@pytest.mark.parametrize("place", ["untuned", "scale", "last"])
def test_an_interrupted_look_is_made_again(tmp_path, prompts, monkeypatch, place):
    from dragontune.evaluation.generations import Making

    loop, chosen, folder = replace(HOT, rounds=9), guard(prompts, every=4), RunFolder(tmp_path / "run")
    whole, history = run(loop, chosen)
    made, make = [], Making.make

    def interrupted(self, phase, items, players=()):
        made.append(phase)
        if len(made) == {"untuned": 1, "scale": 3, "last": len(phases)}[place]:
            raise KeyboardInterrupt
        return make(self, phase, items, players)

    phases = [0, *(one for _, look in watch.looks(history) for one in look["tried"])]
    with monkeypatch.context() as patch:
        patch.setattr(Making, "make", interrupted)
        with pytest.raises(InterruptedRun, match="rounds"):
            run(loop, chosen, folder)
    resumed, again = run(loop, chosen, folder)
    assert torch.equal(weights(resumed), weights(whole))
    assert without_seconds(again) == without_seconds(history)


def test_killed_at_random_moments(tmp_path, prompts):
    chosen, folder = guard(prompts), RunFolder(tmp_path / "killed")
    start = time.monotonic()
    _, history = run(HOT, chosen, RunFolder(tmp_path / "whole"))
    length, moments, killed = time.monotonic() - start, random.Random(0), 0
    assert len(history) < HOT.rounds
    for _ in range(8):
        child = in_child(lambda: run(HOT, chosen, folder))
        time.sleep(moments.uniform(0, 0.6 * length))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(status)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    assert killed >= 2
    run(HOT, chosen, folder)
    whole, other = (tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("whole", "killed"))
    assert other.read_bytes() == whole.read_bytes()
    assert without_seconds(folder.history()) == without_seconds(history)


def test_a_look_that_fails_does_not_lose_what_was_found_before(tmp_path, prompts, monkeypatch):
    """The best of the rounds that are done can still be had, by asking for no more of them."""
    chosen, folder = guard(prompts), RunFolder(tmp_path / "run")
    look = Lookout.look

    def broken(self):
        if len(made := RunFolder(tmp_path / "run").history()) == 3:
            raise NonFiniteError("the reward 'near' is not a finite number")
        assert len(made) < 3
        return look(self)

    monkeypatch.setattr(Lookout, "look", broken)
    with pytest.raises(NonFiniteError):
        run(HOT, chosen, folder)
    saved, history = run(replace(HOT, rounds=3), chosen, folder)
    monkeypatch.undo()
    expected, same = run(replace(HOT, rounds=3), chosen)
    assert torch.equal(weights(saved), weights(expected))
    assert without_seconds(history) == without_seconds(same)


def test_a_run_without_a_guard_is_not_taken_for_one_with(tmp_path, prompts):
    folder = RunFolder(tmp_path / "run")
    run(replace(HOT, rounds=1), None, folder)
    with pytest.raises(InputError, match="started with a guard"):
        run(HOT, guard(prompts), folder)


# what is told


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The report and the card of a run that was stopped."""
    folder = tmp_path_factory.mktemp("told")
    (folder / "p.txt").write_text("\n".join(["left", "right", "both", "either"] * 8))
    chosen = guard(str(folder / "p.txt"), rewards={"near <b>": Near(), "centre": Centre(9.0)}, tolerance=0.1)
    algorithm, history = run(HOT, chosen)
    evaluation = Evaluation(str(folder / "p.txt"), 16, 4, 5, (), {"near": Near()}, 16, 0)
    found = chosen.looks(history, algorithm.reward)
    evaluate(algorithm.generator, evaluation, algorithm.reward, SAMPLER, 0, folder, history=history, looks=found)
    card = Card("toy", "Dragon", "Height", "run", history, None).text()
    return (folder / "index.html").read_text(), card, history


def test_the_report_tells_what_the_guard_did(told):
    page, _, history = told
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    best = watch.best(history)
    assert best is not None
    assert f"the weights after round {best.round} at LoRA scale {best.scale:g}" in page
    assert history[-1]["stopped"] in page
    assert "no: near &lt;b&gt;" in page
    assert "near <b>" not in page
    assert "by more than 10 %" in page
    assert "Peak memory while tuning" in page
    assert page.count("handed over</span>") == 1
    rows = page[page.index('<div class="scroll looks">') :].split("</table>")[0].count("<tr")
    assert rows == 2 + sum(len(look["tried"]) for _, look in watch.looks(history))
    identifiers = [attributes["id"] for _, attributes in tags.found if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    assert "guard" in identifiers


def test_the_card_says_what_was_handed_over(told):
    _, card, history = told
    best = watch.best(history)
    assert best is not None
    assert f"Handed over: the weights after round {best.round} of {len(history)}, at LoRA scale {best.scale:g}" in card
    assert (
        Card("toy", "Dragon", "Height", "run", [{**history[0], "peak_memory": 3 * 2**29}], None)
        .text()
        .count("Peak memory: 1.50 GiB.")
    )


def test_trackers_get_the_looks(told):
    _, _, history = told
    found = watch.numbers(history[0])
    assert set(found) == {f"guard {name}" for name in ("near <b>", "centre", "target", "diversity", "distance")}
    assert watch.numbers({"round": 1}) == {}


# input


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"count": 1}, "guard.count"),
        ({"every": 0}, "guard.every"),
        ({"patience": 0}, "guard.patience"),
        ({"micro_batch": 0}, "guard.micro_batch"),
        ({"tolerance": -0.1}, "guard.tolerance"),
        ({"tolerance": float("nan")}, "guard.tolerance"),
        ({"least_diversity": 1.5}, "guard.least_diversity"),
        ({"least_diversity": float("nan")}, "guard.least_diversity"),
        ({"scales": ()}, "guard.scales"),
        ({"scales": (1.0, 0.0)}, "guard.scales"),
        ({"scales": (float("nan"),)}, "guard.scales"),
        ({"rewards": {"diversity": Pitch()}}, "another name than diversity"),
    ],
)
def test_absurd_numbers_are_refused(prompts, changes, words):
    with pytest.raises(InputError, match=words):
        guard(prompts, **changes)


def test_too_few_prompts_for_a_set_are_refused(prompts):
    chosen = guard(prompts, count=4, rewards={"set": Centre(least=5)})
    with pytest.raises(InputError, match="'set' needs at least 5 items, got 4"):
        chosen.post(Tones(), SAMPLER, Pitch(), 0)


GUARD = """
guard:
  prompts: prompts.txt
  count: 3
  every: 2
  patience: 1
  tolerance: 1.0e-6
  scales: [1, 0.5]
  rewards: {alignment: {class_path: Alignment, init_args: {encoder: {class_path: TinyClap, init_args: {model: clap}}}}}
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A workplace with a finished run that had a guard."""
    folder = make_workplace(tmp_path_factory.mktemp("workplace"))
    with (folder / "recipe.yaml").open("a") as file:
        file.write(GUARD)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.run(["tune", "recipe.yaml"]) == 0
    return folder


@pytest.fixture
def workplace(built, tmp_path, monkeypatch):
    folder = tmp_path / "workplace"
    shutil.copytree(built, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("patience: 1", "pacience: 1", ["pacience", "did you mean patience?"]),
        ("patience: 1", "patience: 0", ["guard.patience", "0"]),
        ("tolerance: 1.0e-6", "tolerance: much", ["tolerance", "float", "much"]),
        ("scales: [1, 0.5]\n  rewards", "scales: [0]\n  rewards", ["guard.scales", "0"]),
        ("count: 3", "count: 1", ["guard.count", "1"]),
        ("  prompts: prompts.txt\n  count: 3", "  prompts: gone.txt\n  count: 3", ["gone.txt"]),
        (
            "  rewards: {alignment: {class_path: Alignment",
            "  rewards: {alignment: {class_path: Alinement",
            ["Alinement"],
        ),
        (
            "rewards: {alignment: {class_path: Alignment, init",
            "rewards: {diversity: {class_path: Vendi, init",
            ["diversity"],
        ),
    ],
)
def test_a_bad_guard_in_a_recipe(workplace, capsys, old, new, words):
    head, tail = (workplace / "recipe.yaml").read_text().split("\nguard:")
    assert old in tail
    (workplace / "recipe.yaml").write_text(f"{head}\nguard:{tail.replace(old, new)}")
    for verb in (["tune", "recipe.yaml", "--out", "new"], ["doctor", "recipe.yaml"]):
        sentence = refused(capsys, *verb)
        assert all(word in sentence for word in words), sentence
    assert not list(workplace.glob("new/*"))


def test_a_target_whose_scales_are_learnt_must_be_named(workplace, capsys):
    """The guard compares with the untuned model, which takes one reward from the first look to the last."""
    text = (workplace / "recipe.yaml").read_text()
    start, end = text.index("reward:"), text.index("algorithm:")
    inner = "class_path: Alignment, init_args: {encoder: {class_path: TinyClap, init_args: {model: clap}}}"
    learning = (
        f"reward: {{class_path: InstanceSum, init_args: {{rewards: {{a: {{{inner}}}}}, standardise: running}}}}\n"
    )
    (workplace / "learning.yaml").write_text(text[:start] + learning + text[end:])
    sentence = refused(capsys, "tune", "learning.yaml", "--out", "new")
    assert "expected a target under guard.rewards" in sentence


def test_a_guarded_run_from_the_command_line(workplace, capsys):
    folder = workplace / "runs" / "recipe"
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines if "look" in line] == ([2, 3] if len(lines) == 3 else [2])
    page, card = (folder / "report" / "index.html").read_text(), (folder / "README.md").read_text()
    assert 'id="guard"' in page
    assert "Handed over: " in card
    assert "Peak memory" in card
    assert cli.run(["evaluate", "runs/recipe", "--out", "again"]) == 0
    again = (workplace / "again" / "index.html").read_text()
    section = [text[text.index('id="guard"') : text.index('id="costs"')] for text in (page, again)]
    assert section[0] == section[1]
    capsys.readouterr()
    assert cli.run(["doctor", "recipe.yaml"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "3 prompts every 2 rounds, 9 to 15 generations" in said


def test_a_guard_belongs_to_the_course_of_a_run(workplace, capsys):
    sentence = refused(capsys, "tune", "recipe.yaml", "--resume", "--guard.patience", "3")
    assert "patience" in sentence
    sentence = refused(capsys, "tune", "recipe.yaml", "--resume", "--guard", "null")
    assert "runs/recipe" in sentence
    assert cli.run(["tune", "recipe.yaml", "--resume"]) == 0
    assert "nothing left to do" in capsys.readouterr().out
