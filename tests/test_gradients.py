"""The sum of the gradients of micro-batches."""

import itertools
from functools import reduce
from math import inf, isnan, nan

import torch
from torch import nn

from dragontune.training.gradients import GradientSum
from dragontune.training.rounds import total_of


def summed(weights: list[nn.Parameter], given: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    gradients = GradientSum(weights, len(given))
    for part in given:
        torch.stack([(weight * slope).sum() for weight, slope in zip(weights, part, strict=True)]).sum().backward()
        gradients.take()
    return [found.clone() for found in gradients.hand_over()]


def test_the_order_of_micro_batches_changes_no_bit():
    source = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(torch.zeros(50)), nn.Parameter(torch.zeros(3, 4))]
    given = [[torch.randn(w.shape, generator=source) * 10.0 ** (number - 2) for w in weights] for number in range(4)]
    expected = [torch.stack([part[k].double() for part in given]).sum(0).float() for k in range(2)]
    orders = list(itertools.permutations(range(4)))
    in_single = {tuple(reduce(torch.add, [given[k][0] for k in order]).tolist()) for order in orders}
    assert len(in_single) > 1  # what it is against
    for order in orders:
        found = summed(weights, [given[k] for k in order])
        assert all(one.equal(other) for one, other in zip(found, expected, strict=True))


def test_one_micro_batch_is_left_as_it_is_and_weights_without_gradient_get_zeros():
    weights = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    weights[1].grad = torch.ones(1)  # of an earlier step
    for parts in (1, 2):
        gradients = GradientSum(weights, parts)
        for _ in range(parts):
            (weights[0] * torch.tensor([1.0, 2.0])).sum().backward()
            gradients.take()
        (weights[0] * 5).sum().backward() if parts > 1 else None
        gradients.drop() if parts > 1 else None
        found = gradients.hand_over()
        assert found[0].tolist() == [parts, 2 * parts]
        assert found[1].tolist() == [0]
        assert weights[0].grad is found[0]
        assert found[0].dtype == torch.float32


def test_totals_do_not_depend_on_the_order_and_may_be_infinite():
    numbers = [1e16, 1.0, -1e16, 0.1]
    assert {total_of(order) for order in itertools.permutations(numbers)} == {1.1}
    assert total_of([1.0, inf]) == inf
    assert isnan(total_of([inf, -inf]))
    assert isnan(total_of([1.0, nan]))
    assert total_of([1e308, 1e308]) == inf
