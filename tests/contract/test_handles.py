"""Handles cannot be copied: a copy would be a second owner of the same files and locks."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from bytekv import dbm
from bytekv.engine.store import Store


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps], ids=["copy", "deepcopy", "pickle"])
def test_a_handle_is_not_copied(
    path: Path, open_store: Callable[..., Store], copied: Callable[[object], object]
) -> None:
    """`copy.copy(db)` gave a second object on the same locks and files; when it went, the original was closed."""
    db = open_store()
    db["a"] = "1"
    database = dbm.open(str(path.with_name("dbm")), "c")
    handles = {
        "Store .*open.* the path": db,
        "Snapshot .*dict": db.snapshot(),
        "Batch .*another": db.batch(),
        "Transaction .*the thread": db.transaction(),
        "Database .*path": database,
    }
    for text, handle in handles.items():
        for thing in (handle, [handle]) if copied is not copy.copy else (handle,):
            with pytest.raises(TypeError, match=text):
                copied(thing)
    assert copied(db.options)
    assert copied(db.stats())
    assert copied(db.recovery)
    db["b"] = "2"
    assert dict(db) == {b"a": b"1", b"b": b"2"}
    database.close()
