"""DRAGON on the toy: invariances, the state at the reference, and that it learns."""

from dataclasses import dataclass, field, replace
from math import log

import pytest
import torch
from torch import Tensor

from dragontune.algorithms.dragon import Dragon, Prepared
from dragontune.data import Demonstrations, Media, Rows, Samples
from dragontune.encoders.base import Embeddings
from dragontune.errors import InputError, NonFiniteError
from dragontune.losses import Dpo, Kto, PreferenceLoss
from dragontune.reference import Reference
from dragontune.rewards.base import InstanceReward, Reward
from dragontune.rewards.diversity import Vendi
from dragontune.rewards.frechet import SetFrechet
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from dragontune.testing import Toy, ToyEncoder, Weights

ENCODER = ToyEncoder()
ABOVE = 0.3 * torch.randn(500, 2, generator=torch.Generator().manual_seed(0)) + torch.tensor([0.0, 0.6])
FRECHET = SetFrechet(ENCODER, Reference.build(ENCODER, [ABOVE], "points above"))
PROMPTS = ["left", "right", "any", "other"] * 10


@dataclass(frozen=True)
class Height(InstanceReward[Tensor]):
    """A linear reward."""

    def encode(self, samples: Samples) -> Tensor:
        return samples.latents[:, 1].detach()

    def score(self, features: Tensor) -> Tensor:
        return features


REWARDS: dict[str, Reward] = {"height": Height(), "frechet": FRECHET, "vendi": Vendi(ENCODER)}


def dragon(
    reward: Reward,
    preference: PreferenceLoss | None = None,
    *,
    toy: Toy | None = None,
    beta: float = 50.0,
    micro_batch: int = 40,
) -> Dragon:
    return Dragon(toy or Toy(), reward, preference or Dpo(), Sampler(steps=8), beta=beta, micro_batch=micro_batch)


def tune(algorithm: Dragon, prompts: list[str], rounds: int, lr: float) -> list[float]:
    """What the training loop does, in short; the reward of each round."""
    weights = list(algorithm.parameters())
    optimizer = torch.optim.Adam(weights, lr=lr)
    history = []
    for number in range(rounds):
        key = Key(0).fold("round", number)
        experience, metrics = algorithm.collect(prompts, key)
        history.append(metrics["reward"])
        for update in range(4):
            loss, _ = algorithm.loss(algorithm.prepare(experience, key.fold("update", update)))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
    return history


def nudged(seed: int = 0) -> Toy:
    toy = Toy()
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in toy.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=draws))
    return toy


def gradient(algorithm: Dragon, experience: Demonstrations, micro_batch: int) -> Tensor:
    prepared = algorithm.prepare(experience, Key(0).fold("update"))
    weights = list(algorithm.parameters())
    total = [torch.zeros_like(weight) for weight in weights]
    for part in prepared.chunks(micro_batch):
        slopes = torch.autograd.grad(algorithm.loss(part)[0] * len(part) / len(prepared), weights)
        total = [a + b for a, b in zip(total, slopes, strict=True)]
    return torch.cat([slope.flatten() for slope in total])


@pytest.mark.parametrize("preference", [Dpo(), Kto()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("name", ["height", "frechet"])
def test_micro_batches_change_nothing(name: str, preference: PreferenceLoss):
    toy, runs, slopes = nudged(), [], []
    for size in (4, 10, 40):
        algorithm = dragon(REWARDS[name], preference, toy=toy, micro_batch=size)
        experience, metrics = algorithm.collect(PROMPTS, Key(0))
        runs.append((experience, metrics))
        slopes.append(gradient(algorithm, experience, size))
    for experience, metrics in runs[:2]:
        torch.testing.assert_close(experience.positive.latents, runs[2][0].positive.latents, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(experience.negative.latents, runs[2][0].negative.latents, atol=1e-5, rtol=1e-5)
        assert experience.positive.prompts == tuple(PROMPTS)
        assert metrics["accepted_swaps"] == runs[2][1]["accepted_swaps"]
    for slope in slopes[:2]:
        torch.testing.assert_close(slope, slopes[2], atol=1e-5 * slopes[2].norm().item(), rtol=0)


@pytest.mark.parametrize(("preference", "value"), [(Dpo(), log(2)), (Kto(), 0.5)])
def test_at_the_reference(preference: PreferenceLoss, value: float):
    algorithm = dragon(Height(), preference)
    experience, _ = algorithm.collect(PROMPTS, Key(0))
    loss, metrics = algorithm.loss(algorithm.prepare(experience, Key(1)))
    assert loss.item() == pytest.approx(value, abs=1e-6)
    assert metrics["implicit_size"] == pytest.approx(0, abs=1e-5)
    loss.backward()
    assert sum(weight.grad.abs().sum().item() for weight in algorithm.parameters() if weight.grad is not None) > 0
    frozen = [p for p in algorithm.generator.network.parameters() if not p.requires_grad]  # pyright: ignore
    assert frozen
    assert all(p.grad is None for p in frozen)


@pytest.mark.parametrize("sign", ["positive", "negative"])
def test_implicit_rewards_are_beta_times_weighted_mean_errors(sign: str):
    """Equation 7 by hand, with per-element means, the schedule's weight and the same noise for both items of a pair."""
    toy = nudged()
    algorithm = replace(dragon(Height(), toy=toy, beta=3.0), condition_dropout=0.0)
    experience, _ = algorithm.collect(PROMPTS, Key(0))
    prepared = algorithm.prepare(experience, Key(1))
    x = getattr(experience, sign).latents
    sigma = toy.schedule.sigma(prepared.t)
    noisy = x + sigma[:, None] * prepared.noise
    condition = toy.encode_prompts(PROMPTS)
    with torch.no_grad():
        ours = (toy.denoise(noisy, prepared.t, condition) - x).square().mean(1)
        with toy.reference():
            frozen = (toy.denoise(noisy, prepared.t, condition) - x).square().mean(1)
        _, metrics = algorithm.loss(prepared)
    expected = 3.0 * (sigma**2 + 0.25) / (sigma * 0.5) ** 2 * (frozen - ours)
    assert metrics[f"implicit_{sign}"] == pytest.approx(expected.mean().item(), rel=1e-4)


def test_both_sets_have_noise_of_their_own_and_rounds_repeat():
    algorithm = dragon(Height())
    first, _ = algorithm.collect(PROMPTS, Key(0))
    again, _ = algorithm.collect(PROMPTS, Key(0))
    other, _ = algorithm.collect(PROMPTS, Key(1))
    assert torch.equal(first.positive.latents, again.positive.latents)
    assert not torch.equal(first.positive.latents, other.positive.latents)
    assert (first.positive.latents - first.negative.latents).abs().min() > 0
    assert first.positive.media is None


def test_the_metrics_of_a_round():
    algorithm = dragon(FRECHET)
    _, metrics = algorithm.collect(PROMPTS, Key(0))
    assert metrics["reward"] == pytest.approx((metrics["reward_first"] + metrics["reward_second"]) / 2)
    assert metrics["reward_positive"] > max(metrics["reward_first"], metrics["reward_second"])
    assert metrics["reward_negative"] < metrics["reward_positive"]
    assert metrics["accepted_swaps"] > 0
    assert metrics["denoiser_calls"] == 80 * 8
    assert metrics["decodes"] == metrics["encodes"] == 80


@dataclass(frozen=True, eq=False)
class Tagged(Toy):
    """The frozen model is far away, so that its items can be told apart."""

    def exact(self, noisy: Tensor, t: Tensor, condition: Rows) -> Tensor:
        frozen = next(m for m in self.network.modules() if hasattr(m, "disable_adapters")).disable_adapters
        return super().exact(noisy, t, condition) + (100.0 if frozen else 0.0)


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_the_share_of_the_frozen_model(share: float):
    """Binomial: 800 items, five standard deviations."""
    algorithm = replace(dragon(Height(), toy=Tagged()), reference_share=share, sampler=Sampler(steps=1))
    experience, _ = algorithm.collect(["any"] * 400, Key(0))
    latents = torch.cat([experience.positive.latents, experience.negative.latents])
    count = (latents[:, 1] > 50).sum().item()
    assert abs(count - 800 * share) <= 5 * (800 * share * (1 - share)) ** 0.5


def test_condition_dropout():
    toy, counts = Toy(minor=0.25), []
    for probability in (0.0, 0.1, 1.0):
        algorithm = replace(dragon(Height(), toy=toy), condition_dropout=probability)
        sample = Samples(("left",) * 1000, torch.zeros(1000, 2), None)
        prepared = algorithm.prepare(Demonstrations(sample, sample), Key(0))
        assert isinstance(prepared.condition_positive, Weights)
        assert isinstance(prepared.condition_negative, Weights)
        assert torch.equal(prepared.condition_positive.modes, prepared.condition_negative.modes)
        counts.append((prepared.condition_positive.modes[:, 1] == 0.25).sum().item())
    assert counts[0] == 0
    assert counts[1] == pytest.approx(100, abs=50)
    assert counts[2] == 1000


def test_the_anchor_is_of_the_whole_batch():
    algorithm = dragon(Height(), Kto(), toy=nudged())
    experience, _ = algorithm.collect(PROMPTS, Key(0))
    prepared = algorithm.prepare(experience, Key(1))
    _, metrics = algorithm.loss(replace(prepared, anchor=torch.zeros(40)))
    expected = max(0.0, (metrics["implicit_positive"] + metrics["implicit_negative"]) / 2)
    torch.testing.assert_close(prepared.anchor, torch.full((40,), expected), atol=1e-4, rtol=1e-4)
    assert isinstance(prepared, Prepared)
    assert not prepared.anchor.requires_grad


@dataclass(frozen=True)
class Broken(Height):
    seen: list[int] = field(default_factory=list)

    def score(self, features: Tensor) -> Tensor:
        return torch.where(torch.arange(len(features)) == 3, torch.nan, features)


def test_a_reward_that_is_not_finite_stops():
    with pytest.raises(NonFiniteError, match="item 3"):
        dragon(Broken()).collect(PROMPTS, Key(0))


def test_unpaired_demonstrations_are_the_better_half():
    algorithm = replace(dragon(Height()), pairing="unpaired")
    experience, metrics = algorithm.collect(PROMPTS, Key(0))
    assert experience.positive.latents[:, 1].min() >= experience.negative.latents[:, 1].max()
    loss, _ = algorithm.loss(algorithm.prepare(experience, Key(1)))
    assert loss.isfinite()
    assert metrics["reward_positive"] > metrics["reward_negative"]


@pytest.mark.parametrize(
    "settings",
    [
        {"beta": 0.0},
        {"beta": -5.0},
        {"beta": float("nan")},
        {"reference_share": 1.1},
        {"condition_dropout": -0.1},
        {"passes": 0},
        {"micro_batch": 0},
    ],
    ids=str,
)
def test_impossible_settings(settings: dict):
    with pytest.raises(InputError):
        Dragon(Toy(), FRECHET, **settings)


@pytest.mark.parametrize("preference", [Dpo(), Kto()], ids=lambda p: type(p).__name__)
def test_a_linear_reward_rises(preference: PreferenceLoss):
    toy = Toy()
    history = tune(dragon(Height(), preference, toy=toy), ["left"] * 40, 12, 2e-3)
    assert history[-1] > history[0] + 0.15
    before, after = means(toy, "left")
    assert after[1] > before[1] + 0.2
    assert abs(after[0] - before[0]) < 0.5 * (after[1] - before[1])


@pytest.mark.parametrize("preference", [Dpo(), Kto()], ids=lambda p: type(p).__name__)
def test_a_set_comes_closer_to_its_exemplars(preference: PreferenceLoss):
    toy = Toy()
    tune(dragon(FRECHET, preference, toy=toy, beta=5.0), ["any"] * 40, 12, 3e-3)
    before, after = fresh(toy, "any")
    assert FRECHET(after) > 0.85 * FRECHET(before)


@dataclass(frozen=True)
class Lifted(ToyEncoder):
    """Seen from below, the two modes are at a right angle: as different as a cosine can say."""

    def embed(self, media: Media) -> Embeddings:
        assert isinstance(media, Tensor)
        return super().embed(media + torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize(("preference", "beta", "lr"), [(Dpo(), 5.0, 5e-3), (Kto(), 20.0, 2e-3)])
def test_diversity_finds_the_minor_mode(preference: PreferenceLoss, beta: float, lr: float):
    toy, reward = Toy(minor=0.05), Vendi(Lifted())
    tune(dragon(reward, preference, toy=toy, beta=beta), ["any"] * 40, 14, lr)
    before, after = fresh(toy, "any")
    assert reward(after) > reward(before) + 0.02
    assert (after.latents[:, 0] > 0).float().mean() > (before.latents[:, 0] > 0).float().mean()


def fresh(toy: Toy, prompt: str) -> tuple[Samples, Samples]:
    """400 items of the frozen and of the tuned model, from the same noise."""
    with toy.reference():
        before = Sampler(steps=8).sample(toy, [prompt] * 400, Key(7))
    return before, Sampler(steps=8).sample(toy, [prompt] * 400, Key(7))


def means(toy: Toy, prompt: str) -> list[list[float]]:
    return [samples.latents.mean(0).tolist() for samples in fresh(toy, prompt)]
