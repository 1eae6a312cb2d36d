"""Tokens of prompts of different lengths in one record."""

import torch

from dragontune.generators.padded_text import STEP, PaddedText
from dragontune.seeding import Key


def test_prompts_are_filled_up_with_zeros_to_a_multiple():
    prompts = [Key(i).normal([0], (length, 5))[0] for i, length in enumerate((3, STEP, 1))]
    text = PaddedText.of(prompts)
    assert text.tokens.shape == (3, 2 * STEP, 5)
    assert text.real.sum(1).tolist() == [3, STEP, 1]
    assert not text.real[:, -1].any()
    assert not text.tokens[~text.real].any()
    for row, real, prompt in zip(text.tokens, text.real, prompts, strict=True):
        assert torch.equal(row[real], prompt)
    torch.testing.assert_close(text.mean(), torch.stack([prompt.mean(0) for prompt in prompts]))


def test_records_of_different_lengths_are_joined():
    short, long = (PaddedText.of([Key(n).normal([0], (n, 5))[0]]) for n in (2, STEP + 1))
    assert (short.real.shape[1], long.real.shape[1]) == (STEP, 2 * STEP)
    both = PaddedText.join([short, long, short])
    assert both.real.sum(1).tolist() == [2, STEP + 1, 2]
    torch.testing.assert_close(both.mean(), torch.cat([short.mean(), long.mean(), short.mean()]))
    assert torch.equal(both[torch.tensor([0])].tokens, both[torch.tensor([2])].tokens)
