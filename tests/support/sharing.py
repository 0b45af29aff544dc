"""Several openings of one store, each of which the kernel's locks take for a process of its own."""

from __future__ import annotations

import os
from typing import Any

from bytekv.engine.codec.entry import PUT, encode_entry
from bytekv.engine.log.control_page import APPENDED, END, HOLDER
from bytekv.engine.log.files import Files
from bytekv.engine.shared_store import SharedStore
from bytekv.options import Options
from tests.support import harness


def share(path: str | os.PathLike[str], flag: Any = "c", *, files: Files | None = None, **options: Any) -> SharedStore:
    """Open a store on the given files, beside others; no background compaction unless asked for."""
    options.setdefault("auto_compact", False)
    chosen = Options(**options | {"shared": True})
    return SharedStore(os.path.abspath(os.fsdecode(path)), flag, chosen, files or Files(), harness.TUNING)


def kill(store: SharedStore) -> None:
    """Leave a store as a killed process does: its locks are free, and nothing is said."""
    from bytekv.engine.exit_and_fork import unregister

    page, lock = store._page, store._directory
    page.abandon()
    lock.release()
    super(SharedStore, store)._after_fork()
    store._worker.stop()
    unregister(store)
    store._is_closed = True


def hold(store: SharedStore) -> None:
    """Take the turn as a call does, and be in the middle of it."""
    store._page.take_turn(0.0)
    store._page.words[HOLDER] = store._commit.turn.name


#: What is there of an entry after the death of its writer, and whether it has happened.
PIECES = {"all": True, "announced": True, "half": False, "the end": False, "a byte": False, "nothing": False}


def die_writing(store: SharedStore, key: bytes, value: bytes, piece: str) -> bool:
    """Be killed in the middle of a put; tell whether it has happened."""
    with store._commit.turn.gate, store._commit.turn:
        pass  # caught up
    writer, words = store._segments.writer, store._page.words
    size = len(key) + len(value) + 27
    hold(store)
    happened = False
    if writer is not None and writer.map is not None and words[END] + size <= len(writer.map):
        seq = words[APPENDED] + 1
        entry = b"".join(encode_entry(PUT, key, value, seq, store._files.now_ms(), 0, writer.seed))
        start, half = words[END], len(entry) // 2
        first, last = {"half": (0, half), "the end": (half, size), "a byte": (size - 1, size), "nothing": (0, 0)}.get(
            piece, (0, size)
        )
        writer.map[start + first : start + last] = entry[first:last]
        happened = PIECES[piece]
        if piece == "announced":
            words[END] = start + size
    kill(store)
    return happened
