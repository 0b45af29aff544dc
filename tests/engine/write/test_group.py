"""Who waits for a sync is woken by it, in line, whatever those before him in the line have come to."""

from __future__ import annotations

import itertools
import threading
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from bytekv.engine.write.durability import GroupCommit, Waiter


def joined(group: GroupCommit, seq: int) -> Waiter:
    waiter = group.join(seq)
    assert waiter is not None
    return waiter


def test_the_first_leads_and_the_others_wait() -> None:
    group = GroupCommit()
    assert group.join(1) is None
    assert not joined(group, 2).wait(0)
    group.release(1, failed=False)
    assert group.join(3) is None


def test_a_sync_wakes_the_next_leader_first_and_then_whom_it_served() -> None:
    group = GroupCommit()
    assert group.join(1) is None
    served, later, last = joined(group, 1), joined(group, 2), joined(group, 3)
    group.release(1, failed=False)
    assert not served.wait(0), "before the one in front of him"
    assert later.wait(0), "to lead"
    assert served.wait(0)
    assert not last.wait(0), "the next sync is his"
    assert group.waiting == [last]


def test_a_failed_sync_wakes_everybody() -> None:
    group = GroupCommit()
    assert group.join(1) is None
    waiters = [joined(group, seq) for seq in range(2, 6)]
    group.release(0, failed=True)
    assert [waiter.wait(0) for waiter in waiters] == [True] * 4
    assert not group.waiting


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from(["never", "before", "in line"])), min_size=1, max_size=8),
    st.data(),
)
def test_nobody_waits_for_a_waiter_that_has_left(given_waiters: list[tuple[bool, str]], data: Any) -> None:
    """A waiter that leaves may be in the line at that time: those behind it were then left there until their
    patience ended, a tenth of a second later. One that left before is not asked to lead."""
    group = GroupCommit()
    assert group.join(0) is None
    waiters = [(joined(group, 1 if is_served else 2), is_served, leaves) for is_served, leaves in given_waiters]
    for waiter, _, leaves in waiters:
        if leaves == "before":
            waiter.leave()
    group.release(1, failed=False)
    for waiter, _, leaves in waiters:
        if leaves == "in line":
            waiter.leave()
    leader = next((waiter for waiter, is_served, leaves in waiters if not is_served and leaves != "before"), None)
    waiting = [waiter for waiter, is_served, leaves in waiters if leaves == "never" and (is_served or waiter is leader)]
    while waiting:
        woken = [waiter for waiter in data.draw(st.permutations(waiting)) if waiter.wait(0)]
        assert woken, "the line has stopped"
        waiting = [waiter for waiter in waiting if waiter not in woken]


def test_a_waiter_that_has_lost_patience_leads_and_the_others_wait_for_it() -> None:
    """A leader may be interrupted before it could begin; a thread that then syncs unasked is joined like any other."""
    group = GroupCommit()
    assert group.join(1) is None
    group.release(0, failed=False)
    group.lead()
    joined(group, 2)


def test_a_line_of_threads() -> None:
    group = GroupCommit()
    assert group.join(1) is None
    waiters = [joined(group, 1) for _ in range(50)]
    woken: list[bool] = []
    threads = [threading.Thread(target=lambda waiter=waiter: woken.append(waiter.wait(60))) for waiter in waiters]
    for thread in threads:
        thread.start()
    group.release(1, failed=False)
    for thread in threads:
        thread.join()
    assert woken == [True] * 50


def test_a_thousand_that_have_left_are_passed_over() -> None:
    """Each woke the next by a call in a call: with a thousand threads on a slow disk puts ended in RecursionError."""
    group = GroupCommit()
    assert group.join(1) is None
    waiters = [joined(group, 1) for _ in range(5000)]
    for waiter, following in itertools.pairwise(waiters):
        waiter.is_followed_by(following)
    for waiter in waiters[:-1]:
        waiter.leave()
    waiters[0].wake()
    assert waiters[-1].wait(0)
