"""Readers that follow a writer: a prefix of the operations, whole batches, never backwards, never a false error.

The model knows the content after every operation, by its seq. A reader says with `last_seq` which moment it shows,
and has to show exactly that.
"""

from __future__ import annotations

import errno
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bytekv
from bytekv.engine import recovery
from bytekv.engine.codec.manifest import SEGMENT_HEADER_SIZE, encode_manifest
from bytekv.engine.store import Store
from bytekv.errors import CorruptionError, StoreClosedError, StoreIOError
from tests.support.harness import FakeFiles, crash, damage, open_store, segment_files, snapshot_of

KEYS = [b"k%d" % number for number in range(12)]


class Story:
    """A writer and a reader of the same store, random operations of both, and what the reader has to show."""

    def __init__(self, path: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.path = path
        self.options: dict[str, Any] = {
            "segment_size_bytes": self.random.choice([400, 1000, 4096]),
            "sync": self.random.choice(["os", "interval"]),
            "io": self.random.choice(["mmap", "pread"]),
        }
        self.writer = open_store(path, **self.options)
        self.content: dict[bytes, bytes] = {}
        self.moments: dict[int, dict[bytes, bytes]] = {0: {}}
        self.reader = open_store(path, "r", io=self.options["io"])
        self.snapshots: list[tuple[bytekv.Snapshot, dict[bytes, bytes]]] = []

    def moment(self, content: dict[bytes, bytes]) -> None:
        self.content = content
        self.moments[self.writer.last_seq] = content

    def put(self) -> None:
        key, value = self.random.choice(KEYS), self.random.randbytes(self.random.choice([0, 3, 40, 300]))
        self.writer[key] = value
        self.moment({**self.content, key: value})

    def delete(self) -> None:
        key = self.random.choice(KEYS)
        self.writer.delete(key)
        self.moment({kept: value for kept, value in self.content.items() if kept != key})

    def batch(self) -> None:
        content = dict(self.content)
        with self.writer.batch() as batch:
            for key in self.random.choices(KEYS, k=self.random.randrange(1, 6)):
                if self.random.random() < 0.7:
                    batch[key] = content[key] = self.random.randbytes(9)
                else:
                    batch.delete(key)
                    content.pop(key, None)
        self.moment(content)

    def clear(self) -> None:
        self.writer.clear()
        self.moment({})

    def compact(self) -> None:
        self.writer.compact()

    def compact_a_part(self) -> None:
        uses = self.writer._maintenance.usage()
        if uses:
            first = self.random.randrange(len(uses))
            last = self.random.randrange(first, len(uses))
            victims = [use.segment_id for use in uses[first : last + 1]]
            meanwhile = self.random.choice([[], [self.put, self.delete], [self.delete, self.refresh]])

            def copied(_: int) -> None:
                for action in meanwhile:
                    action()

            self.writer._maintenance.compactor.run(victims, lambda: None, copied)

    def restart_writer(self) -> None:
        if self.random.random() < 0.5:
            self.writer.close()
        else:
            crash(self.writer)
        self.writer = open_store(self.path, **self.options)

    def restart_reader(self) -> None:
        self.reader.close()
        self.snapshots.clear()
        self.reader = open_store(self.path, "r", io=self.options["io"])
        self.expect()

    def refresh(self) -> None:
        before = self.reader.last_seq
        changed = self.reader.refresh()
        assert self.reader.last_seq == self.writer.last_seq
        assert changed or before == self.reader.last_seq
        assert not self.reader.refresh()
        self.expect()

    def expect(self) -> None:
        wanted = self.moments[self.reader.last_seq]
        assert dict(self.reader) == wanted
        assert len(self.reader) == len(wanted)
        assert {key: self.reader[key] for key in KEYS if key in self.reader} == wanted

    def snapshot(self) -> None:
        self.snapshots.append((self.reader.snapshot(), self.moments[self.reader.last_seq]))

    def look_at_snapshots(self) -> None:
        for snapshot, content in self.snapshots:
            assert dict(snapshot) == content
            assert len(snapshot) == len(content)
        if len(self.snapshots) > 2:
            self.snapshots.pop(0)[0].close()

    def verify(self) -> None:
        report = self.reader.verify()
        assert report.ok, report

    def run(self, steps: int) -> None:
        actions: list[tuple[Callable[[], None], int]] = [
            (self.put, 45),
            (self.delete, 15),
            (self.batch, 8),
            (self.clear, 2),
            (self.compact, 5),
            (self.compact_a_part, 5),
            (self.restart_writer, 3),
            (self.restart_reader, 2),
            (self.refresh, 13),
            (self.snapshot, 2),
            (self.look_at_snapshots, 4),
            (self.verify, 3),
        ]
        for action in self.random.choices([do for do, _ in actions], [weight for _, weight in actions], k=steps):
            action()
        self.refresh()
        self.look_at_snapshots()
        self.reader.close()
        self.writer.close()


@pytest.mark.parametrize("seed", range(12))
def test_a_reader_shows_a_moment_of_the_writer(path: Path, seed: int) -> None:
    Story(path, seed).run(250)


@pytest.mark.deep
def test_many_readers_show_moments(tmp_path: Path) -> None:
    for seed in range(1000, 1500):
        Story(tmp_path / str(seed), seed).run(400)


# --- the same from other processes, at full speed ----------------------------------------------------

_KEYS = 97
_WRITER = """
import os, random, signal, sys, time, bytekv
path, seconds, seed = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
stopping = False
def stop(*_):
    global stopping
    stopping = True
signal.signal(signal.SIGTERM, stop)
end = time.monotonic() + seconds
rest = random.Random(seed)
db = bytekv.open(path, segment_size_bytes=64 * 1024, compact_dead_bytes=4096, sync="os")
db.update({b"%d" % key: b"%d " % key for key in range(97)})
os.write(1, b"begun\\n")
n = 97
while time.monotonic() < end or not stopping:
    with db.batch() as batch:  # of 1 to 3 operations; the first number of each is a multiple of 3
        for n in range(n, n + 3):
            key = b"%d" % (n % 97)
            if n % 5 == 4:
                del batch[key]
            else:
                batch[key] = b"%d " % n + b"x" * (n * n % 331)
    n += 1
    if n % 30000 == 0:
        db.compact()
    if n % 50000 == 2:
        db.close()
        db = bytekv.open(path, "w", segment_size_bytes=64 * 1024, compact_dead_bytes=4096, sync="os")
db.close()
os.write(1, b"%d\\n" % n)
"""
_READER = """
import os, sys, bytekv
path, io = sys.argv[1], sys.argv[2]
reader = bytekv.open(path, "r", io=io)
looks = moments = seen = 0
told = False
last = sys.argv[3] == "to the end"
stopping = False
import signal
def stop(*_):
    global stopping
    stopping = True
signal.signal(signal.SIGTERM, stop)
os.write(1, b"begun\\n")
while True:
    ending = stopping
    looks += 1
    moments += reader.refresh()
    if moments > 2 and not told:
        told = True
        os.write(1, b"moved\\n")
    seq = reader.last_seq
    assert seq >= seen, f"backwards: {seq} after {seen}"
    seen = seq
    assert seq % 3 == 97 % 3, f"half a batch at {seq}"
    content = {}
    for n in range(max(0, seq - 97), seq):
        if n < 97 or n % 5 != 4:
            content[b"%d" % (n % 97)] = n
        else:
            content.pop(b"%d" % (n % 97), None)
    found = {key: int(value.split(b" ")[0]) for key, value in reader.items()}
    assert found == content, f"at {seq}: {found} instead of {content}"
    if ending:
        break
os.write(1, f"{looks} {moments} {seen}\\n".encode())
"""


def follow(path: Path, seconds: float, readers: int, seed: int) -> tuple[int, int]:
    """Let readers follow a writer at full speed; return how often they looked, and saw something new."""
    environment = os.environ | {"PYTHONPATH": str(Path(bytekv.__file__).parents[1])}

    def start(source: str, *arguments: object) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", source, str(path), *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,  # else `select` does not see what has been read already
            env=environment,
        )

    def wait_for(word: bytes, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 120)[0], f"not {word!r} in two minutes"
        if process.stdout.readline() != word:
            end(process)

    def end(process: subprocess.Popen[bytes]) -> list[int]:
        out, err = process.communicate(timeout=seconds + 120)
        assert process.returncode == 0, err.decode()
        return [int(word) for word in out.split()]

    writer = start(_WRITER, seconds, seed)
    wait_for(b"begun\n", writer)
    processes = [start(_READER, ("mmap", "pread")[number % 2], "to the end") for number in range(readers)]
    for word in (b"begun\n", b"moved\n"):  # the writer goes on until each has, however slow the machine is
        for process in processes:
            wait_for(word, process)
    writer.send_signal(signal.SIGTERM)
    (written,) = end(writer)
    looks = moments = 0
    for process in processes:
        process.send_signal(signal.SIGTERM)
        one, two, seen = end(process)
        assert seen == written, "a reader that outlives its writer has to have seen everything"
        looks, moments = looks + one, moments + two
    return looks, moments


@pytest.mark.skipif(sys.platform == "win32", reason="made of signals")
def test_readers_in_other_processes(path: Path) -> None:
    looks, moments = follow(path, 1.5, 2, 1)
    assert looks >= moments > 2


@pytest.mark.deep
@pytest.mark.skipif(sys.platform == "win32", reason="made of signals")
def test_four_readers_for_a_minute(path: Path) -> None:
    looks, moments = follow(path, float(os.environ.get("BYTEKV_DEEP_SECONDS", "60")), 4, 2)
    print(f"\n4 readers looked {looks} times and saw {moments} moments, each exact")


# --- single cases ----------------------------------------------------------------------------------


def test_a_batch_comes_whole(path: Path) -> None:
    writer, reader = open_store(path), open_store(path, "r")
    with writer.batch() as batch:
        batch["a"], batch["b"] = "1", "2"
    assert dict(reader) == {}
    assert reader.refresh()
    assert dict(reader) == {b"a": b"1", b"b": b"2"}
    assert reader.last_seq == 2
    writer.close()
    reader.close()


def test_a_key_deleted_before_a_compaction_that_kept_it_stays_deleted(path: Path) -> None:
    """The output holds the put, a later segment the tombstone, and the reader knows both from before."""
    writer = open_store(path, segment_size_bytes=400)
    reader = open_store(path, "r")
    writer["doomed"] = b"y" * 300
    writer["filler"] = b"y" * 300
    first = writer._maintenance.usage()[-1].segment_id

    def copied(_: int) -> None:
        writer.delete("doomed")
        reader.refresh()
        assert list(reader) == [b"filler"]

    writer._maintenance.compactor.run([first], lambda: None, copied)
    assert reader.refresh()
    assert list(reader) == [b"filler"]
    reader.close()
    writer.close()


def test_a_tombstone_that_went_with_the_compaction_still_deletes(path: Path) -> None:
    writer = open_store(path)
    writer.update({"a": "1", "b": "2"})
    reader = open_store(path, "r")
    del writer["a"]
    writer.compact()
    assert reader.refresh()
    assert dict(reader) == {b"b": b"2"}
    reader.close()
    writer.close()


def test_a_snapshot_of_a_reader_outlives_the_files(path: Path) -> None:
    writer = open_store(path)
    writer.update({b"%d" % number: b"old" for number in range(50)})
    reader = open_store(path, "r")
    scan = reader.scan()
    next(scan)
    with reader.snapshot() as snapshot:
        writer.update({b"%d" % number: b"new" for number in range(50)})
        writer.compact()
        reader.refresh()
        assert set(snapshot.values()) == {b"old"}
        assert reader.stats().pinned_bytes > 0
        assert {value for _, value in scan} == {b"old"}
        assert set(reader.values()) == {b"new"}
    assert reader.stats().pinned_bytes == 0
    reader.close()
    writer.close()


def test_a_reader_with_few_files_does_not_move_by_itself(path: Path) -> None:
    """More segments than may be open at once: what was compacted away cannot be read any more, and the reader says so
    instead of showing another moment than it did before the call."""
    writer = open_store(path, segment_size_bytes=400)
    for number in range(30):
        writer[b"%d" % number] = b"x" * 300
    reader = open_store(path, "r", max_open_segments=3)
    moment = reader.last_seq
    for number in range(0, 30, 2):
        writer[b"%d" % number] = b"y" * 300
    writer.compact()
    reads: list[Callable[[], object]] = [
        lambda: reader[b"28"],
        lambda: reader.get_many([b"28"]),
        lambda: list(reader.items()),
        lambda: reader.entry(b"28"),
        lambda: list(reader.changes()),
    ]
    for read in reads:
        with pytest.raises(StoreIOError, match=r"max_open_segments.*refresh") as caught:
            read()
        assert caught.value.errno == errno.ENOENT
        assert reader.last_seq == moment
        if read is reads[0]:
            kept = [reader[b"%d" % number][:1] for number in range(3)]
            assert kept == [b"x"] * 3, "what was open is not closed for it"
    assert reader.refresh()
    assert {reader[b"%d" % number][:1] for number in range(1, 30, 2)} == {b"x"}
    assert {reader[b"%d" % number][:1] for number in range(0, 30, 2)} == {b"y"}
    reader.close()
    writer.close()


@pytest.mark.parametrize("times", [9, 1000])
def test_opening_beside_a_writer_that_compacts_all_the_time(
    path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """What has been read is not read again at the next try; and if there is no end to it, that is no damage."""
    with open_store(path) as writer:
        writer.update({b"large %d" % number: bytes(5000) for number in range(20)})
        writer._commit.seal()
        writer["a"] = "0"
        read, scanned, left = recovery._read_segment, [], [times]

        def overtaken(directory: Any, descriptor: int, header: Any, row: Any, *rest: Any, **more: Any) -> Any:
            if more["readonly"]:
                scanned.append(row.segment_id)
            return read(directory, descriptor, header, row, *rest, **more)

        header_of = recovery.header_of

        def compacted(directory: Any, row: Any, *rest: Any, **more: Any) -> Any:
            if row.segment_id > 1 and left[0]:
                left[0] -= 1
                writer["a"] = b"%d" % left[0]
                writer._commit.seal()
                uses = [use.segment_id for use in writer._maintenance.usage()]
                writer._maintenance.compactor.run(uses[1:], lambda: None, lambda _: None)
            return header_of(directory, row, *rest, **more)

        monkeypatch.setattr(recovery, "_read_segment", overtaken)
        monkeypatch.setattr(recovery, "header_of", compacted)
        if times == 9:
            with open_store(path, "r") as reader:
                assert reader["a"] == b"0"
        else:
            with pytest.raises(StoreIOError, match="faster than they could be read") as caught:
                open_store(path, "r")
            assert caught.value.errno == errno.EAGAIN
        assert scanned.count(1) == 2, "the first try keeps nothing, for mostly it is the last"


# --- another history under the same name -------------------------------------------------------------


def expect_stale(reader: Store, content: dict[bytes, bytes]) -> None:
    """The reader says that it cannot go on, and shows what it did."""
    for _ in range(2):
        with pytest.raises(StoreIOError) as caught:
            reader.refresh()
        assert caught.value.errno == errno.ESTALE
        assert dict(reader) == content


def test_a_reader_across_a_repair_is_told(path: Path) -> None:
    """What was damaged is gone or as it was before; for the reader that would be a deletion, or a step backwards."""
    with open_store(path) as writer:
        writer.update({"a": "1", "b": "1"})
        writer._commit.seal()
        writer["b"] = "2"
        writer._commit.seal()
        writer["c"] = "2"
    reader = open_store(path, "r")
    keys = list(reader)
    damage(segment_files(path)[1], -10)
    assert not bytekv.repair(path).ok
    with open_store(path, "w") as repaired:
        assert repaired["b"] == b"1"
        repaired["d"] = "3"
        for _ in range(2):
            with pytest.raises(StoreIOError, match="repaired") as caught:
                reader.refresh()
            assert caught.value.errno == errno.ESTALE
            assert list(reader) == keys
        reader.close()
        with open_store(path, "r") as reader:
            repaired["d"] = "4"
            assert reader.refresh(), "the next history goes on as any does"
            assert reader["d"] == b"4"


@pytest.mark.parametrize("written", ["", "written", "written and compacted"])
def test_a_reader_across_a_restore_is_told(path: Path, written: str) -> None:
    """A backup was put in the store's place, in the same directory, and perhaps written to: its operations have the
    same numbers, its segments may have the same names, and none of it is what the reader has seen."""
    backup = path.with_name("backup")
    with open_store(path) as writer:
        writer["a"] = "1"
        writer._commit.seal()
        writer.backup(backup)
        writer.update({"b": "2", "c": "2"})
        reader = open_store(path, "r")
        content = dict(reader)
    for file in [*path.glob("*.seg"), *path.glob("*.hint")]:
        file.unlink()
    for file in backup.iterdir():
        if file.name != "LOCK":
            (path / file.name).write_bytes(file.read_bytes())
    if written:
        with open_store(path) as restored:
            for number in range(9):
                restored[b"%d" % number] = "other"
                restored._commit.seal()
            if "compacted" in written:
                restored.compact()  # no segment that is left bears a name or a salt that the reader knows
            expect_stale(reader, content)
    expect_stale(reader, content)
    reader.close()


def test_a_reader_of_a_backup_that_becomes_a_store_is_told(path: Path) -> None:
    """What is written to it is no continuation of what the next backup would have brought."""
    backup = path.with_name("backup")
    with open_store(path) as writer:
        writer["a"] = "1"
        writer.backup(backup)
        with open_store(backup, "r") as reader:
            writer["b"] = "2"
            writer.backup(backup)
            assert reader.refresh()
            content = dict(reader)
            with open_store(backup) as other:
                other["c"] = "3"
                expect_stale(reader, content)
            with open_store(backup, "r") as second, open_store(backup) as other:
                other["d"] = "4"
                assert second.refresh(), "once a store of its own, it is followed as any is"
                assert second["d"] == b"4"


def test_a_reader_of_a_log_that_ends_before_what_it_has_seen_is_told(path: Path) -> None:
    """By a power cut of a disk that lied, say: no header tells, for what is left is a compaction's."""
    writer = open_store(path)
    writer.update({"a": "1", "b": "1"})
    writer.compact()
    writer["a"] = "2"
    writer.compact()
    reader = open_store(path, "r")
    content, manifest = dict(reader), writer._directory.load(for_writing=True)
    writer.close()
    rows = [row._replace(last_seq=2) for row in manifest.segments]
    older = manifest._replace(segments=tuple(rows), last_seq=2, generation=manifest.generation + 9)
    (path / "MANIFEST").write_bytes(encode_manifest(older))
    expect_stale(reader, content)
    reader.close()


@pytest.mark.parametrize("io", ["mmap", "pread"])
def test_a_reader_of_a_backup_that_is_brought_up_to_date(path: Path, io: str) -> None:
    """The copy of the active segment is replaced under its name by a longer one: the reader had the old file open, and
    took every new key in it for damaged, for good."""
    backup = path.with_name("backup")
    with open_store(path, io=io) as writer:
        writer["a"] = "1"
        writer.backup(backup)
        with open_store(backup, "r", io=io) as reader:
            assert reader["a"] == b"1"
            for number in range(5):
                if number == 3:
                    writer._commit.seal()
                writer[b"%d" % number] = b"x" * number * 100
                writer.backup(backup)
                assert reader.refresh()
                assert dict(reader) == dict(writer)
                assert reader.get_many(list(writer)) == dict(writer)


def test_a_snapshot_of_a_reader_with_few_files_follows_what_only_moved(path: Path) -> None:
    """It wanted the files that the compaction had removed, though the copies say the same."""
    writer = open_store(path, segment_size_bytes=400)
    for number in range(30):
        writer[b"%d" % number] = b"x" * 80
    reader = open_store(path, "r", max_open_segments=3)
    with reader.snapshot() as snapshot:
        for number in range(0, 30, 3):
            writer[b"%d" % number] = b"y" * 80
        writer.compact()
        reader.refresh()
        kept = [b"%d" % number for number in range(30) if number % 3]
        assert {key: snapshot[key] for key in kept} == dict.fromkeys(kept, b"x" * 80)
    reader.close()
    writer.close()


def test_expired_keys_that_a_compaction_keeps_stay_expired(path: Path) -> None:
    """While their grace lasts their entries move on like all others."""
    files = FakeFiles()
    writer = open_store(path, files=files, expiry_grace_s=1000)
    writer.put("mortal", "1", ttl=10)
    writer.update({"a": "1", "b": "1"})
    reader = open_store(path, "r", files=files, expiry_grace_s=1000)
    files.sleep(20)
    assert len(reader) == 2
    del writer["a"]
    writer.compact()
    assert reader.refresh()
    assert len(reader) == 1
    assert dict(reader) == {b"b": b"1"}
    assert reader.verify().ok
    writer.clear()
    assert reader.refresh()
    assert dict(reader) == {}
    assert reader.verify().ok
    reader.close()
    writer.close()


def test_expired_keys_stay_expired(path: Path) -> None:
    files = FakeFiles()
    writer = open_store(path, files=files)
    reader = open_store(path, "r", files=files)
    writer.put("short", "1", ttl=10)
    writer.put("long", "2", ttl=100)
    reader.refresh()
    files.sleep(20)
    assert list(reader) == [b"long"]
    assert len(reader) == 1
    writer["other"] = "3"
    writer.compact()
    reader.refresh()
    assert list(reader) == [b"long", b"other"]
    assert reader.ttl("long") == 80
    files.sleep(1000)
    writer.compact()
    reader.refresh()
    assert list(reader) == [b"other"]
    assert reader.verify().ok
    reader.close()
    writer.close()


def test_a_reader_leaves_no_trace(path: Path) -> None:
    writer = open_store(path)
    writer["a"] = "1"
    writer.close()
    before = snapshot_of(path)
    with open_store(path, "r") as reader:
        reader.refresh()
        assert reader["a"] == b"1"
    assert snapshot_of(path) == before


def test_a_reader_started_before_the_writer(path: Path) -> None:
    open_store(path).close()
    reader = open_store(path, "r")
    writer = open_store(path, "w")
    writer["a"] = "1"
    reader.refresh()
    assert reader["a"] == b"1"
    writer.close()
    assert not reader.refresh() or dict(reader) == {b"a": b"1"}
    reader.close()


def test_another_store_in_its_place_is_said(path: Path) -> None:
    writer = open_store(path)
    writer["a"] = "1"
    reader = open_store(path, "r")
    writer.close()
    open_store(path, "n").close()
    with pytest.raises(StoreIOError, match="another store") as raised:
        reader.refresh()
    assert raised.value.errno == errno.ESTALE
    assert reader["a"] == b"1"
    reader.close()


def test_operations_that_a_power_cut_took_back_are_said(path: Path) -> None:
    """The reader has seen what was not durable; the store that comes back must not pass for a continuation."""
    writer = open_store(path, sync="os")
    writer["a"] = "1"
    writer.sync()
    length = writer._segments.writer.end  # type: ignore[union-attr]
    for number in range(5):
        writer[b"%d" % number] = "lost"
    reader = open_store(path, "r")
    crash(writer)
    (segment,) = segment_files(path)
    content = segment.read_bytes()
    segment.write_bytes(content[:length] + bytes(len(content) - length))
    again = open_store(path, "w")
    again["b"] = "2"
    with pytest.raises(StoreIOError, match="did not survive") as raised:
        reader.refresh()
    assert raised.value.errno == errno.ESTALE
    again.close()
    reader.close()


@pytest.mark.parametrize("io", ["mmap", "pread"])
@pytest.mark.parametrize("refreshed", [False, True])
@pytest.mark.parametrize("is_linked", [False, True])
def test_what_a_failed_sync_took_back_is_said_after_a_compaction(
    path: Path, io: str, refreshed: bool, is_linked: bool
) -> None:
    """The segment whose end was lost has been compacted away before the reader looks again. It took what is in the
    output for what it knew, and went on with keys that were missing."""
    writer = open_store(path, sync="os")
    writer["a"] = "1"
    reader = open_store(path, "r", io=io)
    writer.sync()
    length = writer._segments.writer.end  # type: ignore[union-attr]
    for number in range(5):
        writer[b"%d" % number] = "lost"
    if refreshed:
        assert reader.refresh()
    else:
        reader.close()
        reader = open_store(path, "r", io=io)
    assert len(reader) == 6
    crash(writer)
    (segment,) = segment_files(path)
    with segment.open("r+b") as file:  # what the medium holds, now that nobody has it in memory
        size = file.seek(0, os.SEEK_END)
        file.seek(length)
        file.write(bytes(size - length))
    if is_linked:  # then it is not trimmed
        os.link(segment, path.with_name("second name"))
    with open_store(path, "w") as again:
        for number in range(9):
            again[b"new-%d" % number] = "2"
        again._commit.seal()
        again["a"] = "3"
        again.compact()
        for _ in range(2):
            with pytest.raises(StoreIOError, match="did not survive") as raised:
                reader.refresh()
            assert raised.value.errno == errno.ESTALE
        assert reader.last_seq == 6
        reader.close()
        with open_store(path, "r") as reader:
            assert dict(reader) == dict(again)


@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize("written_since", [0, 9])
def test_a_whole_segment_that_a_power_cut_took_back_is_said(path: Path, written_since: int, is_open: bool) -> None:
    """The segment that the reader stands in is gone; nor may others, who wrote as much since, pass for it."""
    writer = open_store(path, sync="os")
    for number in range(5):
        writer[b"%d" % number] = "lost"
    reader = open_store(path, "r")
    if not is_open:
        reader._segments.open.table.clear()  # as if too many had been open
    crash(writer)
    (segment,) = segment_files(path)
    content = segment.read_bytes()
    segment.write_bytes(content[:SEGMENT_HEADER_SIZE] + bytes(len(content) - SEGMENT_HEADER_SIZE))
    with open_store(path, "w") as again:
        for number in range(written_since):
            again[b"%d" % number] = "other"
        again._commit.seal()
        with pytest.raises(StoreIOError, match="did not survive") as raised:
            reader.refresh()
    assert raised.value.errno == errno.ESTALE
    assert list(reader) == [b"%d" % number for number in range(5)]
    assert reader.last_seq == 5
    reader.close()


@pytest.mark.parametrize("end", ["sealed", "closed"])
def test_damage_to_what_is_durable_is_said(path: Path, end: str) -> None:
    """What the manifest vouches for is no entry under way, be its segment sealed or only closed."""
    open_store(path).close()
    reader = open_store(path, "r")
    with open_store(path) as writer:
        writer.update({"a": "1"})
        writer.update({"b": "2"})
        offset = writer._segments.writer.end - 3  # type: ignore[union-attr]
        if end == "sealed":
            writer._commit.seal()
    (segment,) = segment_files(path)
    damage(segment, offset)
    with pytest.raises(CorruptionError, match="in data that was durable"):
        reader.refresh()
    assert dict(reader) == {}
    damage(segment, offset)
    assert reader.refresh()
    assert dict(reader) == {b"a": b"1", b"b": b"2"}
    reader.close()


def test_a_hint_of_a_segment_that_was_continued_is_half_the_truth(path: Path) -> None:
    """Closing writes a hint; the next writer appends to the same segment, and no hint follows soon."""
    open_store(path).close()
    reader = open_store(path, "r")
    with open_store(path) as writer:
        for number in range(100):
            writer[b"%d" % number] = bytes(1000)
    with open_store(path) as writer:
        assert writer.recovery.hints_used == 1
        writer["late"] = "1"
        del writer["0"]
        writer._commit.seal()
        assert reader.refresh()
        assert dict(reader) == dict(writer)
        assert reader.verify().ok
        assert reader.stats().segments == writer.stats().segments
    reader.close()


def test_damage_is_said_and_changes_nothing(path: Path) -> None:
    writer = open_store(path)
    writer["a"] = "1"
    reader = open_store(path, "r")
    writer["b"] = "2"
    offset = writer._segments.writer.end - 3  # type: ignore[union-attr]
    writer.sync()
    writer["c"] = "3"
    writer.sync()
    (segment,) = segment_files(path)
    damage(segment, offset)
    with pytest.raises(CorruptionError):
        reader.refresh()
    assert dict(reader) == {b"a": b"1"}
    damage(segment, offset)
    assert reader.refresh()
    assert dict(reader) == {b"a": b"1", b"b": b"2", b"c": b"3"}
    reader.close()
    writer.close()


def test_an_entry_under_way_is_not_yet_there(path: Path) -> None:
    writer = open_store(path)
    writer["a"] = "1"
    reader = open_store(path, "r")
    end = writer._segments.writer.end  # type: ignore[union-attr]
    writer["b"] = "2"
    (segment,) = segment_files(path)
    damage(segment, end + 25)
    assert not reader.refresh()
    assert dict(reader) == {b"a": b"1"}
    damage(segment, end + 25)
    assert reader.refresh()
    assert reader["b"] == b"2"
    reader.close()
    writer.close()


def test_durable_seq_of_a_reader_is_what_the_writer_vouches_for(path: Path) -> None:
    writer = open_store(path, sync="os")
    writer["a"] = "1"
    reader = open_store(path, "r")
    assert (reader.last_seq, reader.durable_seq) == (1, 0)
    writer.sync()
    writer["b"] = "2"
    reader.refresh()
    assert (reader.last_seq, reader.durable_seq) == (2, 1)
    writer.close()
    reader.refresh()
    assert (reader.last_seq, reader.durable_seq) == (2, 2)
    reader.close()


def test_a_writer_has_nothing_to_refresh(open_store: Callable[..., Store]) -> None:
    db = open_store()
    db["a"] = "1"
    assert db.refresh() is False
    db.close()
    with pytest.raises(StoreClosedError):
        db.refresh()


def test_following_by_itself(path: Path) -> None:
    writer = open_store(path)
    reader = open_store(path, "r", follow=0.001)
    writer["a"] = "1"
    seen = threading.Event()
    deadline = time.monotonic() + 30
    while "a" not in reader and time.monotonic() < deadline:
        seen.wait(0.001)
    assert reader["a"] == b"1"
    assert reader.stats().background_error is None
    reader.close()
    writer.close()


def test_what_keeps_it_from_following_is_said(path: Path) -> None:
    open_store(path).close()
    reader = open_store(path, "r", follow=0.001)
    open_store(path, "n").close()
    deadline = time.monotonic() + 30
    while reader.stats().background_error is None and time.monotonic() < deadline:
        threading.Event().wait(0.001)
    assert "another store" in (reader.stats().background_error or "")
    reader.close()


def test_follow_is_for_readers(path: Path) -> None:
    with pytest.raises(ValueError, match="flag 'r'"):
        bytekv.open(path, follow=1.0)
    assert not path.exists()


def test_an_interrupted_refresh_is_finished_by_the_next_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = open_store(path)
    reader = open_store(path, "r")
    writer.update({b"%d" % number: b"1" for number in range(20)})
    put, calls = reader._keydir.put, 0

    def interrupted(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise KeyboardInterrupt
        put(*arguments)

    monkeypatch.setattr(reader._keydir, "put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reader.refresh()
    assert reader.get(b"19") == b"1"
    assert len(reader) == 20
    assert reader.last_seq == 20
    assert reader.verify().ok
    reader.close()
    writer.close()


def test_a_refresh_that_is_carried_out_twice_does_the_same(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted at its very end, with nothing left to do: what is older must not come back the second time."""
    writer = open_store(path)
    writer["kept"] = "0"
    reader = open_store(path, "r")
    snapshot = reader.snapshot()
    writer.update({"a": "1", "b": "1", "kept": "1"})
    writer._commit.seal()
    writer.update({"a": "2", "c": "2"})
    del writer["b"]
    follower: Any = reader._maintenance._follower
    apply, left = follower._apply, [KeyboardInterrupt]

    def interrupted_once(plan: object) -> bool:
        counted: bool = apply(plan)
        for error in left:
            left.clear()
            raise error
        return counted

    monkeypatch.setattr(follower, "_apply", interrupted_once)
    with pytest.raises(KeyboardInterrupt):
        reader.refresh()
    assert dict(reader) == dict(writer) == {b"a": b"2", b"c": b"2", b"kept": b"1"}
    assert dict(snapshot) == {b"kept": b"0"}
    assert reader.last_seq == writer.last_seq
    assert reader.verify().ok
    snapshot.close()
    reader.close()
    writer.close()


class _Overtaken(FakeFiles):
    """Let the writer act in the very moment in which its reader does something for the ``number``-th time."""

    def __init__(self, act: Callable[[], object], number: int) -> None:
        super().__init__()
        self.act, self.left = act, number

    def _is_time(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.act()


def test_a_segment_that_vanishes_while_a_reader_opens_it(path: Path) -> None:
    """It has been read, but is not open yet: the reader begins anew, with the manifest of that moment."""
    writer = open_store(path, io="pread")
    writer.update({"a": "1", "b": "2"})
    del writer["a"]
    writer._commit.seal()
    (segment,) = segment_files(path)

    class Opening(_Overtaken):
        def open(self, path: str, **how: bool) -> int:
            if path == str(segment):
                self._is_time()
            return super().open(path, **how)

    files = Opening(writer.compact, 2)
    with open_store(path, "r", files=files) as reader:
        assert files.left == 0
        assert not segment.exists()
        assert dict(reader) == {b"b": b"2"}
    writer.close()


def test_a_segment_that_is_trimmed_while_a_reader_maps_it(path: Path) -> None:
    """It was the active one, with room behind its end; the reader takes what there is of it."""
    writer = open_store(path, io="mmap")

    class Mapping(_Overtaken):
        def map(self, *arguments: Any, **how: bool) -> Any:
            self._is_time()
            return super().map(*arguments, **how)

    files = Mapping(writer._commit.seal, 1)
    with open_store(path, "r", io="mmap", files=files) as reader:
        writer["a"] = "1"
        assert reader.refresh()
        assert files.left == -1  # once in vain
        assert dict(reader) == {b"a": b"1"}
        assert reader.refresh()
        assert dict(reader) == {b"a": b"1"}
    writer.close()


def test_a_reader_with_few_files_sees_what_was_appended_to_one(path: Path) -> None:
    """Its mapping of the active segment is too short by now, and the one file it may open at once is another."""
    writer = open_store(path, io="mmap")
    writer.update({"a": "1", "b": "2"})
    del writer["a"]
    writer._commit.seal()
    writer["c"] = "3"
    reader = open_store(path, "r", io="mmap", max_open_segments=1)
    assert reader["c"] == b"3"
    writer._maintenance.compactor.run([1], lambda: None, lambda _: None)
    writer["d"] = "4"
    reader.refresh()
    assert dict(reader) == {b"b": b"2", b"c": b"3", b"d": b"4"}
    assert reader["d"] == b"4"
    reader.close()
    writer.close()


def test_a_hint_saves_a_follower_the_scan(path: Path) -> None:
    writer = open_store(path)
    writer["a"] = "1"
    reader = open_store(path, "r")
    writer.update({b"%d" % number: bytes(1000) for number in range(100)})
    writer.put("mortal", "1", expires=4e9)
    del writer["a"]
    reader.refresh()
    writer.compact()
    (segment,), (_,) = segment_files(path), path.glob("*.hint")
    damage(segment, 50_000)  # which only somebody who reads all of it would notice
    assert reader.refresh()
    assert list(reader) == sorted([*(b"%d" % number for number in range(100)), b"mortal"])
    assert reader.ttl("mortal")
    damage(segment, 50_000)
    assert dict(reader) == dict(writer)
    reader.close()
    writer.close()


def test_a_reader_with_few_files_takes_no_compaction_for_damage(path: Path) -> None:
    """The files that it has not open are gone, so it cannot check the moment that it shows; it checks a later one."""
    writer = open_store(path, segment_size_bytes=400)
    for number in range(30):
        writer[b"%d" % number] = b"x" * 300
    reader = open_store(path, "r", max_open_segments=3)
    for number in range(30):
        writer[b"%d" % number] = b"y" * 200
    writer.compact()
    report = reader.verify()
    assert report.ok, report
    assert set(reader.values()) == {b"y" * 200}
    (lost, *_) = segment_files(path)
    content = lost.read_bytes()
    lost.unlink()
    (damage,) = reader.verify().damage
    assert (damage.path, damage.reason) == (str(lost), "missing, though the manifest lists it")
    lost.write_bytes(content)
    assert reader.verify().ok
    reader.close()
    writer.close()
