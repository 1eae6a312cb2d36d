"""VARD: the value against closed forms on the Gaussian bed, the climb against its optimum, and learning on the toy."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from dragontune.algorithms.base import Metrics
from dragontune.algorithms.rollouts import check_instance_reward
from dragontune.algorithms.vard import Climb, Vard, ancestral_std
from dragontune.data import Rows
from dragontune.errors import InputError, NonFiniteError
from dragontune.rewards.base import InstanceReward
from dragontune.rewards.combine import InstanceSum
from dragontune.rewards.diversity import Vendi
from dragontune.sampling import Sampler
from dragontune.schedule import Cosine, Edm, Flow, Schedule
from dragontune.seeding import Key
from dragontune.testing import Toy, ToyEncoder
from dragontune.training.loop import Loop
from dragontune.training.run_folder import RunFolder
from test_ddpo import Above, Broken, Linear, nudged

PROMPTS = ["left", "right", "any", "other", "left"]
M, S2 = torch.tensor([1.0, 0.0]), 0.09
SAMPLERS = {"second order": Sampler(steps=4), "ancestral": Sampler(steps=4, order=1, eta=1.0)}


def vard(toy: Toy | None = None, reward: InstanceReward | None = None, **settings) -> Vard:
    small = {"value_rollouts": 40, "value_steps": 30, "value_width": 16, "value_depth": 1, "sampler": Sampler(steps=4)}
    return Vard(toy or Toy(), reward or Linear(), **{**small, **settings})


@dataclass(frozen=True)
class Noise(Linear):
    """A number that nothing but the item itself tells, and that no network can guess."""

    def score(self, features: Tensor) -> Tensor:
        return (features * 1e6).sin()


def begun(algorithm: Vard, prompts=PROMPTS) -> Climb:
    algorithm.memory().clear()
    return algorithm.prepare(algorithm.collect(prompts, Key(0))[0], Key(1))


def gradient(algorithm: Vard, loss: Tensor) -> Tensor:
    return torch.cat([slope.flatten() for slope in torch.autograd.grad(loss, list(algorithm.parameters()))])


def test_the_first_round_learns_from_rollouts_of_the_frozen_model():
    """Many ancestral steps are nearly exact, so that V is w mu_t there; a nudged model must not show in it."""
    settings = {"value_rollouts": 600, "value_steps": 400, "value_width": 32, "value_depth": 1, "value_lr": 3e-3}
    sampler = Sampler(steps=12, order=1, eta=1.0)
    frozen, tuned = (vard(toy, sampler=sampler, **settings) for toy in (Toy(), nudged()))
    for algorithm in (frozen, tuned):
        _, metrics = algorithm.collect(["right"] * 4, Key(0))
        assert metrics["generations"] == 604
        assert metrics["encodes"] == 604
        assert metrics["decodes"] == 0
        assert metrics["denoiser_calls"] == 604 * 12
        assert metrics["value_fit_r2_clean"] > 0.5
        assert metrics["value_fit_r2_noisy"] < metrics["value_fit_r2"] < metrics["value_fit_r2_clean"]
        assert metrics["value_r2"] > 0
    assert all(torch.equal(frozen.memory()[name], value) for name, value in tuned.memory().items())
    _, metrics = frozen.collect(["right"] * 4, Key(1))
    assert metrics["generations"] == 4

    schedule, value = Edm(), frozen._value()
    t = schedule.times(12)[6:12].float().repeat_interleave(100)
    x = M + (S2 + schedule.sigma(t) ** 2).sqrt()[:, None] * Key(3).normal(range(600), (2,))
    expected = (S2 / (S2 + schedule.sigma(t) ** 2)) * x[:, 1]
    found = value.mean + value.std * value(x, t, torch.tensor([[0.0, 1.0]]).expand(600, 2), schedule)
    assert (found - expected).square().mean().sqrt() < 0.35 * value.std


def test_it_learns_from_the_prompts_it_is_given(tmp_path: Path):
    (tmp_path / "prompts.txt").write_text("left\n\nright\n")
    algorithms = [vard(value_prompts=("left", "right")), vard(value_prompts=str(tmp_path / "prompts.txt"))]
    for algorithm in algorithms:
        begun(algorithm, ["any"])
    first, second = (algorithm.memory() for algorithm in algorithms)
    assert all(torch.equal(first[name], value) for name, value in second.items())
    torch.testing.assert_close(first["value.prompt_mean"], torch.tensor([0.5, 0.5]), atol=0.1, rtol=0)
    (tmp_path / "prompts.txt").write_text("\n")
    (tmp_path / "sound.flac").write_bytes(b"\xff\xfe\xff")
    for name, said in (
        ("prompts.txt", "got none"),
        ("sound.flac", "text file"),
        ("no.txt", "existing"),
        (".", "text file"),
    ):
        with pytest.raises(InputError, match=said):
            vard(value_prompts=str(tmp_path / name))


@pytest.mark.parametrize("schedule", [Edm(), Flow(), Cosine()], ids=lambda s: type(s).__name__)
def test_the_noise_of_ancestral_steps_is_the_sampler_s(schedule: Schedule):
    toy, sampler = Toy(schedule=schedule), Sampler(steps=6, order=1, eta=1.0)
    state, found = sampler.start(toy, ["left"], Key(0), [0]), []
    for _ in range(6):
        found.append(sampler.transition(toy, state).std.double())
        state = sampler.advance(toy, state, Key(0))
    torch.testing.assert_close(ancestral_std(schedule, 6), torch.cat(found))


class Free(nn.Module):
    """Stands in for V: linear in the latents."""

    def __init__(self, slope: Tensor, spread: float):
        super().__init__()
        self.slope, self.spread = slope, torch.tensor(spread)
        self.mean, self.std = torch.tensor(0.0), torch.tensor(1.0)

    def forward(self, latents: Tensor, t: Tensor, prompt: Tensor, schedule: Schedule) -> Tensor:
        return latents @ self.slope


@dataclass(frozen=True, eq=False)
class Shifted(Toy):
    """The exact estimate, plus a free shift for each step of `Sampler(steps=4)`, which the frozen model lacks."""

    shifts: list[Tensor] = field(default_factory=list)

    def denoise(self, noisy: Tensor, t: Tensor, condition: Rows) -> Tensor:
        estimate = self.exact(noisy, t, condition)
        if not self.shifts:
            return estimate
        return estimate + self.shifts[0][(self.schedule.times(4).to(t)[:, None] - t).abs().argmin(0)]

    @contextmanager
    def reference(self) -> Iterator[None]:
        kept = self.shifts.copy()
        self.shifts.clear()
        yield
        self.shifts.extend(kept)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_optimum_of_a_step_under_a_linear_value(monkeypatch, name: str):
    """mu = mu_ref + s_t^2 / kl grad V: there the gradient is 0. s_t is that of ancestral steps, floored."""
    slope, kl = torch.tensor([0.3, -0.7]), 0.5
    toy, sampler = Shifted(), SAMPLERS[name]
    algorithm = vard(toy, sampler=sampler, kl=kl, floor=0.1, emphasis=0.0)
    batch = begun(algorithm)
    monkeypatch.setattr(Vard, "_value", lambda self: Free(slope, 0.3))
    sigma = toy.schedule.sigma(toy.schedule.times(4))
    ancestral = sigma[1:] * (1 - (sigma[1:] / sigma[:-1]) ** 2).sqrt()
    keep = (sigma[1:] ** 2 - (sampler.eta * ancestral) ** 2).sqrt() / sigma[:-1]
    variance = ancestral.clamp(min=0.03) ** 2
    best = (variance / (1 - keep))[:, None] * slope / kl

    def slope_at(shifts: Tensor) -> tuple[Tensor, Metrics]:
        toy.shifts[:] = [torch.cat([shifts, torch.zeros(1, 2)]).float().requires_grad_()]
        loss, metrics = algorithm.loss(batch)
        return torch.autograd.grad(loss, toy.shifts)[0][:4], metrics

    at_best, metrics = slope_at(best)
    half_way, _ = slope_at(best / 2)
    assert half_way.abs().min() > 0
    assert at_best.abs().max() < 1e-3 * half_way.abs().max()
    expected = (variance[batch.stop.step] * (slope / kl).square().sum() / 2).mean().item()
    assert metrics["divergence"] == pytest.approx(expected, rel=1e-3)


def test_what_the_value_weighs():
    """(data / (data + noise))^emphasis of the latents that a step leads to: 1 at the last step, little at the first."""
    algorithm = vard(nudged(), kl=0.0)
    batch = begun(algorithm)
    value, schedule = algorithm._value(), Edm()
    state = Sampler(steps=4, order=1).resume(algorithm.generator, batch.stop)
    ahead = Sampler(steps=4, order=1).transition(algorithm.generator, state).mean
    t = schedule.times(4)[batch.stop.step + 1].float()
    values = value(ahead, t, algorithm.generator.prompt_vectors(state.condition), schedule)
    weights = value.spread**2 / (value.spread**2 + schedule.sigma(t) ** 2)
    assert weights.max() == 1
    assert weights.min() < 1e-2
    for emphasis in (0.0, 1.0, 2.0):
        loss, metrics = replace_keeping(algorithm, emphasis=emphasis).loss(batch)
        assert loss.item() == pytest.approx(-(weights**emphasis * values).mean().item(), abs=1e-5)
        assert metrics["value"] == pytest.approx((value.mean + value.std * values.mean()).item(), abs=1e-5)
        assert metrics["gradient_calls"] == 20


def replace_keeping(algorithm: Vard, **settings) -> Vard:
    """The same with other settings and the value that it has learnt."""
    other = replace(algorithm, **settings)
    other.memory().update(algorithm.memory())
    return other


def test_gradients_reach_the_model_of_one_step_and_nothing_else():
    algorithm = vard(nudged())
    batch = begun(algorithm)
    before = {name: value.clone() for name, value in algorithm.memory().items()}
    kept = []
    learnt = Vard._value

    def spy(self):
        kept.append(learnt(self))
        return kept[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Vard, "_value", spy)
        loss, _ = algorithm.loss(batch)
    loss.backward()
    assert sum(weight.grad.abs().sum().item() for weight in algorithm.parameters() if weight.grad is not None) > 0
    assert all(weight.grad is None and not weight.requires_grad for weight in kept[0].parameters())
    assert all(torch.equal(before[name], value) for name, value in algorithm.memory().items())
    assert not batch.stop.latents.requires_grad
    assert batch.stop.guided is None


def test_a_strong_pull_keeps_the_model_where_it_is():
    moved = []
    for kl in (0.001, 1e4):
        toy = nudged()
        algorithm = vard(toy, kl=kl)
        Loop(rounds=4, pairs=8, updates=4, batch=32, lr=3e-3, max_norm=1.0).run(algorithm, PROMPTS)
        with torch.no_grad():
            samples = Sampler(steps=8).sample(toy, ["any"] * 100, Key(7)).latents
            with toy.reference():
                frozen = Sampler(steps=8).sample(toy, ["any"] * 100, Key(7)).latents
        moved.append((samples - frozen).norm().item())
    assert moved[1] < 0.5 * moved[0]


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_yes_or_no_is_enough(name: str):
    """The toy climbs above a line of which the reward tells nothing but the side."""
    algorithm = vard(
        reward=Above(line=0.2), sampler=replace(SAMPLERS[name], steps=8), value_rollouts=300, value_steps=200, refresh=2
    )
    loop = Loop(rounds=8, pairs=32, updates=4, batch=64, micro_batch=64, lr=1e-2, max_norm=1.0)
    history = loop.run(algorithm, ["left", "right", "any", "other"])
    assert history[0]["reward"] < 0.5
    assert history[-1]["reward"] > history[0]["reward"] + 0.3
    assert history[0]["metrics"]["generations"] == 332
    assert history[1]["metrics"]["generations"] == 32
    assert set(history[0]["metrics"]) == set(history[1]["metrics"])


def test_a_constant_reward_teaches_nothing():
    algorithm = vard(reward=Above(line=-100.0))
    loss, metrics = algorithm.loss(begun(algorithm))
    assert loss.isfinite()
    assert metrics["value"] == pytest.approx(1, abs=0.5)
    assert algorithm.memory()["fit"].tolist() == [0, 0, 0]


def test_steps_are_taken_anew_in_every_update():
    """With noise that is neither that of the generation nor that of another update."""
    algorithm = vard(sampler=SAMPLERS["ancestral"])
    rows, _ = algorithm.collect(PROMPTS, Key(0))
    keys = [algorithm.prepare(rows, Key(seed)).key for seed in (1, 2)]
    assert len({rows.key, *keys}) == 3


def test_the_step_that_is_trained_is_guided_as_the_sampler_is():
    """At the frozen model the divergence is 0 whatever the guidance; moved, it is that of guided steps."""
    toy = nudged()
    found = []
    for guidance in (1.0, 3.0):
        sampler = Sampler(steps=4, guidance=guidance)
        algorithm = vard(toy, sampler=sampler, kl=1.0)
        batch = begun(algorithm)
        _, metrics = algorithm.loss(batch)
        state = replace(sampler, order=1).resume(toy, batch.stop)
        move = replace(sampler, order=1).transition(toy, state)
        with torch.no_grad(), toy.reference():
            frozen = replace(sampler, order=1).transition(toy, state)
        std = ancestral_std(toy.schedule, 4)[batch.stop.step].clamp(min=algorithm.floor * algorithm._value().spread)
        off = (move.mean - frozen.mean).square().sum(1) / (2 * std.float() ** 2)
        assert metrics["divergence"] == pytest.approx(off.mean().item(), rel=1e-4)
        found.append(metrics["divergence"])
    assert found[1] != pytest.approx(found[0], rel=1e-2)


@pytest.mark.parametrize("kl", [0.0, 0.5])
def test_a_round_costs_what_was_said(kl: float):
    """Also the evaluations of the frozen model."""
    algorithm = vard(kl=kl, sampler=Sampler(steps=4, guidance=2.0))
    loop = Loop(rounds=2, pairs=4, updates=3, batch=5, lr=1e-3, sample_every=0)
    metrics = loop.run(algorithm, PROMPTS)[-1]["metrics"]
    for name, count in algorithm.budget(4, 5, 3).items():
        assert metrics[name] == count, name


def test_where_there_is_nothing_to_learn_the_value_stays_the_mean():
    """And one is told."""
    algorithm = vard(reward=Noise(), value_rollouts=60, value_steps=60, value_lr=1e-2)
    with pytest.warns(UserWarning, match="predicts Noise of held-out rollouts no better than their mean"):
        _, metrics = algorithm.collect(PROMPTS, Key(0))
    assert 0 <= metrics["value_fit_r2"] < 0.05


def test_a_text_in_place_of_a_file_of_prompts_is_refused():
    with pytest.raises(InputError, match="expected an existing path"):
        vard(value_prompts="a slow air for the flute, " * 20).collect(PROMPTS, Key(0))


def test_refreshing_learns_from_the_model_as_it_is():
    """Only V's weights change, in the second round, and it then predicts that round's generations better."""
    fits = []
    for refresh in (0, 1):
        algorithm = vard(nudged(), refresh=refresh, refresh_steps=200, refresh_lr=1e-2)
        algorithm.collect(PROMPTS * 8, Key(0))
        first = {name: value.clone() for name, value in algorithm.memory().items()}
        algorithm.collect(PROMPTS * 8, Key(1))
        changed = {name for name, value in algorithm.memory().items() if not torch.equal(first[name], value)}
        assert changed - {"rounds"} <= {f"value.{name}" for name, _ in algorithm._value().named_parameters()}
        assert ("value.enter.weight" in changed) == bool(refresh)
        fits.append(algorithm.collect(PROMPTS * 8, Key(1))[1]["value_r2"])
    assert fits[1] > fits[0]


@pytest.mark.parametrize("refresh", [0, 2])
def test_resuming_gives_the_same_bits(tmp_path: Path, refresh: int):
    def run(folder: str, rounds: int) -> list[Tensor]:
        algorithm = vard(nudged(), Above(), refresh=refresh)
        loop = Loop(rounds=rounds, pairs=6, updates=2, batch=8, lr=1e-3, max_norm=1.0, sample_every=0)
        loop.run(algorithm, PROMPTS, RunFolder(tmp_path / folder))
        return [*algorithm.parameters(), *(algorithm.memory()[name] for name in sorted(algorithm.memory()))]

    whole = run("whole", 6)
    run("parts", 3)
    parts = run("parts", 6)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    assert whole[-1].dtype == parts[-1].dtype


def test_a_new_run_learns_anew():
    algorithm = vard()
    loop = Loop(rounds=1, pairs=4, updates=1, batch=4)
    first, second = (loop.run(algorithm, PROMPTS)[0]["metrics"]["generations"] for _ in range(2))
    assert first == second == 44


@pytest.mark.parametrize("name", SAMPLERS)
def test_micro_batches_change_nothing(name: str):
    """Of the same value; one that is fitted to latents that differ by rounding differs by a little more."""
    toy = nudged()
    whole, parts = (vard(toy, sampler=SAMPLERS[name], micro_batch=size) for size in (40, 3))
    batch, again = begun(whole), begun(parts)
    torch.testing.assert_close(again.stop.latents, batch.stop.latents, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(parts.memory()["fit"], whole.memory()["fit"], atol=0.02, rtol=0)
    parts.memory().update(whole.memory())
    expected, slope = gradient(whole, whole.loss(batch)[0]), torch.zeros(())
    for part in again.chunks(3):
        slope = slope + gradient(parts, parts.loss(part)[0]) * len(part) / len(again)
    torch.testing.assert_close(slope, expected, atol=1e-3 * expected.norm().item(), rtol=0)


def test_nothing_global_is_touched():
    state = torch.get_rng_state()
    begun(vard())
    assert torch.equal(state, torch.get_rng_state())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kl": -1.0}, r"expected Vard's kl finite and 0 or more, got -1.0; 0 turns"),
        ({"kl": float("nan")}, "got nan"),
        ({"floor": 0.0}, r"expected Vard's floor finite and above 0, got 0.0; leave"),
        ({"value_lr": float("inf")}, "value_lr finite and above 0, got inf"),
        ({"refresh_lr": -1.0}, "refresh_lr finite and above 0"),
        ({"emphasis": -1.0}, r"emphasis finite and 0 or more, got -1.0"),
        ({"value_rollouts": 5}, "value_rollouts of 20 or more, got 5; raise it"),
        ({"value_width": 0}, "value_width of 1 or more, got 0"),
        ({"value_depth": 0}, "value_depth of 1 or more, got 0"),
        ({"value_steps": 0}, "value_steps of 1 or more, got 0"),
        ({"refresh": -1}, "refresh of 0 or more, got -1"),
        ({"micro_batch": 0}, "micro_batch of 1 or more, got 0"),
    ],
    ids=str,
)
def test_impossible_settings(settings: dict, said: str):
    with pytest.raises(InputError, match=said):
        vard(**settings)


def test_rewards_that_it_cannot_follow():
    with pytest.raises(InputError, match=r"expected an InstanceReward as reward of Vard, got Vendi.* or Dragon"):
        check_instance_reward(Vendi(ToyEncoder()), vard())
    with pytest.raises(InputError, match="expected fixed scales"):
        vard(reward=InstanceSum({"a": Linear(), "b": Above()}, standardise="running"))
    with pytest.raises(NonFiniteError, match="item 9"):
        begun(vard(reward=Broken()))


def shared() -> list[Tensor]:
    torch.set_num_threads(1)
    algorithm = vard(nudged())
    (batch, _), memory = algorithm.collect(PROMPTS, Key(0)), algorithm.memory()
    return [batch.stop.latents, batch.stop.step.float(), memory["fit"], memory["value.enter.weight"]]


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(shared(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_are_one(tmp_path: Path):
    """Up to what rounding makes of a fit; among themselves bit for bit."""
    mp.spawn(worker, (str(tmp_path),), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for one, other, alone in zip(first, second, shared(), strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, alone, atol=0.02, rtol=1e-4)
