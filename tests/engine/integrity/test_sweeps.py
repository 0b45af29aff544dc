"""Damage at every offset of every file: the stored values or an error, never another value.

A small store is built once, with every kind of entry in it, and kept as bytes. Then, again and again: put
those bytes down, cut one file short or change one byte of it, open, read everything, and ask of what came out

- every key that could be read has the value of one moment of the store's history, the same for all, and
  nothing is missing that was there at that moment (`Story.moments` says which moments are allowed);
- every failure is a `CorruptionError` that names the damaged file and an offset within it;
- a hint file or LOCK in ruins makes no difference at all;
- an `open` that failed has changed no byte of the directory; a second one finds the same as the first.

Which moment may come out: the last, if the store was closed. After a crash the end of the active segment
may be lost, but what a sync had made durable may not, as long as the mark of that sync is still there to say
so. A cut takes the mark along with what it vouches for, and then the file looks like one whose end was
never written: the operations before the segment are the least that must be left.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bytekv import BytekvError, CorruptionError
from bytekv.engine.store import Store
from tests.support import harness
from tests.support.harness import WRONG, Case, FakeFiles, QuickFiles, expect_no_violation

pytestmark = pytest.mark.once

Content = dict[bytes, bytes]


class Story(NamedTuple):
    """A store as bytes, and what it was after each operation."""

    pristine: dict[str, bytes]
    moments: list[Content]  # by seq
    synced: int  # durable for sure, by a sync mark or because it lies in a sealed segment
    sealed: int  # lies in a sealed segment
    active: str | None  # the file whose end may be lost; None after a clean end
    options: dict[str, Any]


def write_history(db: Store, moments: list[Content], rounds: int) -> None:
    """Do a little of everything; every step is one operation or one batch."""

    def note(_: object = None) -> None:
        while len(moments) <= db.last_seq:
            moments.append(dict(db))  # a batch has several seqs; only whole ones may come out

    for round_ in range(rounds):
        number = b"%d" % round_
        note(db.put(b"plain", b"value " + number))
        note(db.put(b"", b"under the empty key"))
        note(db.put(b"empty", b""))
        note(db.put(b"late", b"expires, but not here", ttl=1e6))
        note(db.put(b"gone", b"soon"))
        note(db.update({b"batch 1": number, b"batch 2": bytes(5), b"batch 3": b"\xff" * 5}))
        note(db.delete(b"gone"))
        if round_ % 2:
            db.sync()
        note(db.clear() if round_ == rounds // 2 else db.put(b"k" + number, b"v"))
        note(db.put(b"plain", b"newer"))
        note(db.put(b"batch 2", b"overwritten"))
        note(db.put(b"zeros", bytes(12)))


def keep(path: Path, moments: list[Content], synced: int, sealed: int, active: str | None, **options: Any) -> Story:
    return Story(harness.snapshot_of(path), moments, synced, sealed, active, options)


def closed(path: Path, rounds: int, **options: Any) -> Story:
    """A store that was closed, continued and closed once more."""
    moments: list[Content] = [{}]
    with harness.open_store(path, files=FakeFiles(), **options) as db:
        write_history(db, moments, rounds)
    with harness.open_store(path, files=FakeFiles(), **options) as db:
        db.put(b"plain", b"continued")
        moments.append(dict(db))
    last = len(moments) - 1
    return keep(path, moments, last, last, None, **options)


def compacted(path: Path, rounds: int, **options: Any) -> Story:
    """A store with outputs of a compaction in the middle of the log: tombstones, a clear, seqs in any order."""
    moments: list[Content] = [{}]
    with harness.open_store(path, files=FakeFiles(), **options) as db:
        write_history(db, moments, rounds)
        sealed = [row.segment_id for row in db._segments.sealed()]
        db._maintenance.compactor.run(sealed[1:], lambda: None, lambda _: None)
        write_history(db, moments, 1)
    last = len(moments) - 1
    return keep(path, moments, last, last, None, **options)


def crashed(path: Path, rounds: int, **options: Any) -> Story:
    """A store whose process died: some of it synced, some not."""
    moments: list[Content] = [{}]
    db = harness.open_store(path, files=FakeFiles(), **options)
    write_history(db, moments, rounds)
    active = db._segments.writer
    assert active is not None
    db.sync()
    synced = db.last_seq
    for number in range(4):
        db.put(b"plain", b"unsynced %d" % number)
        moments.append(dict(db))
    db.update({b"batch 1": b"unsynced", b"batch 4": b"unsynced"})
    moments += [dict(db)] * 2
    active = db._segments.writer
    assert active is not None
    assert active.header.previous_seq < synced  # else the story would be another one
    name = Path(active.path).name
    sealed = active.header.previous_seq
    harness.crash(db)
    story = keep(path, moments, synced, sealed, name, **options)
    # Behind the end of the log a mapped segment has zeros: a few are as good as many.
    end = active.end + 40
    return story._replace(pristine=story.pristine | {name: story.pristine[name][:end]})


STORIES: dict[str, tuple[Callable[..., Story], dict[str, Any]]] = {
    "closed": (closed, {"segment_size_bytes": 400}),
    "compacted": (compacted, {"segment_size_bytes": 400}),
    "crashed": (crashed, {"segment_size_bytes": 600, "io": "mmap"}),
}


class SweepFiles(QuickFiles):
    """Do without waiting, too."""

    def yield_cpu(self) -> None:
        pass


def files_of(path: str, prefix: str = "") -> dict[str, bytes]:
    """Do as `harness.snapshot_of`, in a tenth of the time."""
    found: dict[str, bytes] = {}
    for entry in os.scandir(path):
        if entry.is_dir():
            found |= files_of(entry.path, f"{prefix}{entry.name}/")
        else:
            with open(entry.path, "rb", buffering=0) as file:
                found[prefix + entry.name] = file.readall()
    return found


class Bench:
    """Put a story's files down, damage them, look at what a store makes of it."""

    def __init__(self, path: Path, story: Story) -> None:
        self.path, self.story = path, story
        self.on_disk: dict[str, bytes] | None = None
        self.keys = sorted({key for moment in story.moments for key in moment} | {b"never stored"})
        self.opened = self.refused = 0

    def put_down(self, name: str, content: bytes) -> None:
        """Restore every file; one of them damaged."""
        wanted = {**self.story.pristine, name: content}
        found = {} if self.on_disk is None else self.on_disk
        if self.on_disk is None or any("/" in other for other in found):
            shutil.rmtree(self.path, ignore_errors=True)
            self.path.mkdir(mode=0o700)
            found = {}
        for other in found.keys() - wanted.keys():
            (self.path / other).unlink()
        for other, written in wanted.items():
            if found.get(other) != written:
                with open(self.path / other, "wb", buffering=0) as file:
                    file.write(written)
        self.on_disk = wanted

    def look(self) -> dict[str, bytes]:
        return files_of(str(self.path))

    def check(self, name: str, content: bytes, flag: str, *, io: str, again: bool = False) -> None:
        """Damage one file and check all that is promised; ``again``: open twice, and salvage what was refused."""
        self.options = {**self.story.options, "io": io}
        self.put_down(name, content)
        is_cut = len(content) < len(self.story.pristine[name])
        harmless = name == "LOCK" or name.endswith(".hint") or content == self.story.pristine[name]
        try:
            db = self.open(flag)
        except BytekvError as error:
            self.refused += 1
            self.check_error(error, name, harmless=harmless)
            assert self.look() == self.on_disk, "a failed open changed something"
            if again:
                self.salvage()
            return
        try:
            self.opened += 1
            found = self.read(db, name, harmless=harmless, is_cut=is_cut)
            clean = db.recovery.clean
        finally:
            db.close()
        after = self.look()
        if flag == "r":
            assert after == self.on_disk, "a reader changed something"
        self.on_disk = after
        if again:
            with self.open(flag) as db:
                assert self.read(db, name, harmless=harmless, is_cut=is_cut) == found
                assert db.recovery.clean or flag == "r"
                assert db.recovery.clean == (clean or flag != "r")
            self.on_disk = self.look()

    def salvage(self) -> None:
        """Have the damage cut out: what is left was stored at some time, and is there to stay."""
        with harness.open_store(self.path, "w", files=SweepFiles(), recover="salvage", **self.options) as db:
            found = dict(db.items())
        for key, value in found.items():
            assert any(moment.get(key) == value for moment in self.story.moments), (key, value)
        with self.open("w") as db:
            assert dict(db.items()) == found
            report = db.verify()
            assert report.ok, report
        self.on_disk = self.look()

    def open(self, flag: str) -> Store:
        return harness.open_store(self.path, flag, files=SweepFiles(), **self.options)

    def check_error(self, error: BytekvError, name: str, *, harmless: bool) -> None:
        assert not harmless, error
        assert isinstance(error, CorruptionError), repr(error)
        assert error.path == str(self.path / name), error
        assert 0 <= error.offset <= len(self.story.pristine[name]), error

    def read(self, db: Store, name: str, *, harmless: bool, is_cut: bool) -> list[bytes | str | None]:
        """Read every key in every way; return what came out, "damaged" where there was an error."""
        found: list[bytes | str | None] = []
        for key in self.keys:
            try:
                found.append(db.get(key))
            except BytekvError as error:
                self.check_error(error, name, harmless=harmless)
                found.append("damaged")
        present = list(db)
        story = self.story
        if harmless or name != story.active:
            allowed = story.moments[-1:]
        else:
            allowed = story.moments[story.sealed if is_cut else story.synced :]
        matching = [
            moment
            for moment in allowed
            if present == sorted(moment)
            and all(value == moment.get(key) for key, value in zip(self.keys, found, strict=True) if value != "damaged")
        ]
        assert matching, (name, found)
        if "damaged" not in found:
            assert dict(db.items()) == matching[0]
            assert db.recovery.last_seq == db.last_seq
        return found


def damages(name: str, content: bytes, step: int) -> Iterator[tuple[str, int, bytes]]:
    """Cut at every offset; flip a bit of every byte; set every byte to 0 and to 255."""
    for offset in range(0, len(content), step):
        yield "cut", offset, content[:offset]
        before, byte, after = content[:offset], content[offset], content[offset + 1 :]
        new_bytes = [byte ^ 1 << offset % 8, 0x00, 0xFF]
        if not name.endswith(".seg"):
            new_bytes = new_bytes[:1]  # one CRC over all of it: which bit it is makes no difference
        for new in new_bytes:
            if new != byte:
                yield f"{byte:#04x} → {new:#04x}", offset, before + bytes((new,)) + after


def sweep(path: Path, story: str, step: int, rounds: int = 2, hints_from: int = 1, **options: Any) -> Iterator[Case]:
    """Do every damage at each ``step``-th offset of every file of a story; a case is an opening."""
    is_small = hints_from == 1 and rounds == 2
    kind = "flips and cuts, three segments" if is_small else "flips and cuts, no hints or more segments"
    alone = {**harness.NO_WORKER, **harness.tuned(hint_from=hints_from, tries=2)}
    with harness.patched(alone):
        build, own_options = STORIES[story]
        bench = Bench(path, build(path, rounds, **{**own_options, **options}))
        pristine = bench.story.pristine
        assert len([name for name in pristine if name.endswith(".seg")]) >= 3
        ways = itertools.cycle(itertools.product(("w", "r", "w"), ("mmap", "pread")))
        for name, whole in pristine.items():
            for what, offset, content in [("none", 0, whole), *damages(name, whole, step)]:
                flag, io = next(ways)
                try:
                    bench.check(name, content, flag, io=io, again=offset % 5 == 0)
                except WRONG as error:
                    error.add_note(f"damage: {what} at offset {offset} of {name}; opened with {flag!r}, {io}")
                    bench.on_disk = None  # whatever lies there now
                    yield Case(kind, error)
                else:
                    yield Case(kind)
        assert bench.refused > 100
        assert bench.opened > 10


def flips_and_cuts(place: Path, seed: int) -> Iterator[Case]:
    """Do all damage to three-segment stores of all stories; then where no hint speaks, then to larger ones."""
    path = place / f"store-{seed}"  # the order is given: nothing here is left to chance
    for how in {}, {"hints_from": 1 << 20}, {"rounds": 12, "segment_size_bytes": 1_500}:
        for story in STORIES:
            yield from sweep(path, story, 1, **how)  # type: ignore[arg-type]
            shutil.rmtree(path)
        if not how:
            yield Case("flips and cuts, three segments", count=0, is_last=True)


@pytest.mark.parametrize("story", STORIES)
def test_damage_at_every_third_offset(path: Path, story: str) -> None:
    """The long form, `flips_and_cuts`, leaves none out."""
    expect_no_violation(sweep(path, story, step=3))


@pytest.mark.parametrize("story", STORIES)
def test_damage_where_no_hint_speaks_for_a_segment(path: Path, story: str) -> None:
    """Without hints every entry is read at open: damage to what is dead shows, too. Every seventh offset."""
    expect_no_violation(sweep(path, story, step=7, hints_from=1 << 20))
