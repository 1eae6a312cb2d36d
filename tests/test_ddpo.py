"""DDPO on the toy and on linear generators: its gradient against closed forms, its clipping, groups, and learning."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from dragontune.algorithms.ddpo import Ddpo, Moves
from dragontune.algorithms.rollouts import check_instance_reward
from dragontune.data import Rows, Samples
from dragontune.errors import InputError, NonFiniteError
from dragontune.rewards.base import InstanceReward
from dragontune.rewards.combine import InstanceSum
from dragontune.rewards.diversity import Vendi
from dragontune.sampling import Sampler
from dragontune.schedule import Cosine, Flow
from dragontune.seeding import Key
from dragontune.testing import Toy, ToyEncoder
from dragontune.training.loop import Loop
from dragontune.training.run_folder import RunFolder
from fakes import Tones

PROMPTS = ["left", "right", "any", "other", "left"]
NOISY = Sampler(steps=4, order=1, eta=1.0)


@dataclass(frozen=True)
class Above(InstanceReward[Tensor]):
    """A judge who says yes or no: 1 above a line, else 0."""

    line: float = 0.0
    scale: float = 1.0

    @property
    def needs_media(self) -> bool:
        return False

    def encode(self, samples: Samples) -> Tensor:
        return samples.latents[:, 1].detach()

    def score(self, features: Tensor) -> Tensor:
        return self.scale * (features > self.line).double()


@dataclass(frozen=True)
class Linear(Above):
    """The second coordinate."""

    def score(self, features: Tensor) -> Tensor:
        return self.scale * features.double()


class Bandit(Tones):
    """The clean estimate is the shift, whatever the noise: one step with noise is N(a shift, std^2)."""

    def __init__(self, shift: float = 0.0):
        super().__init__(shift)
        self.schedule = Flow()

    def denoise(self, noisy: Tensor, t: Tensor, condition: Rows) -> Tensor:
        return (self.gamma * self.shift).expand(len(noisy), 2)


def nudged() -> Toy:
    toy, draws = Toy(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in toy.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=draws))
    return toy


def ddpo(toy=None, reward: InstanceReward | None = None, **settings) -> Ddpo:
    return Ddpo(toy or Toy(), reward or Linear(), **{"sampler": NOISY, "group": 4, "least_noise": 0.0, **settings})


def collected(algorithm: Ddpo, prompts=PROMPTS, seed: int = 0) -> Moves:
    return algorithm.prepare(algorithm.collect(prompts, Key(seed))[0], Key(1))


def gradient(algorithm: Ddpo, loss: Tensor) -> Tensor:
    return torch.cat([slope.flatten() for slope in torch.autograd.grad(loss, list(algorithm.parameters()))])


def test_what_a_round_collects():
    algorithm = ddpo(reward=Above())
    moves, metrics = algorithm.collect(PROMPTS, Key(0))
    assert len(moves) == 5 * 4 * 3
    assert moves.stop.prompts[:12] == ("left",) * 12
    assert moves.stop.item.tolist() == [item for item in range(20) for _ in range(3)]
    assert moves.stop.step.tolist() == [0, 1, 2] * 20
    going_on = (moves.stop.step[1:] > 0).nonzero()[:, 0]
    assert torch.equal(moves.stop.latents[going_on + 1], moves.ahead[going_on])
    assert metrics["generations"] == metrics["encodes"] == 20
    assert metrics["denoiser_calls"] == 80
    assert metrics["decodes"] == 0
    assert 0 < metrics["reward"] < 1
    assert metrics["reward_std"] == pytest.approx((metrics["reward"] * (1 - metrics["reward"])) ** 0.5)


def test_steps_with_hardly_any_noise_are_left_out():
    """The third of the four steps ends at EDM's least noise, 0.002, and the last adds none."""
    moves = collected(ddpo(least_noise=0.02))
    assert moves.stop.step.tolist() == [0, 1] * 20
    with pytest.raises(InputError, match=r"got 1000.0 for steps with at most"):
        collected(ddpo(least_noise=1000.0))


def test_noise_is_little_beside_the_data_where_the_step_leads():
    """`least_noise` is a share of alpha at the end of the step, not at its start."""
    toy, schedule = Toy(schedule=Cosine()), Cosine()
    sampler = Sampler(steps=6, order=1, eta=1.0)
    times = schedule.times(6)
    state = sampler.start(toy, ["any"], Key(0), [0])
    shares = []
    for step in range(6):
        move = sampler.transition(toy, state)
        shares.append((move.std[0] / schedule.alpha(times)[step + 1]).item())
        state = state.move(move.draw(Key(0)), move.history)
    limit = (shares[2] + shares[3]) / 2
    expected = [step for step, share in enumerate(shares) if share > limit]
    moves = collected(ddpo(toy, sampler=sampler, least_noise=limit))
    assert sorted(moves.stop.step.unique().tolist()) == expected


def test_one_generation_alone_is_no_comparison():
    with pytest.raises(InputError, match="two generations or more to compare"):
        collected(ddpo(group=1), ["any"])


def test_rounds_repeat_and_differ():
    algorithm = ddpo()
    assert torch.equal(collected(algorithm).ahead, collected(algorithm).ahead)
    assert not torch.equal(collected(algorithm).ahead, collected(algorithm, seed=1).ahead)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_at_first_it_is_the_gradient_of_reinforce(guidance: float):
    """Mean of A grad log p, with log p written out by hand; the ratio is 1."""
    toy = nudged()
    algorithm = ddpo(toy, sampler=replace(NOISY, guidance=guidance))
    moves = collected(algorithm)
    loss, metrics = algorithm.loss(moves)
    assert loss.item() == pytest.approx(-moves.advantage.mean().item(), abs=1e-5)
    assert metrics["clipped"] == 0
    assert metrics["approx_kl"] < 1e-10
    assert metrics["gradient_calls"] == len(moves) * (1 if guidance == 1 else 2)

    times = toy.schedule.times(4)
    now, then = toy.schedule.sigma(times)[moves.stop.step], toy.schedule.sigma(times)[moves.stop.step + 1]
    clean = toy.denoise(moves.stop.latents, times[moves.stop.step].float(), toy.encode_prompts(moves.stop.prompts))
    if guidance != 1:
        free = toy.denoise(moves.stop.latents, times[moves.stop.step].float(), toy.encode_prompts([""] * len(moves)))
        clean = free + guidance * (clean - free)
    variance = then**2 * (1 - then**2 / now**2)
    keep = (then**2 - variance).sqrt() / now
    mean = clean + keep[:, None] * (moves.stop.latents - clean)
    log_prob = -((moves.ahead - mean) ** 2 / (2 * variance[:, None])).mean(1)
    expected = gradient(algorithm, -(moves.advantage * log_prob).mean())
    torch.testing.assert_close(gradient(algorithm, loss), expected.float(), atol=1e-4 * expected.norm().item(), rtol=0)
    assert expected.norm() > 0.1


def test_the_gradient_against_finite_differences():
    bandit = Bandit(0.3)
    algorithm = ddpo(bandit, clip=10.0)
    moves = collected(algorithm)
    slope = gradient(algorithm, algorithm.loss(moves)[0])
    found = []
    for axis in range(2):
        losses = []
        for step in (1e-2, -1e-2):
            with torch.no_grad():
                bandit.shift[axis] += step
                losses.append(algorithm.loss(moves)[0].item())
                bandit.shift[axis] -= step
        found.append((losses[0] - losses[1]) / 2e-2)
    assert slope.tolist() == pytest.approx(found, rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("advantage", [2.0, -2.0])
@pytest.mark.parametrize("change", [0.5, -0.5])
def test_clipping_stops_what_has_gone_far_enough(advantage: float, change: float):
    """Likelier than it was by more than the clip: nothing more for A > 0; less likely: nothing more for A < 0."""
    algorithm = ddpo(nudged(), clip=0.2)
    moves = collected(algorithm)
    moves = replace(moves, advantage=torch.full_like(moves.advantage, advantage), log_prob=moves.log_prob - change)
    loss, metrics = algorithm.loss(moves)
    over = (advantage > 0) == (change > 0)
    ratio = torch.tensor(change).exp().item()
    bound = 1.2 if change > 0 else 0.8
    assert loss.item() == pytest.approx(-advantage * (bound if over else ratio), rel=1e-4)
    assert metrics["clipped"] == (1.0 if over else 0.0)
    assert (gradient(algorithm, loss).abs().sum() == 0) == over


def test_the_policy_gradient_of_a_gaussian_bandit():
    """x_1 ~ N(a m, std^2) and r = m_2, which one more step makes of x_1's second coordinate plus what is new.

    With two steps of `Flow` at eta inf, x_1/2 = m/2 + z/2, and the last step returns m, so the reward is put on x_1/2.
    E[A grad_m log p] for r = x_2, with log p a mean over two elements: A = (r - E r) / sd r, so d/dm_2 = a/2 E[A z]/std
    = a / (2 std) = 1/2, and d/dm_1 = 0.
    """

    class Remembers(Bandit):
        """The last step keeps what the first one drew."""

        def denoise(self, noisy: Tensor, t: Tensor, condition: Rows) -> Tensor:
            return torch.where(t[:, None] > 0.75, super().denoise(noisy, t, condition), noisy)

    count = 20_000
    algorithm = ddpo(
        Remembers(0.3), Linear(), sampler=Sampler(steps=2, order=1, eta=float("inf")), group=count, micro_batch=count
    )
    moves = collected(algorithm, ["x"])
    slopes = gradient(algorithm, algorithm.loss(moves)[0])
    # A z has variance 2 along the second axis and 1 along the first
    error = torch.tensor([1.0, 2.0]).sqrt() / (2 * count**0.5)
    assert (slopes - torch.tensor([0.0, -0.5])).abs().lt(4 * error).all()


@pytest.mark.parametrize("group", [2, 4])
def test_advantages_are_relative_to_the_group(group: int):
    moves = collected(ddpo(group=group))
    sums = torch.zeros(5).index_add_(0, moves.stop.item // group, moves.advantage)
    torch.testing.assert_close(sums, torch.zeros(5), atol=1e-5, rtol=0)
    rows = moves.advantage.view(5, group, 3)
    assert torch.equal(rows, rows[..., :1].expand_as(rows))
    torch.testing.assert_close(rows[..., 0].square().mean(1), torch.ones(5), atol=1e-3, rtol=0)


def test_a_group_of_one_is_judged_against_the_round():
    moves = collected(ddpo(group=1))
    first = moves.advantage[::3]
    assert first.sum().item() == pytest.approx(0, abs=1e-5)
    assert first.square().mean().item() == pytest.approx(1, abs=1e-3)


def test_the_units_of_a_reward_do_not_matter():
    one, thousand = (collected(ddpo(reward=Linear(scale=scale))).advantage for scale in (1.0, 1000.0))
    torch.testing.assert_close(one, thousand, atol=1e-4, rtol=1e-4)


def test_advantages_are_cut():
    algorithm = ddpo(group=40, most_advantage=2.0)
    scores = torch.zeros(40, dtype=torch.float64)
    scores[7] = 1.0
    advantage = algorithm.advantages(scores)
    assert advantage.max().item() == 2.0
    assert advantage.min().item() == pytest.approx(-1 / 39**0.5, rel=1e-3)


def test_a_constant_reward_teaches_nothing():
    algorithm = ddpo(nudged(), reward=Above(line=-100.0, scale=0.1))
    moves = collected(algorithm)
    assert moves.advantage.abs().max() < 1e-6
    loss, metrics = algorithm.loss(moves)
    assert gradient(algorithm, loss).abs().max() < 1e-6
    assert metrics["clipped"] == 0


@pytest.mark.parametrize("kl", [0.0, 0.5])
def test_micro_batches_change_nothing(kl: float):
    toy, found = nudged(), []
    for size in (3, 40):
        algorithm = ddpo(toy, micro_batch=size, kl=kl)
        moves = collected(algorithm)
        slope = torch.zeros(())
        for part in moves.chunks(size):
            slope = slope + gradient(algorithm, algorithm.loss(part)[0]) * len(part) / len(moves)
        found.append((moves, slope))
    torch.testing.assert_close(found[0][0].ahead, found[1][0].ahead, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[0][0].advantage, found[1][0].advantage, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-4 * found[1][1].norm().item(), rtol=0)


def test_the_divergence_is_that_of_gaussians():
    """Means over elements and rows of KL(N(mean, std^2) | N(mean_ref, std^2)); 0 at the reference."""
    algorithm = ddpo(nudged(), kl=1.0)
    moves = collected(algorithm)
    state = NOISY.resume(algorithm.generator, moves.stop)
    with torch.no_grad():
        ours = NOISY.transition(algorithm.generator, state)
        with algorithm.generator.reference():
            frozen = NOISY.transition(algorithm.generator, state)
    std = ours.std[:, None].expand_as(ours.mean)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(ours.mean, std), normal(frozen.mean, std)).mean().item()
    loss, metrics = algorithm.loss(moves)
    assert metrics["divergence"] == pytest.approx(expected, rel=1e-4)
    assert loss.item() == pytest.approx(-moves.advantage.mean().item() + expected, rel=1e-3)
    still = ddpo(Toy(), kl=1.0)
    assert still.loss(collected(still))[1]["divergence"] == pytest.approx(0, abs=1e-9)


def test_a_yes_or_no_is_enough():
    """The toy climbs above a line of which the reward tells nothing but the side."""
    toy = Toy()
    algorithm = ddpo(toy, Above(line=0.2), group=8, least_noise=0.02, clip=0.01)
    loop = Loop(rounds=8, pairs=16, updates=4, batch=64, micro_batch=64, lr=1e-2, max_norm=1.0)
    history = loop.run(algorithm, ["left", "right", "any", "other"])
    assert history[0]["reward"] < 0.2
    assert history[-1]["reward"] > 0.7
    assert history[0]["metrics"]["gradient_calls"] == 4 * 64
    assert history[0]["metrics"]["generations"] == 128


def test_resuming_gives_the_same_bits(tmp_path: Path):
    loop = Loop(rounds=4, pairs=3, updates=2, batch=8, lr=1e-2, sample_every=0)
    whole, parts = ddpo(Toy()), ddpo(Toy())
    loop.run(whole, PROMPTS, RunFolder(tmp_path / "whole"))
    replace(loop, rounds=2).run(ddpo(Toy()), PROMPTS, RunFolder(tmp_path / "parts"))
    loop.run(parts, PROMPTS, RunFolder(tmp_path / "parts"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))


@dataclass(frozen=True)
class Broken(Linear):
    def score(self, features: Tensor) -> Tensor:
        return torch.where(torch.arange(len(features)) == 9, torch.nan, features)


def test_a_reward_that_is_not_finite_stops():
    with pytest.raises(NonFiniteError, match=r"item 9 \('any'\)"):
        ddpo(reward=Broken()).collect(PROMPTS, Key(0))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sampler": Sampler(steps=4, order=1)}, r"expected a sampler .* got 4 steps, order 1 and eta 0; set sampler"),
        ({"sampler": Sampler(steps=4)}, "got 4 steps, order 2 and eta 0"),
        ({"sampler": Sampler(steps=1, order=1, eta=1.0)}, "got 1 steps"),
        ({"group": 0}, "got 0 and 40; raise"),
        ({"micro_batch": 0}, "got 4 and 0; raise"),
        ({"clip": 0.0}, "got 0.0 and 5.0; 1e-4"),
        ({"clip": float("nan")}, "got nan"),
        ({"most_advantage": -1.0}, "got 0.0001 and -1.0"),
        ({"least_noise": -1.0}, "got -1.0; 0.02"),
        ({"kl": -0.1}, "got -0.1; 0 turns"),
        ({"kl": float("inf")}, "got inf"),
    ],
    ids=str,
)
def test_impossible_settings(settings: dict, said: str):
    with pytest.raises(InputError, match=said):
        ddpo(**settings)


def test_rewards_that_it_cannot_follow():
    with pytest.raises(InputError, match=r"expected an InstanceReward as reward of Ddpo, got Vendi.* or Dragon"):
        check_instance_reward(Vendi(ToyEncoder()), ddpo())
    with pytest.raises(InputError, match="expected fixed scales"):
        ddpo(reward=InstanceSum({"a": Linear(), "b": Above()}, standardise="running"))


def shared() -> list[Tensor]:
    torch.set_num_threads(1)
    moves, _ = ddpo(nudged()).collect(PROMPTS, Key(0))
    return [moves.stop.latents, moves.ahead, moves.log_prob, moves.advantage, moves.stop.item.float()]


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(shared(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_are_one(tmp_path: Path):
    mp.spawn(worker, (str(tmp_path),), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    alone = shared()
    for rank in range(2):
        for found, expected in zip(torch.load(tmp_path / f"{rank}.pt", weights_only=True), alone, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
