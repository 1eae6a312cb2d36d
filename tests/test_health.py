from dataclasses import dataclass, replace
from math import inf, isfinite, nan

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

import dragontune.training.rounds as rounds_module
from dragontune.algorithms.ddpo import Ddpo
from dragontune.algorithms.draft import Draft
from dragontune.algorithms.dragon import Dragon
from dragontune.algorithms.spread import spread
from dragontune.algorithms.vard import Vard
from dragontune.data import Samples
from dragontune.errors import InputError, NonFiniteError
from dragontune.health import Health, findings, in_a_row, summary, troubles
from dragontune.rewards.base import DifferentiableReward, DistributionReward, InstanceReward
from dragontune.sampling import Sampler
from dragontune.testing import Toy
from dragontune.training.health import QUANTILES, Tally, Update
from dragontune.training.loop import Loop
from dragontune.training.run_folder import RunFolder
from small_runs import TOY_PROMPTS, toy_dragon

LOOP = Loop(rounds=3, pairs=8, updates=3, batch=8, lr=1e-2, max_norm=1.0, sample_every=0)


def weights(algorithm):
    return torch.cat([weight.detach().flatten() for weight in algorithm.parameters()])


@pytest.fixture
def poison(monkeypatch):
    """Makes chosen updates of a run, counted from 0, go wrong in a chosen way."""

    def poisoned(chosen, where, value=nan):
        original, count = Dragon.loss, [0]

        def loss(self, batch):
            found, metrics = original(self, batch)
            count[0] += 1
            if count[0] - 1 not in chosen:
                return found, metrics
            if where == "loss":
                return found * value, metrics
            first = next(iter(self.parameters()))
            return found + Spoiled.apply(first.sum(), torch.tensor(value)), metrics

        monkeypatch.setattr(Dragon, "loss", loss)

    return poisoned


class Spoiled(torch.autograd.Function):
    """0 in value, and another gradient than that."""

    @staticmethod
    def forward(ctx, given, value):
        ctx.value = value
        return given * 0

    @staticmethod
    def backward(ctx, *above):
        return ctx.value.expand_as(above[0]), None


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("value", [nan, inf])
def test_a_bad_update_is_as_if_it_had_not_been_made(poison, monkeypatch, where, value):
    with monkeypatch.context() as inner:
        original, count = torch.optim.Adam.step, [0]

        def step(self, *arguments):
            count[0] += 1
            return None if count[0] - 1 in (1, 5) else original(self, *arguments)

        inner.setattr(torch.optim.Adam, "step", step)
        expected = toy_dragon()
        LOOP.run(expected, TOY_PROMPTS)
    untouched = toy_dragon()
    whole = LOOP.run(untouched, TOY_PROMPTS)
    poison((1, 5), where, value)
    algorithm = toy_dragon()
    with pytest.warns(UserWarning, match="Skipped updates: 33.3 % in round 1"):
        history = LOOP.run(algorithm, TOY_PROMPTS)
    assert torch.equal(weights(algorithm), weights(expected))
    assert not torch.equal(weights(algorithm), weights(untouched))
    assert weights(algorithm).isfinite().all()
    assert [record["metrics"]["skipped"] for record in history] == [1, 1, 0]
    assert [[skip["update"] for skip in record.get("skips", ())] for record in history] == [[1], [2], []]
    assert ("loss" if where == "loss" else "gradient norm") in history[0]["skips"][0]["found"]
    assert all(isfinite(number) for record in history for number in record["metrics"].values())
    assert history[0]["metrics"].keys() == whole[0]["metrics"].keys()


def test_the_run_stops_after_enough_in_a_row_and_saves_the_state_before(poison, tmp_path):
    poison(range(2, 100), "loss")
    folder, algorithm = RunFolder(tmp_path), toy_dragon()
    with pytest.warns(UserWarning, match="Skipped"), pytest.raises(NonFiniteError, match="5 updates in a row"):
        LOOP.run(algorithm, TOY_PROMPTS, folder)
    state = folder.checkpoints(1).latest()
    assert state is not None
    assert state.round == 2
    assert all(tensor.isfinite().all() for tensor in state.tensors.values())
    assert weights(algorithm).isfinite().all()
    second = state.history[1]
    assert second["loss"] is None
    assert second["metrics"]["skipped"] == second["metrics"]["updates"] == 3
    assert in_a_row(state.history) == 4


def test_resuming_counts_those_before(poison, tmp_path):
    folder = RunFolder(tmp_path)
    poison((5, 6, 7, 8), "gradient")
    with pytest.warns(UserWarning, match="Skipped"):
        replace(LOOP, rounds=2).run(toy_dragon(), TOY_PROMPTS, folder, health=Health(skips=4))
    assert in_a_row(folder.history()) == 1
    poison(range(3), "loss")  # the third round's
    with pytest.raises(NonFiniteError, match="4 updates in a row were skipped, the last one in round 3"):
        LOOP.run(toy_dragon(), TOY_PROMPTS, folder, health=Health(skips=4))


def test_one_good_update_ends_a_row(poison):
    poison((0, 1, 3, 4, 6, 7), "loss")
    with pytest.warns(UserWarning, match="Skipped"):
        history = LOOP.run(toy_dragon(), TOY_PROMPTS, health=Health(skips=3))
    assert [record["metrics"]["skipped"] for record in history] == [2, 2, 2]
    assert in_a_row(history) == 0


def test_adam_is_untouched_by_a_skipped_update(poison):
    seen = []
    algorithm = toy_dragon()
    optimizer = torch.optim.Adam(list(algorithm.parameters()), lr=1e-2)

    def memory():
        return [value.clone() for state in optimizer.state_dict()["state"].values() for value in state.values()]

    rounds = LOOP._rounds(algorithm, TOY_PROMPTS, list(algorithm.parameters()), optimizer, Health(skips=9))
    rounds(0)
    seen.append((weights(algorithm), memory()))
    poison(range(3), "gradient")
    record = rounds(1)
    assert record["metrics"]["skipped"] == 3
    assert torch.equal(weights(algorithm), seen[0][0])
    assert all(torch.equal(a, b) for a, b in zip(memory(), seen[0][1], strict=True))
    assert all(weight.grad is None or not weight.grad.any() for weight in algorithm.parameters())


def test_a_weight_that_is_not_finite_is_never_saved(monkeypatch, tmp_path):
    original = torch.optim.Adam.step

    def step(self, *arguments):
        original(self, *arguments)
        with torch.no_grad():
            self.param_groups[0]["params"][0].fill_(inf)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    folder = RunFolder(tmp_path)
    with pytest.raises(NonFiniteError, match="norm of the weights"):
        LOOP.run(toy_dragon(), TOY_PROMPTS, folder)
    state = folder.checkpoints(1).latest()
    assert state is not None
    assert all(tensor.isfinite().all() for tensor in state.tensors.values())


@dataclass(frozen=True, eq=False)
class Broken(InstanceReward[Tensor]):
    """To the right, but for items whose point is in a thin stripe."""

    value: float = nan
    below: float = -0.4

    def encode(self, samples: Samples) -> Tensor:
        return samples.latents

    def score(self, features: Tensor) -> Float[Tensor, " n"]:
        return torch.where(features[:, 1] < self.below, self.value, features[:, 0].double())


@dataclass(frozen=True, eq=False)
class BrokenSet(DistributionReward[Tensor]):
    """The mean to the right, of features that are not finite for some items."""

    value: float = nan
    below: float = -0.4

    def encode(self, samples: Samples) -> Tensor:
        return torch.where(samples.latents[:, 1:] < self.below, self.value, samples.latents)

    def score(self, features: Tensor) -> Float[Tensor, ""]:
        return features[:, 0].double().mean()


@pytest.mark.parametrize("reward", [Broken(), Broken(inf), BrokenSet(), BrokenSet(-inf)])
def test_bad_items_stop_the_run_unless_they_are_to_be_dropped(reward):
    loop = Loop(rounds=2, pairs=30, updates=2, batch=30, lr=1e-2, sample_every=0)
    made = {"beta": 2.0, "sampler": Sampler(steps=4)}
    with pytest.raises(NonFiniteError, match=r"item \d+ \('"):
        loop.run(Dragon(Toy(), reward, **made), TOY_PROMPTS)
    algorithm = Dragon(Toy(), reward, bad_items="drop", most_bad_items=0.4, **made)
    with pytest.warns(UserWarning, match=r"Items left out: .* \(item \d+ \('") as told:
        history = loop.run(algorithm, TOY_PROMPTS)
    assert len([warning for warning in told if "left out" in str(warning.message)]) == 1
    assert weights(algorithm).isfinite().all()
    for record in history:
        assert record["metrics"]["dropped_items"] == len(record["dropped"]) > 0
        assert record["metrics"]["dropped_share"] == len(record["dropped"]) / 60
        assert isfinite(record["reward"])
    with pytest.raises(NonFiniteError, match=r"more than most_bad_items \(1 %\)"):
        loop.run(Dragon(Toy(), reward, bad_items="drop", most_bad_items=0.01, **made), TOY_PROMPTS)


@pytest.mark.parametrize("pairing", ["paired", "unpaired"])
@pytest.mark.parametrize("reward", [Broken(), BrokenSet()])
def test_what_is_dropped_is_whole_pairs_and_only_those(reward, pairing):
    algorithm = Dragon(Toy(), reward, sampler=Sampler(steps=4), bad_items="drop", most_bad_items=0.5, pairing=pairing)
    prompts = [f"prompt {i}" for i in range(40)]
    found, metrics = algorithm.collect(prompts, rounds_module.Key(1))
    plain, _ = Dragon(Toy(), Broken(0.0), sampler=Sampler(steps=4)).collect(prompts, rounds_module.Key(1))
    both = Samples.join([plain.positive, plain.negative])
    bad = {both.prompts[i] for i in (both.latents[:, 1] < -0.4).nonzero()[:, 0].tolist()}
    left = set(prompts) - bad
    assert bad
    assert set(found.positive.prompts) | set(found.negative.prompts) == left
    assert len(found) == len(left)
    assert (found.positive.latents[:, 1] >= -0.4).all()
    assert {text.split("'")[1] for text in metrics["dropped"]} == bad


def test_dropping_nothing_changes_nothing():
    plain, careful = toy_dragon(), replace(toy_dragon(), bad_items="drop")
    history = LOOP.run(plain, TOY_PROMPTS), LOOP.run(careful, TOY_PROMPTS)
    assert torch.equal(weights(plain), weights(careful))
    assert history[1][0]["metrics"]["dropped_share"] == 0
    assert "dropped" not in history[1][0]


def test_too_few_pairs_left_stop_the_run():
    algorithm = Dragon(Toy(), BrokenSet(below=10.0), sampler=Sampler(steps=2), bad_items="drop", most_bad_items=0.99)
    with pytest.raises(NonFiniteError, match="most_bad_items"):
        algorithm.collect(["one", "two"], rounds_module.Key(0))
    with pytest.raises(InputError, match="most_bad_items"):
        Dragon(Toy(), Broken(), most_bad_items=1.0)


@dataclass(frozen=True, eq=False)
class Sloped(InstanceReward[Tensor], DifferentiableReward[Tensor]):
    """To the right; not finite for one item."""

    def encode(self, samples: Samples) -> Tensor:
        bad = torch.tensor([prompt == "bad" for prompt in samples.prompts])
        return torch.where(bad, nan, samples.latents[:, 0])

    def score(self, features: Tensor) -> Float[Tensor, " n"]:
        return features


@pytest.mark.parametrize(
    "make",
    [
        lambda: Draft(Toy(), Sloped(), sampler=Sampler(steps=3)),
        lambda: Ddpo(Toy(), Sloped(), sampler=Sampler(steps=3, eta=1.0, order=1)),
        lambda: Vard(Toy(), Sloped(), sampler=Sampler(steps=3), value_rollouts=20, value_steps=2),
        lambda: Dragon(Toy(), Sloped(), sampler=Sampler(steps=3)),
    ],
)
def test_every_algorithm_names_the_item(make):
    with pytest.raises(NonFiniteError, match=r"item \d+ \('bad'\)|'bad'"):
        Loop(rounds=1, pairs=8, updates=1, batch=8, sample_every=0).run(make(), ["left", "bad", "right", "any"])


def test_an_absurd_beta_is_saturated_and_said_to_be():
    loop = Loop(rounds=5, pairs=20, updates=4, batch=20, lr=2e-3, max_norm=1e3, sample_every=0)
    absurd = replace(toy_dragon(), beta=1e6)
    with pytest.warns(UserWarning, match="Saturated implicit rewards"):
        history = loop.run(absurd, TOY_PROMPTS)
    modest = loop.run(toy_dragon(), TOY_PROMPTS)
    assert history[-1]["metrics"]["saturated"] > 0.9
    assert modest[-1]["metrics"]["saturated"] < 0.2
    verdicts = {one.key: one.verdict for one in findings(history, Health())}
    assert verdicts["saturated"] == "warning"
    assert {one.key: one.verdict for one in findings(modest, Health())}["saturated"] == "fine"


def test_quantiles_are_of_the_whole_batch_whatever_the_micro_batch():
    def run(size):
        loop = Loop(rounds=2, pairs=14, updates=2, batch=14, micro_batch=size, lr=1e-2, sample_every=0)
        return loop.run(toy_dragon(), TOY_PROMPTS)

    one, seven, whole = run(1), run(7), run(14)
    names = [f"beta_a_{sign}_q{round(100 * share):02d}" for sign in ("positive", "negative") for share in QUANTILES]
    for name in names:
        for i in range(2):
            values = [history[i]["metrics"][name] for history in (one, seven, whole)]
            assert values[0] == pytest.approx(values[2], rel=1e-4, abs=1e-5)
            assert values[1] == pytest.approx(values[2], rel=1e-4, abs=1e-5)
    last = whole[-1]["metrics"]
    assert last["beta_a_positive_q05"] < last["beta_a_positive_q50"] < last["beta_a_positive_q95"]
    assert [one[i]["metrics"]["saturated"] for i in range(2)] == [whole[i]["metrics"]["saturated"] for i in range(2)]


def test_quantiles_are_those_of_all_rows_of_the_updates_that_were_made():
    tally = Tally(Health(), 1)
    for low, found in ((0.0, None), (100.0, None), (nan, "the loss was nan")):
        rows = low + torch.arange(50).float()
        tally.add(Update({"loss": low}, {"beta_a_positive": rows}, found))
    metrics = tally.metrics()
    both = torch.cat([torch.arange(50), 100 + torch.arange(50)]).double()
    assert metrics["beta_a_positive_q25"] == pytest.approx(both.quantile(0.25).item())
    assert metrics["saturated"] == pytest.approx((both > 5).double().mean().item())
    assert metrics["loss"] == 50
    assert metrics["skipped"] == 1


@dataclass(frozen=True, eq=False)
class Near(InstanceReward[Tensor]):
    """Highest where all items are the same one, or, with the other sign, far from it and so from each other."""

    sign: int = -1

    def encode(self, samples: Samples) -> Tensor:
        return samples.latents

    def score(self, features: Tensor) -> Float[Tensor, " n"]:
        return self.sign * (features.double() - torch.tensor([1.0, 0.0])).square().sum(1)


def collapsing(sign=-1):
    return Dragon(Toy(), Near(sign), beta=5.0, sampler=Sampler(steps=6))


COLLAPSE = Loop(rounds=16, pairs=40, updates=8, batch=40, lr=3e-3, max_norm=1e3, sample_every=0)
PROMPTS = [f"any {i}" for i in range(40)]


def test_a_reward_that_makes_all_items_equal_is_seen_as_a_collapse():
    with pytest.warns(UserWarning, match="Variance of the generations"):
        history = COLLAPSE.run(collapsing(), PROMPTS)
    found = {finding.key: finding for finding in findings(history, Health())}
    assert len(history) == COLLAPSE.rounds
    assert found["variance"].verdict == "warning"
    assert found["variance"].worst < 0.5
    apart = COLLAPSE.run(collapsing(sign=1), PROMPTS)
    assert {one.key: one.verdict for one in findings(apart, Health())}["variance"] == "fine"


def test_a_collapse_can_end_the_run_the_same_way_when_resumed(tmp_path):
    health = Health(stop_on_collapse=True)
    whole, folder = collapsing(), RunFolder(tmp_path)
    with pytest.warns(UserWarning, match="Variance"):
        history = COLLAPSE.run(whole, PROMPTS, health=health)
    assert len(history) < COLLAPSE.rounds
    assert history[-1]["stopped"].startswith("a collapse: ")
    assert {one.key: one.verdict for one in findings(history, health)}["variance"] == "stopped"
    parts = collapsing()
    replace(COLLAPSE, rounds=len(history) - 1).run(parts, PROMPTS, folder, health=health)
    with pytest.warns(UserWarning, match="Variance"):
        again = COLLAPSE.run(collapsing(), PROMPTS, folder, health=health)
    assert [record["metrics"] for record in again] == [record["metrics"] for record in history]
    assert again[-1]["stopped"] == history[-1]["stopped"]
    assert len(COLLAPSE.run(collapsing(), PROMPTS, folder, health=health)) == len(history)
    on = replace(COLLAPSE, rounds=len(history) + 1).run(collapsing(), PROMPTS, folder)
    assert len(on) == len(history) + 1
    assert not any("stopped" in record for record in on)


def test_spread_of_known_items():
    eye = torch.eye(3).repeat(2, 1)
    assert spread(eye)["diversity"] == pytest.approx(3.0)
    assert spread(eye)["latent_variance"] == pytest.approx(2 / 9)
    assert spread(torch.ones(4, 2, 5))["latent_variance"] == 0
    assert spread(torch.ones(4, 2, 5))["diversity"] == pytest.approx(1.0)
    assert spread(torch.cat([eye, torch.full((1, 3), nan)])) == spread(eye)
    assert spread(torch.full((3, 2), nan)) == spread(torch.zeros(3, 2)) == {}


def record(number, **metrics):
    return {"round": number, "seconds": 1.0, "reward": 0.0, "loss": 0.0, "metrics": metrics}


def test_findings_of_a_known_history():
    shares = [0.1, 0.6, 0.7, 0.1, 0.6, 0.6, 0.9, 0.2]
    history = [record(i + 1, saturated=share) for i, share in enumerate(shares)]
    (found,) = findings(history, Health(patience=3))
    assert (found.worst, found.round, found.verdict) == (0.9, 7, "warning")
    assert found.rule == "above 50 % for 3 rounds in a row"
    assert findings(history, Health(patience=4))[0].verdict == "fine"
    assert [bool(troubles(history[:i], Health(patience=3))) for i in range(1, 9)] == [False] * 6 + [True, False]
    history[5]["metrics"].pop("saturated")  # a gap is not in a row
    assert findings(history, Health(patience=3))[0].verdict == "fine"


def test_a_fall_is_measured_against_the_first_rounds():
    values = [8.0, 12.0, 10.0, 6.0, 4.9, 4.0, 4.5]
    history = [record(i + 1, diversity=value, latent_variance=1.0) for i, value in enumerate(values)]
    diversity, variance = findings(history, Health())
    assert (diversity.worst, diversity.round, diversity.verdict) == (pytest.approx(0.4), 6, "warning")
    assert variance.verdict == "fine"
    assert "40 % in round 6" in diversity.sentence()
    assert "below 50 % for 3" in summary([diversity, variance])
    assert summary([variance]) == "Health: all of 1 checks were fine"


def test_old_logs_and_none_at_all_have_no_findings():
    old = [{"round": 1, "seconds": 1.0, "reward": 0.1, "loss": 0.5, "metrics": {"grad_norm": 1.0}}, {"round": 2}]
    assert findings(old, Health()) == findings([], Health()) == []
    assert in_a_row(old) == 0
    assert summary([]) == ""


@pytest.mark.parametrize("wrong", [{"skips": 0}, {"least_diversity": 1.5}, {"patience": 0}, {"most_growth": nan}])
def test_thresholds_that_make_no_sense(wrong):
    with pytest.raises(InputError, match=f"health.{next(iter(wrong))}"):
        Health(**wrong)
