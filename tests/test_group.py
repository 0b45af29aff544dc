"""Who syncs for whom: one leads, a finished sync wakes those it served and one to lead the next."""

from __future__ import annotations

import threading

from bytekv.group import Group


def joined(group: Group, seq: int) -> threading.Lock:
    gate = group.join(seq)
    assert gate is not None
    assert gate.locked()
    return gate


def test_the_first_leads_and_the_others_wait() -> None:
    group = Group()
    assert group.join(1) is None
    joined(group, 2)
    joined(group, 1)


def test_a_sync_wakes_whom_it_served_and_one_to_lead_the_next() -> None:
    group = Group()
    assert group.join(1) is None
    gates = [joined(group, seq) for seq in (1, 4, 2, 3, 5)]
    group.release(2, failed=False)
    assert [gate.locked() for gate in gates] == [False, False, False, True, True], "4 leads, 3 and 5 wait for it"
    assert group.join(4) is None, "nobody leads until the one who was woken comes"
    group.release(5, failed=False)
    assert not any(gate.locked() for gate in gates)
    assert group.waiting == []


def test_a_failed_sync_is_told_to_all() -> None:
    group = Group()
    assert group.join(1) is None
    gates = [joined(group, seq) for seq in (1, 2, 3)]
    group.release(0, failed=True)
    assert not any(gate.locked() for gate in gates)


def test_who_has_lost_patience_leads_and_the_others_wait_for_him() -> None:
    """A leader may be interrupted before it could begin; whoever then syncs unasked is joined like any other."""
    group = Group()
    assert group.join(1) is None
    group.release(0, failed=False)
    group.lead()
    joined(group, 2)
