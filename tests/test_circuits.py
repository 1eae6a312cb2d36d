"""Which address is asked next."""

from dragontune.rewards.circuits import Circuits


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def broken(circuits: Circuits, times: int) -> None:
    for _ in range(times):
        number = circuits.take()
        assert number is not None
        circuits.give(number, False)


def test_the_least_busy_address_and_by_turns():
    circuits = Circuits(3)
    assert sorted(str(circuits.take()) for _ in range(3)) == ["0", "1", "2"]
    circuits.give(1, True)
    assert circuits.take() == 1
    one_by_one = Circuits(3)
    asked = []
    for _ in range(6):
        number = one_by_one.take()
        assert number is not None
        asked.append(number)
        one_by_one.give(number, True)
    assert sorted(asked) == [0, 0, 1, 1, 2, 2]


def test_an_address_rests_after_failures_in_a_row_and_is_then_tried_by_one():
    clock = Clock()
    circuits = Circuits(1, clock=clock)
    broken(circuits, 4)
    number = circuits.take()
    assert number == 0
    circuits.give(0, True)
    broken(circuits, 5)
    assert circuits.take() is None
    assert 29 < circuits.wait() <= 30
    clock.now = 30.1
    assert circuits.take() == 0
    assert circuits.take() is None  # one is trying
    circuits.give(0, False)
    assert circuits.take() is None
    assert circuits.wait() > 29
    clock.now = 61
    assert circuits.take() == 0
    circuits.give(0, True)
    assert [circuits.take(), circuits.take()] == [0, 0]


def test_the_others_are_asked_meanwhile():
    clock = Clock()
    circuits = Circuits(2, opens=1, clock=clock)
    first = circuits.take()
    assert first is not None
    circuits.give(first, False)
    other = {circuits.take() for _ in range(5)}
    assert other == {1 - first}
    clock.now = 31
    assert circuits.take() == first


def test_being_busy_is_no_failure():
    circuits = Circuits(1)
    for _ in range(20):
        number = circuits.take()
        assert number == 0
        circuits.give(0, None)
