"""Every exchange against the distance computed again."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dragontune.distances.kernel import Gaussian, InverseMultiquadric, KernelReference, Polynomial, kernel_distance
from dragontune.distances.kernel_swaps import KernelSwaps
from dragontune.errors import InputError

KERNELS = [Gaussian(1.1), InverseMultiquadric(0.8), Polynomial()]


def normal(seed: int, n: int, dim: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def again(x: torch.Tensor, reference: KernelReference, candidates: torch.Tensor, unbiased: bool) -> torch.Tensor:
    """The table, each entry from scratch."""
    table = torch.empty(len(x), len(candidates), dtype=torch.float64)
    for i in range(len(x)):
        for j in range(len(candidates)):
            changed = x.clone()
            changed[i] = candidates[j]
            table[i, j] = kernel_distance(changed, reference, reference.kernel, unbiased=unbiased)
    return table


def size(swaps_items: torch.Tensor, reference: KernelReference) -> float:
    """The largest kernel value, which sets the size of rounding errors."""
    return reference.kernel.diagonal(torch.cat([swaps_items, reference.vectors])).max().item()


@given(
    st.tuples(st.integers(2, 4), st.integers(1, 3), st.integers(2, 5), st.integers(1, 4)),
    st.integers(0, 2**31 - 1),
    st.sampled_from(KERNELS),
    st.booleans(),
    st.sampled_from([1e-4, 1.0, 1e4]),
    st.sampled_from(["apart", "copies", "collapsed", "members again"]),
)
@settings(max_examples=40, deadline=None)
def test_table_is_recomputation(
    shape: tuple[int, int, int, int],
    seed: int,
    kernel: Gaussian | InverseMultiquadric | Polynomial,
    unbiased: bool,
    scale: float,
    case: str,
):
    m, c, n, dim = shape
    x, candidates, y = normal(seed, m, dim, scale), normal(seed + 1, c, dim, scale), normal(seed + 2, n, dim, scale)
    if case == "copies":
        x[1], y[1] = x[0], y[0]
    elif case == "collapsed":
        x[:] = x[0]
    elif case == "members again":
        candidates[:] = x[0]
    reference = KernelReference.of(y, kernel)
    swaps = KernelSwaps(x, reference, candidates, unbiased=unbiased)
    error = 1e-13 * size(torch.cat([x, candidates]), reference)
    table = swaps.table()
    assert table.shape == (m, c)
    assert (table - again(x, reference, candidates, unbiased)).abs().max() <= error
    assert abs(swaps.value - kernel_distance(x, reference, unbiased=unbiased).item()) <= error
    i, j = torch.arange(m).repeat_interleave(c), torch.arange(c).repeat(m)
    assert torch.equal(swaps.pairs(i, j).reshape(m, c), table)


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("kernel", KERNELS)
def test_accept(kernel: Gaussian | InverseMultiquadric | Polynomial, unbiased: bool):
    """The value moves to what the table said, member and candidate change places, and back again."""
    x, candidates, y = normal(0, 6, 4), normal(1, 5, 4) + 1, normal(2, 7, 4)
    reference = KernelReference.of(y, kernel)
    swaps = KernelSwaps(x, reference, candidates, unbiased=unbiased)
    items, start, table = torch.cat([x, candidates]), swaps.value, swaps.table()
    swaps.accept(2, 3)
    assert swaps.value == pytest.approx(table[2, 3].item(), abs=1e-13)
    assert swaps.members.tolist() == [0, 1, 9, 3, 4, 5]
    assert swaps.candidates.tolist() == [6, 7, 8, 2, 10]
    expected = again(items[swaps.members], reference, items[swaps.candidates], unbiased)
    torch.testing.assert_close(swaps.table(), expected, rtol=1e-12, atol=1e-13)
    swaps.accept(2, 3)
    assert swaps.value == pytest.approx(start, abs=1e-14)
    torch.testing.assert_close(swaps.table(), table, rtol=1e-12, atol=1e-14)


def test_no_drift_over_ten_thousand_swaps():
    x, candidates, y = normal(0, 10, 8), normal(1, 12, 8) + 0.5, normal(2, 40, 8)
    reference = KernelReference.of(y)
    swaps = KernelSwaps(x, reference, candidates)
    generator = torch.Generator().manual_seed(0)
    order = zip(*(torch.randint(n, (10_000,), generator=generator).tolist() for n in (10, 12)), strict=True)
    for i, j in order:
        swaps.accept(i, j)
    items = torch.cat([x, candidates])
    assert sorted([*swaps.members.tolist(), *swaps.candidates.tolist()]) == list(range(22))
    fresh = KernelSwaps(items[swaps.members], reference, items[swaps.candidates])
    assert abs(swaps.value - fresh.value) < 5e-15
    assert (swaps.table() - fresh.table()).abs().max() < 5e-15


def test_greedy_search_only_falls():
    x, candidates, y = normal(0, 20, 16) + 1, normal(1, 60, 16), normal(2, 200, 16)
    swaps = KernelSwaps(x, y, candidates, unbiased=False)
    values = [swaps.value]
    for _ in range(20):
        i, j, value = swaps.best(highest=False)
        swaps.accept(i, j)
        assert swaps.value == pytest.approx(value, abs=1e-14)
        values.append(swaps.value)
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.2 * values[0]


def test_as_kernel_distance_takes_its_arguments():
    x, candidates, y = normal(0, 5, 3), normal(1, 4, 3), normal(2, 6, 3)
    for kernel, bandwidth, unbiased in (("imq", None, True), ("polynomial", None, False), ("gaussian", 0.7, True)):
        swaps = KernelSwaps(x.numpy(), y.numpy(), candidates.numpy(), kernel, bandwidth=bandwidth, unbiased=unbiased)
        expected = kernel_distance(x, y, kernel, bandwidth=bandwidth, unbiased=unbiased)
        assert swaps.value == pytest.approx(expected.item(), abs=1e-14)
    before = x.clone()
    swaps = KernelSwaps(x, y, candidates)
    swaps.accept(0, 0)
    assert torch.equal(x, before)


def test_offset_costs_no_digits():
    generator = torch.Generator().manual_seed(0)
    x, candidates, y = (torch.randint(-8, 9, (n, 6), generator=generator).double() for n in (10, 12, 30))
    here, there = (KernelSwaps(x + at, y + at, candidates + at).table() for at in (0.0, 1e6))
    torch.testing.assert_close(here, there, rtol=0, atol=1e-15)


def test_bad_input():
    x, y = torch.eye(3), torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
    for bad, message in (
        (torch.zeros(0, 3), "1 vector or more in candidates"),
        (torch.zeros(2, 4), "dimension 3 in candidates, got 4"),
        (torch.full((2, 3), torch.nan), "finite numbers in candidates"),
    ):
        with pytest.raises(InputError, match=message):
            KernelSwaps(x, y, bad)
    with pytest.raises(InputError, match="2 vectors or more in x"):
        KernelSwaps(x[:1], y, x)
    with pytest.raises(InputError, match="give a bandwidth"):
        KernelSwaps(x, torch.ones(4, 3), x)
    with pytest.raises(InputError, match="position of a member from 0 to 2"):
        KernelSwaps(x, y, x).accept(3, 0)
