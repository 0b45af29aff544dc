"""The store as a user meets it."""

from __future__ import annotations

from tests.harness import crash


def test_what_was_written_is_there_after_a_crash(open_store):
    db = open_store()
    db["a"] = b"1"
    crash(db)
    db = open_store()
    assert dict(db) == {b"a": b"1"}
    assert not db.recovery.clean
