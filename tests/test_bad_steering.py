"""Bad input to steering: one sentence each, before anything is made where that is possible."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from math import inf, nan

import pytest
import torch
from torch import Tensor

from beds import Linear
from dragontune.data import Samples
from dragontune.errors import InputError, NonFiniteError
from dragontune.process import ReverseProcess
from dragontune.rewards.base import DistributionReward, InstanceReward
from dragontune.rewards.combine import InstanceSum, Sum
from dragontune.rewards.crop import InstanceCrop
from dragontune.rewards.diversity import Vendi
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from dragontune.steering.base import Steering
from dragontune.steering.best_of_n import BestOfN
from dragontune.steering.dsearch import DSearch
from dragontune.steering.ensemble import Ensemble
from dragontune.steering.foresight import Lookahead
from dragontune.steering.free2guide import Free2Guide
from dragontune.steering.gradient import GradientGuidance
from dragontune.steering.smc import Smc
from dragontune.steering.svdd import Svdd
from dragontune.testing import Toy, ToyEncoder
from dragontune.unmasking import Unmasking
from fakes import Centre, Spread

RANDOM = Sampler(3, order=1, eta=1)
ITEM, SET = Linear(), Vendi(ToyEncoder())


def one_sentence(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    assert text.startswith("expected")
    assert ", got " in text
    assert ";" in text
    return text


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: BestOfN(ITEM, 0), "n of 1 or more in BestOfN, got 0"),
        (lambda: BestOfN(ITEM, micro_batch=0), "micro_batch of 1 or more"),
        (lambda: Svdd(ITEM, 0), "candidates of 1 or more in Svdd, got 0"),
        (lambda: Svdd(ITEM, -3), "candidates of 1 or more"),
        (lambda: Svdd(ITEM, alpha=-0.1), "alpha of 0 or more in Svdd, got -0.1"),
        (lambda: Svdd(ITEM, alpha=nan), "alpha of 0 or more in Svdd, got nan"),
        (lambda: Svdd(ITEM, micro_batch=-1), "micro_batch of 1 or more"),
        (lambda: DSearch(ITEM, 0), "beams of 1 or more"),
        (lambda: DSearch(ITEM, 2, 0), "children of 1 or more"),
        (lambda: DSearch(ITEM, multiplier=0.5), "multiplier from 1 to 1000"),
        (lambda: DSearch(ITEM, multiplier=nan), "multiplier from 1 to 1000"),
        (lambda: DSearch(ITEM, multiplier=inf), "multiplier from 1 to 1000"),
        (lambda: DSearch(ITEM, replace=1.0), "replace from 0 to below 1"),
        (lambda: DSearch(ITEM, replace=-0.1), "replace from 0 to below 1"),
        (lambda: DSearch(ITEM, replace=nan), "replace from 0 to below 1"),
        (lambda: DSearch(ITEM, beams=5, replace=0.1), "at least one beam, got 0.1 of 5 beams"),
        (lambda: Smc(ITEM, 0.0), "alpha above 0 in Smc"),
        (lambda: Smc(ITEM, -1.0), "alpha of 0 or more in Smc"),
        (lambda: Smc(ITEM, nan), "alpha of 0 or more in Smc"),
        (lambda: Smc(ITEM, 1.0, 0), "particles of 1 or more"),
        (lambda: Smc(ITEM, 1.0, resample_below=1.5), "resample_below from 0"),
        (lambda: Smc(ITEM, 1.0, resample_below=nan), "resample_below from 0"),
        (lambda: Smc(Ensemble({"a": ITEM}), 1.0), "combine: sum in Smc, got normalised"),
        (lambda: Free2Guide(ITEM, 0), "candidates of 1 or more"),
        (lambda: Free2Guide(ITEM, guided_steps=-1), "guided_steps of 0 or more"),
        (lambda: Free2Guide(ITEM, alpha=nan), "alpha of 0 or more in Free2Guide"),
        (lambda: Free2Guide(ITEM, mode="average"), "alpha above 0 and a reward of single items"),
        (lambda: Free2Guide(SET, alpha=1.0, mode="average"), "alpha above 0 and a reward of single items"),
        (lambda: GradientGuidance(ITEM, 0.0), "alpha above 0 in GradientGuidance"),
        (lambda: GradientGuidance(ITEM, nan), "alpha of 0 or more in GradientGuidance"),
        (lambda: GradientGuidance(ITEM, 1.0, 0.0), "limit above 0"),
        (lambda: GradientGuidance(ITEM, 1.0, nan), "limit above 0"),
        (lambda: Lookahead(-1), "lookahead of 0 steps or more"),
        (lambda: Lookahead(1, 0), "at least 1 sample"),
        (lambda: Svdd(SET, value=Lookahead(1, 2)), "single futures for Vendi"),
        (lambda: Free2Guide(SET, value=Lookahead(1, 2)), "single futures for Vendi"),
        (lambda: Ensemble({}), "at least one reward"),
        (lambda: Ensemble({"a": ITEM}, {"b": 1.0}), "got one for 'b'"),
        (lambda: Ensemble({"a": ITEM}, {"a": nan}), "finite weight for 'a'"),
        (lambda: Ensemble({"a": InstanceSum({"x": ITEM}, standardise="running")}), "fixed scales in an Ensemble"),
        (lambda: Ensemble({"a": InstanceCrop(ITEM)}), "whole items"),
    ],
)
def test_bad_settings(build: Callable[[], object], says: str):
    with pytest.raises(InputError) as caught:
        build()
    assert says in one_sentence(caught.value)


METHODS: list[Callable[[InstanceReward], Steering]] = [
    lambda r: BestOfN(r, 3),
    lambda r: Svdd(r, 3),
    lambda r: DSearch(r, 3, 2),
    lambda r: Smc(r, 0.5, 3),
    lambda r: Free2Guide(r, 3),
]


@pytest.mark.parametrize("build", METHODS)
def test_rewards_that_learn_or_crop_are_refused(build: Callable[[InstanceReward], Steering]):
    for reward, says in (
        (InstanceCrop(ITEM), "whole items"),
        (InstanceSum({"a": ITEM}, standardise="running"), "fixed scales"),
    ):
        with pytest.raises(InputError) as caught:
            build(reward)
        assert says in one_sentence(caught.value)
    with pytest.raises(InputError, match="whole items"):
        GradientGuidance(InstanceCrop(ITEM), 1.0)


KINDS = """
from dragontune.errors import InputError
from dragontune.rewards.combine import InstanceSum
from dragontune.rewards.diversity import Vendi
from dragontune.rewards.alignment import Alignment
from dragontune.steering.dsearch import DSearch
from dragontune.steering.ensemble import Ensemble
from dragontune.steering.gradient import GradientGuidance
from dragontune.steering.smc import Smc
from dragontune.testing import ToyEncoder
reward = Vendi(ToyEncoder())
for build in (
    lambda: DSearch(reward), lambda: Smc(reward, 1.0), lambda: Ensemble({"a": reward}),
    lambda: GradientGuidance(InstanceSum({"a": Alignment(ToyEncoder())}), 1.0),
):
    try:
        build()
    except InputError as error:
        print(error)
"""


def test_rewards_of_the_wrong_kind():
    """In a process of its own: here the checker of types comes first."""
    found = subprocess.run([sys.executable, "-c", KINDS], capture_output=True, text=True, check=True).stdout
    assert [line.split(",")[0] for line in found.splitlines()] == [
        "expected an InstanceReward as reward of DSearch",
        "expected an InstanceReward as reward of Smc",
        "expected rewards of single items in an Ensemble",
        "expected a DifferentiableReward as reward of GradientGuidance",
    ]


def test_a_set_that_learns_is_refused():
    for build in (BestOfN, Svdd, Free2Guide):
        with pytest.raises(InputError, match="fixed scales"):
            build(Sum({"a": ITEM}, standardise="running"))


@pytest.mark.parametrize("process", [Sampler(3), Sampler(3, order=1), Sampler(1, order=1, eta=1)])
@pytest.mark.parametrize("build", [m for i, m in enumerate(METHODS) if i])
def test_processes_without_chance_are_refused_before_anything_runs(
    build: Callable[[InstanceReward], Steering], process: ReverseProcess
):
    for act in (
        lambda: build(ITEM).budget(process, 1, Key(0)),
        lambda: process.sample(Toy(), ["x"], Key(0), steer=build(ITEM)),
    ):
        with pytest.raises(InputError) as caught:
            act()
        assert "steps draw at random" in one_sentence(caught.value)


def test_tokens_have_no_gradients():
    with pytest.raises(InputError) as caught:
        GradientGuidance(ITEM, 1.0).check(Unmasking(3))
    assert "continuous diffusion model" in one_sentence(caught.value)


@dataclass(frozen=True)
class Wrong(InstanceReward[Tensor]):
    """Scores that are not one number an item, or not finite."""

    how: str = "nan"

    def encode(self, samples: Samples) -> Tensor:
        assert isinstance(samples.media, Tensor)
        bad = torch.tensor([prompt == "right" for prompt in samples.prompts])
        value = {"nan": nan, "infinite": inf, "minus infinite": -inf}.get(self.how, 0.0)
        return torch.where(bad, value, samples.media[:, 0])

    def score(self, features: Tensor) -> Tensor:
        match self.how:
            case "one":
                return features.mean()
            case "column":
                return features[:, None]
            case "few":
                return features[1:]
            case _:
                return features


@pytest.mark.parametrize("how", ["one", "column", "few"])
@pytest.mark.parametrize("build", METHODS)
def test_scores_of_the_wrong_shape(build: Callable[[InstanceReward], Steering], how: str):
    with pytest.raises(InputError) as caught:
        RANDOM.sample(Toy(), ["left", "right"], Key(0), steer=build(Wrong(how)))
    assert "one score for each of" in one_sentence(caught.value)


def test_a_member_s_scores_of_the_wrong_shape():
    with pytest.raises(InputError, match="from 'b', got shape"):
        RANDOM.sample(Toy(), ["x"], Key(0), steer=Free2Guide(Ensemble({"a": ITEM, "b": Wrong("column")}), 3))


@pytest.mark.parametrize("how", ["nan", "infinite", "minus infinite"])
@pytest.mark.parametrize("build", METHODS)
def test_scores_that_are_not_finite_name_the_prompt(build: Callable[[InstanceReward], Steering], how: str):
    with pytest.raises(NonFiniteError, match="for a candidate of 'right'"):
        RANDOM.sample(Toy(), ["left", "right", "x"], Key(0), steer=build(Wrong(how)))
    if build(ITEM).micro_batch > 1:
        RANDOM.sample(Toy(), ["left", "x"], Key(0), steer=build(Wrong(how)))


@pytest.mark.parametrize("build", [BestOfN, Svdd, Free2Guide])
def test_a_set_that_is_not_finite(build: Callable[[DistributionReward, int], Steering]):
    with pytest.raises(NonFiniteError, match="Spread of a set"):
        RANDOM.sample(Toy(), ["left", "right"], Key(0), steer=build(Spread(broken=True), 3))


@pytest.mark.parametrize("build", [BestOfN, Svdd, Free2Guide])
def test_too_few_items_for_a_set(build: Callable[[DistributionReward, int], Steering]):
    with pytest.raises(InputError) as caught:
        RANDOM.sample(Toy(), ["left", "right"], Key(0), steer=build(Centre(least=3), 3))
    assert "at least 3 items together for Centre, which scores sets, got 2" in one_sentence(caught.value)
