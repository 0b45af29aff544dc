"""When writers owe time to the compaction beside them, and how much; `test_background_compaction` has them pay."""

from __future__ import annotations

from itertools import pairwise

from bytekv.debt import Debt

MIB = 1024 * 1024
SEGMENT = 64 * MIB
LIVE = 1000 * MIB
BOUND = round(0.6 * LIVE) + 2 * SEGMENT  # the dead bytes at which something begins to be owed


def owed_by(dead: int, looks: int = 1000) -> list[float]:
    """Return what a store that was clean once pays if at every look so many bytes are dead."""
    debt = Debt(SEGMENT)
    debt.look(0, 0, LIVE)
    paid = []
    for _ in range(looks):
        debt.look(0, dead, LIVE)
        paid.append(debt.take())
    return paid


def test_nothing_is_owed_below_the_bound() -> None:
    assert sum(owed_by(BOUND - MIB)) == 0.0


def test_the_further_beyond_the_steeper() -> None:
    at = [sum(owed_by(BOUND + part * LIVE // 10)) for part in range(1, 8)]
    assert at[0] > 0
    assert all(later > 1.5 * earlier for earlier, later in pairwise(at))


def test_what_is_owed_is_paid_in_pieces_that_a_worker_can_use() -> None:
    paid = [seconds for seconds in owed_by(BOUND + LIVE // 5) if seconds]
    assert 1 < len(paid) < 500
    assert min(paid) >= 0.0006


def test_nobody_waits_longer_than_a_tenth_of_a_second() -> None:
    assert max(owed_by(100 * LIVE)) <= 0.1 + 0.0006


def test_what_is_taken_is_not_due_again() -> None:
    debt = Debt(SEGMENT)
    debt.look(0, 0, LIVE)
    debt.look(0, 100 * LIVE, LIVE)
    assert debt.due_s > 0
    assert debt.take() > 0
    assert debt.take() == debt.due_s == 0.0


def test_what_was_dead_at_the_beginning_is_no_debt_until_it_is_gone() -> None:
    debt = Debt(SEGMENT)
    for added in range(0, 2 * SEGMENT, MIB):
        debt.look(0, 9 * LIVE + added, LIVE)
    assert debt.take() == 0.0
    debt.look(0, 10 * LIVE, LIVE)
    assert debt.take() > 0.0, "what they add counts"
    debt.look(0, 0, LIVE)
    assert debt.take() == 0.0
    debt.look(0, 9 * LIVE, LIVE)
    assert debt.take() > 0.0, "it was gone, and came back"


def test_it_is_looked_at_seldom_far_from_the_bound_and_often_beyond() -> None:
    debt = Debt(SEGMENT)
    assert debt.is_to_look(0)
    debt.look(1000, 0, LIVE)
    assert not debt.is_to_look(1000)
    assert not debt.is_to_look(1000 + MIB - 1)
    assert debt.is_to_look(1000 + MIB)
    debt.look(5 * MIB, 2 * BOUND, LIVE)
    assert not debt.is_to_look(5 * MIB + 32 * 1024 - 1)
    assert debt.is_to_look(5 * MIB + 32 * 1024)
    assert debt.is_to_look(0), "the segment is another, and its end is nearer than the next look"


def test_in_a_small_segment_it_is_looked_at_several_times() -> None:
    debt = Debt(4096)
    debt.look(0, 0, LIVE)
    assert debt.next_look == 1024
    debt.look(0, 2 * LIVE, LIVE)
    assert debt.next_look == 128
