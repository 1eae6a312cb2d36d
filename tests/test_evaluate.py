import json
from importlib.metadata import version

import pytest
import torch

from dragontune.errors import InputError, NonFiniteError
from dragontune.evaluation.comparison import Comparison
from dragontune.evaluation.evaluate import Evaluation, evaluate, spaced
from dragontune.evaluation.generations import Making
from dragontune.evaluation.statistics import wilson
from dragontune.rewards.alignment import Alignment
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from dragontune.testing import Toy, ToyEncoder
from fakes import Centre, Loudness, Pitch, Spread, Tones

SAMPLER = Sampler(steps=4)


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(f"tune number {'x' * i}" for i in range(20)) + "\n\n")
    return str(path)


def evaluation(prompts, **changes):
    settings = {"count": 16, "subset": 6, "subsets": 10, "micro_batch": 5, "players": 2, "scales": (0.0, 0.5, 1.0)}
    return Evaluation(prompts, **(settings | changes))


def test_metrics_have_exactly_the_promised_keys(prompts, tmp_path):
    rewards = {"pitch": Pitch(), "spread": Spread()}
    out = tmp_path / "run" / "report"
    metrics = evaluate(Tones(), evaluation(prompts, rewards=rewards), Centre(), SAMPLER, 3, out)
    assert metrics == json.loads((out / "metrics.json").read_text())
    assert set(metrics) == {"prompts", "rewards", "seconds", "package_versions", "seed"}
    assert metrics["prompts"] == 16
    assert metrics["seed"] == 3
    assert metrics["package_versions"]["torch"] == version("torch")
    assert list(metrics["rewards"]) == ["target", "pitch", "spread"]
    for name, entry in metrics["rewards"].items():
        change = "change_ci95" if entry["scope"] == "instance" else "subset_change_ci95"
        assert set(entry) == {"scope", "target", "before", "after", "win_rate", "win_rate_ci95", change}
        assert entry["target"] == (name == "target")
        low, high = entry["win_rate_ci95"]
        assert 0 <= low <= entry["win_rate"] <= high <= 1
    assert metrics["rewards"]["pitch"]["scope"] == "instance"
    assert metrics["rewards"]["spread"]["scope"] == "set"
    assert sorted(file.name for file in out.iterdir()) == ["index.html", "metrics.json"]


def test_known_shift_is_measured(prompts, tmp_path):
    """The adapter moves the mean by 1 with the same noise: every prompt wins, and by the same amount."""
    metrics = evaluate(Tones(shift=1.0), evaluation(prompts), Pitch(), Sampler(steps=30), 0, tmp_path)["rewards"][
        "target"
    ]
    assert metrics["after"] - metrics["before"] == pytest.approx(1, abs=0.02)
    assert metrics["win_rate"] == 1
    assert metrics["win_rate_ci95"][0] == pytest.approx(wilson(16, 16)[0])
    low, high = metrics["change_ci95"]
    assert low <= metrics["after"] - metrics["before"] <= high


def test_nothing_changes_without_an_adapter(prompts, tmp_path):
    metrics = evaluate(Tones(shift=0.0), evaluation(prompts), Pitch(), SAMPLER, 0, tmp_path)["rewards"]["target"]
    assert metrics["before"] == metrics["after"]
    assert metrics["win_rate"] == 0.5
    assert "The adapter changes nothing" in (tmp_path / "index.html").read_text()


def test_batching_changes_nothing(prompts, tmp_path):
    found = []
    for size in (1, 7, 50):
        settings = evaluation(prompts, micro_batch=size, rewards={"loud": Loudness(), "spread": Spread()})
        metrics = evaluate(Tones(), settings, Centre(), SAMPLER, 0, tmp_path)["rewards"]
        found.append([value for entry in metrics.values() for value in (entry["before"], entry["win_rate"])])
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[2] == pytest.approx(found[0], rel=1e-5)


def test_a_listed_target_is_not_reported_twice(prompts, tmp_path):
    target = Pitch()
    by_identity = evaluate(Tones(), evaluation(prompts, rewards={"p": target}), target, SAMPLER, 0, tmp_path)
    assert list(by_identity["rewards"]) == ["p"]
    assert by_identity["rewards"]["p"]["target"]
    by_name = evaluate(Tones(), evaluation(prompts, rewards={"target": Pitch(-1.0)}), target, SAMPLER, 0, tmp_path)
    assert list(by_name["rewards"]) == ["target"]
    assert by_name["rewards"]["target"]["win_rate"] == 0


def test_sweep_reuses_the_two_models_and_follows_the_scale(prompts):
    generator, rewards = Tones(), {"pitch": Pitch()}
    asked = evaluation(prompts).read()
    making = Making(generator, Sampler(steps=30), asked, rewards, 4, Key(0), lambda phase, done, total: None)
    with generator.reference():
        base = making.make("base", range(16))
    comparison = Comparison(making, base, making.make("tuned", range(16)))
    sweep = comparison.sweep((1.0, 0.0, 0.5, 2.0), spaced(16, 4))
    assert sweep.scales == (0.0, 0.5, 1.0, 2.0)
    start = sweep.values["pitch"][0]
    assert [value - start for value in sweep.values["pitch"]] == pytest.approx([0, 0.5, 1, 2], abs=0.05)
    assert sweep.costs.items == 8
    assert sweep.costs.calls == making.sampler.calls(8)


def test_media_is_kept_for_players_only(prompts):
    asked = evaluation(prompts).read()
    making = Making(Tones(), SAMPLER, asked, {"pitch": Pitch()}, 4, Key(0), lambda phase, done, total: None)
    made = making.make("tuned", range(16), [3, 9])
    assert set(made.clips) == {3, 9}
    assert made.costs.decodes == 8  # the two micro-batches with a player in them: this reward needs no media
    assert making.make("tuned", range(16)).costs.decodes == 0


def test_progress_names_the_phases(prompts, tmp_path):
    seen = []
    evaluate(
        Tones(),
        evaluation(prompts),
        Centre(),
        SAMPLER,
        0,
        tmp_path,
        progress=lambda phase, done, total: seen.append((phase, done, total)),
    )
    assert list(dict.fromkeys(phase for phase, _, _ in seen)) == [
        "untuned model",
        "tuned model",
        "subsets, target",
        "LoRA scale 0.5",
    ]
    assert all(0 <= done <= total for _, done, total in seen)


def test_global_state_is_not_touched(prompts, tmp_path):
    state = torch.get_rng_state()
    evaluate(Tones(), evaluation(prompts), Centre(), SAMPLER, 0, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"count": 1}, "count"),
        ({"subset": 0}, "subset"),
        ({"subsets": -3}, "subsets"),
        ({"micro_batch": 0}, "micro_batch"),
        ({"players": -1}, "players"),
        ({"scales": (0.0, -1.0)}, "scales"),
        ({"scales": (float("nan"),)}, "scales"),
    ],
)
def test_absurd_numbers(prompts, changes, complaint):
    with pytest.raises(InputError, match=complaint):
        evaluation(prompts, **changes)


def test_too_few_prompts_for_a_set_reward(prompts, tmp_path):
    with pytest.raises(InputError, match="more prompts than that, got 16"):
        evaluate(Tones(), evaluation(prompts, subset=16), Centre(), SAMPLER, 0, tmp_path)
    with pytest.raises(InputError, match="at least 9 items"):
        evaluate(Tones(), evaluation(prompts), Centre(least=9), SAMPLER, 0, tmp_path)
    evaluate(Tones(), evaluation(prompts, subset=40, scales=()), Pitch(), SAMPLER, 0, tmp_path)


@pytest.mark.parametrize("content", [b"", b"one\n", b"\xff\xfe\x00bad"])
def test_unusable_prompt_files(tmp_path, content):
    path = tmp_path / "p.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"p\.txt"):
        Evaluation(str(path)).read()


def test_missing_prompt_file(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.txt"):
        Evaluation(str(tmp_path / "nowhere.txt")).read()


def test_prompts_are_evenly_spaced(prompts):
    assert spaced(20, 4) == [2, 7, 12, 17]
    assert spaced(3, 10) == [0, 1, 2]
    assert spaced(5, 0) == []
    assert len(Evaluation(prompts, count=200).read()) == 20


def test_a_reward_that_is_not_finite_stops_and_is_named(prompts, tmp_path):
    with pytest.raises(NonFiniteError, match="'odd'"):
        evaluate(Tones(), evaluation(prompts, rewards={"odd": Spread(broken=True)}), Pitch(), SAMPLER, 0, tmp_path)
    assert not (tmp_path / "metrics.json").exists()


def test_media_that_are_not_audio_have_no_players(prompts, tmp_path):
    generator, reward = Toy(), Alignment(ToyEncoder())
    metrics = evaluate(generator, evaluation(prompts), reward, SAMPLER, 0, tmp_path)
    assert metrics["rewards"]["target"]["win_rate"] == 0.5
    assert "<audio" not in (tmp_path / "index.html").read_text()
