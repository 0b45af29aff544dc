"""When writers owe time to the compaction beside them, and how much; `test_background_compaction` has them pay."""

from __future__ import annotations

from itertools import pairwise

from bytekv.engine.log.sizes import Sizes, sizes_of
from bytekv.engine.write.throttle import Throttle
from bytekv.options import Options

MIB = 1024 * 1024
LIVE = 1024 * MIB
SIZES = sizes_of(LIVE, Options())
BOUND = round(SIZES.free_dead)  # the dead bytes at which something begins to be owed


def yes() -> bool:
    return True


def owed_by(dead: int, bytes_written: int = 32 * MIB, sizes: Sizes = SIZES) -> list[float]:
    """Return what a store that was clean once pays for so many bytes while so many are dead."""
    throttle = Throttle()
    throttle.look(0, 0, sizes, yes)
    throttle.look(0, dead, sizes, yes)
    paid, end = [], 0
    while end < bytes_written:
        end = throttle.next_look
        if throttle.is_to_count(end):
            throttle.look(end, dead, sizes, yes)
        else:
            throttle.pay(end, sizes)
        paid.append(throttle.take())
    return paid


def test_nothing_is_owed_below_the_bound() -> None:
    assert sum(owed_by(BOUND - MIB)) == 0.0


def test_the_further_beyond_the_steeper() -> None:
    at = [sum(owed_by(BOUND + part * LIVE // 20)) for part in range(1, 8)]
    assert at[0] > 0
    assert all(later > 1.5 * earlier for earlier, later in pairwise(at))


def test_what_is_owed_is_paid_in_pieces_that_a_worker_can_use() -> None:
    paid = [seconds for seconds in owed_by(BOUND + LIVE // 8) if seconds]
    assert 1 < len(paid) < 500
    assert min(paid) >= 0.0006


def test_nobody_waits_longer_than_a_tenth_of_a_second() -> None:
    assert max(owed_by(100 * LIVE)) == 0.1


def test_large_entries_cost_as_much_as_small_ones_of_as_many_bytes() -> None:
    """Each look cost the same, so that values of a mebibyte were thirty times cheaper than those of a few bytes."""
    throttle = Throttle()
    throttle.look(0, 0, SIZES, yes)
    throttle.look(0, BOUND + LIVE // 8, SIZES, yes)
    paid = 0.0
    for end in range(MIB, 33 * MIB, MIB):
        throttle.look(end, BOUND + LIVE // 8, SIZES, yes)
        paid += throttle.take()
    in_pieces = sum(owed_by(BOUND + LIVE // 8))
    assert 0.95 * in_pieces < paid < 1.05 * in_pieces


def test_what_is_taken_is_not_due_again() -> None:
    throttle = Throttle()
    throttle.look(0, 0, SIZES, yes)
    throttle.look(0, 100 * LIVE, SIZES, yes)
    throttle.look(MIB, 100 * LIVE, SIZES, yes)
    assert throttle.due_s > 0
    paid = throttle.take()
    assert paid > 0
    assert throttle.take() == throttle.due_s == 0.0
    assert throttle.paid_s == paid


def test_what_was_dead_at_the_beginning_is_no_debt_until_it_is_gone() -> None:
    throttle = Throttle()
    end = 0
    for added in range(0, SIZES.slack, MIB):
        throttle.look(end := end + MIB, 9 * LIVE + added, SIZES, yes)
    assert throttle.take() == 0.0
    for _ in range(2):
        throttle.look(end := end + MIB, 10 * LIVE, SIZES, yes)
    assert throttle.take() > 0.0, "what they add counts"
    throttle.look(end := end + MIB, 0, SIZES, yes)
    throttle.take()
    for _ in range(2):
        throttle.look(end := end + MIB, 9 * LIVE, SIZES, yes)
    assert throttle.take() > 0.0, "it was gone, and came back"


def test_it_is_looked_at_seldom_far_from_the_bound_and_often_beyond() -> None:
    throttle = Throttle()
    assert throttle.is_to_look(0)
    throttle.look(1000, 0, SIZES, yes)
    assert not throttle.is_to_look(1000)
    assert not throttle.is_to_look(1000 + MIB - 1)
    assert throttle.is_to_look(1000 + MIB)
    throttle.look(5 * MIB, 2 * BOUND, SIZES, yes)
    assert not throttle.is_to_look(5 * MIB + 32 * 1024 - 1)
    assert throttle.is_to_look(5 * MIB + 32 * 1024)
    assert not throttle.is_to_count(5 * MIB + 32 * 1024), "what is dead in hundreds of segments is counted less often"
    assert throttle.is_to_count(5 * MIB + SIZES.segment // 128)
    assert throttle.is_to_look(0), "the segment is another, and its end is nearer than the next look"
    assert throttle.is_to_count(0)


def test_in_a_small_segment_it_is_looked_at_several_times() -> None:
    sizes = sizes_of(LIVE, Options(segment_size_bytes=4096))
    throttle = Throttle()
    throttle.look(0, 0, sizes, yes)
    assert throttle.next_look == 1024
    throttle.look(0, 2 * LIVE, sizes, yes)
    assert throttle.next_look == 128


def test_nothing_is_owed_while_no_compaction_would_give_anything_back() -> None:
    """Writers slept up to a tenth of a second each for a compaction that never came."""
    throttle, end, is_due = Throttle(), 0, False
    throttle.look(0, 0, SIZES, yes)
    for _ in range(10):
        throttle.look(end := end + MIB, 100 * LIVE, SIZES, lambda: is_due)
        assert throttle.take() == 0.0
        assert throttle.why is None
        assert throttle.next_look == end + MIB, "in vain, too, it would be to ask again at once"
    is_due = True
    for _ in range(2):
        throttle.look(end := end + MIB, 100 * LIVE, SIZES, lambda: is_due)
    assert throttle.take() > 0.0
    assert throttle.why == (100 * LIVE, LIVE, BOUND)
    throttle.forgive()
    assert throttle.take() == 0.0
    assert throttle.why is None
