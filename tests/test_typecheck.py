"""Types of the package are checked in the tests, and how often."""

from dataclasses import replace

import pytest
import torch
from jaxtyping import TypeCheckError

import typecheck
from dragontune.algorithms.spread import averages
from dragontune.sampling import Sampler
from dragontune.schedule import Flow


def refused(count: int) -> list[int]:
    """Which of so many calls with wrong numbers are noticed, from 1."""
    found = []
    for number in range(1, count + 1):
        try:
            averages(torch.ones(2, 3, dtype=torch.int64))
        except TypeCheckError:
            found.append(number)
        except Exception:
            pass
    return found


def test_the_first_calls_and_every_twentieth_later():
    assert refused(50) == [*range(1, typecheck.FIRST + 1), 20, 40]
    typecheck.begin_test()
    assert refused(1) == [1]


@pytest.mark.parametrize("times", range(2))
def test_every_test_begins_anew(times: int):
    assert refused(1) == [1]


def test_fields_of_records_and_results_of_methods():
    with pytest.raises(TypeCheckError):
        replace(Sampler(), steps="three")  # pyright: ignore[reportArgumentType] - that is the point
    with pytest.raises(TypeCheckError):
        Flow().alpha("now")  # pyright: ignore[reportArgumentType] - that is the point
