"""DRaFT, DRaFT-K, DRaFT-LV, AlignProp and ReFL against closed forms and finite differences."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from chains import Along, Chain, Near, Together, first_order, gradient, walk
from dragontune.algorithms.alignprop import AlignProp
from dragontune.algorithms.draft import Draft, DraftLv
from dragontune.algorithms.objectives import Capped, Maximise, Target
from dragontune.algorithms.refl import Refl
from dragontune.data import Samples
from dragontune.encoders.clap import TinyClap
from dragontune.errors import InputError, NonFiniteError
from dragontune.generators.adapters import Lora
from dragontune.generators.checkpoint import Plan
from dragontune.generators.pretrained import load
from dragontune.rewards.alignment import Alignment
from dragontune.rewards.base import DifferentiableReward, InstanceReward, Reward
from dragontune.rewards.combine import DifferentiableSum
from dragontune.rewards.crop import InstanceCrop
from dragontune.rewards.signal import Tempo
from dragontune.sampling import Sampler
from dragontune.schedule import Cosine, Edm, Flow
from dragontune.seeding import Key
from dragontune.testing import Toy, ToyEncoder
from dragontune.training.loop import Loop
from dragontune.training.run_folder import RunFolder

PROMPTS = ("one", "two", "three", "four", "five")
KEY = Key(3)
GOAL = torch.tensor([2.0, -1.0]).double()


def start(chain: Chain, count: int) -> Tensor:
    return KEY.fold("update", "noise", "start").normal(range(count), chain.latent_shape).double()


def same(found, expected, rtol=1e-4, atol=1e-6):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other.to(one), rtol=rtol, atol=atol)


def test_one_step_of_a_linear_denoiser():
    """loss = |A x + b - a|^2 / 2: its slopes are E[x_0 - a] and E[(x_0 - a) x_1'], and vanish at A = 0, b = a."""
    chain = Chain(1)
    slopes, numbers = gradient(Draft(chain, Near(), first_order(1)), PROMPTS, KEY)
    noise = start(chain, 5)
    ends = noise @ chain.matrices[0].T + chain.shifts[0]
    off = (ends - GOAL).detach()
    same(slopes, [off.T @ noise / 5, off.mean(0)])
    assert numbers["reward"] == pytest.approx(-(off.square().sum(1) / 2).mean().item(), rel=1e-5)
    assert numbers["loss"] == pytest.approx(-numbers["reward"], rel=1e-5)
    with torch.no_grad():
        chain.matrices[0].zero_()
        chain.shifts[0].copy_(GOAL)
    collapsed = walk(chain, noise, list(chain.parameters()))
    assert (collapsed - GOAL).abs().max() < 1e-12
    with pytest.raises(InputError, match="0 for every item"):
        gradient(Draft(chain, Near(), first_order(1)), PROMPTS, KEY)


@pytest.mark.parametrize("last", [1, 2, 3, 4])
def test_the_last_steps_against_finite_differences(last: int):
    chain = Chain(4)
    slopes, _ = gradient(Draft(chain, Near(), first_order(4), last=last), PROMPTS, KEY)
    noise, weights = start(chain, 5), [w.detach().clone() for w in chain.parameters()]

    def loss() -> float:
        return ((walk(chain, noise, weights) - GOAL).square().sum(1) / 2).mean().item()

    for number, weight in enumerate(weights):
        for index in torch.cartesian_prod(*[torch.arange(n) for n in weight.shape]).reshape(-1, weight.ndim).tolist():
            place, step = tuple(index), 1e-5
            weight[place] += step
            up = loss()
            weight[place] -= 2 * step
            down = loss()
            weight[place] += step
            expected = (up - down) / (2 * step) if number % 4 >= 4 - last else 0.0
            assert slopes[number][place].item() == pytest.approx(expected, rel=1e-3, abs=1e-5), (number, place)


@pytest.mark.parametrize(
    "sampler", [first_order(4), Sampler(steps=4), first_order(4, eta=1.0), Sampler(4, 2.0)], ids=str
)
@pytest.mark.parametrize("last", [1, 3, 4])
def test_it_is_plain_backpropagation(sampler: Sampler, last: int):
    """Against autograd through the whole of `Sampler.sample`, without checkpoints and without the split in two."""
    chain = Chain(4, schedule=Cosine())
    slopes, _ = gradient(Draft(chain, Near(), sampler, last=last, micro_batch=2), PROMPTS, KEY, micro_batch=2)
    key = KEY.fold("update", "noise")
    samples = sampler.sample(chain, PROMPTS, key, differentiate_last=last)
    loss = -Near()(samples).mean()
    plain = torch.autograd.grad(loss, list(chain.parameters()), allow_unused=True)
    same(
        slopes,
        [torch.zeros(1).expand_as(w) if g is None else g for g, w in zip(plain, chain.parameters(), strict=True)],
    )


def test_all_steps():
    both = [gradient(Draft(Chain(3), Near(), first_order(3), last=last), PROMPTS, KEY)[0] for last in (3, "all")]
    same(*both, rtol=0, atol=0)


@pytest.mark.parametrize("steps", [2, 5])
def test_alignprop_is_draft_with_a_drawn_number_of_steps(steps: int):
    sampler = first_order(steps)
    for tau in range(1, steps):
        fixed = AlignProp(Chain(steps), Near(), sampler, truncation="fixed", mean=(tau + 0.5) / steps)
        assert fixed.tau(KEY) == tau
        assert fixed.depth(KEY) == steps - tau
        plain = Draft(Chain(steps), Near(), sampler, last=steps - tau)
        same(gradient(fixed, PROMPTS, KEY)[0], gradient(plain, PROMPTS, KEY)[0], rtol=0, atol=0)


def test_the_number_of_detached_steps():
    """At 50 steps the paper's N(42, 5), rounded down and drawn again outside of 1 .. 49."""
    algorithm = AlignProp(Chain(50), Near(), first_order(50))
    drawn = torch.tensor([algorithm.tau(KEY.fold(i)) for i in range(4000)]).double()
    assert drawn.min() >= 1
    assert drawn.max() <= 49
    values = torch.arange(1, 50).double()
    normal = torch.distributions.Normal(42.0, 5.0)
    mass = normal.cdf(values + 1) - normal.cdf(values)
    mass = mass / mass.sum()
    mean = (mass * values).sum()
    assert drawn.mean().item() == pytest.approx(mean.item(), abs=0.3)
    assert drawn.std().item() == pytest.approx((mass * (values - mean) ** 2).sum().sqrt().item(), abs=0.2)
    uniform = AlignProp(Chain(5), Near(), first_order(5), truncation="uniform")
    counts = torch.bincount(torch.tensor([uniform.tau(KEY.fold(i)) for i in range(2000)]), minlength=5)
    assert counts[0] == 0
    assert (counts[1:] - 500).abs().max() < 80


def test_the_expectation_over_uniform_truncation():
    steps = 4
    drawn = [gradient(AlignProp(Chain(steps), Near(), first_order(steps), truncation="uniform"), PROMPTS, KEY)[0]]
    truncated = [gradient(Draft(Chain(steps), Near(), first_order(steps), last=k), PROMPTS, KEY)[0] for k in (1, 2, 3)]
    assert any(all(torch.equal(a, b) for a, b in zip(drawn[0], other, strict=True)) for other in truncated)
    algorithm = AlignProp(Chain(steps), Near(), first_order(steps), truncation="uniform")
    share = torch.bincount(torch.tensor([algorithm.depth(KEY.fold(i)) for i in range(3000)]), minlength=4) / 3000
    average = [sum(share[k + 1] * one[w] for k, one in enumerate(truncated)) for w in range(2 * steps)]
    same(average, [sum(one[w] for one in truncated) / 3 for w in range(2 * steps)], rtol=0.2, atol=0.05)


# DRaFT-LV on the Gaussian bed: x_0 ~ N(m, s^2), sigma_1 = the noise before the last step, the exact last step


class Bed(Chain):
    """Whatever the first step, x_1 is m + N(0, s^2 + sigma_1^2), and the last step the posterior mean A x + b."""

    def __init__(self, noise: float):
        super().__init__(2, dim=1, schedule=Edm(sigma_min=noise, sigma_max=10.0))
        gain = 1 / (1 + noise**2)
        first = ((1 + noise**2) ** 0.5 - noise) / (10.0 - noise)  # of the step from sigma 10 to `noise`
        with torch.no_grad():
            self.matrices[0].copy_(torch.tensor([[first]]))
            self.shifts[0].fill_(0.5 * 10.0 / (10.0 - noise))
            self.matrices[1].copy_(torch.tensor([[gain]]))
            self.shifts[1].fill_(0.5 * (1 - gain))


def last_slopes(algorithm: Draft, count: int) -> Tensor:
    """The slope with respect to A of the last step, of every item by itself."""
    generator = algorithm.generator
    assert isinstance(generator, Bed)
    texts = tuple("x" for _ in range(count))
    with torch.no_grad():
        experience, _ = algorithm.collect(texts, KEY)
        prepared = algorithm.prepare(experience, KEY.fold("update"))
    inputs, slope = prepared.stop.latents[:, 0].double(), prepared.slopes.slope[:, 0].double()
    return (slope * inputs).reshape(algorithm.renoised + 1, count)


@pytest.mark.parametrize("noise", [0.3, 0.1, 0.03])
def test_lv_agrees_with_draft_1(noise: float):
    """Linear reward: equal in expectation at any noise. Quadratic: E[(a - x_0) x_1] is off by the lost variance.

    With A = 1 / (1 + noise^2): -1/4 for DRaFT-1 and 3/4 - A (A + noise^2) for a renoised result, noise^2 apart.
    """
    count = 20000
    found = -last_slopes(DraftLv(Bed(noise), Near((2.0,)), first_order(2), renoised=1, micro_batch=count), count)
    error = 4 * found.std(1) / count**0.5
    gain = 1 / (1 + noise**2)
    expected = torch.tensor([-0.25, 0.75 - gain * (gain + noise**2)]).double()
    assert ((found.mean(1) - expected).abs() < error).all()
    assert 0.8 * noise**2 < expected[1] - expected[0] < noise**2
    linear = -last_slopes(DraftLv(Bed(noise), Along((1.0,)), first_order(2), renoised=1, micro_batch=count), count)
    assert ((linear.mean(1) - 0.5).abs() < 4 * linear.std(1) / count**0.5).all()


def test_lv_has_less_variance_for_the_same_rollouts():
    count = 20000
    found = last_slopes(DraftLv(Bed(1.0), Near((2.0,)), first_order(2), micro_batch=count), count)
    assert len(found) == 3
    once, thrice = found[0].var(), found.mean(0).var()
    assert thrice < 0.8 * once


def test_lv_without_renoising_is_draft_1_and_passes_no_gradient_through_it():
    plain = gradient(Draft(Chain(3), Near(), first_order(3)), PROMPTS, KEY)[0]
    same(gradient(DraftLv(Chain(3), Near(), first_order(3), renoised=0), PROMPTS, KEY)[0], plain, rtol=0, atol=0)
    chain = Chain(3)
    slopes, _ = gradient(DraftLv(chain, Near(), first_order(3), renoised=2), PROMPTS, KEY)
    assert all(not slopes[number].any() for number in (0, 1, 3, 4))
    noise, weights = start(chain, 5), list(chain.parameters())
    times = chain.schedule.times(3)
    a, s = chain.schedule.alpha(times), chain.schedule.sigma(times)
    frozen = [w.detach() for w in weights]
    before = noise
    for k in range(2):
        keep = s[k + 1] / s[k]
        before = keep * before + (a[k + 1] - a[k] * keep) * (before @ frozen[k].T + frozen[3 + k])
    inputs = [before]
    ends = before @ frozen[2].T + frozen[5]
    for number in (1, 2):
        drawn = KEY.fold("update", "again", number).normal(range(5), (2,)).double()
        inputs.append(a[2] * ends + s[2] * drawn)
    off = [x @ frozen[2].T + frozen[5] - GOAL for x in inputs]
    expected = sum(o.T @ x for o, x in zip(off, inputs, strict=True)) / 15
    same([slopes[2]], [expected])


def test_refl_follows_one_estimate_from_a_late_step():
    sampler = first_order(8)
    algorithm = Refl(Chain(8), Near(), sampler, objective=Maximise())
    depths = torch.tensor([algorithm.depth(KEY.fold(i)) for i in range(2000)])
    assert sorted(depths.unique().tolist()) == [1, 2]  # of 8 steps, 6 and 7 are late: 30 to 39 of the paper's 40
    chain = Chain(8)
    slopes, _ = gradient(Refl(chain, Near(), sampler, objective=Maximise()), PROMPTS, KEY)
    depth = algorithm.depth(KEY.fold("update", "depth"))
    touched = {number for number, slope in enumerate(slopes) if slope.any()}
    assert touched == {8 - depth, 16 - depth}
    frozen = [w.detach() for w in chain.parameters()]
    times = chain.schedule.times(8)
    a, s = chain.schedule.alpha(times), chain.schedule.sigma(times)
    x = start(chain, 5)
    for k in range(8 - depth):
        keep = s[k + 1] / s[k]
        x = keep * x + (a[k + 1] - a[k] * keep) * (x @ frozen[k].T + frozen[8 + k])
    off = x @ frozen[8 - depth].T + frozen[16 - depth] - GOAL
    same([slopes[8 - depth]], [off.T @ x / 5])


def test_capped_and_target_losses():
    scores = torch.tensor([-1.0, 2.0, 5.0], requires_grad=True)
    assert Capped(2.0, 1e-3).losses(scores).tolist() == pytest.approx([3e-3, 0, 0])
    assert Target(2.0, 0.5).losses(scores).tolist() == [1.5, 0, 1.5]
    for objective, expected in ((Target(2.0), [-1, 0, 1]), (Capped(2.0), [-1, 0, 0]), (Maximise(2.0), [-2, -2, -2])):
        (slope,) = torch.autograd.grad(objective.losses(scores).sum(), scores)
        assert slope.tolist() == expected
    satisfied = Draft(Chain(2), Near(), first_order(2), objective=Capped(-1e6))
    slopes, numbers = gradient(satisfied, PROMPTS, KEY)
    assert not any(slope.any() for slope in slopes)
    assert numbers["loss"] == 0
    reached = Draft(Chain(2), Flat(), first_order(2), objective=Target(1.0))
    assert not any(slope.any() for slope in gradient(reached, PROMPTS, KEY)[0])
    for objective in (Capped(2.0), Target(2.0)):
        with pytest.raises(InputError, match="0 for every item"):
            gradient(Draft(Chain(2), Flat(), first_order(2), objective=objective), PROMPTS, KEY)


def test_the_divergence_pulls_back_to_the_frozen_model():
    chain = Chain(3)
    algorithm = Draft(chain, Near(), first_order(3), last=2, kl=1.0)
    _, numbers = gradient(algorithm, PROMPTS, KEY)
    assert numbers["divergence"] == 0
    with torch.no_grad():
        chain.shifts[2].add_(0.1)
    with_kl, numbers = gradient(algorithm, PROMPTS, KEY)
    without, _ = gradient(replace(algorithm, kl=0.0), PROMPTS, KEY)
    sigma = chain.schedule.sigma(chain.schedule.times(3))[2]
    ratio = (1 - sigma) / sigma  # of the last step; the one before it is not touched
    assert numbers["divergence"] == pytest.approx((ratio**2 * 0.01 / 4).item(), rel=1e-3)
    same([with_kl[5] - without[5]], [torch.full((2,), (ratio**2 * 0.1 / 4).item())], rtol=1e-3)


def test_a_large_weight_keeps_the_model():
    def moved(kl: float) -> tuple[float, float]:
        toy = Toy(schedule=Flow())
        algorithm = Draft(toy, Alignment(ToyEncoder()), Sampler(steps=4), last=2, kl=kl)
        loop = Loop(rounds=12, pairs=16, updates=1, batch=16, lr=1e-2, sample_every=0)
        history = loop.run(algorithm, ["both"])
        now = Sampler(steps=4).sample(toy, ["both"] * 64, KEY).latents
        with toy.reference():
            start = Sampler(steps=4).sample(toy, ["both"] * 64, KEY).latents
        return (now - start).norm().item(), history[-1]["reward"] - history[0]["reward"]

    free, held = moved(0.0), moved(1e4)
    assert free[1] > 0.3
    assert held[0] < 0.1 * free[0]


@pytest.mark.parametrize("kl", [0.0, 0.5])
@pytest.mark.parametrize("reward", [Near(), Together()], ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("kind", [Draft, DraftLv, AlignProp, Refl], ids=lambda kind: kind.__name__)
def test_counts_are_what_is_called(kind: type[Draft], reward: DifferentiableReward, kl: float):
    """By item, those with gradients apart; what is computed again on the way back comes on top."""
    chain = Chain(5)
    calls = {"plain": 0, "gradient": 0, "decoded": 0}
    denoise, decode = chain.denoise, chain.decode

    def counted(noisy, t, condition):
        plain = chain.off or not torch.is_grad_enabled()
        calls["plain" if plain else "gradient"] += len(noisy)
        return denoise(noisy, t, condition)

    def decoded(latents):
        calls["decoded"] += len(latents)
        return decode(latents)

    chain.denoise, chain.decode = counted, decoded  # pyright: ignore[reportAttributeAccessIssue]
    made = kind(chain, reward, first_order(5, guidance=2.0), kl=kl)
    with torch.no_grad():
        experience, _ = made.collect(PROMPTS, KEY)
        prepared = made.prepare(experience, KEY.fold("update"))
    loss, metrics = made.loss(prepared)
    depth = made.depth(KEY.fold("update", "depth"))
    assert metrics["denoiser_calls"] == calls["plain"]
    assert metrics["gradient_calls"] == calls["gradient"]
    assert metrics["generations"] == 5
    assert metrics["decodes"] == metrics["encodes"] == calls["decoded"]
    before = dict(calls)
    loss.backward()
    several = depth > 1 and not isinstance(made, Refl)
    assert calls["gradient"] - before["gradient"] == (metrics["gradient_calls"] if several else 0)


def toy_draft(kind: str = "draft", micro_batch: int = 40) -> Draft:
    reward, sampler = Alignment(ToyEncoder()), Sampler(steps=4)
    match kind:
        case "lv":
            return DraftLv(Toy(schedule=Flow()), reward, sampler, last=2, micro_batch=micro_batch)
        case "alignprop":
            return AlignProp(Toy(schedule=Flow()), reward, sampler, micro_batch=micro_batch)
        case "refl":
            return Refl(Toy(schedule=Flow()), reward, sampler, objective=Capped(2.0), micro_batch=micro_batch)
        case _:
            return Draft(Toy(schedule=Flow()), reward, sampler, last=2, kl=0.001, micro_batch=micro_batch)


@pytest.mark.parametrize("kind", ["draft", "lv", "alignprop", "refl"])
def test_the_reward_rises_and_a_run_in_two_parts_is_the_same(kind: str, tmp_path):
    loop = Loop(rounds=8, pairs=16, updates=2, batch=16, lr=1e-2, sample_every=0)
    prompts = ["both", "either", "any"]
    whole = toy_draft(kind)
    history = loop.run(whole, prompts, RunFolder(tmp_path / "whole"))
    assert history[-1]["reward"] > history[0]["reward"] + 0.15
    assert history[0]["metrics"]["generations"] == 32
    replace(loop, rounds=3).run(toy_draft(kind), prompts, RunFolder(tmp_path / "parts"))
    parts = toy_draft(kind)
    loop.run(parts, prompts, RunFolder(tmp_path / "parts"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["draft", "lv", "alignprop", "refl"])
def test_micro_batches_change_nothing(kind: str):
    found = []
    for size in (1, 5, 40):
        algorithm = toy_draft(kind, size)
        Loop(rounds=2, pairs=16, updates=2, batch=16, micro_batch=size, lr=1e-2, sample_every=0).run(
            algorithm, ["both"]
        )
        found.append(torch.cat([weight.detach().flatten() for weight in algorithm.parameters()]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-5, rtol=0)


def test_what_is_judged_is_what_is_differentiated():
    """With noise on the way, copies too: the last steps lead to the same place twice, and each copy elsewhere."""
    sampler = first_order(4, eta=1.0)
    algorithm = Draft(Chain(4), Along(), sampler, last=3, renoised=2, micro_batch=2)
    with torch.no_grad():
        experience, _ = algorithm.collect(PROMPTS, KEY)
        tail = algorithm.prepare(experience, KEY.fold("update"))
        ends, _ = algorithm._finish(tail.stop, tail.key)
    torch.testing.assert_close(Along().score(ends).double(), tail.slopes.score, rtol=1e-5, atol=1e-6)
    assert len(tail.stop.item.unique()) == 15
    assert tail.weight.tolist() == [3.0] * 5 + [0.0] * 10
    _, numbers = gradient(algorithm, PROMPTS, KEY)
    assert numbers["reward"] == pytest.approx(tail.slopes.score[:5].mean().item(), rel=1e-5)


def test_a_renoised_result_has_no_past():
    """Its first step is of first order; the original goes on from its own history."""
    toy, second = Toy(), Sampler(steps=6)
    made = {
        order: DraftLv(toy, Alignment(ToyEncoder()), replace(second, order=order), last=3, renoised=1)
        for order in (1, 2)
    }
    with torch.no_grad():
        experience, _ = made[2].collect(["left", "right", "any"], KEY)
        tail = made[2].prepare(experience, KEY.fold("update"))
        original, copy = tail.stop[torch.arange(3)], tail.stop[torch.arange(3, 6)]
        assert original.known.all()
        assert not copy.known.any()
        state = second.resume(toy, copy)
        step = second.transition(toy, state).mean
        torch.testing.assert_close(step, replace(second, order=1).transition(toy, state).mean, rtol=0, atol=0)
        state = second.resume(toy, original)
        step = second.transition(toy, state).mean
        assert not torch.allclose(step, replace(second, order=1).transition(toy, state).mean)


@pytest.mark.parametrize("sampler", [first_order(3), first_order(3, guidance=2.0)], ids=str)
def test_the_divergence_against_finite_differences(sampler: Sampler):
    """Through all steps: also the frozen model's prediction moves with the latents."""
    chain = Chain(3, schedule=Cosine())
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in chain.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=draws))
    algorithm = Draft(chain, Along(), sampler, last=3, kl=1.0)
    with_kl, _ = gradient(algorithm, PROMPTS, KEY)
    without, _ = gradient(replace(algorithm, kl=0.0), PROMPTS, KEY)

    def divergence() -> float:
        return gradient(algorithm, PROMPTS, KEY)[1]["divergence"]

    for number, weight in enumerate(chain.parameters()):
        place, step = (0,) * weight.ndim, 1e-2
        found_at = []
        for change in (step, -2 * step, step):
            with torch.no_grad():
                weight[place] += change
            found_at.append(divergence())
        up, down, _ = found_at
        found = (with_kl[number] - without[number])[place].item()
        assert found == pytest.approx((up - down) / (2 * step), rel=0.02, abs=2e-3), number


def test_with_cfg_plus_plus():
    """On steps with CFG++ the clean estimate is another one, for DRaFT as for ReFL."""
    sampler = Sampler(steps=4, guidance=1.5, plus_steps=(1, 3))
    chain = Chain(4, schedule=Cosine())
    with torch.no_grad():
        chain.denoise = _told_apart(chain)  # pyright: ignore[reportAttributeAccessIssue]
    slopes, _ = gradient(Draft(chain, Near(), sampler, last=3, micro_batch=2), PROMPTS, KEY, micro_batch=2)
    samples = sampler.sample(chain, PROMPTS, KEY.fold("update", "noise"), differentiate_last=3)
    plain = torch.autograd.grad(-Near()(samples).mean(), list(chain.parameters()), allow_unused=True)
    same(slopes, [torch.zeros_like(s) if g is None else g for g, s in zip(plain, slopes, strict=True)])
    refl = Refl(chain, Near(), sampler, objective=Maximise(), earliest=0.75)
    assert refl.depth(KEY.fold("update", "depth")) == 1
    same(gradient(refl, PROMPTS, KEY)[0], gradient(Draft(chain, Near(), sampler), PROMPTS, KEY)[0])


def _told_apart(chain: Chain):
    """A denoiser that hears the prompt: the unconditional half of a batch is estimated otherwise."""
    original = chain.denoise

    def denoise(noisy, t, condition):
        half = torch.arange(len(noisy)) >= len(noisy) // 2
        return original(noisy, t, condition) * torch.where(half, 0.5, 1.0)[:, None]

    return denoise


def test_depths_and_windows_differ_between_updates():
    depths, windows = [], []
    algorithm = AlignProp(
        Toy(schedule=Flow()), InstanceCrop(Alignment(ToyEncoder())), Sampler(steps=6), truncation="uniform"
    )
    depth = AlignProp.depth

    def note_depth(self, key):
        depths.append(depth(self, key))
        return depths[-1]

    def note_window(self, values, places):
        windows.append(places)
        return values

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AlignProp, "depth", note_depth)
        patch.setattr(InstanceCrop, "window", note_window)
        Loop(rounds=4, pairs=2, updates=3, batch=2, lr=1e-3, sample_every=0).run(algorithm, ["both"])
    assert len(set(depths)) > 1
    assert len(torch.cat(windows).unique()) == 24


@pytest.mark.parametrize("batch", [4, 3])
def test_every_generation_has_a_noise_of_its_own(batch: int):
    """In every round and update, also where an item is dealt twice into one batch."""
    seen, original = [], Sampler.start

    def spy(self, generator, prompts, key, items):
        state = original(self, generator, prompts, key, items)
        seen.append(state.latents)
        return state

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sampler, "start", spy)
        loop = Loop(rounds=2, pairs=4, updates=3, batch=batch, lr=1e-3, sample_every=0)
        loop.run(toy_draft(), ["both", "any"])
    assert len(torch.cat(seen).unique(dim=0)) == 2 * 3 * batch


@dataclass(frozen=True)
class Flat(InstanceReward[Tensor], DifferentiableReward[Tensor]):
    """1, whatever the item."""

    def encode(self, samples: Samples) -> Tensor:
        assert isinstance(samples.media, Tensor)
        return samples.media[:, 0]

    def score(self, features: Tensor) -> Tensor:
        return features * 0 + 1


@dataclass(frozen=True)
class Broken(InstanceReward[Tensor], DifferentiableReward[Tensor]):
    """Marked as differentiable, but is it?"""

    how: str

    def encode(self, samples: Samples) -> Tensor:
        assert isinstance(samples.media, Tensor)
        return samples.media[:, 0].detach() if self.how == "none" else samples.media[:, 0]

    def score(self, features: Tensor) -> Tensor:
        match self.how:
            case "none":
                return features
            case "zero":
                return features * 0 + 1
            case "round":
                return features.round()
            case "nan score":
                return torch.where(torch.arange(len(features)) == 2, torch.nan, features)
            case _:
                return (features - features.detach()).abs().sqrt()  # an infinite slope at 0


@pytest.mark.parametrize(
    ("how", "kind", "said"),
    [
        ("none", InputError, "expected a gradient of Broken with respect to the latents, got none; set reward"),
        ("zero", InputError, "got 0 for every item; set reward"),
        ("round", InputError, "got 0 for every item"),
        ("nan score", NonFiniteError, "score of Broken is NaN or infinite for item 2 .*'three'"),
        ("inf slope", NonFiniteError, "gradient of Broken is NaN or infinite for item 0"),
    ],
)
def test_gradients_that_are_none_zero_or_not_finite_are_named(how: str, kind: type[Exception], said: str):
    with pytest.raises(kind, match=said):
        gradient(Draft(Chain(2), Broken(how), first_order(2)), PROMPTS, KEY)


def refuse(said: str, make) -> None:
    with pytest.raises(InputError, match=said) as caught:
        make()
    text = str(caught.value)
    assert "got" in text
    assert ";" in text


def test_wrong_arguments_are_refused():
    chain, near, sampler = Chain(4), Near(), first_order(4)
    refuse("last from 1 to the sampler's 4 steps", lambda: Draft(chain, near, sampler, last=5))
    refuse("last from 1", lambda: Draft(chain, near, sampler, last=0))
    refuse("renoised of 0 or more, got -1", lambda: DraftLv(chain, near, sampler, renoised=-1))
    refuse("kl finite", lambda: Draft(chain, near, sampler, kl=-0.1))
    refuse("kl finite", lambda: Draft(chain, near, sampler, kl=float("nan")))
    refuse("micro_batch", lambda: Draft(chain, near, sampler, micro_batch=0))
    refuse("2 steps or more for AlignProp", lambda: AlignProp(Chain(1), near, first_order(1)))
    refuse("mean between 0 and 1", lambda: AlignProp(chain, near, sampler, mean=1.2))
    refuse("deviation above 0", lambda: AlignProp(chain, near, sampler, deviation=0.0))
    refuse("no last for AlignProp", lambda: AlignProp(chain, near, sampler, last=2))
    refuse("no renoised for Refl", lambda: Refl(chain, near, sampler, renoised=2))
    refuse("no last for Refl", lambda: Refl(chain, near, sampler, last=2))
    refuse("earliest in", lambda: Refl(chain, near, sampler, earliest=1.0))
    refuse("scale above 0 in algorithm.objective", lambda: Maximise(0.0))
    refuse("finite value in algorithm.objective", lambda: Capped(float("inf")))
    refuse("to give 1 <= tau < 4 now and then", lambda: AlignProp(chain, near, sampler, mean=0.01, deviation=1e-6))


@pytest.mark.parametrize("kind", [Draft, DraftLv, AlignProp, Refl], ids=lambda kind: kind.__name__)
def test_a_black_box_is_refused_at_construction(kind: type[Draft]):
    reward: Reward = Tempo()
    with pytest.raises(Exception, match=r"DifferentiableReward|parameter reward"):
        kind(Chain(4), reward, first_order(4))  # pyright: ignore[reportArgumentType]
    learning = DifferentiableSum({"near": Near()}, standardise="running")
    refuse("fixed scales", lambda: kind(Chain(4), learning, first_order(4)))


@pytest.mark.parametrize("micro_batch", [1, 2, 40])
def test_a_reward_of_the_whole_set(micro_batch: int):
    """Against autograd through the whole batch at once."""
    chain, sampler = Chain(3), first_order(3)
    algorithm = Draft(chain, Together(), sampler, last=2, micro_batch=micro_batch)
    slopes, numbers = gradient(algorithm, PROMPTS, KEY, micro_batch)
    score = Together()(sampler.sample(chain, PROMPTS, KEY.fold("update", "noise"), differentiate_last=2))
    plain = torch.autograd.grad(-score, list(chain.parameters()), allow_unused=True)
    same(
        slopes,
        [torch.zeros(1).expand_as(w) if g is None else g for g, w in zip(plain, chain.parameters(), strict=True)],
    )
    assert numbers["reward"] == pytest.approx(score.item(), rel=1e-5)


def test_the_divergence_where_activations_are_computed_again():
    """The frozen network's are with the adapter off, on the way back, too."""

    def slopes(plan: Plan) -> list[Tensor]:
        generator = load("tiny-music", Lora(rank=2), device="cpu", plan=plan)
        with torch.no_grad():
            for number, weight in enumerate(generator.parameters()):
                weight.add_(0.02 * KEY.normal(torch.tensor([number]), weight.shape)[0])
        algorithm = Draft(generator, Alignment(TinyClap()), Sampler(steps=3, guidance=2.0), last=2, kl=10.0)
        asked, _ = algorithm.collect(PROMPTS[:2], KEY)
        loss, numbers = algorithm.loss(algorithm.prepare(asked, KEY))
        assert numbers["divergence"] > 0
        return list(torch.autograd.grad(loss, list(generator.parameters())))

    for one, other in zip(slopes(Plan()), slopes(Plan(checkpointing=True)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
