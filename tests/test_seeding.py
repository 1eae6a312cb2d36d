"""Keys: the same noise for the same item whatever is asked beside it."""

import torch

from dragontune.seeding import Key


def test_noise_belongs_to_the_item():
    key = Key(3).fold("round", 1)
    together = key.normal([4, 9, 2], (5,))
    assert torch.equal(together[1:2], key.normal([9], (5,)))
    assert torch.equal(together.flip(0), key.normal(torch.tensor([2, 9, 4]), (5,)))
    assert torch.equal(key.uniform([9, 4])[1], key.uniform([4])[0])


def test_keys_differ_by_seed_and_path():
    keys = [
        Key(0),
        Key(1),
        Key(0).fold("a"),
        Key(0).fold("a", 1),
        Key(0).fold("a").fold(2),
        Key(0).fold("1"),
        Key(0).fold(1),
    ]
    draws = {tuple(key.normal([0], (2,))[0].tolist()) for key in keys}
    assert len(draws) == len(keys)
    assert Key(0).fold("a", 1) == Key(0).fold("a").fold(1)


def test_distributions():
    normal, uniform = Key(0).normal(range(4000), (2,)), Key(0).uniform(range(4000))
    assert abs(normal.mean().item()) < 0.05
    assert abs(normal.std().item() - 1) < 0.05
    assert abs(uniform.mean().item() - 0.5) < 0.02
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert sorted(Key(0).permutation(10).tolist()) == list(range(10))


def test_no_items():
    assert Key(0).normal([], (3,)).shape == (0, 3)
    assert Key(0).uniform([]).shape == (0,)


def test_the_global_stream_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    Key(0).normal([1], (2,))
    Key(0).permutation(4)
    assert torch.equal(torch.rand(3), expected)
