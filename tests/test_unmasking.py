"""Masked diffusion against enumeration: what it draws, what it promises, what its steps are, and the bits it keeps."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from dragontune.errors import InputError
from dragontune.process import State
from dragontune.seeding import Key
from dragontune.testing import Toy
from dragontune.unmasking import Unmask, Unmasking
from enumerable import Enumerable

ITEMS = 5_000


def walk(process: Unmasking, generator: Enumerable, prompts: list[str], items: range, seed: int = 0) -> list[Tensor]:
    """The tokens before each step and after the last."""
    seen: list[State] = []
    samples = process.sample(generator, prompts, Key(seed), items=items, visit=seen.append)
    assert torch.equal(samples.latents, seen[-1].latents)
    return [state.latents for state in seen]


def shares(generator: Enumerable, tokens: Tensor) -> Tensor:
    return generator.index(tokens).bincount(minlength=len(generator.all())).double() / len(tokens)


def moves(process: Unmasking, generator: Enumerable, rows: list[list[int]], step: int, prompt: str = "") -> Unmask:
    """From these tokens at this step."""
    start = process.start(generator, [prompt] * len(rows), Key(0), range(len(rows)))
    return process.transition(generator, replace(start, latents=torch.tensor(rows), step=start.step + step))


def sequential(generator: Enumerable, steps: int) -> Tensor:
    """What `steps` steps draw, exactly: the Markov chain over all partly masked sequences."""
    tokens = generator.all()
    chances: dict[tuple[int, ...], float] = {(generator.mask,) * tokens.shape[1]: 1.0}
    full = Enumerable(generator.vocabulary + 1, generator.latent_shape).all()  # with the mask as a token
    for k in range(steps):
        after: dict[tuple[int, ...], float] = {}
        for now, chance in chances.items():
            move = moves(Unmasking(steps), generator, [list(now)], k)
            rows = move[torch.zeros(len(full), dtype=torch.long)]
            for then, log_chance in zip(full.tolist(), rows.log_prob(full).tolist(), strict=True):
                if log_chance > -torch.inf:
                    share = chance * torch.tensor(log_chance, dtype=torch.float64).exp().item()
                    after[tuple(then)] = after.get(tuple(then), 0.0) + share
        chances = after
    found = torch.zeros(len(tokens), dtype=torch.float64)
    for then, chance in chances.items():
        found[generator.index(torch.tensor([then]))] += chance
    return found


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_what_is_drawn_is_what_the_chain_of_log_probabilities_says(steps: int):
    generator = Enumerable()
    exact = sequential(generator, steps)
    assert exact.sum().item() == pytest.approx(1)
    drawn = shares(generator, walk(Unmasking(steps), generator, [""] * ITEMS, range(ITEMS))[-1])
    assert ((drawn - exact).abs() < 4.5 * (exact / ITEMS).sqrt()).all()


def test_one_step_draws_each_token_on_its_own():
    generator = Enumerable()
    cube = generator.joint().view(3, 3, 3)
    apart = torch.einsum("a,b,c->abc", cube.sum((1, 2)), cube.sum((0, 2)), cube.sum((0, 1))).flatten()
    torch.testing.assert_close(sequential(generator, 1), apart)
    assert (apart - generator.joint()).abs().sum() > 0.2


def test_the_chain_tends_to_the_joint_as_steps_are_added():
    generator = Enumerable()
    exact = generator.joint()
    off = [(sequential(generator, steps) - exact).abs().sum().item() / 2 for steps in (1, 4, 16)]
    assert off[0] > 2 * off[1] > 4 * off[2]
    assert off[2] < 0.03


def test_the_probability_of_a_next_state_is_how_often_it_is_drawn():
    generator, process = Enumerable(), Unmasking(4)
    move = moves(process, generator, [[1, 3, 3]] * 2000, 1)
    full = Enumerable(4).all()
    one = move[torch.zeros(len(full), dtype=torch.long)]
    exact = one.log_prob(full).exp()
    assert exact.sum().item() == pytest.approx(1)
    assert (exact[full[:, 0] != 1] == 0).all()
    drawn = torch.cat([move.draw(Key(seed)) for seed in range(10)])
    found = Enumerable(4).index(drawn).bincount(minlength=64).double() / len(drawn)
    assert ((found - exact).abs() <= 4.5 * (exact / len(drawn)).sqrt()).all()


def test_revealed_tokens_never_change_and_the_last_step_reveals_all():
    generator = Enumerable(2, (8,))
    states = walk(Unmasking(5), generator, [""] * 40, range(40))
    assert len(states) == 6
    assert (states[0] == generator.mask).all()
    assert (states[-1] < generator.mask).all()
    for before, after in pairwise(states):
        known = before != generator.mask
        assert torch.equal(before[known], after[known])
    masked = [(state == generator.mask).double().mean().item() for state in states]
    assert masked == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0], abs=0.08)


def test_clean_is_the_likeliest_token_of_each_masked_place_beside_the_revealed_ones():
    generator = Enumerable()
    rows = [[3, 3, 3], [2, 3, 3], [3, 0, 1], [1, 2, 0]]
    clean = moves(Unmasking(4), generator, rows, 2).clean
    joint = generator.joint().view(3, 3, 3)
    assert clean[0].tolist() == [
        int(joint.sum((1, 2)).argmax()),
        int(joint.sum((0, 2)).argmax()),
        int(joint.sum((0, 1)).argmax()),
    ]
    assert clean[1].tolist() == [2, int(joint[2].sum(1).argmax()), int(joint[2].sum(0).argmax())]
    assert clean[2].tolist() == [int(joint[:, 0, 1].argmax()), 0, 1]
    assert clean[3].tolist() == [1, 2, 0]


def test_the_same_bits_in_any_batch_and_order():
    generator, process = Enumerable(3, (6,)), Unmasking(7, guidance=1.5, temperature=0.9)
    prompts = ["a", "b"] * 6
    whole = process.sample(generator, prompts, Key(3)).latents
    parts = [
        process.sample(generator, prompts[i : i + 5], Key(3), items=range(i, min(i + 5, 12))).latents
        for i in (0, 5, 10)
    ]
    assert torch.equal(torch.cat(parts), whole)
    back = process.sample(generator, prompts[::-1], Key(3), items=range(11, -1, -1)).latents
    assert torch.equal(back.flip(0), whole)
    assert not torch.equal(process.sample(generator, prompts, Key(4)).latents, whole)


def test_a_draw_depends_on_its_key_and_leaves_everything_as_it_was():
    move = moves(Unmasking(4), Enumerable(3, (5,)), [[3] * 5] * 6, 1)
    kept = move.tokens.clone()
    before = torch.get_rng_state()
    first = move.draw(Key(5))
    assert torch.equal(move.draw(Key(5)), first)
    assert not torch.equal(move.draw(Key(6)), first)
    assert torch.equal(move.tokens, kept)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(move[torch.tensor([4, 1])].draw(Key(5)), first[[4, 1]])


def test_rows_may_be_at_different_steps():
    generator, process = Enumerable(), Unmasking(4)
    start = process.start(generator, ["a", "b"], Key(0), [0, 1])
    tokens = torch.tensor([[3, 3, 3], [1, 3, 3]])
    mixed = process.transition(generator, replace(start, latents=tokens, step=torch.tensor([0, 3])))
    assert mixed.reveal.tolist() == pytest.approx([0.25, 1])
    alone = process.transition(generator, replace(start, latents=tokens, step=torch.tensor([3, 3])))
    assert torch.equal(mixed.draw(Key(1))[1], alone.draw(Key(1))[1])


def test_temperature_and_guidance_are_powers_of_the_probabilities():
    generator = Enumerable()
    rows = [[3, 3, 3], [3, 1, 3]]
    plain = moves(Unmasking(4), generator, rows, 1, "b").probabilities
    free = moves(Unmasking(4), generator, rows, 1).probabilities
    assert not torch.allclose(plain, free)
    powers = plain.pow(2)
    cold = moves(Unmasking(4, temperature=0.5), generator, rows, 1, "b").probabilities
    torch.testing.assert_close(cold, powers / powers.sum(2, keepdim=True))
    mixed = torch.where(plain > 0, free * (plain / free).pow(3), 0).pow(1 / 0.7)
    both = moves(Unmasking(4, guidance=3, temperature=0.7), generator, rows, 1, "b").probabilities
    torch.testing.assert_close(both, mixed / mixed.sum(2, keepdim=True))
    torch.testing.assert_close(moves(Unmasking(4, guidance=0), generator, rows, 1, "b").probabilities, free)


def test_calls_and_random_steps():
    assert (Unmasking(8).calls(3), Unmasking(8, guidance=2.0).calls(3)) == (24, 48)
    assert Unmasking(8).random_steps == 8


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"steps": 0}, "unmasking steps from 1"),
        ({"steps": 10**6}, "unmasking steps from 1"),
        ({"guidance": -1.0}, "guidance of 0 or more"),
        ({"guidance": float("nan")}, "guidance of 0 or more"),
        ({"temperature": 0.0}, "positive temperature"),
        ({"temperature": float("inf")}, "positive temperature"),
    ],
)
def test_bad_settings_are_refused(wrong: dict[str, float], says: str):
    with pytest.raises(InputError, match=says):
        Unmasking(**wrong)  # pyright: ignore[reportArgumentType]


def test_a_continuous_generator_is_refused():
    with pytest.raises(InputError, match="generator of tokens for unmasking, got toy"):
        Unmasking(4).sample(Toy(), ["left"], Key(0))
