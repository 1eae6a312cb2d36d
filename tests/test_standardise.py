"""Scales estimated from what the policy makes: what they are, and that a run remembers them."""

import math
import os
import random
import signal
import time
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from composites import ENCODER, MIXED, SEARCHES, Height, Narrow, Width, encoded, points
from dragontune.algorithms.dragon import Dragon
from dragontune.demonstrations import divide
from dragontune.errors import InputError, InterruptedRun, NonFiniteError
from dragontune.rewards import standardise
from dragontune.rewards.alignment import Alignment
from dragontune.rewards.base import Reward
from dragontune.rewards.combine import InstanceSum, Parts, Sum
from dragontune.rewards.constrain import Constrained, Floor
from dragontune.rewards.diversity import Vendi
from dragontune.rewards.pareto import Pareto
from dragontune.rewards.standardise import Spread, halves_spread
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from dragontune.testing import Toy, ToyEncoder
from dragontune.training.loop import Loop
from dragontune.training.run_folder import RunFolder
from test_resume import in_child


def after(reward: Any, rounds: int, n: int = 12) -> Any:
    state: dict[str, Tensor] = {}
    for number in range(rounds):
        features, _ = encoded(reward, n, 100 * number)
        state = dict(reward.observe(features, Key(number), state))
    return reward.given(state)


@pytest.mark.parametrize("kind", [Sum, Pareto, InstanceSum])
@pytest.mark.parametrize("options", SEARCHES, ids=str)
def test_units_do_not_matter(kind: type, options: dict):
    def rewards(factor: float) -> dict[str, Reward]:
        return {
            "height": Height(factor),
            "width" if kind is InstanceSum else "narrow": (Width if kind is InstanceSum else Narrow)(),
        }

    found = []
    for factor in (1.0, 1000.0):
        reward = after(kind(rewards(factor), standardise="running"), 2)
        features, prompts = encoded(reward, 12, 200)
        scores = reward.score(features)
        found.append((divide(reward, features, prompts, Key(0), **options).positive, scores))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-6, atol=1e-9)
    plain = [
        divide(kind(rewards(f)), *encoded(kind(rewards(f)), 12, 200), Key(0), **options).positive for f in (0.02, 50.0)
    ]
    assert not torch.equal(*plain)  # without it they do


def test_the_scale_of_a_mean_is_that_of_all_halves():
    features = Height().encode(points(8, 3))
    halves = torch.tensor([features[list(rows)].mean() for rows in combinations(range(8), 4)])
    spread = halves_spread("h", Height(), features, Key(0))
    assert spread.scale == pytest.approx(halves.std(correction=0).item(), rel=1e-9)
    assert spread.mean == pytest.approx(halves.mean().item(), rel=1e-9)


def test_the_scale_of_a_set_is_that_of_random_halves():
    """Against all halves: within what 16 draws can know, closer after many rounds; one key, one answer."""
    reward, features = Narrow(), Narrow().encode(points(10, 3))
    halves = torch.tensor([reward.score(features[torch.tensor(rows)]) for rows in combinations(range(10), 5)])
    spreads = [halves_spread("n", reward, features, Key(seed)) for seed in range(64)]
    assert spreads[0] == halves_spread("n", reward, features, Key(0)) != spreads[1]
    exact = halves.std(correction=0).item()
    assert all(0.4 * exact < spread.scale < 1.8 * exact for spread in spreads)
    total = sum(spreads, Spread())
    assert total.scale == pytest.approx(exact, rel=0.06)
    assert total.mean == pytest.approx(halves.mean().item(), abs=0.1 * exact)


def test_rounds_are_pooled_about_their_own_means():
    """The drift of the mean does not count as spread; the mean is that of all scores."""
    rounds = [
        torch.randn(k, generator=torch.Generator().manual_seed(k), dtype=torch.float64) * 2 + 10 * k for k in (5, 9, 20)
    ]
    total = sum((Spread.of(scores) for scores in rounds), Spread())
    within = sum((scores - scores.mean()).square().sum().item() for scores in rounds) / (4 + 8 + 19)
    assert total.scale == pytest.approx(within**0.5)
    assert total.mean == pytest.approx(torch.cat(rounds).mean().item())
    assert Spread.read(total.tensor()) == total


@pytest.mark.parametrize("kind", [Sum, InstanceSum])
def test_a_member_without_spread_has_no_say(kind: type):
    for factor in (0.0, 1e-12):  # always 0; too little to be more than rounding beside its mean

        @dataclass(frozen=True)
        class Constant(Height):
            def score(self, features: Tensor) -> Tensor:
                return 7 * (factor > 0) + factor * features  # noqa: B023

        reward = after(kind({"height": Height(), "same": Constant()}, standardise="running"), 2)
        alone = after(kind({"height": Height()}, standardise="running"), 2)
        assert reward.score(encoded(reward, 9, 5)[0]).isfinite().all()
        torch.testing.assert_close(reward(points(9)), alone(points(9)))
        divided = [divide(each, *encoded(each, 9, 5), Key(0)).positive for each in (reward, alone)]
        assert torch.equal(*divided)


def test_observing_changes_neither_the_reward_nor_the_state_it_is_given():
    reward = Sum(MIXED, standardise="running")
    features, _ = encoded(reward, 6, 0)
    before = reward.score(features)
    state = reward.observe(features, Key(0), {})
    copy = {name: value.clone() for name, value in state.items()}
    reward.observe(features, Key(1), state)
    assert torch.equal(reward.score(features), before)
    assert state.keys() == copy.keys()
    assert all(torch.equal(state[name], copy[name]) for name in state)
    assert standardise.given(reward, {}) is reward
    assert standardise.observe(Vendi(ENCODER), features, Key(0), {}) == {}


def test_composites_within_composites_learn_too():
    inner = Sum({"height": Height(1000.0), "narrow": Narrow()}, standardise="running")
    plain = after(Sum({"inner": inner, "w": Width()}), 2)
    fixed = plain.rewards["inner"]
    assert (fixed.standardise, set(fixed.scales)) == ("fixed", {"height", "narrow"})
    constrained = after(Constrained(inner, {"v": Floor(Vendi(ENCODER), drop=0.1)}), 2)
    torch.testing.assert_close(torch.tensor(constrained.reward.scales["height"]), torch.tensor(fixed.scales["height"]))
    assert constrained.constraints["v"].at_least is not None


def composite() -> Reward:
    rewards: dict[str, Reward] = {"align": Alignment(ToyEncoder()), "vendi": Vendi(ToyEncoder())}
    return Constrained(Sum(rewards, standardise="running"), {"up": Floor(Height(), drop=2.0)})


def dragon(reward: Reward | None = None) -> Dragon:
    return Dragon(Toy(), reward or composite(), beta=2.0, sampler=Sampler(steps=3))


PROMPTS = ["left", "right", "any", "left", "right"]


def collected() -> dict[str, Tensor]:
    torch.set_num_threads(1)
    algorithm = dragon()
    algorithm.collect(PROMPTS, Key(0))
    experience, _ = algorithm.collect(PROMPTS, Key(1))
    return {"latents": experience.positive.latents, **algorithm.memory()}


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(collected(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_learn_the_same(tmp_path: Path):
    mp.spawn(worker, (str(tmp_path),), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    alone, one, other = collected(), *(torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert set(alone) == set(one) == {"latents", "reward/align", "reward/vendi", "up"}
    for name, value in alone.items():
        assert torch.equal(one[name], other[name])
        torch.testing.assert_close(one[name], value, atol=1e-5, rtol=1e-5)


def test_a_round_counts_once_and_members_are_logged():
    algorithm = dragon()
    _, metrics = algorithm.collect(PROMPTS, Key(0))
    assert Spread.read(algorithm.memory()["reward/align"]).count == 2 * len(PROMPTS)
    assert {"member_reward", "member_up"} <= set(metrics)
    before = {name: value.clone() for name, value in algorithm.memory().items()}
    current = algorithm.current_reward()
    assert isinstance(current, Constrained)
    assert current.constraints["up"].at_least is not None
    algorithm.collect(PROMPTS, Key(1))
    assert Spread.read(algorithm.memory()["reward/align"]).count == 4 * len(PROMPTS)
    assert torch.equal(algorithm.memory()["up"], before["up"])
    assert replace(algorithm, beta=3.0).memory() == {}
    plain = dragon(Vendi(ToyEncoder()))
    plain.collect(PROMPTS, Key(0))
    assert plain.memory() == {}
    assert plain.current_reward() is plain.reward


def test_nan_names_the_item_and_nothing_is_learnt(monkeypatch: pytest.MonkeyPatch):
    algorithm = dragon(Sum({"h": Height(), "n": Narrow()}, standardise="running"))
    generate = Dragon._generate

    def broken(self: Dragon, prompts: Any, key: Key) -> Any:
        samples, features = generate(self, prompts, key)
        assert isinstance(features, Parts)
        heights = features.members["h"]
        assert isinstance(heights, Tensor)
        heights[2] = math.nan
        return samples, features

    monkeypatch.setattr(Dragon, "_generate", broken)
    with pytest.raises(NonFiniteError, match=r"item 2 \('any'\)"):
        algorithm.collect(PROMPTS, Key(0))
    assert algorithm.memory() == {}


@pytest.mark.parametrize("member", [Height(math.inf), Narrow(math.nan)])
def test_a_score_that_is_not_finite_is_not_learnt(member: Reward):
    reward = Sum({"bad": member}, standardise="running")
    with pytest.raises(NonFiniteError, match="bad"):
        reward.observe(encoded(reward, 4, 0)[0], Key(0), {})


def test_too_few_items_are_said_by_the_division():
    algorithm = dragon(Sum({"n": Narrow()}, standardise="running"))
    with pytest.raises(InputError, match="at least 2 items in a set, got 1"):
        algorithm.collect(["left"], Key(0))


LOOP = Loop(rounds=6, pairs=5, updates=2, batch=5, lr=1e-2, max_norm=1.0, sample_every=0)


def tuned(folder: RunFolder | None, algorithm: Dragon, loop: Loop = LOOP) -> dict[str, Tensor]:
    loop.run(algorithm, PROMPTS, folder)
    weights = {f"weight {i}": weight.detach().clone() for i, weight in enumerate(algorithm.parameters())}
    return {**weights, **algorithm.memory()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("again", [True, False])
def test_a_run_interrupted_within_a_round_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
):
    """Interrupted after the fourth round has learnt from its items; resumed in the same process or a new one."""
    whole = tuned(RunFolder(tmp_path / "whole"), dragon())
    algorithm, folder = dragon(), RunFolder(tmp_path / "stopped")
    prepare, calls = Dragon.prepare, 0

    def stops(self: Dragon, batch: Any, key: Key) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3 * LOOP.updates + 1:
            raise KeyboardInterrupt
        return prepare(self, batch, key)

    monkeypatch.setattr(Dragon, "prepare", stops)
    with pytest.raises(InterruptedRun):
        tuned(folder, algorithm)
    assert Spread.read(algorithm.memory()["reward/align"]).count == 4 * 2 * LOOP.pairs
    state = folder.checkpoints(2).latest()
    assert state is not None
    assert Spread.read(state.tensors["memory.reward/align"]).count == 3 * 2 * LOOP.pairs
    assert same(tuned(folder, algorithm if again else dragon()), whole)


def test_what_is_remembered_decides_the_rounds_to_come(tmp_path: Path):
    """A run that forgot would end elsewhere: the memory of the checkpoint is what makes resuming exact."""
    whole = tuned(None, dragon())
    for forgetful in (False, True):
        folder = RunFolder(tmp_path / str(forgetful))
        tuned(folder, dragon(), replace(LOOP, rounds=3))
        state = folder.checkpoints(2).latest()
        assert state is not None
        if forgetful:
            kept = {name: value for name, value in state.tensors.items() if not name.startswith("memory.")}
            folder.checkpoints(2).save(replace(state, tensors=kept))
        assert same(tuned(folder, dragon()), whole) != forgetful


def test_a_new_run_remembers_nothing_of_the_last():
    algorithm, short = dragon(), replace(LOOP, rounds=2, lr=1e-12)
    for _ in range(2):
        tuned(None, algorithm, short)
        assert Spread.read(algorithm.memory()["reward/align"]).count == 2 * 2 * LOOP.pairs


def test_killed_at_random_moments_with_a_reward_that_learns(tmp_path: Path):
    loop = replace(LOOP, rounds=15)
    start = time.monotonic()
    whole = tuned(RunFolder(tmp_path / "whole"), dragon(), loop)
    length = time.monotonic() - start
    folder, moments, killed = RunFolder(tmp_path / "killed"), random.Random(0), 0
    for _ in range(6):
        child = in_child(lambda: tuned(folder, dragon(), loop))
        time.sleep(moments.uniform(0, 0.4 * length))
        os.kill(child, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert killed >= 2
    assert same(tuned(folder, dragon(), loop), whole)
