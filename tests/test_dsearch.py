"""DSearch: what it is at its corners, its schedules, who survives, and what a lookahead is worth."""

from itertools import pairwise

import pytest
import torch

from beds import MANY, Bell, Centres, Exact, Linear, Quadratic
from dragontune.process import State
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from dragontune.steering.dsearch import DSearch, Narrowing, Search
from dragontune.steering.ensemble import Combine, Ensemble
from dragontune.steering.foresight import Foresight, Lookahead, PosteriorMean
from dragontune.steering.svdd import Svdd
from dragontune.steering.walk import Walk
from dragontune.testing import Toy
from dragontune.unmasking import Unmasking

NARROWINGS: tuple[Narrowing, ...] = ("exponential", "linear", "quadratic", "sigmoid")
REWARD = Linear()


@pytest.mark.parametrize("value", [PosteriorMean(), Lookahead(2, 2)], ids=["posterior mean", "lookahead"])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_one_beam_searched_everywhere_is_svdd_bit_for_bit(value: Foresight, guidance: float):
    process, prompts = Sampler(6, guidance=guidance, order=1, eta=1), ["left", "right", "x", "left"]
    ours = process.sample(Toy(), prompts, Key(1), steer=DSearch(REWARD, 1, 4, 1.0, "all", value=value)).latents
    theirs = process.sample(Toy(), prompts, Key(1), steer=Svdd(REWARD, 4, value=value)).latents
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, process.sample(Toy(), prompts, Key(1)).latents)


def test_one_of_everything_is_the_plain_sampler():
    for process in (Sampler(5, order=1, eta=1), Sampler(5)):
        plain = process.sample(Toy(), ["left", "x"], Key(3)).latents
        steered = process.sample(Toy(), ["left", "x"], Key(3), steer=DSearch(REWARD, 1, 1, 1.0)).latents
        assert torch.equal(plain, steered)


@pytest.mark.parametrize("narrowing", NARROWINGS)
@pytest.mark.parametrize("beams", [1, 2, 5, 16])
@pytest.mark.parametrize("steps", [2, 3, 4, 7, 12, 50])
def test_widths_never_grow_begin_at_all_and_end_at_one(narrowing: Narrowing, beams: int, steps: int):
    process = Sampler(steps, order=1, eta=1)
    widths = DSearch(REWARD, beams, narrowing=narrowing).widths(process)
    assert len(widths) == steps - 1
    assert all(1 <= after <= before for before, after in pairwise([beams, *widths]))
    assert widths[-1] == 1
    if steps > 2:
        assert widths[0] == beams


def test_widths_are_those_of_the_released_schedules():
    """Systems.md 11.2 with B = 1, R = 6, T = 11: i / (T - 1) in tenths."""
    process, at = Sampler(11, order=1, eta=1), [i / 10 for i in range(9)]
    widths = {kind: DSearch(REWARD, 6, narrowing=kind).widths(process)[:-1] for kind in NARROWINGS}
    assert widths["exponential"] == [max(1, int(6 ** (1 - x) + 1e-9)) for x in at]
    assert widths["linear"] == [int(1 + 5 * (1 - x) + 1e-9) for x in at]
    assert widths["quadratic"] == [int(1 + 5 * (1 - x) ** 2 + 1e-9) for x in at]
    assert widths["sigmoid"][:3] == [6, 5, 5]
    assert widths["sigmoid"][5:] == [3, 2, 1, 1]


def test_the_last_choice_of_a_process_that_draws_at_every_step_leaves_one():
    process = Unmasking(5)
    for narrowing in NARROWINGS:
        widths = DSearch(REWARD, 4, narrowing=narrowing).widths(process)
        assert len(widths) == 5
        assert widths[0] == 4
        assert widths[-1] == 1


@pytest.mark.parametrize("narrowing", NARROWINGS)
def test_a_searched_step_costs_about_the_same_throughout(narrowing: Narrowing):
    """Beams x children: at most beams x children x multiplier, and not much less."""
    process = Sampler(30, order=1, eta=1)
    steering = DSearch(REWARD, 7, 6, 5.0, "all", narrowing)
    alive = [7, *steering.widths(process)]
    rows = [a * b for a, b in zip(alive, steering.counts(process, Key(0)), strict=False)]
    assert max(rows) <= 7 * 6 * 5
    assert min(rows) > 0.95 * 7 * 6 * 5


def test_children_are_counted_without_rounding_errors():
    """1.16 x 25 is 28.999999999999996 in floating point."""
    assert DSearch(REWARD, 1, 25, 1.16, "all").counts(Sampler(3, order=1, eta=1), Key(0)) == [29, 29]


def test_with_replacement_neither_beams_nor_children_change():
    process, steering = Sampler(9, order=1, eta=1), DSearch(REWARD, 6, 3, 2.0, "all", replace=0.34)
    assert steering.widths(process) == [6] * 7 + [1]
    assert steering.counts(process, Key(0)) == [6] * 8


@pytest.mark.parametrize("search", ["all", "uniform", "linear", "exponential"])
def test_how_often_each_step_is_searched(search: Search):
    """p = 1; 0.7; (i + 10) / (T - 1), at most 1; 1 - exp(-3 i / (T - 1)) (systems.md 11.2)."""
    steps, keys = 31, 600
    process, steering = Sampler(steps, order=1, eta=1), DSearch(REWARD, 1, 2, 4.0, search)
    found = torch.tensor([steering.counts(process, Key(seed)) for seed in range(keys)])
    assert set(found.unique().tolist()) <= {2, 8}
    i = torch.arange(steps - 1) / (steps - 1)
    expected = {
        "all": torch.ones(steps - 1),
        "uniform": torch.full((steps - 1,), 0.7),
        "linear": (i + 10 / (steps - 1)).clamp(max=1),
        "exponential": 1 - (-3 * i).exp(),
    }[search]
    off = (found == 8).float().mean(0) - expected
    assert (off.abs() <= 4.5 * (expected * (1 - expected) / keys).sqrt() + 1e-6).all()


def candidates(
    bell: Bell, process: Exact, prompts: list[str], width: int, key: Key
) -> tuple[torch.Tensor, torch.Tensor]:
    """The states after one step of `width` beams, by hand, and what they promise: [prompts, width]."""
    items, found, worth = range(len(prompts)), [], []
    for lane in range(width):
        own = key.fold("lane", lane) if lane else key
        state = process.advance(bell, process.start(bell, prompts, own, items), own)
        found.append(state.latents[:, 0])
        worth.append(process.transition(bell, state).clean[:, 0])
    return torch.stack(found, 1), torch.stack(worth, 1)


def test_the_best_beams_of_each_prompt_survive_and_no_prompt_loses_its_own():
    """One child each: only the noise tells beams apart. The reward of prompt 9 is out of reach for the others."""
    bell, prompts = Bell(), ["0", "9", "-9", "0"] * 10
    process = Exact(12)
    steering = DSearch(REWARD, 8, 1, 1.0, "all", "linear", micro_batch=MANY)
    assert steering.widths(process)[:2] == [8, 7]
    seen: list[State] = []
    final = process.sample(bell, prompts, Key(4), steer=steering, visit=seen.append).latents
    assert [len(state) // 40 for state in seen] == [8, *steering.widths(process)]
    for before, after in pairwise(seen):
        first, second = (state.condition for state in (before, after))
        assert isinstance(first, Centres)
        assert isinstance(second, Centres)
        assert (second.means.view(40, -1) == first.means.view(40, -1)[:, :1]).all()
    assert len(final) == 40


def test_the_top_of_the_candidates_is_kept():
    bell, prompts, key = Bell(), ["0", "3", "-3"] * 20, Key(4)
    process, steering = Exact(3), DSearch(REWARD, 9, 1, 1.0, "all", "exponential", micro_batch=MANY)
    assert steering.widths(process) == [9, 3, 1]
    seen: list[State] = []
    process.sample(bell, prompts, key, steer=steering, visit=seen.append)
    after_one, _ = candidates(bell, process, prompts, 9, key)
    torch.testing.assert_close(seen[1].latents.view(60, 9), after_one)
    after_two, worth = [], []
    for lane in range(9):
        own = key.fold("lane", lane) if lane else key
        state = process.start(bell, prompts, own, range(60))
        state = process.advance(bell, process.advance(bell, state, own), own)
        after_two.append(state.latents[:, 0])
        worth.append(process.transition(bell, state).clean[:, 0])
    top = torch.stack(worth, 1).topk(3, 1).indices.sort(1).values
    torch.testing.assert_close(seen[2].latents.view(60, 3), torch.stack(after_two, 1).gather(1, top))


@pytest.mark.parametrize("replace", [0.0, 0.4])
def test_a_prompt_does_not_feel_the_others(replace: float):
    process, steering = Exact(8), DSearch(REWARD, 5, 2, 2.0, replace=replace, micro_batch=MANY)
    prompts = ["0", "50", "-50"]
    together = process.sample(Bell(), prompts, Key(2), steer=steering).latents
    for place, prompt in enumerate(prompts):
        alone = process.sample(Bell(), [prompt], Key(2), items=[place], steer=steering).latents
        torch.testing.assert_close(together[place : place + 1], alone, rtol=0, atol=1e-12)


def test_the_worst_are_replaced_by_copies_drawn_by_their_values():
    """Three beams, one replaced: the copy is of the better of the others with probability sigmoid(a - b)."""
    bell, process, count, key = Bell(), Exact(2), 3000, Key(7)
    steering = DSearch(Linear(2.0), 3, 1, 1.0, "all", replace=0.34, micro_batch=MANY)
    seen: list[State] = []
    process.sample(bell, [""] * count, key, steer=steering, visit=seen.append)
    states, worth = candidates(bell, process, [""] * count, 3, key)
    assert [len(state) for state in seen] == [3 * count, 3 * count, count]
    kept, order = seen[1].latents.view(count, 3), worth.argsort(1, descending=True)
    best, second, worst = (states.gather(1, order[:, i : i + 1])[:, 0] for i in range(3))
    assert not (kept == worst[:, None]).any()
    doubled = (kept == best[:, None]).sum(1) == 2
    assert ((kept == best[:, None]).sum(1) + (kept == second[:, None]).sum(1) == 3).all()
    gap = 2 * (worth.gather(1, order[:, :1]) - worth.gather(1, order[:, 1:2]))[:, 0]
    chance = gap.sigmoid()
    assert (doubled.double() - chance).sum().abs() < 4 * (chance * (1 - chance)).sum().sqrt()


def test_copies_part_ways_and_the_best_is_handed_over():
    bell, process = Bell(), Exact(6)
    steering = DSearch(REWARD, 5, 1, 1.0, "all", replace=0.4, micro_batch=MANY)
    seen: list[State] = []
    final = process.sample(bell, ["0"] * 50, Key(0), steer=steering, visit=seen.append).latents[:, 0]
    for before, after in pairwise(seen[:-1]):
        assert len(before.latents) == len(after.latents) == 250
    last = seen[-2]
    assert len(last.latents.view(50, 5)[0].unique()) == 3
    plain = process.sample(bell, ["0"] * 50, Key(0)).latents[:, 0]
    assert final.mean() > plain.mean() + 1


def test_more_search_is_more_reward():
    process, prompts = Exact(12), [""] * 300
    means = [
        process.sample(Bell(), prompts, Key(0), steer=steering).latents[:, 0].mean().item()
        for steering in (
            DSearch(REWARD, 1, 1, 1.0, micro_batch=MANY),
            DSearch(REWARD, 1, 2, 1.0, "all", micro_batch=MANY),
            DSearch(REWARD, 4, 2, 1.0, "all", micro_batch=MANY),
            DSearch(REWARD, 4, 2, 3.0, "all", micro_batch=MANY),
        )
    ]
    assert all(b > a + 0.2 for a, b in pairwise(means)), means


def test_no_lookahead_is_the_posterior_mean():
    process, prompts = Sampler(6, order=1, eta=1), ["left", "right", "x"]
    for kind in (lambda value: Svdd(REWARD, 4, 0.1, value), lambda value: DSearch(REWARD, 3, 2, value=value)):
        looked, plain = (
            process.sample(Toy(), prompts, Key(5), steer=kind(value)).latents
            for value in (Lookahead(0), PosteriorMean())
        )
        assert torch.equal(looked, plain)


def looks(steps: int, samples: int, step: int = 4, count: int = 4000) -> tuple[torch.Tensor, torch.Tensor, Exact]:
    """The values that a lookahead gives states of the quadratic bed after `step` steps, and the true expectations."""
    process, bell, reward = Exact(12), Bell(), Quadratic()
    walk = Walk(process, bell, Key(1), MANY)
    beams = walk.start([""] * count, range(count))
    for _ in range(step):
        beams = walk.branch(beams)
    value = Lookahead(steps, samples)
    found = value.values(reward, value.look(walk, reward, beams), beams.prompts, (count,))
    a, s = (each[step] for each in process.coefficients(bell))
    mean, left = beams.clean[:, 0], s**2 / (a**2 + s**2)
    return found, -((mean - reward.a).square() + left) / 2, process


def test_the_bias_of_a_lookahead_is_half_the_variance_that_is_left_at_its_end():
    """E[r(E[x_0 | x_s])] - E[r(x_0)] = kappa v_s / 2, which falls to 0 as s goes to 0."""
    off = []
    for steps in (0, 2, 4, 8, 30):
        found, truth, process = looks(steps, 1)
        a, s = (each[min(12, 4 + steps)] for each in process.coefficients(Bell()))
        gap = found - truth
        off.append(gap.mean().item())
        assert off[-1] == pytest.approx(
            (s**2 / (a**2 + s**2) / 2).item(), abs=3.5 * gap.std().item() / 4000**0.5 + 1e-12
        )
    assert all(b < a - 0.05 for a, b in pairwise(off[:4])), off
    assert off[3] == off[4]


def test_more_samples_of_a_lookahead_are_less_noise():
    spread = [(looks(6, samples)[0] - looks(6, samples)[1]).var().item() for samples in (1, 4, 16)]
    assert spread[0] == pytest.approx(4 * spread[1], rel=0.12)
    assert spread[1] == pytest.approx(4 * spread[2], rel=0.12)


def test_a_lookahead_leads_svdd_nearer_to_the_law_than_the_posterior_mean():
    """The quadratic bed at alpha .5: 4/3 is right, 1.7 is what the posterior mean makes of it."""
    process = Exact(8)
    near, far = (
        process.sample(Bell(), [""] * 400, Key(0), steer=Svdd(Quadratic(), 12, 2.0, value, MANY)).latents.mean().item()
        for value in (Lookahead(8, 4), PosteriorMean())
    )
    exact = 2 * (1 / 2) / (1 + 1 / 2)
    assert abs(near - exact) < abs(far - exact)


@pytest.mark.parametrize("combine", ["sum", "normalised", "consensus"])
@pytest.mark.parametrize("micro_batch", [1, 5, 1000])
def test_beams_are_compared_across_a_prompt_by_an_ensemble_too(combine: Combine, micro_batch: int):
    """If only siblings were compared, the best of each beam would be worth as much as that of any other."""
    process, prompts = Sampler(6, order=1, eta=1), ["left", "right", "x"]
    alone, member = (
        process.sample(Toy(), prompts, Key(6), steer=DSearch(reward, 4, 3, 2.0, micro_batch=micro_batch)).latents
        for reward in (REWARD, Ensemble({"it": REWARD}, {"it": 2.0}, combine))
    )
    torch.testing.assert_close(alone, member, rtol=0, atol=1e-5)
