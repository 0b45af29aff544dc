"""Calls that are struck in the middle by a handler, which calls the same store, and the judge of what both leave.

A *case* is one call of one store in one mode, a place in it, and what is called from there. It is refused, with
`ReentryError`, or it does what it always does. The judge asks

- that both calls have happened, as a whole, in one order or the other, or that the handler's was refused;
- that what the handler reads or scans is what was there before the call or what is there after it;
- that a kill right behind an acknowledged write of the handler's leaves it, as a kill at the end does;
- that no lock stays taken, that snapshots show their moment still, that the store takes writes, verifies and opens.

The calls and the stores are those of `interrupted_calls`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bytekv.contract.snapshot import Snapshot
from bytekv.engine.store import Store
from bytekv.errors import BytekvError, ChangesLostError, ReadOnlyError, ReentryError, StoreClosedError
from tests.support import interrupted_calls
from tests.support.harness import open_store
from tests.support.interrupted_calls import (
    BACKGROUND,
    EVERY_CALL,
    Bench,
    Content,
    Files,
    Mode,
    StillFiles,
    fingerprint,
    visible,
)


def _batch(store: Store) -> None:
    with store.batch() as batch:
        batch["handled"], batch["handled-too"] = b"1", b"2"
        del batch["last"]


def _transact(store: Store) -> None:
    with store.transaction() as transaction:
        transaction["handled"] = transaction.get("last", b"none")


def _get(store: Store) -> dict[bytes, bytes]:
    found = {key: store.get(key) for key in (b"kept", b"gone", b"new", b"due", b"large", b"n", b"warm")}
    assert all((value is not None) == (key in store) for key, value in found.items()), "get and in differ"
    return {key: value for key, value in found.items() if value is not None}


#: What writes; what else a handler may do.
WRITES: dict[str, Callable[[Store], object]] = {
    "put": lambda store: store.__setitem__(b"handled", b"1"),
    "put with a ttl": lambda store: store.put(b"handled", b"1", ttl=60),
    "delete": lambda store: store.delete(b"last"),
    "batch": _batch,
    "transaction": _transact,
}
OTHERS: dict[str, Callable[[Store], object]] = {
    "get": _get,
    "scan": lambda store: dict(store.scan()),
    "snapshot": lambda store: store.snapshot(),
    "close": lambda store: store.close(),
    "sync": lambda store: store.sync(),
    "compact": lambda store: store.compact(),
    "verify": lambda store: store.verify(),
    "backup": lambda store: store.backup(store.path + "-spare"),
    "stats": lambda store: store.stats(),
    "ttl": lambda store: [store.ttl(key) for key in store.get_many(["kept", "due"])],
}
HANDLERS = WRITES | OTHERS


class Struck(NamedTuple):
    """What has come of a handler."""

    is_refused: bool
    result: Any
    killed: Files | None  # what a kill right behind it would have left


Strike = Callable[[Callable[[], object], Callable[[], object]], bool]


class HandlerBench(Bench):
    """Run cases, one after the other, in one directory."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._orders: dict[tuple[str, Mode, str], list[Content]] = {}
        self._judged_kills: set[tuple[str, int]] = set()

    def handle(self, name: str, mode: Mode, handler: str, strike: Strike) -> bool:
        """Run one case of the call ``name`` and judge it; tell whether the handler has been called.

        ``strike``: calls its first argument, and in the middle of that its second.
        """
        act, arrange, _ = EVERY_CALL[name]
        if (name, mode) not in self._expected:
            self._expected[name, mode] = self._expect(name, mode)
        if (name, mode, handler) not in self._orders:
            self._orders[name, mode, handler] = self._expect_in_both_orders(name, mode, handler)
        interrupted_calls.write_all(self._path, self._found["closed"])
        store = self._open(mode)
        struck: list[Struck] = []
        ended = False
        try:
            store = arrange(store) or store
            if name in BACKGROUND:  # as if this were the worker's thread
                store._worker._life.idents.add(threading.get_ident())
                store._worker._life.taken.acquire()
            found = False
            # A feed that has not begun yet is lost by a compaction.
            with contextlib.suppress(StoreClosedError, *[ChangesLostError] * (handler == "compact")):
                found = strike(lambda: act(store), lambda: struck.append(self._call(handler, store)))
                ended = True
            if struck:
                found = True
                self._judge_both(name, mode, handler, store, struck[0], ended=ended)
            return found
        finally:
            struck.clear()
            self._tidy(store)

    def _call(self, handler: str, store: Store) -> Struck:
        try:
            result = HANDLERS[handler](store)
        except ReentryError:
            return Struck(True, None, None)
        except ReadOnlyError:
            assert store.readonly
            return Struck(True, None, None)
        except StoreClosedError:
            assert store.closed or store._commit.state.refusal is not None
            return Struck(True, None, None)
        if isinstance(result, Snapshot):
            result = result, dict(result)
        elif handler == "verify":
            assert result.ok, result  # type: ignore[attr-defined]
        return Struck(False, result, interrupted_calls.read_all(self._path) if handler in WRITES else None)

    def _expect_in_both_orders(self, name: str, mode: Mode, handler: str) -> list[Content]:
        """Return what is left by the handler's call and then the other, and by the other and then the handler's."""
        act, arrange, _ = EVERY_CALL[name]
        found = []
        for is_first in (True, False):
            interrupted_calls.write_all(self._path, self._found["closed"])
            store = self._open(mode)
            store = arrange(store) or store
            for call in (HANDLERS[handler], act) if is_first else (act, HANDLERS[handler]):
                with contextlib.suppress(StoreClosedError, ReadOnlyError, *[ChangesLostError] * (handler == "compact")):
                    call(store)
            if store.closed:
                with self._open(mode, "r") as again:
                    found.append(visible(again))
            else:
                found.append(visible(store))
            self._tidy(store)
        return found

    def _judge_both(self, name: str, mode: Mode, handler: str, store: Store, struck: Struck, *, ended: bool) -> None:
        before, *rest = self._expected[name, mode]
        after = rest[0] if rest else before
        if struck.killed is not None:
            self._judge_kill(handler, struck.killed)
        self._judge_result(handler, struck, before, after)
        if handler == "close" and not struck.is_refused:
            assert store.closed
            self._expect_on_disk([after] if ended else [before, after], store._files)
            return
        assert ended or handler == "compact", "the call has met a closed store"
        expected = [after] if struck.is_refused else self._orders[name, mode, handler]
        state = name, mode, hash((handler, struck.is_refused, fingerprint(store)))
        if state in self._judged:
            return
        interrupted_calls.expect_no_lock_held(store)
        if store.closed:
            self._expect_on_disk(expected, store._files)
        elif store.readonly:
            assert visible(store) == after
        else:
            now = visible(store)
            assert now in expected, f"{'refused' if struck.is_refused else 'done'}, and it holds {now}"
            self._expected_moment(struck)
            now = self._judge_open(name, mode, store, [before, *expected])
            store.close()
            self._expect_on_disk([now], store._files)
        self._judged.add(state)

    def _judge_kill(self, handler: str, killed: Files) -> None:
        state = handler, hash(tuple(sorted(killed.items())))
        if state in self._judged_kills:
            return
        interrupted_calls.write_all(self._copy, killed)
        with open_store(self._copy, "w", files=StillFiles(), sync="os") as other:
            found = visible(other)
            if handler == "delete":
                assert b"last" not in found, "a kill right behind the handler's delete brings the key back"
            else:
                assert b"handled" in found, "a kill right behind the handler's write loses it"
            assert other.verify().ok
        self._judged_kills.add(state)

    def _judge_result(self, handler: str, struck: Struck, before: Content, after: Content) -> None:
        if struck.is_refused:
            return
        states = [{key: value for key, (value, _) in content.items()} for content in (before, after)]
        if handler == "get":
            for key in (b"kept", b"gone", b"new", b"due", b"large", b"n", b"warm"):
                assert struck.result.get(key) in [state.get(key) for state in states], f"get of {key!r} is wrong"
        elif handler == "scan":
            assert struck.result in states, f"a scan has shown {struck.result}"
        elif handler == "snapshot":
            assert struck.result[1] in states, f"a snapshot has shown {struck.result[1]}"

    def _expected_moment(self, struck: Struck) -> None:
        if isinstance(struck.result, tuple) and isinstance(struck.result[0], Snapshot):
            snapshot, moment = struck.result
            assert dict(snapshot) == moment, "the handler's snapshot has changed"
            snapshot.close()

    def _tidy(self, store: Store) -> None:
        super()._tidy(store)
        interrupted_calls.write_all(store.path + "-spare", None)
        with contextlib.suppress(BytekvError):
            store.close()
