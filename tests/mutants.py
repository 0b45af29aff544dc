"""Known ways to break bytekv, and the tests that must notice: what shows that the tests can fail.

Each mutant is a replacement of text in a copy of the package. One whose text is no longer found, or found
twice, is an error: it has to follow the code. ``python -m tests.mutants [words of a story]`` prints the
table of who is caught by what.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.support.harness import Case

ROOT = Path(__file__).parent.parent
_CRASHES = "tests/crash/test_crash_images.py"
_EXPIRY = "tests/engine/test_expiry.py"
_FAST_PATHS = "tests/engine/test_fast_paths.py"
_RUNS = ("tests/engine/test_fast_paths.py", "-k", "run")
_REPLACED, _ALARMS = "tests/engine/replication/test_replaced.py", "tests/crash/test_alarms.py"
_BACKUP, _FOLLOWERS = "tests/engine/replication/test_backup.py", "tests/engine/replication/test_followers.py"
_SNAPSHOTS = "tests/contract/test_snapshots.py"
_VERBS = "tests/contract/test_verbs.py"
_SELDOM = (_SNAPSHOTS, "-k", "seldom")
_HAZARDS = "tests/engine/sharing/test_hazards.py"
_AGREEMENT = "tests/engine/test_agreement.py"
_TOLD = "tests/engine/write/test_told.py"
_MIGRATE = "tests/faces/test_foreign.py"
_HTTP_VALUES, _HTTP_MANY, _HTTP_SAFETY = (
    f"tests/faces/http/test_http_{name}.py" for name in ("values", "many", "safety")
)
_RESP_PROTOCOL, _RESP_EXECUTOR, _RESP_SERVER, _RESP_ABUSE = (
    f"tests/faces/resp/test_resp_{name}.py" for name in ("protocol", "executor", "server", "abuse")
)


class Mutant(NamedTuple):
    """A story, the changes of text that make it true, and the arguments of the pytest run that must fail."""

    story: str
    changes: tuple[tuple[str, str, str], ...]  # module, old, new
    tests: tuple[str, ...]


def _mutant(story: str, module: str, old: str, new: str, *tests: str) -> Mutant:
    return Mutant(story, ((module, old, new),), tests or (_CRASHES,))


MUTANTS = [
    # --- recovery ------------------------------------------------------------------------------
    _mutant(
        "the recovered segment stays active: appends follow a torn tail",
        "engine/recovery",
        "last_seq=last_seq, state=SEALED)\n    empty",
        "last_seq=last_seq)\n    empty",
    ),
    _mutant(
        "what was recovered is sealed without a sync",
        "engine/recovery",
        "        files.sync(descriptor, path)\n        files.forget_cache(descriptor)",
        "        files.forget_cache(descriptor)",
    ),
    _mutant(
        "opening does not sync the names that a killed predecessor left",
        "engine/recovery",
        "directory.sync_names(manifest)",
        "pass",
    ),
    _mutant(
        "a torn tail is cut off and not kept",
        "engine/recovery",
        "            kept = self._keep(end, last)\n        except",
        "            kept = self.path\n        except",
    ),
    _mutant(
        "on a full disk a torn tail keeps the store from being opened",
        "engine/recovery",
        "        except DiskFullError:  # the blocks after it",
        "        except ZeroDivisionError:  # the blocks after it",
        "tests/crash/test_disk_full.py",
    ),
    _mutant(
        "damage below a sync mark is taken for a torn tail",
        "engine/recovery",
        "        check_torn(scan, path)",
        "        pass",
        "tests/engine/integrity/test_repair.py",
    ),
    _mutant(
        "an entry with a wrong seq is taken for the next",
        "engine/log/scan",
        "if seq != expected and (self._is_contiguous or seq > MAX_NUMBER):",
        "if False:",
        "tests/engine/log/test_segment.py",
    ),
    _mutant(
        "a batch is recovered by halves",
        "engine/log/scan",
        "            if flags & CONTINUES:\n                expected = seq + 1\n                continue\n",
        "",
    ),
    _mutant(
        "ids of files that were swept are used again",
        "engine/recovery",
        "if next_id != segments.manifest.next_id:",
        "if False:",
    ),
    _mutant(
        "a damaged segment made beforehand passes for the newest log",
        "engine/integrity/repair",
        "if is_sound and not header.previous_id and not is_empty:",
        "if False:",
        "tests/engine/log/test_prepared_segments.py",
    ),
    _mutant(
        "a repair removes the damaged segments before the manifest is published",
        "engine/integrity/repair",
        "        directory.save(manifest)\n        directory.remove_segments(removed)\n",
        "        directory.remove_segments(removed)\n        directory.save(manifest)\n",
    ),
    # --- names ---------------------------------------------------------------------------------
    _mutant(
        "the directory is not synced after the manifest was renamed",
        "engine/log/directory",
        "                files.unlink(path)\n            raise\n        self.sync()\n",
        "                files.unlink(path)\n            raise\n",
    ),
    _mutant(
        "the directory is not synced after a segment was created",
        "engine/log/segment",
        "            files.sync(descriptor, path)\n            directory.sync()\n",
        "            files.sync(descriptor, path)\n",
    ),
    _mutant(
        "the name of the store's own directory is not synced",
        "engine/log/directory",
        "        self.files.sync_directory(self.folder.parent)",
        "        pass",
    ),
    _mutant(
        "the manifest is written in place",
        "engine/log/directory",
        "path = self.folder.place(_MANIFEST_NEW)\n        try:",
        "path = self.manifest_path\n        try:",
    ),
    _mutant(
        "the manifest is renamed without a sync of its bytes",
        "engine/log/directory",
        "                files.write(descriptor, encode_manifest(manifest), 0, path)\n"
        "                files.sync(descriptor, path)\n",
        "                files.write(descriptor, encode_manifest(manifest), 0, path)\n",
    ),
    # --- writing -------------------------------------------------------------------------------
    _mutant(
        "always: a write is visible before it is durable",
        "engine/write/change",
        "            state.queue.add(self)\n        else:\n            self.apply(state)\n",
        "            state.queue.add(self)\n        self.apply(state)\n",
    ),
    _mutant(
        "always: a write is acknowledged before it is durable",
        "engine/write/durability",
        "        if state.always:\n            self.sync_to(seq)\n            return\n",
        "        if state.always:\n            state.became_durable(seq)\n            return\n",
    ),
    _mutant(
        "sync() does not sync",
        "engine/write/durability",
        "        if writer is not None:\n            writer.sync()  # an append",
        "        if False:\n            writer.sync()  # an append",
    ),
    _mutant(
        "what a sync has shown is found among what waits until nothing waits any more",
        "engine/write/durability",
        "is_all = bool(changes) and changes[-1].seq <= seq",
        "is_all = True",
        "tests/engine/write/test_commit_queue.py",
    ),
    _mutant(
        "a leader that has synced wakes nobody",
        "engine/write/durability",
        "            self._mark(target)\n            self.group.release(state.durable_seq, failed=False)\n",
        "            self._mark(target)\n",
        "tests/engine/write/test_slow_syncs.py",
    ),
    _mutant(
        "an interrupted put of the short way is redone in the wrong place",
        "engine/fast",
        "        offset = location >> OFFSET_SHIFT & OFFSET_MASK\n        writer.write(offset, [entry])\n",
        "        offset = writer.end\n        writer.write(offset, [entry])\n",
        "tests/crash/test_interrupts.py",
    ),
    _mutant(
        "a waiter whose patience has ended queues up to lead although a leader lives",
        "engine/write/durability",
        'if is_durable or not repr(self.state.sync_lock).startswith("<locked"):',
        "if True:",
        "tests/engine/write/test_slow_syncs.py",
    ),
    _mutant(
        "a leader syncs although what it waits for has become durable",
        "engine/write/durability",
        "if seq <= state.durable_seq:",
        "if False:",
        "tests/engine/write/test_slow_syncs.py",
    ),
    _mutant(
        "a put that is durable by then is told that the store was closed",
        "engine/write/durability",
        "        if seq <= state.durable_seq:\n            self.group.release(",
        "        if state.refusal is not None:\n            raise state.refusal()\n"
        "        if seq <= state.durable_seq:\n            self.group.release(",
        _TOLD,
    ),
    _mutant(
        "a put that a seal made durable during its sync is told of a failure after that",
        "engine/write/durability",
        "            if state.failure is not None and self._is_decided(seq):\n                return\n",
        "            if state.failure is not None:\n                state.refuse_after_failure()\n",
        _TOLD,
    ),
    _mutant(
        "a put of which nobody knows is told that the store was closed",
        "engine/write/durability",
        "        cause: BytekvError | None = state.failure\n",
        "        if state.refusal is not None:\n            raise state.refusal()\n"
        "        cause: BytekvError | None = state.failure\n",
        _TOLD,
    ),
    _mutant(
        "a put that waits for its sync is told of the full disk of another's",
        "engine/write/durability",
        "                if is_interrupt(error):\n                    raise  # a signal handler's; else",
        "                if error:\n                    raise  # a signal handler's; else",
        _TOLD,
    ),
    _mutant(
        "what a handler raises is lost in a wait for a sync",
        "engine/write/durability",
        "                if is_interrupt(error):\n                    raise  # a signal handler's; else",
        "                if not error:\n                    raise  # a signal handler's; else",
        _TOLD,
    ),
    _mutant(
        "a mark is written after the end of what may be sealed",
        "engine/write/durability",
        "        if state.segments.is_unsettled:\n            return  # perhaps",
        "        if False:\n            return  # perhaps",
        _TOLD,
    ),
    _mutant(
        "a close that fails after the sync leaves open what has happened",
        "engine/write/durability",
        "        if self.has_waiting:\n            self.sync_what_waits()  # should",
        "        if False:\n            self.sync_what_waits()  # should",
        _TOLD,
    ),
    _mutant(
        "durable puts leave all that expires to the worker",
        "engine/fast",
        "                if state.keydir.is_behind:\n                    state.purge_some(PURGED_BY_A_PUT)\n"
        "                writer = state.segments.writer\n",
        "                writer = state.segments.writer\n",
        *(_EXPIRY, "-k", "durable_put"),
    ),
    _mutant(
        "a failed sync that an interrupt hides is tried again",
        "engine/log/segment",
        "        if self._sync_failed:\n",
        "        if False:\n",
        "tests/crash/test_failed_sync.py",
    ),
    _mutant(
        "the failure of another store, out of a handler, refuses this one's writes",
        "engine/state",
        "if isinstance(error, StoreFailedError) and not is_about(error, self.segments.directory.path):",
        "if False:",
        "tests/crash/test_failed_sync.py",
    ),
    _mutant(
        "the failure of another store, out of a handler, is taken for a failed sync",
        "engine/log/segment",
        "self._sync_failed = is_about(error, self.path)",
        "self._sync_failed = True",
        "tests/crash/test_failed_sync.py",
    ),
    _mutant(
        "what a handler has met is taken for a failed sync",
        "engine/log/segment",
        "if is_told_here and isinstance",
        "if isinstance",
        "tests/crash/test_failed_sync.py",
    ),
    _mutant(
        "a handler in the middle of a put over an expired key takes it for expired",
        "engine/reader",
        "            return self.find(key) is not None\n",
        "            return False\n",
        "tests/crash/test_handlers.py",
    ),
    _mutant(
        "readers see half of a durable batch until the next sync",
        "engine/write/durability",
        "if state.synced_seq > state.durable_seq:",
        "if False:",
        "tests/engine/write/test_slow_syncs.py",
    ),
    _mutant(
        "nobody replaces a leader that was interrupted before it began",
        "engine/write/durability",
        "waiter.wait(patience_s)",
        "waiter.wait(3600)",
        "tests/engine/write/test_slow_syncs.py",
    ),
    _mutant(
        "of a line of waiters each one that has left costs a level of recursion",
        "engine/write/durability",
        "            waiter = waiter._next\n",
        "            return waiter._next.wake() if waiter._next else None\n",
        "tests/engine/write/test_group.py",
    ),
    _mutant(
        "a roll does not sync the segment that it seals",
        "engine/log/segment_manager",
        "            if old is not None:\n                old.sync()\n",
        "",
    ),
    _mutant(
        "a clean end is written without a sync",
        "engine/log/segment_manager",
        "            writer.trim()\n            writer.sync()\n",
        "            writer.trim()\n",
    ),
    _mutant(
        "a failed sync does not poison the store and is tried again",
        "engine/state",
        "            self.failure = StoreFailedError(",
        "            StoreFailedError(",
        "tests/crash/test_failed_sync.py",
    ),
    _mutant(
        "an interrupted write is not rolled forward",
        "engine/state",
        "            self.is_uncounted = True\n            intent.redo(self)\n",
        "            pass\n",
        "tests/crash/test_interrupts.py",
    ),
    Mutant(
        "a write from a handler is let into whatever holds the lock",
        (
            (
                "engine/state",
                'middle of something."""\n        if self.intent is None:\n            self.intent = ENTERED\n',
                'middle of something."""\n',
            ),
            (
                "engine/state",
                "        if self.intent is None:\n            self.intent = ENTERED\n        segments",
                "        segments",
            ),
        ),
        ("tests/crash/test_handlers.py",),
    ),
    _mutant(
        "the end of the process closes the stores",
        "engine/exit_and_fork",
        "                store._at_exit()\n",
        "                store.close()\n",
        "tests/crash/test_processes.py",
        "-k",
        "saved",
    ),
    _mutant(
        "finalisers of the main module meet a store whose files were finalised before",
        "engine/exit_and_fork",
        "                _kept.append(store)\n",
        "                pass\n",
        "tests/crash/test_processes.py",
        "-k",
        "saved",
    ),
    _mutant(
        "at the end of the process a lock is waited for that nobody gives back",
        "engine/space/worker",
        "        if not sys.is_finalizing():\n            return self._lock",
        "        if True:\n            return self._lock",
        "tests/crash/test_processes.py",
        "-k",
        "saved",
    ),
    _mutant(
        "a copy of a store is a second owner of its files",
        "contract/ordered",
        "    def __reduce_ex__(self",
        "    def _reduce_ex(self",
        "tests/contract/test_handles.py",
    ),
    _mutant(
        "always: a handler's write in its own thread's sync is appended and then refused",
        "engine/state",
        "if self.lock_is_owned() or (self.always and self.sync_lock_is_owned()):",
        "if self.lock_is_owned():",
        "tests/crash/test_handlers.py",
    ),
    _mutant(
        "an error behind the rename of the manifest is read as one before it",
        "engine/log/segment_manager",
        "            self.settle()\n            raise\n        self._writer_changed(old, new)",
        "            self.publishing = None\n            self._writer_kept(new)\n            raise\n"
        "        self._writer_changed(old, new)",
        "tests/crash/test_handlers.py",
    ),
    _mutant(
        "a compaction that was published is given up for an error",
        "engine/space/compactor",
        "                segments.settle()\n                self._forget_unpublished(job)\n",
        "                self._job = segments.publishing = None\n                for output in outputs:\n"
        "                    output.discard()\n",
        "tests/crash/test_handlers.py",
    ),
    _mutant(
        "a transaction's walk forgets what its own writes have changed since",
        "contract/overlay",
        "                    walk.note(key, old)\n",
        "                    pass\n",
        "tests/contract/test_transaction_walks.py",
    ),
    _mutant(
        "a transaction walks past each key that it has deleted, again and again",
        "contract/overlay",
        "            runs.update(dict.fromkeys(passed, last))",
        "            pass",
        "tests/contract/test_transaction_walks.py",
    ),
    _mutant(
        "a transaction's popitem takes the other end",
        "contract/transaction",
        "for key, value in self.scan(reverse=last, limit=1):",
        "for key, value in self.scan(limit=1):",
        "tests/contract/test_transaction_walks.py",
    ),
    _mutant(
        "a transaction counts a key twice that it overwrites",
        "contract/overlay",
        "                        replaced += 1\n",
        "                        pass\n",
        "tests/contract/test_transaction_walks.py",
    ),
    _mutant(
        "a transaction counts a key that has expired under its write",
        "contract/overlay",
        "sum(key in store for key in mortal)",
        "len(mortal)",
        "tests/contract/test_transaction_walks.py",
    ),
    _mutant(
        "a pop deletes another value than it returns",
        "engine/fast",
        "if old is None or (location is not None and old != location):",
        "if old is None:",
        "tests/engine/test_ends.py",
    ),
    _mutant(
        "popitem takes the last key when it is asked for the first",
        "engine/index/keydir",
        "return index[-1] if reverse else index[0]",
        "return index[-1]",
        "tests/engine/test_ends.py",
    ),
    _mutant(
        "a scan of one does not see that the store was closed",
        "engine/reader",
        "        self.check_open()\n        yield pair\n",
        "        yield pair\n",
        "tests/engine/test_ends.py",
    ),
    _mutant(
        "a store that inherits popitem takes the other end",
        "contract/store",
        "return next(self.scan_keys(reverse=reverse, limit=1), None)",
        "return next(self.scan_keys(limit=1), None)",
        "tests/contract/test_contract_store.py",
    ),
    _mutant(
        "a store tells those who ask for the time another one than it compares expiries with",
        "engine/store",
        "    def _now_ms(self) -> int:\n        return self._files.now_ms()",
        "    def _now_ms(self) -> int:\n        return __import__('time').time_ns() // 1_000_000",
        "tests/contract/test_contract_store.py",
    ),
    _mutant(
        "a transaction loses both writes of a key between which an interrupt strikes",
        "contract/overlay",
        "        undo = self._undo = key, old\n",
        "        undo = self._undo\n",
        "tests/contract/test_overlay.py",
    ),
    _mutant(
        "a batch loses both writes of a key between which an interrupt strikes",
        "contract/batch",
        "            self._moving = key, writes[key]\n",
        "            pass\n",
        "tests/contract/test_overlay.py",
    ),
    _mutant(
        "a transaction that ends with an interrupted write carries out the rest without it",
        "contract/transaction",
        "            if self._undo is not None:\n                self._take_back()\n            self.seq",
        "            self.seq",
        "tests/contract/test_overlay.py",
    ),
    _mutant(
        "an in-place operator makes a plain dict of a snapshot's name",
        "contract/ordered",
        '        __ior__ = refusing("|=")\n',
        "",
        "tests/contract/test_operators.py",
    ),
    _mutant(
        "an in-place operator makes a set of a store's name",
        "contract/ordered",
        '        __iand__, __isub__, __ixor__ = refusing("&="), refusing("-="), refusing("^=")\n',
        "        pass\n",
        "tests/contract/test_operators.py",
    ),
    _mutant(
        "opening does not know a deleted key from one of which nothing is said",
        "engine/index/keydir",
        "        deque(map(locations.setdefault, hint.tombstones, itertools.repeat(_DELETED)), maxlen=0)\n",
        "",
        "tests/engine/index/test_keydir.py",
    ),
    _mutant(
        "opening gives an overwritten key its old expiry",
        "engine/index/keydir",
        "            if key not in locations:\n                self.expires[key] = when_ms\n        deque",
        "            self.expires[key] = when_ms\n        deque",
        "tests/engine/index/test_keydir.py",
    ),
    _mutant(
        "opening reads what is older than a clear",
        "engine/index/keydir",
        "is_cleared = is_cleared or hint.clears",
        "is_cleared = False",
        "tests/engine/index/test_keydir.py",
    ),
    _mutant(
        "opening counts nothing as dead in a segment of which something lives",
        "engine/index/keydir",
        "        if added == len(keys):\n            return hint.live_bytes\n        sizes",
        "        if added:\n            return hint.live_bytes\n        sizes",
        "tests/engine/index/test_keydir.py",
    ),
    _mutant(
        "opening asks for the sizes of what lives",
        "engine/index/keydir",
        "            if locations[key] != base | position\n",
        "            if sizes_of(base | position) and locations[key] != base | position\n",
        "tests/engine/index/test_keydir.py",
    ),
    _mutant(
        "a batch notes nothing in a view of what it deletes",
        "engine/index/keydir",
        "            view.remember_some(gone, lost)\n",
        "",
        "tests/engine/test_fast_paths.py",
    ),
    _mutant(
        "a batch deletes what stays in the order of the keys",
        "engine/index/keydir",
        "            self._changed.update(gone)\n",
        "            pass\n",
        "tests/engine/test_fast_paths.py",
    ),
    _mutant(
        "the tombstones of a batch in bulk are not counted",
        "engine/write/change",
        "segment_id, self.tombstones)\n        self._apply",
        "segment_id, 0)\n        self._apply",
        "tests/engine/test_fast_paths.py",
    ),
    _mutant(
        "each part of a batch begins with the same seq",
        "engine/write/change",
        "values[run], seq + at + 1, now_ms",
        "values[run], seq + 1, now_ms",
        "tests/engine/test_fast_paths.py",
    ),
    _mutant(
        "a batch in bulk deletes keys that do not exist",
        "engine/store",
        "        bulk = commit.without_idle_deletes(bulk, now_ms)\n",
        "        pass\n",
        "tests/engine/test_fast_paths.py",
    ),
    _mutant(
        "a clear keeps no victims for a view whose keys are still being moved",
        "engine/log/segment_manager",
        "{*self.lengths(), *self.obsolete.zombies}.difference",
        "{*self.lengths()}.difference",
        _SNAPSHOTS,
    ),
    _mutant(
        "a follower's clear counts nothing as dead",
        "engine/index/keydir",
        "self.usage.count_replaced(itertools.chain(self.locations.values(), self._expired.values()), sizes_of)",
        "pass",
        "tests/engine/replication/test_followers.py",
    ),
    _mutant(
        "a clear under a view notes nothing",
        "engine/index/read_view",
        "        self.segments |= segments\n        noted.update(missing)\n",
        "        self.segments |= segments\n",
        "tests/engine/index/test_keydir.py",
    ),
    _mutant(
        "a write under a view puts its key in its place of a sorted list",
        "engine/index/read_view",
        "                if self._changed is not None:\n                    self._changed.add(key)  # to be",
        "                if self.index().add(key) is None:\n                    self._changed.add(key)  # to be",
        "tests/engine/index/test_keydir.py",
    ),
    _mutant(
        "what was noted in a view does not come in its scans",
        "engine/index/read_view",
        "        if self._noted:\n",
        "        if False:\n",
        "tests/engine/index/test_keydir.py",
    ),
    _mutant(
        "a clear that is carried out once more hands on a list that a view has",
        "engine/index/keydir",
        "        self._drop_index()  # first: it has one owner",
        "        # first: it has one owner",
        "tests/engine/index/test_keydir.py",
    ),
    _mutant(
        "what waits for a sync counts as dead",
        "engine/state",
        "-= change.end - change.offset",
        "-= 0",
        "tests/engine/write/test_slow_syncs.py",
    ),
    _mutant(
        "dead bytes are not counted as long as somebody waits for a sync",
        "engine/state",
        "            self.recount_what_is_shown()\n        self.durable_seq",
        "            self.recount()\n        self.durable_seq",
        "tests/engine/write/test_slow_syncs.py",
    ),
    _mutant(
        "a sync that fails leaves half of what was durable before visible",
        "engine/state",
        "            self.became_durable(self.synced_seq)  # an earlier sync's",
        "            pass  #",
        "tests/crash/test_failed_sync.py",
    ),
    _mutant(
        "an index that was overtaken while it was made is taken all the same",
        "engine/index/order",
        "        if self._sorting is order:\n",
        "        if True:\n",
        "tests/engine/index/test_keydir.py",
    ),
    _mutant(
        "what changes while an index is made is not in it",
        "engine/index/order",
        "        self._index, self._sorting = None, [index, changed]\n        self._changed = set()\n",
        "        self._index, self._sorting = None, [index, changed]\n        self._changed = None\n",
        "tests/engine/index/test_keydir.py",
    ),
    _mutant(
        "what waits to be sorted is one long list",
        "engine/index/order",
        "        del keys[-count:]\n",
        "        keys = keys[:-count]\n",
        "tests/engine/index/test_keydir.py",
    ),
    _mutant(
        "the keys beyond the last cut get lost",
        "engine/index/order",
        "    for _ in range(len(cuts) + 1):\n",
        "    for _ in range(len(cuts)):\n",
        "tests/engine/index/test_keydir.py",
    ),
    _mutant(
        "an index that is replaced is freed in one go",
        "engine/index/order",
        "        some.clear()\n",
        "        pass\n",
        "tests/engine/index/test_keydir.py",
    ),
    _mutant(
        "a clear frees the order of the keys under the lock",
        "engine/index/keydir",
        "            self.dropped = self._index  # to be",
        "            pass  # to be",
        "tests/engine/index/test_keydir.py",
    ),
    _mutant(
        "keys are sorted while nobody else gets in",
        "engine/reader",
        "            if kept.is_order_due:\n                with",
        "            if False:\n                with",
        "tests/engine/test_scan.py",
    ),
    _mutant(
        "what a view has noted is sorted while nobody else gets in",
        "engine/reader",
        "self._order(self._keydir, view)",
        "self._order(self._keydir)",
        "tests/engine/test_scan.py",
    ),
    # --- verbs ---------------------------------------------------------------------------------
    _mutant(
        "a count of a range takes in its last key",
        "engine/index/order",
        "index.bisect_right(stop) if include_stop else index.bisect_left(stop)",
        "index.bisect_right(stop)",
        _VERBS,
    ),
    _mutant(
        "a count of a range counts what has expired",
        "engine/reader",
        "if not (self._keydir.is_due(self._now_ms()) and self._state.purge_some()):",
        "if True:",
        _VERBS,
    ),
    _mutant(
        "a snapshot counts what is there now",
        "engine/index/read_view",
        "count += (not is_over) - (key in newest)",
        "pass",
        _VERBS,
    ),
    _mutant(
        "a transaction counts what it has overwritten twice",
        "contract/overlay",
        "count += (write is not None) - (key in self._store)",
        "count += write is not None",
        _VERBS,
    ),
    _mutant(
        "children are found by walking through all keys",
        "contract/ordered",
        "            range_ = range_._replace(start=end, include_start=True)",
        "            range_ = range_.after(keys[-1])",
        _VERBS,
    ),
    _mutant(
        "children end at a child of 0xff bytes",
        "contract/ordered",
        "        if child is None:\n            range_ = range_.after(keys[-1])",
        "        if child is None:\n            return",
        _VERBS,
    ),
    _mutant(
        "children of a store are those of several moments",
        "engine/store",
        "        return self._reader.walker(self)",
        "        return self._walk",
        _VERBS,
    ),
    _mutant(
        "stat tells of another key's entry",
        "engine/reader",
        "if found is None or found.key != key or found.flags",
        "if found is None or found.flags",
        _VERBS,
    ),
    _mutant(
        "stat takes any length for the right one",
        "engine/reader",
        "or (size and found.size != size):",
        "or False:",
        _VERBS,
    ),
    _mutant(
        "modify overwrites what came in between",
        "contract/store",
        "self.put(key, new, expires=expires, if_seq=seq)",
        "self.put(key, new, expires=expires)",
        _VERBS,
    ),
    _mutant(
        "modify takes the expiry away",
        "contract/store",
        "self.put(key, new, expires=expires, if_seq=seq)",
        "self.put(key, new, if_seq=seq)",
        _VERBS,
    ),
    _mutant(
        "modify gives up after eight conflicts",
        "contract/store",
        "            return tx.modify(key, function, first)",
        '            return b""',
        _VERBS,
    ),
    _mutant(
        "an incr in a transaction takes the expiry away",
        "contract/transaction",
        "self._write(key, new if expiry == NEVER else (new, expiry))",
        "self._write(key, new)",
        _VERBS,
    ),
    _mutant(
        "incr makes a missing key where it must not",
        "engine/store",
        "            if value is None:\n                total = None\n                return []",
        '            value = value or b"0"',
        _VERBS,
    ),
    _mutant(
        "a range is deleted in one batch, however large",
        "contract/convert",
        "    if DELETE_COST * len(keys) + sum(map(len, keys)) <= MAX_BATCH_SIZE:",
        "    if True:",
        _VERBS,
    ),
    _mutant(
        "the names of parents that were made are not durable",
        "engine/log/directory",
        "            self.files.sync_directory(os.path.dirname(path))",
        "            pass",
        _VERBS,
    ),
    _mutant(
        "a store is not made because its parent is missing",
        "engine/log/directory",
        "                self._make_parents(made)",
        "                pass",
        _VERBS,
    ),
    _mutant(
        "parents that were made stay where the store cannot be made",
        "engine/log/directory",
        "                        self.files.remove_directory(parent)",
        "                        pass",
        "tests/crash/test_hostile.py",
        "-k",
        "names_that_the_system",
    ),
    _mutant(
        "delete stops at the first key that is missing",
        "cli/commands",
        "        missing = [key for key in keys if not store.delete(key)]",
        "        missing = [] if all(store.delete(key) for key in keys) else keys[:1]",
        "tests/faces/cli/test_cli.py",
    ),
    _mutant(
        "a command line beside programs that share the store wants it for itself",
        "cli/commands",
        '            if not error.shared or "wait" not in arguments:',
        '            if error or "wait" not in arguments:',
        "tests/faces/cli/test_cli.py",
        "-k",
        "beside",
    ),
    _mutant(
        "a server shares a store although nobody told it to",
        "cli/commands",
        'if not error.shared or "wait" not in arguments:  # as serve has none: it shares only if told to',
        "if not error.shared:",
        "tests/faces/test_serve.py",
        "-k",
        "locked",
    ),
    _mutant(
        "who is refused a store is not told that others share it",
        "engine/log/lock",
        "return StoreLockedError(self._path, holder, text == _SHARED_TEXT.strip())",
        "return StoreLockedError(self._path, holder)",
        "tests/engine/sharing/test_shared_store.py",
        "-k",
        "told",
    ),
    _mutant(
        "a client is told of an error in the server where a neighbour keeps the store",
        "http/problem",
        "        case StoreBusyError():",
        "        case StoreBusyError() if False:",
        "tests/faces/http/test_http_shared.py",
    ),
    _mutant(
        "a range is deleted as it was found, whatever came in between",
        "engine/write/commit",
        "        return found == keys if ends else found[: len(keys)] == keys",
        "        return True",
        _VERBS,
    ),
    _mutant(
        "who deletes a range never gives up, however many come in between",
        "engine/store",
        "            tries = 0 if done else tries + 1",
        "            tries = 0 if done else max(1, tries)",
        _VERBS,
    ),
    _mutant(
        "a range is deleted with what has expired in it",
        "engine/write/commit",
        "or (keydir.is_due(now_ms) and state.purge_some()):",
        "or False:",
        _VERBS,
    ),
    _mutant(
        "a deleted range that crosses 256 seqs has wrong CRCs",
        "engine/codec/runs",
        "_pack_crc(_crc_difference(size, seq & ~0xFF) ^ of_seed)",
        "_pack_crc(of_seed)",
        "tests/engine/codec/test_runs.py",
    ),
    _mutant(
        "a deleted range does not end its batch",
        "engine/write/change",
        "            ends = prepared is self._prepared[-1]",
        "            ends = False",
        _VERBS,
    ),
    _mutant(
        "a snapshot loses what a deleted range held",
        "engine/index/keydir",
        "                view.remember_some(keys, lost)",
        "                pass",
        _VERBS,
    ),
    _mutant(
        "a deleted range leaves the expiries of its keys",
        "engine/index/keydir",
        "                self.remove(key, sizes_of)\n        views",
        "                pass\n        views",
        _VERBS,
    ),
    _mutant(
        "a deleted range does not count its large entries as dead",
        "engine/index/usage",
        "                self.count_replaced(\n                    [old for old in locations",
        "                self.count_replaced(\n                    [old for old in locations[:0]",
        _VERBS,
    ),
    _mutant(
        "half of a deleted range may be seen",
        "engine/write/change",
        "state.readers_must_wait, True  # nobody may see half of a batch\n",
        "state.readers_must_wait, state.readers_must_wait\n",
        _VERBS,
    ),
    _mutant(
        "a request without parameters deletes every key",
        "http/operations",
        "    if not keys.prefix and keys.start is None and keys.stop is None:",
        "    if False:",
        _HTTP_MANY,
    ),
    _mutant(
        "a compaction sorts keys while nobody else gets in",
        "engine/space/copier",
        "            self._state.order(keydir)\n",
        "",
        "tests/engine/test_scan.py",
    ),
    _mutant(
        "a transaction that cannot open its gate keeps it shut",
        "engine/write/turn",
        "owner is None or owner.has_given_up or",
        "owner is None or",
        "tests/contract/test_transactions.py",
    ),
    _mutant(
        "a lock that could not be given back is never free again",
        "engine/log/lock",
        "Lock] = weakref.WeakValueDictionary()",
        "Directory] = {}",
        "tests/engine/log/test_directory.py",
    ),
    _mutant(
        "what a failed write has left stays in the file",
        "engine/log/segment",
        "            self._files.truncate(self._descriptor, offset, self.path)\n            self.allocated = offset\n",
        "            pass\n",
        "tests/engine/log/test_segment.py",
    ),
    _mutant(
        "a write that failed has not happened, though the file holds all of it",
        "engine/log/segment",
        "self._files.read(self._descriptor, len(piece), offset, self.path) != piece",
        "True",
        "tests/engine/log/test_segment.py",
    ),
    _mutant(
        "a write that failed has not happened, though nobody knows what the file holds",
        "engine/log/segment",
        "            except SystemErrors:\n                return False\n",
        "            except SystemErrors:\n                return True\n",
        "tests/crash/test_faults.py",
    ),
    _mutant(
        "a write of which nothing is known is carried out by the next call",
        "engine/write/change",
        "        elif writer.map is None:",
        "        elif False:",
        "tests/crash/test_faults.py",
    ),
    _mutant(
        "what an interrupted call has written and shown is written once more, and cut off if that fails",
        "engine/write/change",
        "    if state.seq == change.seq:\n",
        "    if False:\n",
        "tests/crash/test_faults.py",
    ),
    _mutant(
        "a close that was interrupted forgets what it had locked",
        "engine/log/lock",
        "        identity = self._identity\n",
        "        identity, self._identity = self._identity, None\n",
        "tests/engine/log/test_directory.py",
    ),
    _mutant(
        "a segment that was prepared is listed before its header is durable",
        "engine/log/segment",
        "encode_segment_header(self.header), 0, self.path)\n        self._files.sync(self._descriptor, self.path)",
        "encode_segment_header(self.header), 0, self.path)",
        "tests/engine/log/test_prepared_segments.py",
    ),
    _mutant(
        "a segment that was prepared says that it follows what was there when it was made",
        "engine/log/segment",
        "self.header._replace(previous_id=previous[0], previous_seq=previous[1])",
        "self.header",
        "tests/engine/log/test_prepared_segments.py",
    ),
    _mutant(
        "each put asks anew for the next segment where it cannot be made",
        "engine/write/commit",
        "* 5 // 8 and writer.base != self._asked_for",
        "* 5 // 8",
        "tests/engine/log/test_prepared_segments.py",
    ),
    _mutant(
        "a clean end leaves the file that was made for the next roll",
        "engine/log/segment_manager",
        "        self.discard_prepared()\n        writer = self.writer",
        "        writer = self.writer",
        "tests/engine/log/test_prepared_segments.py",
    ),
    _mutant(
        "a number is set aside though the manifest that is about to be published may have it",
        "engine/write/commit",
        "                state.wants_next = False\n                state.ready()\n",
        "                state.wants_next = False\n",
        "tests/engine/log/test_prepared_segments.py",
    ),
    _mutant(
        "a number is set aside for a copy though the manifest that is about to be published may have it",
        "engine/space/copier",
        "                self._state.ready()  # a roll was interrupted, perhaps\n",
        "",
        "tests/engine/log/test_prepared_segments.py",
    ),
    _mutant(
        "a segment that was made for a roll which has been is begun after its successor",
        "engine/log/segment_manager",
        "        if self.writer is not old:\n            self._unmake(new)",
        "        if False:\n            self._unmake(new)",
        "tests/engine/log/test_prepared_segments.py",
    ),
    _mutant(
        "a repair believes a segment without entries about where the one before it ends",
        "engine/integrity/repair",
        "log.is_sound and not log.is_empty]",
        "log.is_sound]",
        "tests/engine/log/test_prepared_segments.py",
    ),
    _mutant(
        "a backup that outlives its store ends with the store's error",
        "engine/log/obsolete",
        "                if not self._directory.folder.is_closed:\n                    raise  #",
        "                if True:\n                    raise  #",
        "tests/engine/test_leaks.py",
        "-k",
        "outlives",
    ),
    _mutant(
        "a full disk does not get the file back that was made for the next roll",
        "engine/log/segment_manager",
        "            return self.discard_prepared()",
        "            return False",
        "tests/engine/log/test_prepared_segments.py",
    ),
    # --- compaction ----------------------------------------------------------------------------
    _mutant(
        "the outputs of a compaction are not synced",
        "engine/log/builder",
        "        self._files.sync(self._descriptor, self.path)\n",
        "",
    ),
    _mutant(
        "the victims are unlinked before the manifest is published",
        "engine/space/compactor",
        "segments.replace_run(victims, new_rows)",
        "segments.directory.remove_segments(victims)\n                segments.replace_run(victims, new_rows)",
    ),
    _mutant(
        "the active segment is not synced before the victims go",
        "engine/space/compactor",
        "            self._durability.sync_to(state.seq)\n",
        "",
    ),
    _mutant(
        "what a listener raises ends the call in which it was told",
        "engine/listener",
        "    except Exception as error:",
        "    except ZeroDivisionError as error:",
        "tests/engine/test_listener.py",
    ),
    _mutant(
        "a compaction that fails tells the listener that it is done",
        "engine/space/compactor",
        "            reason = str(error) or type(error).__name__\n",
        "            del error\n",
        "tests/engine/test_listener.py",
    ),
    _mutant(
        "what is noted while events are told is lost",
        "engine/state",
        "        events = self.deferred_events  # never another one: a thread may be about to append to this\n",
        "        events, self.deferred_events = self.deferred_events, deque()\n",
        "tests/engine/test_listener.py",
    ),
    _mutant(
        "a listener is told under the lock",
        "engine/state",
        "        self.deferred_events.append((tell, self.options.listener, (event,)))\n",
        "        tell(self.options.listener, event)\n",
        "tests/engine/test_listener.py",
    ),
    _mutant(
        "a compaction gives damaged entries a new CRC",
        "engine/codec/runs",
        "        or set(map(checksum, raws, seeds)) != {RESIDUE}\n",
        "",
        "tests/engine/codec/test_runs.py",
    ),
    _mutant(
        "copies that are alike are written unchecked",
        "engine/codec/runs",
        "    return piece if is_sound(piece, seed, size, count) else None\n",
        "    return piece\n",
        "tests/engine/codec/test_runs.py",
    ),
    _mutant(
        "copies that are alike are copied whatever their keys are",
        "engine/codec/runs",
        " or cut_keys(piece, 0, size, count) != keys:\n        return None\n    at, zeros",
        ":\n        return None\n    at, zeros",
        "tests/engine/codec/test_runs.py",
    ),
    _mutant(
        "a compaction takes a segment for another whose id ends in other bytes",
        "engine/codec/runs",
        "        if there == wanted and not first.translate(None, self._others):\n",
        "        if there == wanted:\n",
        "tests/engine/codec/test_runs.py",
    ),
    _mutant(
        "a compaction takes a segment for another whose id ends in the same byte",
        "engine/codec/runs",
        "        if len(self.by_byte) < len(ids) or max",
        "        if max",
        "tests/engine/codec/test_runs.py",
    ),
    _mutant(
        "a compaction checks the first of each run only",
        "engine/codec/runs",
        "    return count if set(map(checksum, raws, repeat(seed))) == {RESIDUE} else 0\n",
        "    return count if checksum(raws[0], seed) == RESIDUE else 0\n",
        "tests/engine/codec/test_runs.py",
    ),
    _mutant(
        "a copy in the order of the keys is the rest of a batch",
        "engine/codec/runs",
        "            bytes((kind & ~CONTINUES,)) + body[1:] if kind & CONTINUES else body\n",
        "            body\n",
        "tests/engine/codec/test_runs.py",
    ),
    _mutant(
        "a partial compaction drops tombstones",
        "engine/space/copier",
        "            self.tombstones[key] = raw\n",
        "            pass\n",
    ),
    _mutant(
        "a partial compaction drops expired entries",
        "engine/space/copier",
        "                        deletions.note_expired(key, raw)\n                    continue",
        "                        pass\n                    continue",
    ),
    _mutant(
        "a partial compaction in the order of the keys drops expired entries",
        "engine/space/copier",
        "                deletions.note_expired(key, raw)\n\n",
        "                pass\n\n",
        _EXPIRY,
    ),
    _mutant(
        "a key is forgotten between the look at its segment and its turn in the order of the keys",
        "engine/space/copier",
        "keydir.is_held = True",
        "keydir.is_held = False",
        _EXPIRY,
    ),
    _mutant(
        "somebody goes on forgetting keys while a run is copied in their order",
        "engine/space/copier",
        "            with state.lock, state:  # nobody is in",
        "            if True:  # nobody is in",
        _EXPIRY,
    ),
    _mutant(
        "a key is left in two places when a purge is interrupted",
        "engine/index/keydir",
        "                del self.locations[key]\n            for view",
        "                pass\n            for view",
        "tests/engine/index/test_keydir.py",
    ),
    _mutant(
        "a view does not count what has expired, once for each try",
        "engine/index/keydir",
        "                view.count_anew()\n",
        "                pass\n",
        "tests/engine/index/test_keydir.py",
    ),
    _mutant(
        "a key that expires after its turn in the order of the keys is copied twice",
        "engine/space/copier",
        "                        waiting.pop(key, None)\n",
        "                        pass\n",
        _EXPIRY,
    ),
    _mutant(
        "a tombstone of an expired put hides what was written after it",
        "engine/space/copier",
        "ENTRY.pack(TOMBSTONE, len(key), 0, seq, modified_ms)",
        "ENTRY.pack(TOMBSTONE, len(key), 0, seq + 1000, modified_ms)",
        _EXPIRY,
    ),
    _mutant(
        "expired keys stay in memory",
        "engine/index/keydir",
        "            self._leaving.add(key, when_ms + self.grace_ms)\n        else:",
        "            pass\n        else:",
        _EXPIRY,
    ),
    _mutant(
        "all keys that are due are taken out under one lock",
        "engine/index/keydir",
        "PURGED_AT_ONCE: Final = 100",
        "PURGED_AT_ONCE: Final = 10**9",
        _EXPIRY,
    ),
    _mutant(
        "puts leave what has expired to others",
        "engine/fast",
        "                            if keydir.is_behind:\n"
        "                                state.purge_some(PURGED_BY_A_PUT)\n"
        "                        else:\n                            locations",
        "                        else:\n                            locations",
        _EXPIRY,
    ),
    _mutant(
        "puts with a ttl leave what has expired to others",
        "engine/fast",
        "state.size_of)\n                        if keydir.is_behind:\n",
        "state.size_of)\n                        if False:\n",
        _EXPIRY,
    ),
    _mutant(
        "a key that is put beside others that expire goes on expiring",
        "engine/fast",
        "(keydir.is_behind or key in keydir.special):\n                            keydir.put",
        "keydir.is_behind:\n                            keydir.put",
        _FAST_PATHS,
    ),
    _mutant(
        "a delete finds what has expired",
        "engine/fast",
        "                        old = keydir.locate(key, now_ms) if is_special else keydir.locations.get(key)",
        "                        old = keydir.locations.get(key)",
        _FAST_PATHS,
        _EXPIRY,
    ),
    _mutant(
        "a scan gives what has expired, where entries are alike",
        "engine/codec/runs",
        "iter_unpack(piece))[0] <= now_ms():",
        "iter_unpack(piece))[0] < now_ms():",
        _FAST_PATHS,
    ),
    _mutant(
        "a scan gives what has expired, where entries are of many sizes",
        "engine/fast",
        "                is_there = _expiry_of(raw, 23)[0] > now\n",
        "                pass\n",
        _FAST_PATHS,
    ),
    _mutant(
        "a small batch falls apart into single writes",
        "engine/fast",
        "        continues = 0x20\n",
        "        continues = 0\n",
        _FAST_PATHS,
    ),
    _mutant(
        "a small batch deletes keys that do not exist",
        "engine/fast",
        "        if None in writes.values():\n",
        "        if False:\n",
        _FAST_PATHS,
    ),
    _mutant(
        "a small batch forgets when its keys expire",
        "engine/fast",
        "        run.expires = [times_ms.get(key, 0) for key in keys] if times_ms else None\n",
        "        run.expires = None\n",
        _FAST_PATHS,
    ),
    _mutant(
        "the tombstones of a small batch are not counted",
        "engine/fast",
        "tombstone_bytes(base >> 44) + tombstones if gone else None",
        "tombstone_bytes(base >> 44) if gone else None",
        _FAST_PATHS,
    ),
    _mutant(
        "entries of one size are all said to lie where the first does",
        "engine/codec/runs",
        "(count * size << OFFSET_SHIFT), size << OFFSET_SHIFT))",
        "count, 1))",
        _FAST_PATHS,
    ),
    _mutant(
        "a key that is new in a batch of puts is not put in order",
        "engine/index/keydir",
        "            if self._changed is not None and None in old:\n",
        "            if False:\n",
        _FAST_PATHS,
    ),
    _mutant(
        "a key that is deleted beside others that expire is not forgotten",
        "engine/fast",
        "                            keydir.remove(key, state.size_of)",
        "                            keydir.discard(key)",
        _EXPIRY,
    ),
    _mutant(
        "add finds what has expired",
        "engine/fast",
        "                        if over != _ANYTHING and keydir.locate(key, now_ms) != over:",
        "                        if over != _ANYTHING and keydir.locations.get(key) != over:",
        _FAST_PATHS,
        _EXPIRY,
    ),
    _mutant(
        "a put with a seq does not look whether the entry is still the newest",
        "engine/fast",
        "                        if over != _ANYTHING and keydir.locate(key, now_ms) != over:",
        "                        if over is None and keydir.locate(key, now_ms) is not None:",
        _FAST_PATHS,
    ),
    _mutant(
        "a put with a seq takes any entry for the one that it asks for",
        "engine/store",
        '        return location if int.from_bytes(reader[0][at : at + 8], "little") == seq else None',
        "        return location",
        _FAST_PATHS,
    ),
    _mutant(
        "a key with a ttl is there for a millisecond too long",
        "engine/fast",
        "and _expiry_of(raw, 23)[0] > self",
        "and _expiry_of(raw, 23)[0] >= self",
        _EXPIRY,
    ),
    _mutant(
        "an expiry that is written once more after an interrupt stays away",
        "engine/fast",
        "            state.keydir.put(key, location, expires_ms, state.size_of)",
        "            state.keydir.put(key, location, 0, state.size_of)",
        "tests/crash/test_interrupts.py",
    ),
    _mutant(
        "an open view does not hear of puts beside keys that expire",
        "engine/index/keydir",
        "        self.is_plain, self.special = False, _EVERY\n",
        "        self.is_plain = False\n",
        _EXPIRY,
    ),
    _mutant(
        "a batch leaves keys to expire that it puts for good",
        "engine/index/keydir",
        "            for key in before.keys() - mortal.keys():\n",
        "            for key in ():\n",
        _EXPIRY,
    ),
    _mutant(
        "a batch does not see that something is due",
        "engine/index/keydir",
        "        if expires or self._expired:\n            self.is_behind = self.is_due(now_ms)",
        "        if False:\n            pass",
        _EXPIRY,
    ),
    _mutant(
        "a batch with a ttl is due at its first key's time",
        "engine/codec/runs",
        "    if expires is not None and expires.count(expires[0]) != count:",
        "    if False:",
        "tests/engine/codec/test_runs.py",
    ),
    _mutant(
        "a run of entries of one size has the upper bytes of its first seq",
        "engine/codec/runs",
        "for byte in range((seq ^ last).bit_length() + 7 >> 3):",
        "for byte in range(1):",
        "tests/engine/codec/test_runs.py",
    ),
    _mutant(
        "a key that expires at another time stays where it was due",
        "engine/index/deadlines",
        " or when_ms >> _FAR << _FAR <= self._furthest:",
        ":",
        _EXPIRY,
    ),
    _mutant(
        "a clock that was set back hides where a key is due",
        "engine/index/deadlines",
        "        self._furthest = max(self._furthest, now_ms)",
        "        self._furthest = now_ms",
        _EXPIRY,
    ),
    _mutant(
        "what is left of a forgotten entry counts as dead as well",
        "engine/index/usage",
        "self.dead.get(segment, 0) + size - rest",
        "self.dead.get(segment, 0) + size",
        _EXPIRY,
    ),
    _mutant(
        "a key that is deleted waits for its expiry",
        "engine/index/deadlines",
        "            if bucket is not None and key in bucket:",
        "            if False:",
        _EXPIRY,
    ),
    _mutant(
        "keys of one stretch of time are due together",
        "engine/index/deadlines",
        "            if when_ms <= now_ms:",
        "            if True:",
        _EXPIRY,
    ),
    _mutant(
        "a partial compaction drops a clear",
        "engine/space/copier",
        "            self.clear = raw\n",
        "",
    ),
    _mutant(
        "a compaction moves keys that were written meanwhile",
        "engine/index/keydir",
        "            if table.get(key) == old:",
        "            if key in table:",
        "tests/engine/index/test_keydir.py",
    ),
    _mutant(
        "victims are removed newest first: a put may outlive its tombstone",
        "engine/log/directory",
        "        for segment_id in segment_ids:\n",
        "        for segment_id in reversed(segment_ids):\n",
        "tests/engine/integrity/test_repair.py",
    ),
    _mutant(
        "a compaction drops what is damaged, and what follows it",
        "engine/space/copier",
        "        if scan.end != row.length:\n            path =",
        "        if False:\n            path =",
        "tests/engine/integrity/test_repair.py",
    ),
    _mutant(
        "a write waits for what is owed on the event loop",
        "engine/write/throttle",
        "self._owed_at(end, sizes) >= _SHORTEST_DELAY_S\n",
        "self._owed_at(end, sizes) < 0\n",
        "tests/faces/http/test_event_loop.py",
    ),
    _mutant(
        "writers are slowed down for a compaction that never comes",
        "engine/write/throttle",
        "if debt < 0 or not is_due():",
        "if debt < 0:",
        "tests/engine/write/test_throttle.py",
    ),
    _mutant(
        "a look costs the same however much was written since the last",
        "engine/write/throttle",
        "self._price_s * written / self._piece(sizes)",
        "self._price_s",
        "tests/engine/write/test_throttle.py",
    ),
    _mutant(
        "no segment of a small store is ever worth a compaction",
        "engine/log/sizes",
        "min(options.compact_dead_bytes, segment // 4)",
        "options.compact_dead_bytes",
        "tests/engine/space/test_sizes.py",
        "-k",
        "follows or small",
    ),
    _mutant(
        "a repair fills segments as large as the options allow",
        "engine/integrity/repair",
        "limit = segment_size(live, self._limit, self.directory.tuning)",
        "limit = self._limit",
        "tests/engine/integrity/test_repair.py",
        "-k",
        "suits_the_store",
    ),
    _mutant(
        "segments are as large in a small store as in a large one",
        "engine/log/sizes",
        "min(limit, max(tuning.smallest_segment, live // _SEGMENTS))",
        "limit",
        "tests/engine/space/test_sizes.py",
        "-k",
        "grow or small",
    ),
    _mutant(
        "a store that has become small goes on with large segments",
        "engine/log/segment_manager",
        "            self.writer.limit = sizes.segment",
        "            pass",
        "tests/engine/space/test_sizes.py",
        "-k",
        "shrinks",
    ),
    _mutant(
        "a compaction takes as many segments at once as are worth it, whatever their copies take",
        "engine/space/picker",
        "(copies > sizes.segment or ",
        "(",
        "tests/engine/space/test_background_compaction.py",
        "-k",
        "a_choice",
    ),
    _mutant(
        "in a small store a compaction takes victims that are larger than all that lives",
        "engine/space/picker",
        " or length > max(sizes.live, 2 * sizes.segment)",
        "",
        "tests/engine/space/test_background_compaction.py",
        "-k",
        "little_lives",
    ),
    _mutant(
        "a write finds no address space because of what is open for reading",
        "engine/log/segment_manager",
        "if not self.give_back_for(error):  # what is open",
        "if True:  # what is open",
        "tests/engine/test_memory_limits.py",
    ),
    _mutant(
        "who waits for a compaction in the background waits for its rate limit",
        "engine/pacer",
        "if self._rate_bytes_s is not None and not hurries:",
        "if self._rate_bytes_s is not None:",
        "tests/engine/space/test_background_compaction.py",
        "-k",
        "waits",
    ),
    _mutant(
        "verify() does not say that it waits",
        "engine/store",
        "waiter: object = self._maintenance.hurry()",
        "waiter: object = None",
        "tests/engine/space/test_background_compaction.py",
        "-k",
        "waits",
    ),
    # --- repair --------------------------------------------------------------------------------
    _mutant(
        "a repair throws away what it takes out",
        "engine/integrity/repair",
        "            kept = self.directory.quarantine_file(descriptor, path, name, size, self._kept)\n",
        "            kept = path\n",
        "tests/engine/integrity/test_repair.py",
    ),
    _mutant(
        "a repair mixes in the segments of another store",
        "engine/integrity/repair",
        "        if header.store_uuid != uuid:\n            report",
        "        if False:\n            report",
        "tests/engine/integrity/test_repair.py",
    ),
    _mutant(
        "a repair keeps half of an unfinished batch",
        "engine/integrity/walk",
        "                if entry[2] <= min(durable, known.highest):\n",
        "                if True:\n",
        "tests/engine/integrity/test_repair.py",
    ),
    _mutant(
        "a repair takes damage below the published length for a torn tail",
        "engine/integrity/walk",
        "        if scan.end < self._known.durable_end or last < self.durable_seq:\n",
        "        if last < self.durable_seq:\n",
        "tests/engine/integrity/test_repair.py",
    ),
    _mutant(
        "a repair takes damage below a sync mark for a torn tail",
        "engine/integrity/walk",
        "            self.durable_seq = max(self.durable_seq, self._resync.highest_mark())\n",
        "            pass\n",
        "tests/engine/integrity/test_repair.py",
    ),
    _mutant(
        "without a manifest a repair takes every log for the one that was being written",
        "engine/integrity/repair",
        "    is_last = not file.is_cut and all(",
        "    is_last = True or all(",
        "tests/engine/integrity/test_repair.py",
    ),
    _mutant(
        "without a manifest a repair shows the rest of a batch whose beginning is lost",
        "engine/integrity/walk",
        "                if doubtful and seq > durable:\n",
        "                if False:\n",
        "tests/engine/integrity/test_repair.py",
    ),
    _mutant(
        "without a manifest a repair brings back what a recovery has cut off",
        "engine/integrity/repair",
        "                return _File(segment_id, offset, header, is_sound, is_empty, is_cut=True)\n",
        "                pass\n",
        "tests/engine/integrity/test_repair.py",
    ),
    _mutant(
        "a repair leaves a gap before the log that begins next",
        "engine/integrity/repair",
        "            if output is not None or not rows:\n",
        "            if output is not None:\n",
        "tests/engine/integrity/test_repair.py",
    ),
    _mutant(
        "a repair that fails leaves its copies",
        "engine/integrity/repair",
        "        new.undo()\n        raise\n",
        "        raise\n",
        "tests/engine/integrity/test_repair.py",
    ),
    _mutant(
        "a repair gives up a segment whose header is damaged",
        "engine/integrity/repair",
        "            descriptor = files.open(path)  # the salt of its entries is in the manifest, too\n",
        "            return row.last_seq\n",
        "tests/engine/integrity/test_repair.py",
    ),
    _mutant(
        "a repair looks in an output for what is newer than the segment before it",
        "engine/integrity/repair",
        "    if header is not None and header.kind == LOG:\n        lowest",
        "    if header is not None:\n        lowest",
        "tests/engine/integrity/test_repair.py",
    ),
    _mutant(
        "a repair writes over what an earlier one has kept",
        "engine/log/directory",
        "            while files.exists(target):\n",
        "            while False:\n",
        "tests/engine/integrity/test_repair.py",
    ),
    # --- reading -------------------------------------------------------------------------------
    _mutant(
        "what lies in the middle of a run is not looked up",
        "engine/fast",
        "        whole(segment) or list(map",
        "        True or list(map",
        *_RUNS,
    ),
    _mutant(
        "an unchecked value may be cut short",
        "engine/fast",
        "len(raw) == size if trusting else",
        "trusting or",
        _AGREEMENT,
    ),
    _mutant(
        "an unchecked get may be cut short",
        "engine/fast",
        "\n        if raw and (len(raw) == location & 8191 if self._trusting else",
        "\n        if raw and (self._trusting or",
        _AGREEMENT,
    ),
    _mutant(
        "a segment of which nothing is known is whole",
        "engine/index/usage",
        "return self.dead.get(segment, 1) == 0",
        "return self.dead.get(segment, 0) == 0",
        _AGREEMENT,
    ),
    _mutant(
        "an output is whole before all keys have been pointed at it",
        "engine/space/compactor",
        "            keydir.usage.drop_segments(job.victims)  # before the first key is moved: see `Usage.is_whole`",
        "            list(map(keydir.usage.open_segment, job.hinted))",
        _AGREEMENT,
    ),
    _mutant(
        "a scan does not ask whether a call was interrupted before it counted",
        "engine/reader",
        "return not self._state.is_uncounted and self._keydir",
        "return self._keydir",
        _AGREEMENT,
    ),
    _mutant(
        "a follower does not count what it overwrites",
        "engine/index/keydir",
        "self.put(key, base | position, expires.get(key, 0) if expires else 0, sizes_of)",
        "self._put_with_care(key, base | position, expires.get(key, 0) if expires else 0)",
        _AGREEMENT,
    ),
    _mutant(
        "a follower does not count copies of what is gone",
        "engine/index/keydir",
        "                self.usage.count_dead(segment, new & SIZE_MASK or sizes_of(new))\n\n    def forget",
        "                pass\n\n    def forget",
        _AGREEMENT,
    ),
    _mutant(
        "a run is cut without its checksum",
        "engine/codec/runs",
        "    return checksum(piece, seed) == crc_of_run(seed, size, count)",
        "    return True",
        *_RUNS,
    ),
    _mutant(
        "the checksum of a run does not start from the segment's salt, so that none is ever right",
        "engine/codec/runs",
        " ^ checksum(zeros, seed)\n",
        "\n",
        "tests/engine/codec/test_runs.py",
    ),
    _mutant(
        "a run that lies backwards is handed out forwards",
        "engine/fast",
        "    if is_reverse:\n        pairs.reverse()\n",
        "",
        "tests/engine/codec/test_runs.py",
    ),
    _mutant(
        "entries that were read backwards are handed out so",
        "engine/fast",
        "    if pairs is not None and is_reverse:\n        pairs.reverse()\n",
        "",
        "tests/engine/codec/test_runs.py",
    ),
    _mutant(
        "keys alone are those of now, whatever the moment",
        "engine/reader",
        "            mortal |= view.undo.keys() & selected\n",
        "            pass\n",
        _SNAPSHOTS,
        "tests/engine/test_scan.py",
    ),
    _mutant(
        "keys alone do not expire while they are handed out",
        "engine/reader",
        "            return keys, self._keydir.expiring_among(keys)",
        "            return keys, set()",
        _EXPIRY,
    ),
    _mutant(
        "rows of a snapshot have the expiry that a key was given since",
        "engine/index/read_view",
        "return expires_ms if self.undo.get(key, _UNCHANGED) is _UNCHANGED else self._mortal.get(key)",
        "return expires_ms",
        "tests/contract/test_snapshots.py",
    ),
    _mutant(
        "a scan of a closed snapshot goes on with what it has read",
        "engine/index/read_view",
        "        self.undo = _Ended()\n        self.drop_read_ahead()\n",
        "        self.undo = _Ended()\n",
        "tests/engine/test_scan.py",
    ),
    _mutant(
        "of several scans of a snapshot only the last hears that it has ended",
        "engine/index/read_view",
        "        self._read_ahead[scan] = some\n",
        "        self._read_ahead = {scan: some}\n",
        "tests/engine/test_scan.py",
    ),
    _mutant(
        "a thousand entries are held at once, however large they are",
        "engine/fast",
        "        if size * len(keys) > _HELD:\n",
        "        if False:\n",
        "tests/engine/codec/test_runs.py",
    ),
    _mutant(
        "entries of one size that lie scattered are not checked",
        "engine/fast",
        "not is_sound(piece, seed, size, len(same)):",
        "False:",
        "tests/engine/codec/test_runs.py",
    ),
    _mutant(
        "a stretch of neighbours is not checked",
        "engine/fast",
        "        if not (trusting or is_sound(part, seed, size, end - begin)):",
        "        if False:",
        "tests/engine/codec/test_runs.py",
    ),
    _mutant(
        "what is read together need not be of the keys that were asked for",
        "engine/codec/runs",
        "    if list(map(_first, pairs)) != wanted:\n",
        "    if False:\n",
        "tests/engine/codec/test_runs.py",
    ),
    _mutant(
        "what lies in a run need not say how long its key is",
        "engine/codec/runs",
        "        and piece[1::size] == bytes((key_size & 0xFF,)) * count\n",
        "",
        *_RUNS,
    ),
    _mutant(
        "keys that change seldom keep a segment each for a snapshot",
        "engine/space/compactor",
        "        copy_undo(self._state, pause)\n",
        "",
        *_SELDOM,
    ),
    _mutant(
        "what was interrupted while it was gathered stays on the disk",
        "engine/space/undo_copier",
        "        except BaseException:\n            self._discard()\n            raise\n",
        "        except BaseException:\n            raise\n",
        "tests/engine/space/test_undo_copier.py",
    ),
    _mutant(
        "what is gathered for views is never gathered again",
        "engine/space/undo_copier",
        "            if size <= total <= limit - size:\n",
        "            if False:\n",
        *_SELDOM,
    ),
    _mutant(
        "a snapshot that is read while the store is closed calls that damage",
        "engine/reader",
        "            with self._state.lock, self._state:\n                self.check_open()\n            segment_id",
        "            segment_id",
        *(_SNAPSHOTS, "-k", "while_the_store_is_closed"),
    ),
    _mutant(
        "keys are taken off the list of those to be moved before that is said anywhere else",
        "engine/space/compactor",
        "            piece = output.copied[-1]\n",
        "            piece = output.copied.pop()\n            output.copied.append(piece)\n",
        *("tests/crash/test_interrupts.py", "-k", "whose_move"),
    ),
    _mutant(
        "the files of a snapshot that was dropped stay until the store is closed",
        "engine/space/compactor",
        "            if self._segments.obsolete.has_replaced:  # perhaps",
        "            if False:  # perhaps",
        *(_SNAPSHOTS, "-k", "dropped_snapshot"),
    ),
    _mutant(
        "a compaction takes for dead what an interrupted seal has not shown",
        "engine/space/compactor",
        "            if state.queue.changes:  # a seal",
        "            if False:  # a seal",
        *("tests/crash/test_interrupts.py", "-k", "interrupted_seal"),
    ),
    _mutant(
        "a key whose put was interrupted never comes due",
        "engine/index/keydir",
        "                self._due.add(key, expires_ms)  # in this order, as in `put`\n"
        "                expires[key] = expires_ms\n",
        "                expires[key] = expires_ms\n                self._due.add(key, expires_ms)\n",
        *("tests/engine/index/test_keydir.py", "-k", "comes_due"),
    ),
    _mutant(
        "a compaction moves a key whose purge was interrupted in one table only",
        "engine/index/keydir",
        "        self.finish_purge()  # else a key is in two places, and only one of them would be moved\n",
        "",
        *("tests/engine/index/test_keydir.py", "-k", "moved_by_a_compaction"),
    ),
    _mutant(
        "a clear that readers see hides keys from writers if showing it was interrupted",
        "engine/write/durability",
        "        self._clear_seq = 0\n        self.overlay.clear()\n        self.changes.clear()\n",
        "        self.changes.clear()\n        self.overlay.clear()\n        self._clear_seq = 0\n",
        *("tests/engine/write/test_commit_queue.py", "-k", "interrupted"),
    ),
    _mutant(
        "views do not keep what was gathered for them",
        "engine/space/undo_copier",
        "            view.segments.add(row.segment_id)\n",
        "            pass\n",
        *_SELDOM,
    ),
    _mutant(
        "a view is not pointed at what was gathered for it",
        "engine/index/read_view",
        "                self._noted[key] = new\n",
        "                pass\n",
        *_SELDOM,
    ),
    _mutant(
        "a view does not keep what it has noted",
        "engine/index/read_view",
        "                self.segments.add(location >> SEGMENT_SHIFT)",
        "                pass",
        "tests/engine/index/test_keydir.py",
    ),
    _mutant(
        "a view keeps what it has not noted",
        "engine/log/obsolete",
        "if segment_id not in remembered and segment_id not in pinned]",
        "if not noted and segment_id not in pinned]",
        _SNAPSHOTS,
    ),
    _mutant(
        "what a feed lists goes beside a snapshot",
        "engine/log/obsolete",
        "if segment_id not in remembered and segment_id not in pinned]",
        "if segment_id not in noted]",
        _SNAPSHOTS,
    ),
    _mutant(
        "a snapshot that was closed is read on",
        "engine/index/read_view",
        "        view.close()  # first: what is not remembered any more must not be taken for unchanged\n",
        "",
        _SNAPSHOTS,
    ),
    # --- feeds, readers and backups ------------------------------------------------------------
    _mutant(
        "a feed shows what waits for its sync",
        "engine/replication/feed",
        "                        if seq > last_seq:\n                            return\n",
        "",
        "tests/engine/replication/test_changes.py",
    ),
    _mutant(
        "a follower keeps keys whose tombstone went with a compaction",
        "engine/replication/follower",
        "            keydir.forget_segments(plan.gone)\n",
        "",
        _FOLLOWERS,
    ),
    _mutant(
        "a follower takes what a power cut took back for a continuation",
        "engine/replication/follower",
        "                if header.kind == LOG and seq < self._state.seq:",
        "                if False:",
        _FOLLOWERS,
    ),
    _mutant(
        "a reader that opens beside a compaction reads everything again",
        "engine/recovery",
        "            found = kept.get(row) if kept is not None else None",
        "            found = None",
        _FOLLOWERS,
    ),
    _mutant(
        "what a compaction takes away again and again passes for damage",
        "engine/replication/follower",
        "        if generation() != before:",
        "        if False:",
        _FOLLOWERS,
    ),
    _mutant(
        "a follower goes on across a repair",
        "engine/integrity/repair",
        "        self._manifest = manifest = manifest._replace(compat_flags=flags)\n",
        "        self._manifest = manifest\n",
        _FOLLOWERS,
    ),
    _mutant(
        "a backup that is written to goes on with its number",
        "engine/log/segment_manager",
        "return another_history(flags & ~BACKUP, self.directory.files.random(4))",
        "return flags & ~BACKUP",
        _FOLLOWERS,
    ),
    _mutant(
        "a follower does not compare the number of the history",
        "engine/replication/follower",
        "if manifest.compat_flags != mine.compat_flags or manifest.generation < mine.generation:",
        "if manifest.generation < mine.generation:",
        _FOLLOWERS,
    ),
    _mutant(
        "a log may end before what a follower has seen of it",
        "engine/replication/follower",
        "if max([manifest.last_seq, *(row.last_seq for row in rows)]) < self._state.seq:",
        "if False:",
        _FOLLOWERS,
    ),
    _mutant(
        "a follower takes any view that is read for one of the file of now",
        "engine/log/open_segments",
        "return (file.size() if isinstance(file, PreadFile) else len(file)) >= length",
        "return isinstance(file, PreadFile) or len(file) >= length",
        _FOLLOWERS,
    ),
    _mutant(
        "an open in vain closes a reader's file",
        "engine/log/open_segments",
        "            raise KeyError(segment_id)\n        while True:\n",
        "            raise KeyError(segment_id)\n        self._evict(self.max_open - 1)\n        while True:\n",
        _FOLLOWERS,
    ),
    _mutant(
        "whether a backup is the first is decided before the lock",
        "engine/replication/backup",
        "        target.acquire(network_allowed=True)\n        is_first = target.begin_backup()\n",
        "        is_first = target.begin_backup()\n        target.acquire(network_allowed=True)\n",
        _BACKUP,
    ),
    _mutant(
        "a follower does not ask what became of the end of its log before it was compacted away",
        "engine/replication/follower",
        "if is_gone and (manifest.last_seq < self._state.seq or self._has_lost_its_end(last)):",
        "if is_gone and manifest.last_seq < self._state.seq:",
        _FOLLOWERS,
    ),
    _mutant(
        "a hint says that what was put again by a run of puts is deleted as well, or still expires",
        "engine/log/summary",
        "                deque(map(table.pop, keys, repeat(0)), maxlen=0)\n",
        "                pass\n",
        "tests/engine/log/test_segment.py",
    ),
    _mutant(
        "a hint of large values of one size does not know their sizes",
        "engine/log/summary",
        "            self.sizes.update(zip(keys, repeat(size)))\n",
        "            pass\n",
        "tests/engine/log/test_segment.py",
    ),
    _mutant(
        "a hint counts what was replaced as live",
        "engine/log/summary",
        "            live = sum(",
        "            sum(",
        "tests/engine/log/test_segment.py",
    ),
    _mutant(
        "a hint mixes up the positions of keys that were put again",
        "engine/log/summary",
        "            keys.sort(key=self.positions.__getitem__)\n",
        "",
        "tests/engine/log/test_segment.py",
    ),
    _mutant(
        "a hint from the keydir does not say what a later segment replaces",
        "engine/index/usage",
        "        is_latest = segment == active or self._sealed.get(segment) == self.dead.get(segment, 0)\n",
        "        is_latest = True\n",
        "tests/engine/log/test_hints.py",
    ),
    _mutant(
        "an index that is made in pieces forgets where a list ends",
        "contract/ordered",
        "        maxes[-1] = lists[-1][-1]\n",
        "",
        "tests/engine/index/test_keydir.py",
    ),
    _mutant(
        "an index that is made in pieces finds a key by the place of before",
        "contract/ordered",
        "    index._index.clear()\n",
        "",
        "tests/engine/index/test_keydir.py",
    ),
    _mutant(
        "a store with seqs that no list can have cannot be closed",
        "engine/index/keydir",
        "itertools.islice(pairs, min(most, len(self.locations)))",
        "itertools.islice(pairs, most)",
        "tests/engine/index/test_keydir.py",
    ),
    _mutant(
        "a hint from the keydir does not say what was deleted",
        "engine/index/usage",
        "        return is_latest and not self.hiding_bytes(segment)\n",
        "        return is_latest\n",
        "tests/engine/log/test_hints.py",
    ),
    _mutant(
        "a hint from the keydir has only the keys that were found",
        "engine/index/keydir",
        "        if live_bytes != row.length - SEGMENT_HEADER_SIZE - self.usage.gone_bytes(row.segment_id):\n",
        "        if False:\n",
        "tests/engine/log/test_hints.py",
    ),
    _mutant(
        "a hint from the keydir forgets what expires",
        "engine/index/keydir",
        "Hint(row.length, row.last_seq, False, keys, positions, [], expiring, live_bytes, 0)",
        "Hint(row.length, row.last_seq, False, keys, positions, [], {}, live_bytes, 0)",
        "tests/engine/log/test_hints.py",
    ),
    Mutant(
        "a follower believes a hint of half a segment",
        (
            ("engine/log/summary", " or (in_one and hint.length < row.length):", ":"),
            ("engine/log/summary", "    if not rest:", "    if in_one or not rest:"),
        ),
        (_FOLLOWERS,),
    ),
    _mutant(
        "a follower takes damage for an entry under way",
        "engine/replication/follower",
        "            check_torn(scan, path)  # else an entry that is being written",
        "            pass",
        _FOLLOWERS,
    ),
    _mutant(
        "the files of a backup are not synced",
        "engine/replication/backup",
        "            files.sync(copy, temporary)\n",
        "",
        _BACKUP,
    ),
    _mutant(
        "the names of a backup are not synced", "engine/replication/backup", "        target.sync()\n", "", _BACKUP
    ),
    _mutant(
        "a backup of a store's other history is brought up to date",
        "engine/replication/backup",
        "(old.compat_flags ^ moment.compat_flags) & HISTORY or any(",
        "any(",
        _BACKUP,
    ),
    _mutant(
        "a backup overwrites another file of the same number",
        "engine/replication/backup",
        "files.get(row.segment_id, row.salt) != row.salt for row",
        "False for row",
        _BACKUP,
    ),
    _mutant(
        "a backup that is opened is none any more if files lie beside it",
        "engine/recovery",
        "if segments.manifest.compat_flags & BACKUP:",
        "if False:",
        _BACKUP,
    ),
    _mutant(
        "a backup shares files whatever follows in them",
        "engine/replication/backup",
        "is_exact = files.size(descriptor, path) == row.length",
        "is_exact = True",
        _BACKUP,
    ),
    _mutant(
        "a backup takes for whole what it once had",
        "engine/replication/backup",
        "there.get(row.segment_id) == row and _holds_segment(target, row, moment.store_uuid)",
        "there.get(row.segment_id) == row",
        _BACKUP,
    ),
    # --- trust ---------------------------------------------------------------------------------
    _mutant(
        "a forked child frees its parent's lock",
        "engine/log/lock",
        "        if self._file is not None:\n            self._files.disown(self._file)",
        "        if self._file is not None:\n"
        "            None if self._file.closed else self._files.unlock(self._file.fileno())\n"
        "            self._files.disown(self._file)",
        "tests/crash/test_processes.py",
        "-k",
        "child",
    ),
    # --- a directory that is replaced ------------------------------------------------------------
    _mutant(
        "a path is resolved anew for each operation",
        "engine/log/files",
        "return (path.name, held.number) if _BY_DESCRIPTOR else",
        "return (str(path), None) if _BY_DESCRIPTOR else",
        _REPLACED,
    ),
    _mutant(
        "names are changed in a store that has replaced this one in the same directory",
        "engine/log/files",
        "        if isinstance(self._path, Place):\n            self._path.folder.prove()\n",
        "",
        _REPLACED,
    ),
    _mutant(
        "a sync of what nobody will find is acknowledged",
        "engine/log/files",
        "            with _unheeded():\n                path.folder.prove()\n",
        "            pass\n",
        _REPLACED,
    ),
    _mutant(
        "a directory whose files are gone may still be written to by name",
        "engine/log/lock",
        "        if not is_network:\n            self._folder.sign(lock)\n",
        "",
        _REPLACED,
    ),
    _mutant(
        "an opening that is interrupted late keeps the lock for as long as its error is kept",
        "engine/store",
        "                opened.directory.release()\n",
        "                pass\n",
        "tests/engine/log/test_directory.py",
    ),
    _mutant(
        "a store whose opening is interrupted last of all is not closed",
        "engine/store",
        "                with suppress(BytekvError):\n                    self.close()\n            else:",
        "                pass\n            else:",
        "tests/engine/log/test_directory.py",
    ),
    _mutant(
        "without memory for the guard the lock is kept",
        "engine/log/lock",
        "        except MemoryError:  # a ``with`` takes some, what follows none; the guard is for forks\n"
        "            self._give_up()\n",
        "        except ZeroDivisionError:\n            pass\n",
        "tests/engine/log/test_directory.py",
    ),
    _mutant(
        "without memory a directory's descriptor is lost",
        "engine/log/files",
        "        if number >= 0:\n            _close(number)",
        "        if number >= 0:\n            with _unheeded():\n                os.close(number)",
        "tests/engine/log/test_directory.py",
    ),
    _mutant(
        "a second writer comes in once LOCK was removed",
        "engine/log/files",
        "                fcntl.flock(where, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)",
        "                pass",
        _REPLACED,
    ),
    # --- the control page ----------------------------------------------------------------------
    *(
        _mutant(story, "engine/log/control_page", old, new, "tests/engine/log/test_control_page.py")
        for story, old, new in (
            (
                "the control page is mapped from the descriptor that has the locks",
                "        descriptor = files.open(path, write=True)\n",
                "        descriptor = files.duplicate(self._descriptor(), path)\n",
            ),
            (
                "a file of somebody else's becomes the control page",
                "if len(found) > SIZE or found[:8]",
                "if False and found[:8]",
            ),
            ("the page of another boot is joined", "if found[32:48] != wanted[24:]:", "if False:"),
            (
                "a reader of the control page believes a change that goes on",
                "                if words[CHANGES] == changes:\n                    return",
                "                if True:\n                    return",
            ),
            (
                "an unfinished change of the control page passes for a whole one",
                "            if not changes & 1:",
                "            if True:",
            ),
            (
                "the turn that a process waited for in vain is wanted for ever",
                "            if words[WANT] == since:\n",
                "            if False:\n",
            ),
            (
                "an interrupt leaves a lock of the control page with the kernel",
                "                self.take(timeout_s)\n                return work()\n            finally:\n",
                "                self.take(timeout_s)\n                return work()\n            except ValueError:\n",
            ),
            (
                "only who has pinned this very generation counts, and nobody who has pinned one before it",
                "is_range_locked(self._descriptor(), _PINS, generation + 1, self._path)",
                "is_range_locked(self._descriptor(), _PINS + generation, 1, self._path)",
            ),
            (
                "one pin that is dropped ends all of its generation",
                "        if not pins:\n            if not self._file.closed:",
                "        if True:\n            if not self._file.closed:",
            ),
        )
    ),
    # --- processes that share a store ------------------------------------------------------------
    *(
        _mutant(story, module, old, new, _HAZARDS, "-k", tests)
        for story, module, old, new, tests in (
            (
                "the words of a put are written before its bytes",
                "engine/sharing/fast",
                "            mapping[offset:end] = entry\n            words[END] = end\n"
                "            words[APPENDED] = seq\n",
                "            words[END] = end\n            words[APPENDED] = seq\n"
                "            mapping[offset:end] = entry\n",
                "holder_then_bytes",
            ),
            (
                "a put that is under way names nobody",
                "engine/sharing/fast",
                "            words[HOLDER] = self.turn.name\n            mapping[offset:end] = entry\n",
                "            mapping[offset:end] = entry\n",
                "holder_then_bytes",
            ),
            (
                "a put goes over what lies where the page says that the log ends",
                "engine/sharing/fast",
                "            or mapping[offset]  # type: ignore[index]\n",
                "",
                "earlier_moment",
            ),
            (
                "a put goes on in a segment that its own process's reader has left",
                "engine/sharing/fast",
                " or state.segments.writer is not writer:",
                ":",
                "05b",
            ),
            (
                "what is appended is shown before it is announced",
                "engine/write/change",
                "    writer.end = change.end\n    state.seq = change.seq\n    state.turn.announce()\n",
                "    writer.end = change.end\n    state.seq = change.seq\n",
                "holder_then_bytes",
            ),
            (
                "a slow write goes over what lies where the page says that the log ends",
                "engine/sharing/neighbours",
                " or (end < len(mapping) and mapping[end]):",
                ":",
                "earlier_moment",
            ),
            (
                "what a dead process has left is appended to",
                "engine/sharing/neighbours",
                "        torn = self._torn_bytes(writer)\n",
                '        torn = b""\n',
                "01_a_batch",
            ),
            (
                "a compaction publishes without the turn",
                "engine/space/compactor",
                "        job = _Job(victims, outputs)\n        with state.turn.gate, state.turn, state.lock, state:",
                "        job = _Job(victims, outputs)\n        with state.lock, state:",
                "test_11",
            ),
            (
                "a process compacts what another has replaced",
                "engine/sharing/maintenance",
                "        self._neighbours.catch_up_with_set()  # it may have replaced what is known here\n",
                "",
                "20",
            ),
            (
                "a file that another process's snapshot needs is unlinked",
                "engine/log/obsolete",
                "retired is not None and self.page.is_pinned_elsewhere(retired)",
                "False",
                "12",
            ),
            (
                "files are swept without the turn",
                "engine/sharing/maintenance",
                "        with state.turn.gate, state.turn:\n            if not self._page",
                "        if True:\n            if not self._page",
                "12_a_sweep",
            ),
            (
                "a failed sync is not told to the others",
                "engine/sharing/durability",
                "            words[FAILED] = 1  # before",
                "            pass  # before",
                "13",
            ),
            (
                "a sync is tried again after that of another process has failed",
                "engine/sharing/durability",
                "        if words[FAILED]:  # in another",
                "        if False:  # in another",
                "13",
            ),
            (
                "what a failed sync was for is shown by one that reads it later",
                "engine/sharing/neighbours",
                "            if words[FAILED] and self._state.always:",
                "            if False:",
                "13",
            ),
            (
                "a reader takes a segment that was cut off for a failure",
                "engine/sharing/neighbours",
                "            if writer.measure() == size:\n                raise\n",
                "            raise\n",
                "09",
            ),
            (
                "the leader of a sync looks at the segment first",
                "engine/sharing/durability",
                "            announced = words[APPENDED]  # first: then everything up to it lies in the active "
                "segment, or was sealed\n"
                "            self._sync_and_tell(lambda: self._sync_segment(words[SEGMENT]), announced)\n",
                "            segment = words[SEGMENT]\n            announced = words[APPENDED]\n"
                "            self._sync_and_tell(lambda: self._sync_segment(segment), announced)\n",
                "22",
            ),
        )
    ),
    Mutant(
        "what a process makes durable while it reads is durable to itself alone",
        (
            (
                "engine/sharing/neighbours",
                "            self._durability.sync_file(descriptor, self._directory.segment_path(row.segment_id), "
                "row.last_seq)\n",
                "            self._directory.files.sync(descriptor, self._directory.segment_path(row.segment_id))\n",
            ),
            (
                "engine/sharing/neighbours",
                "            self._durability.tell_durable(plan.durable_seq)\n",
                "            pass\n",
            ),
        ),
        (_HAZARDS, "-k", "shown_to_all"),
    ),
    _mutant(
        "a backup looks for files that another process has removed",
        "engine/shared_store",
        "        with self._keeping_files():\n            return super().backup",
        "        if True:\n            return super().backup",
        _HAZARDS,
        "-k",
        "long_call",
    ),
    _mutant(
        "a forked child that abandons the control page frees its parent's locks",
        "engine/log/control_page",
        "        self.give_turn_back = _nothing\n",
        "        self._file.closed or self.give_turn_back()\n        self.give_turn_back = _nothing\n",
        "tests/engine/log/test_control_page.py",
    ),
    _mutant(
        "a writer shares a store with one that does not",
        "engine/log/lock",
        "not (shared and other.is_shared)",
        "not shared",
        "tests/engine/log/test_control_page.py",
    ),
    _mutant(
        "a refused lock of LOCK leaves that of the directory",
        "engine/log/lock",
        "                raise\n            self._give_up()\n        return False",
        "                raise\n        return False",
        "tests/engine/log/test_control_page.py",
    ),
    _mutant(
        "the file that is locked may have lost its name before",
        "engine/log/lock",
        "            if is_network or files.has_name(descriptor, path):",
        "            if True:",
        _REPLACED,
    ),
    _mutant(
        "a child keeps the lock of a store that was just being opened",
        "engine/log/lock",
        "    for lock in list(_held.values()):\n        lock.abandon()\n",
        "",
        _REPLACED,
    ),
    _mutant(
        "a child that was forked before the directory was locked has the lock, too",
        "engine/log/files",
        "        if not again:\n            path.renew()\n",
        "",
        _REPLACED,
    ),
    _mutant(
        "a fork does not wait for a lock that is just taken",
        "engine/exit_and_fork",
        "before=hold_locks_before_fork, after_in_parent=go_on_after_fork, ",
        "",
        _REPLACED,
    ),
    _mutant(
        "a child keeps the directory that another thread was using",
        "engine/log/files",
        "        if held is not None:\n            held.close()\n",
        "",
        _REPLACED,
    ),
    _mutant(
        "a child that a handler forks during an opening has the store",
        "engine/store",
        "        if os.getpid() != self._pid:  # a signal",
        "        if False:  # a signal",
        _REPLACED,
    ),
    _mutant(
        "a directory goes while a call uses it",
        "engine/log/files",
        "        self._is_closed = True\n        self._held = self._lock = None\n",
        "        self._is_closed = True\n        self._held and self._held.close()\n"
        "        self._held = self._lock = None\n",
        _REPLACED,
    ),
    _mutant(
        "a directory that was let go is opened anew",
        "engine/log/files",
        "        if self._is_closed:\n            raise",
        "        if False:\n            raise",
        _REPLACED,
    ),
    _mutant(
        "a reader whose directory was removed calls it damage",
        "engine/log/directory",
        "        if self.files.is_gone(self.folder):",
        "        if False:",
        _REPLACED,
    ),
    _mutant(
        "a directory that cannot be changed is opened for writing",
        "engine/log/lock",
        "        if not files.may_change(folder):",
        "        if False:",
        _REPLACED,
    ),
    _mutant(
        "a put before 1970 is refused",
        "engine/fast",
        "            except StructError:  # a clock before 1970, which the plain way knows to write\n"
        "                if state.intent is not ENTERED:\n"
        "                    state.readers_must_wait = True\n"
        "                    raise\n"
        "            except BaseException:\n"
        "                state.readers_must_wait = True\n"
        "                raise\n"
        "            state.intent = None\n"
        "        check_sizes(key, value)\n",
        "            except BaseException:\n"
        "                state.readers_must_wait = True\n"
        "                raise\n"
        "            state.intent = None\n"
        "        check_sizes(key, value)\n",
        _REPLACED,
    ),
    _mutant(
        "a delete before 1970 is refused",
        "engine/fast",
        "            except StructError:  # a clock before 1970, which the plain way knows to write\n"
        "                if state.intent is not ENTERED:\n"
        "                    state.readers_must_wait = True\n"
        "                    raise\n"
        "            except BaseException:\n"
        "                state.readers_must_wait = True\n"
        "                raise\n"
        "            state.intent = None\n"
        "        return super().delete",
        "            except BaseException:\n"
        "                state.readers_must_wait = True\n"
        "                raise\n"
        "            state.intent = None\n"
        "        return super().delete",
        _REPLACED,
    ),
    # --- signal handlers' errors -----------------------------------------------------------------
    _mutant(
        "an error without a number is the system's",
        "errors",
        "    if isinstance(error, OSError) and error.errno is None and not isinstance(error, BytekvError):\n"
        "        return True\n",
        "",
        _ALARMS,
    ),
    _mutant(
        "an error with a number is taken for the system's, though a handler has raised it",
        "errors",
        "            if value is interrupted or (",
        "            if False and (",
        _ALARMS,
    ),
    _mutant(
        "a sync that was interrupted has failed",
        "engine/log/files",
        "        except OSError as error:\n            if is_interrupt(error):\n                raise\n"
        "            raise _failed_sync(error, path) from error\n\n    def forget",
        "        except OSError as error:\n            raise _failed_sync(error, path) from error\n\n    def forget",
        _ALARMS,
    ),
    _mutant(
        "an alarm while a file is closed is swallowed",
        "engine/log/files",
        "        return isinstance(error, self._kinds) and not is_interrupt(error)",
        "        return isinstance(error, self._kinds)",
        _ALARMS,
    ),
    # --- trust, again ----------------------------------------------------------------------------
    _mutant(
        "a hint may point into other segments",
        "engine/codec/hint",
        'if raw[7::8].strip(b"\\0") or raw[6::8].strip(b"\\0") or raw[5::8].translate(None, _LOW_HALVES):',
        "if False:",
        "tests/crash/test_hostile.py",
    ),
    _mutant(
        "what bears the name of a new file is written into, a second name of somebody else's file, too",
        "engine/log/files",
        "        self.unlink(path)\n        return self.open(path, write=True, exclusive=True)",
        "        return self.open(path, write=True)",
        "tests/crash/test_hostile.py",
    ),
    _mutant(
        "the umask decides who may read a file",
        "engine/log/files",
        "os.fchmod(descriptor, 0o600)",
        "pass",
        "tests/engine/log/test_directory.py",
    ),
    _mutant(
        "a link in the place of a file is followed",
        "engine/log/files",
        ' | getattr(os, "O_NOFOLLOW", 0)',
        "",
        "tests/crash/test_hostile.py",
        "tests/engine/log/test_directory.py",
    ),
    _mutant(
        "a length is believed before the checksum",
        "engine/log/scan",
        "                if size > _WINDOW and not is_whole(self.read, at, size, seed):",
        "                if False:",
        "tests/crash/test_hostile.py",
    ),
    _mutant(
        "a second writer is let in",
        "engine/log/files",
        "        try:\n            if fcntl is not None:",
        "        return True\n        try:\n            if fcntl is not None:",
        "tests/engine/log/test_directory.py",
    ),
    _mutant(
        "a hint file is trusted without its checksum",
        "engine/codec/hint",
        '    check_file("hint", ',
        '    (lambda *_: None)("hint", ',
        "tests/engine/log/test_hints.py",
    ),
    _mutant(
        "a hint file of another segment is trusted",
        "engine/codec/hint",
        "    if (uuid, segment_id, salt) != (header.store_uuid, header.segment_id, header.salt):",
        "    if False:",
        "tests/engine/log/test_hints.py",
    ),
    _mutant(
        "checksums do not start from the segment's salt",
        "engine/codec/checksum",
        '    return crc32c(salt.to_bytes(8, "little"))',
        '    return crc32c(b"salt")',
        "tests/model/test_golden.py",
    ),
    Mutant(
        "the key is not compared on reading",
        (
            (
                "engine/fast",
                "key:\n                return raw[end:-4]\n            if (",
                "key or flags:\n                return raw[end:-4]\n            if (",
            ),
            (
                "engine/fast",
                "\n                if flags & 0xDF == PUT and raw[23:end] == key",
                "\n                if flags",
            ),
            ("engine/reader", "        if found.key != key:", "        if False:"),
        ),
        ("tests/engine/test_reads.py",),
    ),
    Mutant(
        "the checksum is not compared on reading",
        (
            (
                "engine/fast",
                "\n        if raw and (len(raw) == location & 8191 if",
                "\n        if raw and (True if",
            ),
            (
                "engine/fast",
                "    if raw and (len(raw) == location & 8191 if self._trusting else",
                "    if raw and (True or",
            ),
            ("engine/fast", "if raw and (True if self._trusting else", "if raw and (True or"),
            ("engine/codec/entry", "    if checksum(raw, seed) != RESIDUE:", "    if False:"),
        ),
        ("tests/engine/test_store.py",),
    ),
    # --- a process that serves -----------------------------------------------------------------
    _mutant(
        "doors: strangers take the places of clients that have shown the secret",
        "server/sockets",
        "            if not self._strangers:\n                return False\n            self._evict_one()",
        "            if not self:\n                return False\n"
        "            guest = next(iter({**self._known, **self._strangers}))\n"
        "            self.leave(guest)\n            guest.evict()",
        "tests/faces/test_admission.py",
    ),
    _mutant(
        "doors: each has as many connections as if it were the only one",
        "server/sockets",
        "            return sum(map(len, _doors))",
        "            return len(self)",
        "tests/faces/test_admission.py",
    ),
    _mutant(
        "doors: clients that show the secret pay for having come",
        "server/sockets",
        "                self.charge(-_ACCEPT_COST_S)",
        "                pass",
        "tests/faces/test_admission.py",
    ),
    _mutant(
        "doors: strangers are taken in as fast as they come",
        "server/sockets",
        "while (debt_s := places.debt_s) > 0:",
        "while (debt_s := places.debt_s) > 1e9:",
        "tests/faces/test_admission.py",
    ),
    _mutant(
        "RESP: a pipeline of slow commands is carried out in one go",
        "resp/connection",
        "            if takes_long:\n                break\n",
        "",
        _RESP_SERVER,
    ),
    _mutant(
        "doors: the newest stranger goes",
        "server/sockets",
        "guest = next(iter(self._strangers))",
        "guest = next(reversed(self._strangers))",
        "tests/faces/test_admission.py",
    ),
    _mutant(
        "doors: each refusal is a line in the log",
        "server/sockets",
        "        if now - at < 1:",
        "        if False:",
        "tests/faces/test_admission.py",
    ),
    _mutant(
        "HTTP: requests count before their token is looked at",
        "http/application",
        "        if scopes:\n            self._count(request, self._requests)\n",
        "        if scopes:\n"
        "            if self._metrics.in_flight > self._max_requests:\n"
        '                raise Problem("too-many-requests", "")\n',
        _HTTP_SAFETY,
    ),
    _mutant(
        "HTTP: what a stranger waits for that has left is kept",
        "http/server",
        "            pace.leave(self)\n",
        "",
        "tests/faces/http/test_http_servers.py",
        "-k",
        "strangers",
    ),
    _mutant(
        "HTTP: a body may take as long as it likes",
        "http/message",
        "    async with asyncio.timeout(timeout_s):\n        return await _Rest",
        "    async with asyncio.timeout(None):\n        return await _Rest",
        "tests/faces/http/test_event_loop.py",
    ),
    _mutant(
        "HTTP: a request that is cancelled goes on",
        "http/message",
        "                    self._future = steps.throw(error)\n",
        "                    self._future = next(steps)\n",
        "tests/faces/http/test_event_loop.py",
    ),
    _mutant(
        "HTTP: what is written is held until more comes",
        "http/server",
        "            self._loop.call_soon(self.flush)\n",
        "            pass\n",
        "tests/faces/http/test_event_loop.py",
    ),
    _mutant(
        "HTTP: any amount is held for a turn of the loop",
        "http/server",
        "        if len(self._held) > _MAX_HELD_BYTES:\n",
        "        if False:\n",
        "tests/faces/http/test_event_loop.py",
    ),
    _mutant(
        "HTTP: a Host that was refused once is taken the next time",
        "http/access",
        '        name = found[1].rstrip(".")\n',
        '        self._known_hosts.add(hosts[0])\n        name = found[1].rstrip(".")\n',
        _HTTP_SAFETY,
    ),
    _mutant(
        "RESP: the store is asked twice whether anything waits",
        "resp/connection",
        "reads_wait = writes_wait and server.store.would_wait()",
        "reads_wait = server.store.would_wait()",
        "tests/faces/http/test_event_loop.py",
    ),
    _mutant(
        "the worker is told of the first write of its life only",
        "engine/write/durability",
        "        if since is not self._known_since:",
        "        if self._known_since is None:",
        "tests/faces/http/test_event_loop.py",
    ),
    _mutant(
        "HTTP: a client may take as long as it likes for its reply",
        "http/application",
        "in_time(self.send_timeout_s, ",
        "in_time(None, ",
        f"{_HTTP_SAFETY}::test_a_client_that_does_not_take_a_reply_in_time_is_given_up",
    ),
    _mutant(
        "RESP: a client may take as long as it likes for its replies",
        "resp/connection",
        "        elif self._is_stuck(now):",
        "        elif False:",
        _RESP_SERVER,
    ),
    _mutant(
        "RESP: before the password there may be any number of commands",
        "resp/connection",
        "return self._strange_commands > _STRANGER_COMMANDS",
        "return False",
        _RESP_SERVER,
    ),
    _mutant(
        "serving: a password guards the door of Redis clients only",
        "cli/serve",
        "if arguments.http is not None and tokens is None and not arguments.no_token:",
        "if False:",
        "tests/faces/test_serve.py",
    ),
    _mutant(
        "serving: an empty file name is no secret at all",
        "cli/serve",
        'if getattr(arguments, option) == "":',
        "if False:",
        "tests/faces/test_serve.py",
    ),
    _mutant(
        "serving: of a long file of secrets the beginning is enough",
        "cli/serve",
        "file.read(_MAX_SECRETS_SIZE + 1)",
        "file.read(_MAX_SECRETS_SIZE)",
        "tests/faces/test_serve.py",
    ),
    _mutant(
        "serving: SIGTERM is caught once the store is open",
        "server/lifecycle",
        "before = signal.signal(signal.SIGTERM, stop)",
        "before = signal.getsignal(signal.SIGTERM)",
        "tests/faces/test_serve.py",
    ),
    # --- imports -------------------------------------------------------------------------------
    _mutant(
        "an import takes bytes for text that are none",
        "transfer/json_lines",
        "    if not raw.isascii():\n        raw.decode()\n",
        "",
        "tests/faces/test_json_lines.py",
    ),
    _mutant(
        "an import leaves escapes of JSON as they are written",
        "transfer/json_lines",
        '    if b"\\\\" in raw:\n',
        "    if False:\n",
        "tests/faces/test_json_lines.py",
    ),
    _mutant(
        "an export of many lines forgets expiries",
        "transfer/json_lines",
        "        if expires and key in expires:\n",
        "        if False:\n",
        "tests/faces/test_json_lines.py",
    ),
    _mutant(
        "an import counts a key of an earlier batch once more",
        "transfer/json_lines",
        "for write in writes.values()) - known",
        "for write in writes.values())",
        "tests/faces/test_json_lines.py",
    ),
    _mutant(
        "import: a journal says which file of the user's is deleted",
        "transfer/sqlite_source",
        "if journal.read() == _END_OF_SUPER_JOURNALS_NAME:",
        "if False:",
        _MIGRATE,
    ),
    _mutant(
        "import: pages that change while they are read without locks are believed",
        "transfer/sqlite_source",
        "    if list(map(_state, files)) != before:",
        "    if False:",
        _MIGRATE,
    ),
    _mutant(
        "import: an index is made for a log beside a database that has none",
        "transfer/sqlite_source",
        "    elif log_size:\n",
        "    elif log_size and head[_READ_VERSION] == _WAL:\n",
        _MIGRATE,
    ),
    _mutant(
        "import: a file whose pages are shared has values without end",
        "transfer/sqlite_source",
        "                if room < 0:",
        "                if False:",
        _MIGRATE,
    ),
    _mutant(
        "servers: a transaction is not foreseen",
        "engine/write/commit",
        "if state.always or self.turn.owner is not None or state.segments.is_unsettled:",
        "if state.always or state.segments.is_unsettled:",
        "tests/faces/http/test_event_loop.py",
    ),
    # --- the HTTP door -------------------------------------------------------------------------
    _mutant(
        "HTTP: compare-and-set looks first and stores then",
        "http/operations",
        "store.put(key, value, ttl=ttl, if_seq=expected)",
        "store.put(key, value, ttl=ttl)",
        _HTTP_MANY,
    ),
    _mutant(
        "HTTP: a delete looks first and deletes then",
        "http/operations",
        "    with store.transaction() as tx:\n        seq = _seq(store, key)",
        "    with __import__('contextlib').nullcontext(store) as tx:\n        seq = _seq(store, key)",
        _HTTP_MANY,
    ),
    _mutant(
        "HTTP: a batch checks its preconditions before anybody is kept out",
        "http/operations",
        "reads = bool(wanted) or any",
        "reads = any",
        _HTTP_MANY,
    ),
    _mutant(
        "HTTP: a failed precondition does not stop a batch",
        "http/operations",
        "        if actual != seq:\n",
        "        if actual > seq:\n",
        _HTTP_MANY,
    ),
    _mutant(
        "HTTP: a page repeats the key that its cursor was made from",
        "http/operations",
        "include_start=after is None or start != after",
        "include_start=True",
        _HTTP_MANY,
    ),
    _mutant(
        "HTTP: a cursor of another listing is taken",
        "http/operations",
        "if self.cursor_after(key).encode() == self.cursor:",
        "if True:",
        _HTTP_MANY,
    ),
    _mutant(
        "HTTP: a streamed listing shows what was written meanwhile",
        "http/operations",
        "item |= _content(store, snapshot.entry(key))",
        "item |= _content(store, store.entry(key))",
        _HTTP_MANY,
    ),
    _mutant(
        "HTTP: a stream that nobody reads to its end keeps its snapshot",
        "http/streams",
        "        await run(lines.close)",
        "        pass",
        _HTTP_MANY,
    ),
    _mutant(
        "HTTP: a key is decoded twice",
        "http/message",
        "    return unquote_to_bytes(quoted)",
        "    return unquote_to_bytes(unquote_to_bytes(quoted))",
        _HTTP_VALUES,
    ),
    _mutant(
        "HTTP: the server's own paths are recognised after decoding only",
        "http/routes",
        'key in (b"v1", b"-", b"metrics") or key.startswith((b"v1/", b"-/"))',
        "key == path[1:] and key.startswith((b'v1/', b'-/'))",
        _HTTP_VALUES,
    ),
    _mutant(
        "HTTP: a weak tag is enough for a write",
        "http/conditions",
        "if (seq := seq_of(tag)))\n        if",
        "if (seq := seq_of(tag.removeprefix('W/'))))\n        if",
        _HTTP_VALUES,
    ),
    _mutant(
        "HTTP: a list of tags that is not understood is no condition",
        "http/conditions",
        """            raise Problem("malformed", f'{name} must""",
        """            return None\n            raise Problem("malformed", f'{name} must""",
        _HTTP_VALUES,
    ),
    _mutant(
        "HTTP: a body is measured when all of it is there",
        "http/message",
        "            if len(body) + len(piece) > limit:",
        "            if not message.get('more_body') and len(body) + len(piece) > limit:",
        _HTTP_SAFETY,
    ),
    _mutant(
        "HTTP: what arrives of a body whose client leaves is stored",
        "http/message",
        '            if message["type"] != "http.request":\n                raise ClientGone\n',
        "",
        _HTTP_SAFETY,
    ),
    _mutant(
        "HTTP: a body shorter than its length is stored",
        "http/message",
        "len(body) != self.length",
        "len(body) > self.length",
        _HTTP_SAFETY,
    ),
    _mutant(
        "HTTP: what a body took is not given back",
        "http/message",
        "            budget.left += size\n",
        "",
        _HTTP_SAFETY,
    ),
    _mutant(
        "HTTP: clients that may only read use up the bodies of those that write",
        "http/application",
        'self._bodies if "write" in request.allowed else self._bodies_of_readers',
        "self._bodies",
        _HTTP_SAFETY,
    ),
    _mutant(
        "HTTP: requests that read take every place",
        "http/application",
        "                self._count(request, self._reads)\n",
        "                pass\n",
        _HTTP_SAFETY,
    ),
    _mutant(
        "HTTP: streams take every place of requests that read",
        "http/application",
        "default=events)\n        self._count(request, self._streams)\n",
        "default=events)\n",
        _HTTP_SAFETY,
    ),
    _mutant(
        "HTTP: two lengths are one too many, one beside chunks is not",
        "http/message",
        'len(lengths) > 1 or (lengths and self.headers(b"transfer-encoding"))',
        "len(lengths) > 1",
        _HTTP_SAFETY,
    ),
    _mutant(
        "HTTP: any name is this server's",
        "http/access",
        'or name in self._hosts or "*" in self._hosts',
        "or not name.startswith('evil')",
        _HTTP_SAFETY,
    ),
    _mutant(
        "HTTP: a page of another site may change something",
        "http/access",
        'allowed = fetch_site in ("same-origin", "none")',
        'allowed = fetch_site != "cross-site"',
        _HTTP_SAFETY,
    ),
    _mutant(
        "HTTP: every token has every scope",
        "http/access",
        "        if allowed.isdisjoint(scopes):",
        "        if not allowed:",
        _HTTP_SAFETY,
    ),
    _mutant(
        "HTTP: a token for writing reads with a batch",
        "http/access",
        "    if not needed <= allowed:",
        "    if needed.isdisjoint(allowed):",
        _HTTP_SAFETY,
    ),
    _mutant(
        "HTTP: of a member that is there twice the last counts",
        "http/operations",
        ", object_pairs_hook=_object)",
        ")",
        _HTTP_MANY,
    ),
    _mutant(
        "HTTP: a body is read before its sender is known",
        "http/application",
        "                request.allowed = self._admit(request, route.scopes)\n",
        "                await self._body(request)\n"
        "                request.allowed = self._admit(request, route.scopes)\n",
        f"{_HTTP_SAFETY}::test_without_a_token_nothing_is_read_from_the_body",
    ),
    _mutant(
        "HTTP: a listing that breaks off ends as if it were whole",
        "http/application",
        "problem_of(error).detail)\n                raise\n",
        'problem_of(error).detail)\n                await send({"type": "http.response.body", "body": b""})\n',
        _HTTP_SAFETY,
    ),
    _mutant(
        "HTTP: readers wait behind writers",
        "http/application",
        "run_in_executor(self._readers,",
        "run_in_executor(self._writers,",
        "tests/faces/http/test_http_store.py",
    ),
    _mutant(
        "HTTP: a write waits for a transaction on the event loop",
        "http/application",
        "return size > _SMALL_BODY_BYTES or self._store.would_wait(key, write_bytes=size)",
        "return False",
        "tests/faces/http/test_event_loop.py",
    ),
    _mutant(
        "HTTP: a feed tells the last change again",
        "http/streams",
        "            self._position = change.seq\n",
        "            self._position = change.seq - 1\n",
        "tests/faces/http/test_http_changes.py",
    ),
    # --- the RESP door -------------------------------------------------------------------------
    _mutant(
        "RESP: a length is not compared with what came",
        "resp/protocol",
        "if buffer[size : size + 2] != _CRLF:",
        "if False:",
        _RESP_PROTOCOL,
    ),
    _mutant(
        "RESP: numbers are read as Python reads them",
        "resp/protocol",
        "    if _INTEGER.fullmatch(text) is None:\n        return None\n    number = int(text)",
        "    try:\n        number = int(text)\n    except ValueError:\n        return None",
        _RESP_PROTOCOL,
    ),
    _mutant(
        "RESP: what follows AUTH in the same packet is parsed before the password is checked",
        "resp/protocol",
        "            if one_only:\n                return\n",
        "",
        _RESP_PROTOCOL,
    ),
    _mutant(
        "RESP: a request may grow for ever",
        "resp/protocol",
        "if self._size + given + _ARGUMENT_COST > self.limits.request_bytes:",
        "if False:",
        _RESP_PROTOCOL,
    ),
    _mutant(
        "RESP: an error takes a client's line breaks into the protocol",
        "resp/protocol",
        'text.strip(_CRLF).replace(b"\\r", b" ").replace(b"\\n", b" ")',
        "text",
        _RESP_PROTOCOL,
    ),
    _mutant(
        "RESP: what a unit of work has written is not seen by what follows",
        "resp/work",
        "        found = self._changes._written(key)\n",
        "        found = ABSENT\n",
        _RESP_EXECUTOR,
    ),
    _mutant(
        "RESP: of two who compare and set in one batch both win",
        "resp/commands/keys",
        "if seq != (0 if found is None else found.seq):",
        "if seq > 0 and seq != (0 if found is None else found.seq):",
        _RESP_EXECUTOR,
    ),
    _mutant(
        "RESP: what FLUSHALL deletes is seen by the rest of its block",
        "resp/work",
        "        self._changes = Overlay(self._below)\n",
        "        self._changes = Overlay(self.store)\n",
        _RESP_EXECUTOR,
    ),
    _mutant(
        "RESP: what has expired within a block is counted",
        "resp/work",
        "        return len(self._changes) - expired\n",
        "        return len(self._changes)\n",
        _RESP_EXECUTOR,
    ),
    _mutant(
        "RESP: keys that have expired within a block are listed",
        "resp/work",
        "(key for key in keys if self._written(key) is not None) if is_changed else keys",
        "keys",
        _RESP_EXECUTOR,
    ),
    _mutant(
        "RESP: an interrupted write of a unit is committed by halves",
        "resp/work",
        "        self._changes._check()\n",
        "",
        _RESP_EXECUTOR,
    ),
    _mutant(
        "RESP: a write in the same batch does not count for WATCH",
        "resp/work",
        "        if self._changes._written(key) is not ABSENT:\n            return -1\n",
        "",
        _RESP_EXECUTOR,
    ),
    _mutant(
        "RESP: EXEC does not look at what was watched",
        "resp/executor",
        "if any(work.seq(key) != seq for key, seq in item.watched.items()):",
        "if False:",
        _RESP_SERVER,
    ),
    _mutant(
        "RESP: UNWATCH behind a write in a pipeline goes past the session",
        "resp/connection",
        "if found is None or not found.may_pass:",
        'if found is None or found.kind == "session":',
        _RESP_SERVER,
    ),
    _mutant(
        "RESP: a block that is too large is carried out by halves",
        "resp/executor",
        "        except (TooLargeError, MemoryError):\n            raise\n",
        "",
        _RESP_EXECUTOR,
    ),
    _mutant(
        "RESP: replies of a block are bounded one by one",
        "resp/work",
        "        self._reply_bytes += size\n",
        "        self._reply_bytes = size\n",
        _RESP_EXECUTOR,
    ),
    _mutant(
        "RESP: a block may make as much out of nothing as a command may write",
        "resp/work",
        "_MAX_BLOCK_WRITE_BYTES if is_block else _MAX_WRITE_BYTES",
        "_MAX_WRITE_BYTES",
        _RESP_EXECUTOR,
    ),
    _mutant(
        "RESP: a value that is too long is made first",
        "resp/commands/strings",
        "    work.make_room(key, length)\n",
        "",
        _RESP_EXECUTOR,
    ),
    _mutant(
        "RESP: what is left of a batch loses its order",
        "resp/executor",
        "return not self.is_full and self._size",
        "return self._size",
        _RESP_EXECUTOR,
    ),
    _mutant(
        "RESP: a batch that did not fit is not carried out one by one",
        "resp/executor",
        "            self._one_by_one(batch, answers)\n            return\n",
        '            made = [(task.client, b"-MISCONF\\r\\n") for task in batch]\n',
        _RESP_EXECUTOR,
    ),
    _mutant(
        "RESP: a failed sync is acknowledged",
        "resp/executor",
        "made = [(client, encode(error_of(error), resp3)) for client, _, resp3 in batch]",
        "pass",
        _RESP_EXECUTOR,
    ),
    _mutant(
        "RESP: each write has a sync of its own",
        "resp/executor",
        "                if task.is_loner:",
        "                if True:",
        _RESP_EXECUTOR,
    ),
    _mutant(
        "RESP: a client that does not read is read from",
        "resp/connection",
        "        self._is_choked = True\n        self._transport.pause_reading()",
        "        pass",
        _RESP_SERVER,
        _RESP_ABUSE,
    ),
    _mutant(
        "RESP: a run of GET is cut without a look at the lengths",
        "resp/protocol",
        "                if key_size != sizes[len(key)]:\n",
        "                if key_size is sizes:\n",
        _RESP_PROTOCOL,
    ),
    _mutant(
        "RESP: a run of SET is cut without a look at the lengths",
        "resp/protocol",
        "                if key_size != sizes[len(key)] or value_size != sizes[len(value)]:\n",
        "                if value_size != sizes[len(value)]:\n",
        _RESP_PROTOCOL,
    ),
    _mutant(
        "RESP: a run passes by what the session has agreed on",
        "resp/connection",
        "            or not self.session.is_plain\n",
        "",
        _RESP_SERVER,
    ),
    _mutant(
        "RESP: a run passes by a request that is not all there",
        "resp/connection",
        "            parser.is_partial\n            or self._is_cautious",
        "            self._is_cautious",
        _RESP_SERVER,
    ),
    _mutant(
        "RESP: a run of SET waits on the event loop",
        "resp/connection",
        "        if waits:\n            return run.commands(0)\n",
        "",
        "tests/faces/http/test_event_loop.py",
    ),
    _mutant(
        "RESP: a run of GET is read whole, however large its replies are",
        "resp/executor",
        "            while done < len(keys) and size <= most_bytes:",
        "            while done < len(keys):",
        _RESP_EXECUTOR,
        _RESP_SERVER,
    ),
    _mutant(
        "RESP: what is queued by MULTI is not bounded",
        "resp/session",
        "if self._queue_bytes > _MAX_QUEUE_BYTES:",
        "if False:",
        _RESP_SERVER,
    ),
    _mutant(
        "RESP: a byte now and then keeps a connection for ever",
        "resp/connection",
        "        elif self.request_since is None:\n            self.request_since = self.active_at",
        "        else:\n            self.request_since = self.active_at",
        _RESP_SERVER,
    ),
    _mutant(
        "RESP: who does not show the password stays",
        "resp/connection",
        "elif not self.session.is_authenticated and now - self.stranger_since > AUTHENTICATION_S:",
        "elif False:",
        _RESP_SERVER,
    ),
    _mutant(
        "RESP: commands are carried out before the password is shown",
        "resp/session",
        "return self.is_authenticated and self.queue is None",
        "return self.queue is None",
        _RESP_SERVER,
    ),
    _mutant(
        "RESP: any address is listened on",
        "resp/server",
        "is_set=self.password_digest is not None",
        "is_set=True",
        _RESP_SERVER,
    ),
    _mutant(
        "RESP: a browser's commands are carried out",
        "resp/session",
        "if name in _NOT_REDIS:",
        "if False:",
        _RESP_SERVER,
    ),
    _mutant(
        "RESP: stopping does not wait for what is being carried out",
        "resp/connection",
        "            if not self._is_waiting:\n                self.close()",
        "            self.close()",
        _RESP_SERVER,
    ),
    _mutant(
        "RESP: stopping does not sync",
        "resp/server",
        "await self.loop.run_in_executor(None, self.store.sync)",
        "pass",
        _RESP_SERVER,
    ),
    _mutant(
        "RESP: the writes of several clients have a sync each",
        "resp/connection",
        "answer.writes and self._writes_wait",
        "answer.writes and False",
        _RESP_SERVER,
    ),
    _mutant(
        "RESP: a write waits for a transaction on the event loop",
        "resp/connection",
        "writes_wait = server.group_commit or server.store.would_wait(write_bytes=self._read_bytes)",
        "writes_wait = server.group_commit",
        "tests/faces/http/test_event_loop.py",
    ),
    _mutant(
        "RESP: the table of cursors grows for ever",
        "resp/work",
        "while len(self._keys) > _MAX_CURSORS or self._bytes > _MAX_CURSOR_BYTES:",
        "while False:",
        _RESP_EXECUTOR,
    ),
]


class Result(NamedTuple):
    """What a run of the tests on a copy of the project said."""

    caught: bool
    by: str
    seconds: float


def changed(mutant: Mutant) -> dict[str, str]:
    """Return the modules that change; `LookupError` if a passage to be replaced is not there exactly once."""
    texts: dict[str, str] = {}
    for module, old, new in mutant.changes:
        text = texts.get(module) or (ROOT / "bytekv" / f"{module}.py").read_text(encoding="utf-8")
        if text.count(old) != 1:
            raise LookupError(
                f"{mutant.story}: {module}.py holds {text.count(old)} times {old!r}; the mutant must follow"
            )
        texts[module] = text.replace(old, new)
    return texts


def apply(mutant: Mutant, package: Path) -> None:
    """Make a changed copy of the package."""
    texts = changed(mutant)
    shutil.copytree(ROOT / "bytekv", package, ignore=shutil.ignore_patterns("__pycache__"))
    for module, text in texts.items():
        (package / f"{module}.py").write_text(text, encoding="utf-8")


#: What nobody would overlook. A mutant that breaks this proves nothing about the tests.
_ORDINARY_USE = """
import bytekv, sys
for sync in "interval", "always", "os":
    with bytekv.open(sys.argv[1], "n", sync=sync, segment_size_bytes=2000) as db:
        for number in range(200):
            db[f"{number % 60}"] = f"{number}" * 9
        db.update({"batch": "1", "more": "2"})
        del db["3"]
        db.sync()
        db.compact()
        content = dict(db)
        assert len(content) == 61 and content[b"59"] == b"179" * 9, content
        assert db.verify().ok
    with bytekv.open(sys.argv[1], "w") as db:
        assert dict(db) == content
    with bytekv.open(sys.argv[1], "r") as db:
        assert dict(db.scan("1")) == {key: value for key, value in content.items() if key.startswith(b"1")}
assert bytekv.repair(sys.argv[1]).ok
"""


def run(mutant: Mutant) -> Result:
    """Run a mutant's tests on a copy of the project; stop at the first that fails."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as place:
        copy = Path(place)
        for name in ("tests", "docs"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        apply(mutant, copy / "bytekv")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-rf", "-p", "no:cacheprovider", *mutant.tests]
        environment = {**os.environ, "PYTHONPATH": place}
        ordinary = [sys.executable, "-c", _ORDINARY_USE, str(copy / "store")]
        used = subprocess.run(ordinary, cwd=copy, env=environment, capture_output=True, text=True, check=False)
        if used.returncode:
            raise RuntimeError(f"{mutant.story}: breaks what nobody would overlook\n{used.stderr}")
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=900, check=False
        )
    if done.returncode not in (0, 1):  # 2, 4, 5: nothing was run, and a mutant that does not even load proves nothing
        raise RuntimeError(f"{mutant.story}: pytest ended with {done.returncode}\n{done.stdout}{done.stderr}")
    named = re.search(r"^FAILED (\S+)", done.stdout, re.MULTILINE)
    by = named[1] if named else " ".join(mutant.tests)
    return Result(done.returncode == 1, by, time.monotonic() - began)


def mutants_caught(place: Path, seed: int) -> Iterator[Case]:
    """Try all mutants, in an order that the seed decides; it goes wrong if nothing notices one."""
    for mutant in random.Random(seed).sample(MUTANTS, len(MUTANTS)):
        try:
            assert run(mutant).caught, f"nothing notices that {mutant.story}"
        except Exception as error:
            yield Case("mutants", error)
        else:
            yield Case("mutants")


def main(mutants: Iterable[Mutant]) -> list[str]:
    """Print the table; return the stories of those that nothing caught."""
    survivors = []
    for mutant in mutants:
        result = run(mutant)
        print(f"{mutant.story} | {result.by if result.caught else 'NOT CAUGHT'} | {result.seconds:.1f} s", flush=True)
        survivors += [] if result.caught else [mutant.story]
    return survivors


if __name__ == "__main__":
    words = " ".join(sys.argv[1:])
    sys.exit("\n".join(main(mutant for mutant in MUTANTS if words in mutant.story)) or None)
