"""The Vendi score against closed forms and the golden value of its authors' example."""

from math import inf

import pytest
import torch

from dragontune.distances.vendi import vendi, vendi_of_kernel

ORDERS = [0.0, 0.1, 0.5, 1.0, 1.5, 2.0, inf]


@pytest.mark.parametrize("order", ORDERS)
def test_alike_different_and_two_groups(order: float):
    alike, different = torch.ones(6, 4), 3 * torch.eye(6)
    groups = torch.eye(2)[[0, 0, 0, 1, 1, 1]]
    assert vendi(alike, order).item() == pytest.approx(1, rel=1e-6)
    assert vendi(different, order).item() == pytest.approx(6)
    assert vendi(groups, order).item() == pytest.approx(2, rel=1e-6)


def test_golden_value():
    kernel = torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    assert vendi_of_kernel(kernel).item() == pytest.approx(2.1573, abs=5e-5)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", [(4, 9), (9, 4)])
def test_primal_is_dual(order: float, shape: tuple[int, int]):
    embeddings = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit = embeddings / embeddings.norm(dim=1, keepdim=True)
    assert vendi(embeddings, order).item() == pytest.approx(vendi_of_kernel(unit @ unit.mT, order).item(), rel=1e-9)


def test_order_two_needs_no_eigenvalues():
    """1 / tr((K / n)^2)."""
    unit = torch.nn.functional.normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).double(), dim=1)
    expected = 1 / ((unit @ unit.mT / 5) ** 2).sum()
    assert vendi(unit, 2.0).item() == pytest.approx(expected.item())


def test_higher_orders_count_fewer_and_order_one_is_continuous():
    embeddings = torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
    scores = [vendi(embeddings, order).item() for order in ORDERS]
    assert scores == sorted(scores, reverse=True)
    assert vendi(embeddings, 1.0001).item() == pytest.approx(vendi(embeddings).item(), rel=1e-3)
    assert 1 <= scores[3] <= 8


def test_gradients():
    embeddings = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(vendi, embeddings)
    doubled = embeddings.detach().repeat(2, 1).requires_grad_()
    (slope,) = torch.autograd.grad(vendi(doubled), doubled)
    assert slope.isfinite().all()
