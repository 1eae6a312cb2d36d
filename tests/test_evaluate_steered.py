"""Evaluation with steering: the arms, what they cost, the page, and the command line with a run and without."""

import json
import re
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
import yaml

from dragontune import cli
from dragontune.commands import parsing
from dragontune.costs import Costs
from dragontune.data import Samples
from dragontune.errors import InputError
from dragontune.evaluation.arms import LatentDiversity, lineup, same
from dragontune.evaluation.evaluate import Evaluation, evaluate
from dragontune.evaluation.generations import Making, Steered
from dragontune.evaluation.guard import diversity
from dragontune.rewards.alignment import Alignment
from dragontune.rewards.combine import InstanceSum
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from dragontune.steering.best_of_n import BestOfN
from dragontune.steering.gradient import GradientGuidance
from dragontune.steering.svdd import Svdd
from dragontune.testing import Toy, ToyEncoder
from fakes import Centre, Loudness, Pitch, Spread, Tones
from small_runs import make_workplace

PLAIN = Sampler(steps=4)
RANDOM = Sampler(steps=4, order=1, eta=1.0)
RECIPES = sorted((Path(__file__).parents[1] / "recipes" / "steer").glob("*.yaml"))
ALIGNMENT = """
    class_path: Alignment
    init_args: {encoder: {class_path: TinyClap, init_args: {model: clap}}}
"""
STEER = """\
steering:
  class_path: Svdd
  init_args:
    candidates: 2
    reward: {class_path: Alignment, init_args: {encoder: {class_path: TinyClap, init_args: {model: clap}}}}
sampler: {steps: 3, guidance: 2.0, order: 1, eta: 1.0}
"""


class Bare(Tones):
    """A model without an adapter."""

    def __init__(self):
        super().__init__(shift=0.0)

    def parameters(self):
        yield from ()


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(f"tune number {'x' * i}" for i in range(16)))
    return str(path)


def evaluation(prompts, **changes):
    settings = {"count": 12, "subset": 5, "subsets": 10, "micro_batch": 5, "players": 2, "scales": ()}
    return Evaluation(prompts, **(settings | changes))


def silent(phase, done, total):
    pass


def judged(generator, prompts, out, steer, target=None, **changes):
    return evaluate(generator, evaluation(prompts, **changes), target or Pitch(), PLAIN, 0, out, steer=steer)


def test_arms_have_the_same_cost(prompts, tmp_path):
    steer = Steered(Svdd(Pitch(), candidates=3), RANDOM)
    found = judged(Tones(0.5), prompts, tmp_path, steer, rewards={"loud": Loudness(), "spread": Spread()})
    assert found == json.loads((tmp_path / "metrics.json").read_text())
    section = found["steering"]
    assert (section["method"], section["reward"]) == ("Svdd", "Pitch")
    assert list(section["arms"]) == ["untuned", "tuned", "steered", "best of 3", "tuned, best of 3"]
    calls = {name: arm["costs_per_item"]["calls"] for name, arm in section["arms"].items()}
    assert calls == {"untuned": 4, "tuned": 4, "steered": 1 + 3 * 3, "best of 3": 12, "tuned, best of 3": 12}
    assert section["arms"]["steered"]["costs_per_item"] == {
        "calls": 10, "gradient_calls": 0, "encodes": 9, "decodes": 1
    }  # fmt: skip
    assert section["arms"]["steered"]["times_plain"] == 2.5
    assert [arm["tuned"] for arm in section["arms"].values()] == [False, True, False, False, True]
    assert set(section["arms"]["steered"]["rewards"]) == {"target", "loud", "spread"}
    assert set(section["steered_against"]["best of 3"]) == {"target", "loud", "spread"}


def test_the_arms_are_what_they_say(prompts, tmp_path):
    """Values by hand: the same noise, the steering itself."""
    steering = Svdd(Pitch(), candidates=3)
    found = judged(Tones(0.5), prompts, tmp_path, Steered(steering, RANDOM))["steering"]["arms"]
    generator, asked, key = Tones(0.5), evaluation(prompts).read(), Key(0).fold("evaluation", "noise")
    with generator.reference():
        steered = RANDOM.sample(generator, asked, key, steer=steering).latents[:, 0].mean()
        best = PLAIN.sample(generator, asked, key, steer=BestOfN(Pitch(), 3)).latents[:, 0].mean()
    tuned = PLAIN.sample(generator, asked, key, steer=BestOfN(Pitch(), 3)).latents[:, 0].mean()
    values = {name: arm["rewards"]["target"]["value"] for name, arm in found.items()}
    expected = {"steered": steered, "best of 3": best, "tuned, best of 3": tuned}
    assert {name: values[name] for name in expected} == pytest.approx({k: float(v) for k, v in expected.items()})
    assert values["untuned"] < values["steered"]
    low, high = found["steered"]["rewards"]["target"]["win_rate_ci95"]
    assert low <= found["steered"]["rewards"]["target"]["win_rate"] <= high


def test_the_rest_of_the_metrics_is_as_without_steering(prompts, tmp_path):
    plain = judged(Tones(0.5), prompts, tmp_path / "plain", None, rewards={"spread": Spread()}, scales=(0.0, 0.5, 1.0))
    steer = Steered(Svdd(Pitch(), candidates=2), RANDOM)
    settings = {"rewards": {"spread": Spread()}, "scales": (0.0, 0.5, 1.0)}
    found = judged(Tones(0.5), prompts, tmp_path / "steered", steer, **settings)
    assert found["rewards"] == plain["rewards"]
    assert "steering" not in plain


def test_a_reward_that_steers_judges_too(prompts, tmp_path):
    found = judged(Tones(0.5), prompts, tmp_path, Steered(BestOfN(Loudness(), 3), RANDOM))
    assert set(found["rewards"]) == {"target"}
    arms = found["steering"]["arms"]
    assert set(arms["steered"]["rewards"]) == {"target", "steering reward"}
    assert (
        arms["steered"]["rewards"]["steering reward"]["value"] > arms["untuned"]["rewards"]["steering reward"]["value"]
    )


def test_best_of_n_has_no_rival_but_itself(prompts, tmp_path):
    found = judged(Tones(0.5), prompts, tmp_path, Steered(BestOfN(Pitch(), 3), PLAIN))["steering"]
    assert list(found["arms"]) == ["untuned", "tuned", "steered", "tuned, best of 3"]
    assert "steered_against" not in found


def test_a_model_without_an_adapter(prompts, tmp_path):
    steer = Steered(Svdd(Pitch(), candidates=3), RANDOM)
    found = judged(Bare(), prompts, tmp_path, steer, rewards={"loud": Loudness()})
    assert list(found["steering"]["arms"]) == ["untuned", "steered", "best of 3"]
    assert found["rewards"]["target"]["before"] == found["steering"]["arms"]["untuned"]["rewards"]["target"]["value"]
    assert found["rewards"]["target"]["after"] == found["steering"]["arms"]["steered"]["rewards"]["target"]["value"]
    page = (tmp_path / "index.html").read_text()
    assert "untuned and steered" in page
    assert "the steered model wins" in page
    assert "tuning" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    assert "adapter" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)


class Tags(HTMLParser):
    void = frozenset({"meta", "link", "br", "img", "path", "line", "use"})

    def __init__(self):
        super().__init__()
        self.found, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.void:
            assert self.open.pop() == tag


def test_the_page_has_a_section(prompts, tmp_path):
    steer = Steered(Svdd(Pitch(), candidates=3), RANDOM)
    judged(Tones(0.5), prompts, tmp_path, steer, Centre(1.0), rewards={"<b>evil</b>": Pitch(-1.0)})
    page = (tmp_path / "index.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert "Steering at inference" in page
    assert "<b>evil" not in page
    section = page[page.index('id="steering"') :]
    section = section[: section.index("</section>")]
    for name in ("untuned", "tuned", "steered", "best of 3", "tuned, best of 3"):
        assert f'<th scope="row">{name}</th>' in section
    for word in ("10 denoiser calls", "9 reward calls, 1 decode", "2.5 plain", "At equal cost"):
        assert word in section
    assert section.count("<audio") == 2 * 3  # two prompts: steered, best of n, tuned best of n
    assert len(re.findall(r"\d&nbsp;% \(\d+ to \d+\)", section)) == 4 * 3
    plain = tmp_path / "plain"
    judged(Tones(0.5), prompts, plain, None)
    assert "Steering" not in (plain / "index.html").read_text()


def test_gradients_count_twice():
    steering = GradientGuidance(Alignment(ToyEncoder()), alpha=1.0)
    arms = lineup(PLAIN, Key(0), False, Steered(steering, Sampler(steps=6)))
    assert [arm.name for arm in arms] == ["untuned", "steered", "best of 3"]
    assert arms[1].costs(PLAIN, Key(0)).gradient_calls == 6


def test_a_set_flows_through_the_batches(prompts):
    """Whatever is decoded at once: a set is chosen batch by batch, each with all before it."""
    steering, found = Svdd(Centre(1.0), candidates=4), []
    for micro_batch in (2, 5, 50):
        steered = Steered(steering, RANDOM, batch=6)
        making = Making(
            Tones(), RANDOM, evaluation(prompts).read(), {"p": Pitch()}, micro_batch, Key(0), silent, steered
        )
        made = making.make("steered", range(12))
        found.append(made.latents)
        assert made.costs == steered.costs(12, Key(0)) + Costs(encodes=12)
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])
    generator, asked = Tones(), evaluation(prompts).read()
    first = RANDOM.sample(generator, asked[:6], Key(0), items=range(6), steer=steering)

    later = partial(steering, made=steering.remember(None, first))
    second = RANDOM.sample(generator, asked[6:12], Key(0), items=range(6, 12), steer=later)
    torch.testing.assert_close(found[0], torch.cat([first.latents, second.latents]))


def test_batches_are_few_and_even():
    steered = Steered(Svdd(Pitch()), RANDOM, batch=40)
    assert [len(part) for part in steered.batches(41)] == [20, 21]
    assert [len(part) for part in steered.batches(40)] == [40]
    assert steered.batches(0) == []
    assert [row for part in steered.batches(95) for row in part] == list(range(95))
    with pytest.raises(InputError, match="at least 2 items at once"):
        Steered(Svdd(Centre()), RANDOM, batch=1).check(5)
    with pytest.raises(InputError, match="eta 0"):
        Steered(Svdd(Pitch()), PLAIN)


def test_latent_diversity_is_the_guards():
    latents = torch.randn(7, 4, 9, generator=torch.Generator().manual_seed(0))
    found = LatentDiversity()(Samples(("",) * 7, latents, None))
    assert float(found) == pytest.approx(diversity(latents), rel=1e-5)


def test_rewards_that_are_the_same():
    assert same(Pitch(), Pitch())
    assert not same(Pitch(), Pitch(-1.0))
    assert not same(Pitch(), Loudness())
    nested = [InstanceSum({"a": Pitch(), "b": Loudness()}, {"a": weight, "b": 1.0}) for weight in (1.0, 1.0, 2.0)]
    assert same(nested[0], nested[1])
    assert not same(nested[0], nested[2])


def test_toy_media_have_no_players(prompts, tmp_path):
    steer = Steered(Svdd(Alignment(ToyEncoder()), candidates=2), RANDOM)
    found = judged(Toy(), prompts, tmp_path, steer, Alignment(ToyEncoder()))
    assert set(found["steering"]["arms"]["steered"]["rewards"]) == {"target"}
    assert "<audio" not in (tmp_path / "index.html").read_text()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = make_workplace(tmp_path_factory.mktemp("workplace"))
    (folder / "steer.yaml").write_text(STEER)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.run(["tune", "recipe.yaml", "--loop.rounds", "1"]) == 0
    return folder


@pytest.fixture
def workplace(run, monkeypatch):
    monkeypatch.chdir(run)
    return run


def test_evaluate_a_run(workplace):
    assert cli.run(["evaluate", "runs/recipe", "--steer", "steer.yaml", "--out", "report"]) == 0
    found = json.loads((workplace / "report/metrics.json").read_text())
    assert found["rewards"] == json.loads((workplace / "runs/recipe/report/metrics.json").read_text())["rewards"]
    assert list(found["steering"]["arms"]) == ["untuned", "tuned", "steered", "best of 2", "tuned, best of 2"]
    assert set(found["steering"]["arms"]["steered"]["rewards"]) == {"target", "alignment"}
    assert found["steering"]["arms"]["steered"]["costs_per_item"]["calls"] == 10


def test_evaluate_a_model(workplace):
    arguments = ["--model", "music", "--steer", "steer.yaml", "--prompts", "prompts.txt"]
    assert cli.run(["evaluate", *arguments, "--out", "model", "--seed", "3"]) == 0
    found = json.loads((workplace / "model/metrics.json").read_text())
    assert found["seed"] == 3
    assert list(found["steering"]["arms"]) == ["untuned", "steered", "best of 2"]
    assert set(found["rewards"]) == {"target", "diversity"}
    assert "candidates: 2" in (workplace / "model/index.html").read_text()


def test_the_file_of_steering_may_say_what_to_compare_on(workplace):
    said = yaml.safe_load(STEER) | {
        "evaluation": {
            "prompts": "prompts.txt",
            "subset": 2,
            "subsets": 5,
            "rewards": {"words": yaml.safe_load(ALIGNMENT)},
        }
    }
    (workplace / "own.yaml").write_text(yaml.safe_dump(said))
    assert cli.run(["evaluate", "--model", "music", "--steer", "own.yaml", "--out", "own"]) == 0
    assert set(json.loads((workplace / "own/metrics.json").read_text())["rewards"]) == {"target", "words"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--model", "neither"]),
        (["runs/recipe", "--model", "music"], ["both", "runs/recipe", "music"]),
        (["--model", "music", "--out", "x"], ["--steer"]),
        (["--model", "music", "--steer", "steer.yaml"], ["--out"]),
        (["--model", "music", "--steer", "steer.yaml", "--out", "x"], ["--prompts"]),
        (["--model", "music", "--steer", "steer.yaml", "--out", "x", "--loop.seed", "3"], ["--loop.seed"]),
        (["--model", "music", "--steer", "steer.yaml", "--out", "x", "--seed", "-3"], ["--seed", "-3"]),
        (["--model", "music", "--steer", "gone.yaml", "--out", "x", "--prompts", "prompts.txt"], ["gone.yaml"]),
        (["--model", "music", "--steer", "steer.yaml", "--out", "x", "--prompts", "gone.txt"], ["gone.txt"]),
        (["--model", "nowhere", "--steer", "steer.yaml", "--out", "x", "--prompts", "prompts.txt"], ["nowhere"]),
        (["runs/recipe", "--seed", "3"], ["--seed", "--loop.seed 3"]),
        (["runs/recipe", "--steer", "still.yaml"], ["eta 0", "Svdd"]),
    ],
)
def test_wrong_arguments_are_one_sentence(workplace, capsys, arguments, words):
    (workplace / "still.yaml").write_text(STEER.replace("order: 1, eta: 1.0", "order: 2"))
    assert cli.run(["evaluate", *arguments]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dragontune: ")]
    assert len(said) == 1, said
    for word in words:
        assert word in said[0]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_that_ship_are_small(path):
    steer, said = parsing.read_steer(path)
    steered = steer.over(steer.walked(Sampler(guidance=2.0)))
    plain = steered.sampler.calls(1)
    spent = steered.costs(1, Key(0).fold("generate"))
    assert 1 < (spent.calls + 2 * spent.gradient_calls) / plain <= 16
    assert steer.evaluation is not None
    assert steer.evaluation.rewards
    assert json.loads(json.dumps(said))["class_path"]
