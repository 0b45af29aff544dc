"""What a repair keeps, against a model of which entries were whole: damages × crashes × what is left to go by (D9).

A story is a life of a small store, or of a backup of one, ended in one of many ways: closed, killed in the middle of a
call, its unsynced end torn. Keys expire, segments are made beforehand, their sizes change from one opening to the next,
earlier repairs have left their quarantine. Then bytes are damaged, and the manifest may be lost. The model reads the
files as they were before the damage, so it knows where each entry lay and whether it still lies there, and says what a
repair must keep and what it may:

- what was durable and is whole must be kept, wherever it is;
- of what nothing vouches for, whole operations up to the first that is not whole must be kept, and nothing after that
  may be; without a manifest whole operations after it must be kept, too, but for the one that follows directly;
- of an unfinished batch nothing may be kept.

For each key the newest of what is kept counts, unless it has expired; of two entries with one seq, the tombstone.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bytekv.contract.reports import Report
from bytekv.engine.codec.checksum import CRC_SIZE, RESIDUE, checksum, seed_of
from bytekv.engine.codec.entry import (
    CLEAR,
    CONTINUES,
    ENTRY,
    ENTRY_EXPIRES,
    ENTRY_SIZE,
    EXPIRES,
    FIXED_SIZE,
    KIND,
    PUT,
    SYNC_MARK,
    measure_entry,
)
from bytekv.engine.codec.manifest import ACTIVE, LOG, SEGMENT_HEADER_SIZE, decode_manifest, decode_segment_header
from bytekv.engine.integrity.repair import repair_directory
from bytekv.engine.log.directory import Directory
from bytekv.engine.log.files import Files
from bytekv.engine.tuning import Tuning
from bytekv.errors import BytekvError, DiskFullError, StoreFailedError, StoreIOError
from tests.support import harness
from tests.support.harness import WRONG, Case, QuickFiles, crash, expect_no_violation, open_store

LIMIT = 600  # bytes of a segment
MIB = 1 << 20
KEYS = [b"%d" % number for number in range(9)]


# --- a life and its end --------------------------------------------------------------------------


class Stop(BaseException):
    """The process ends here."""


class Mortal(QuickFiles):
    """Files whose process ends before the call that is counted down to, or for which that call fails."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 1 << 30
        self.error: Callable[[str], BaseException] = lambda path: Stop()
        self.for_ever = True
        self.calls = 0

    def _step(self, path: str) -> None:
        self.calls += 1
        self.left -= 1
        if self.left < 0 and (self.for_ever or self.left == -1):
            raise self.error(path)

    def make_directory(self, path: str) -> bool:
        self._step(path)
        return super().make_directory(path)

    def open(self, path: str, *, write: bool = False, create: bool = False, exclusive: bool = False) -> int:
        if exclusive:
            self._step(path)
        return super().open(path, write=write, create=create, exclusive=exclusive)

    def replace(self, source: str, target: str) -> None:
        self._step(target)
        super().replace(source, target)

    def link(self, source: str, target: str) -> bool:
        self._step(target)
        return super().link(source, target)

    def unlink(self, path: str) -> bool:
        self._step(path)
        return super().unlink(path)

    def write(self, descriptor: int, piece: bytes | memoryview, offset: int, path: str) -> None:
        if self.left == 0:
            super().write(descriptor, memoryview(piece)[: len(piece) // 2], offset, path)
        self._step(path)
        super().write(descriptor, piece, offset, path)

    def truncate(self, descriptor: int, size: int, path: str) -> None:
        self._step(path)
        super().truncate(descriptor, size, path)

    def sync(self, descriptor: int, path: str) -> None:
        self._step(path)
        super().sync(descriptor, path)

    def sync_directory(self, path: str) -> None:
        self._step(path)
        super().sync_directory(path)


def _change(db: Any, chance: random.Random, files: QuickFiles, largest: int) -> None:
    key, value = chance.choice(KEYS), chance.randbytes(chance.choice([3, 20, 20, 60, largest]))
    way = chance.random()
    if way < 0.35:
        db[key] = value
    elif way < 0.45:
        db.put(key, value, ttl=chance.choice([0.9, 9.9, 99.9]))
        if chance.random() < 0.4:
            files.sleep(chance.choice([1, 20, 200]))
    elif way < 0.6:
        db.delete(key)
    elif way < 0.85:
        with db.batch() as batch:
            for key in chance.sample(KEYS, chance.randint(2, 5)):
                if chance.random() < 0.3:
                    del batch[key]
                else:
                    batch[key] = chance.randbytes(chance.choice([5, 30]))
    elif way < 0.88:
        db.clear()
    elif way < 0.91:
        db.compact()
    elif way < 0.95:  # some of the segments
        db._maintenance.may_compact = True
        db._work()
    else:
        db.sync()


def live(path: Path, chance: random.Random) -> tuple[str, float]:
    """Let a store live and end; return how, and when."""
    is_large = chance.random() < 0.03
    largest = 900_000 if is_large else 400

    def options_now() -> dict[str, Any]:
        return {
            "io": chance.choice(["mmap", "pread"]),
            "sync": chance.choice(["os", "interval"]),
            "segment_size_bytes": 4 * MIB if is_large else chance.choice([LIMIT, LIMIT, 2 * LIMIT, MIB]),
            "compact_dead_bytes": 1,
            "expiry_grace_s": chance.choice([0, 0, 15]),
        }

    options = options_now()
    files = Mortal()
    db = open_store(path, files=files, **options)
    for _ in range(chance.randint(1, 3)):
        for _ in range(chance.randint(1, 25)):
            _change(db, chance, files, largest)
        how = chance.choice(["closed", "killed", "killed", "goes on"])
        if how == "closed":
            db.close()
        elif how == "killed":
            crash(db)
        if how != "goes on":
            if how == "killed" and chance.random() < 0.3:
                _tear(path, chance)
                if chance.random() < 0.5:  # a second name: what is set aside is not cut off
                    for newest in harness.segment_files(path)[-1:]:
                        os.link(newest, path.with_name(f"{path.name}-{newest.name}-{chance.random()}"))
            options = options_now()
            db = open_store(path, files=files, **options)
    action = chance.choice(["close", "kill", "put", "batch", "compact", "open", "roll", "work", "backup"])
    files.left = chance.randrange(14)
    try:
        if action == "close":
            db.close()
        elif action == "compact":
            db.compact()
        elif action == "roll":
            db["roll"] = bytes(LIMIT)
        elif action == "work":
            files.left += chance.choice([0, 80])
            for number in range(40):
                db["full"] = bytes(number)
                if db._commit.state.wants_next:
                    break
            db._maintenance.may_compact = True
            db._work()  # what a roll will begin is made beforehand
            db["late"] = b"1"
        elif action == "put":
            db["last"] = "put"
        elif action == "batch":
            db.update({b"last %d" % number: bytes([number]) * 30 for number in range(9)})
        elif action == "open":
            crash(db)
            db = open_store(path, files=files, **options)
            db["after"] = "it"
    except Stop:
        action += " interrupted"
    files.left = 1 << 30
    if action == "backup":
        copy = path.with_name("copy")
        db.backup(copy)
        db.close()
        shutil.rmtree(path)
        os.rename(copy, path)
    if not db.closed:
        crash(db)
    return f"{options['io']}, {action}", files.clock_ns() / 1e9


def _tear(path: Path, chance: random.Random) -> str:
    """Take something away from what was never made durable, as a power cut does: one stretch of it."""
    manifest = decode_manifest((path / "MANIFEST").read_bytes(), "MANIFEST")
    if not manifest.segments or manifest.segments[-1].state != ACTIVE:
        return ""
    row = manifest.segments[-1]
    file = path / f"{row.segment_id:010d}.seg"
    raw = bytearray(file.read_bytes())
    items = items_of(bytes(raw))
    durable = max([manifest.last_seq, *(item.mark for item in items if item.mark)])
    begin = max([row.length, *(item.end for item in items if not item.mark and item.seq <= durable)])
    end = max([begin, *(item.end for item in items)])
    if len(raw) <= row.length or begin >= end:
        return ""
    start = chance.randrange(begin, end)
    stop = min(end, start + chance.choice([1, 30, 512, 1 << 20]))
    raw[start:stop] = bytes(stop - start)
    if stop == end and chance.random() < 0.3:
        del raw[max(start, row.length + 1) :]
    file.write_bytes(raw)
    return f"torn from {start} to {stop}"


# --- what lies in a segment --------------------------------------------------------------------------


class Written(NamedTuple):
    """One entry as it was written."""

    flags: int
    key: bytes
    value: bytes
    seq: int
    offset: int
    raw: bytes
    expires_ms: int


class Item(NamedTuple):
    """An operation, a batch or a sync mark, by where it was written."""

    start: int
    end: int
    entries: tuple[Written, ...] = ()
    mark: int = 0
    is_torn: bool = False  # by the crash: never seen as a whole

    @property
    def seq(self) -> int:
        return self.entries[-1].seq


def items_of(raw: bytes) -> list[Item]:
    """Read a segment as long as entry follows entry."""
    if len(raw) < SEGMENT_HEADER_SIZE:
        return []
    seed = seed_of(int.from_bytes(raw[48:56], "little"))
    items: list[Item] = []
    batch: list[Written] = []
    at = SEGMENT_HEADER_SIZE
    while size := measure_entry(raw[at : at + 7]):
        piece = raw[at : at + size]
        if len(piece) < size or checksum(piece, seed) != RESIDUE:
            break
        flags, key_size, _, seq, _ = ENTRY.unpack_from(piece)
        fixed = FIXED_SIZE[flags]
        at += size
        if flags == SYNC_MARK:
            items.append(Item(at - size, at, mark=seq))
            continue
        key, value = piece[fixed : fixed + key_size], piece[fixed + key_size : -CRC_SIZE]
        expires_ms = ENTRY_EXPIRES.unpack_from(piece, ENTRY_SIZE)[0] if flags & EXPIRES else 0
        batch.append(Written(flags, key, value, seq, at - size, piece, expires_ms))
        if not flags & CONTINUES:
            items.append(Item(batch[0].offset, at, tuple(batch)))
            batch = []
    if batch:
        items.append(Item(batch[0].offset, at, tuple(batch), is_torn=True))
    return items


class Image(NamedTuple):
    """The segments of a store before the crash took anything away, and the manifest."""

    raws: dict[int, bytes]
    items: dict[int, list[Item]]
    rows: dict[int, Any]
    manifest: Any
    cut: dict[int, int]  # where recoveries have ended segments whose files go on


def image_of(path: Path) -> Image:
    manifest = decode_manifest((path / "MANIFEST").read_bytes(), "MANIFEST")
    raws = {int(file.stem): file.read_bytes() for file in harness.segment_files(path)}
    items = {segment_id: items_of(raw) for segment_id, raw in raws.items()}
    rows = {row.segment_id: row for row in manifest.segments}
    cut: dict[int, int] = {}
    for segment_id, row in rows.items():
        is_over = row.state != ACTIVE or len(raws[segment_id]) == row.length
        if is_over:  # what follows was set aside by a recovery
            cut[segment_id] = row.length
            items[segment_id] = [item for item in items[segment_id] if item.end <= row.length]
    return Image(raws, items, rows, manifest, cut)


# --- damage --------------------------------------------------------------------------------------


def damage_some(path: Path, chance: random.Random) -> tuple[str, bool]:
    """Damage bytes of segments; return what was done, and whether anything was moved."""
    done, moved = [], False
    for _ in range(chance.choice([0, 1, 1, 1, 2, 4])):
        files = harness.segment_files(path)
        if not files:
            break
        file = chance.choice(files)
        raw = bytearray(file.read_bytes())
        used = len(bytes(raw).rstrip(b"\0"))
        if not used:
            continue
        start = chance.randrange(used) if used else 0
        way = chance.choice(["flip", "flip", "flip", "zeros", "junk", "cut", "swap", "missing"])
        if way == "flip":
            raw[start] ^= 1 << chance.randrange(8)
        elif way in ("zeros", "junk"):
            count = min(chance.choice([1, 20, 64, 200, 512]), used - start)
            raw[start : start + count] = bytes(count) if way == "zeros" else chance.randbytes(count)
        elif way == "cut":
            del raw[start:]
        elif way == "swap":
            size = chance.choice([64, 128, 512])
            count = used // size
            if count < 2:
                continue
            one, other = (number * size for number in chance.sample(range(count), 2))
            raw[one : one + size], raw[other : other + size] = raw[other : other + size], raw[one : one + size]
            moved = True
        if way == "missing":
            file.unlink()
        else:
            file.write_bytes(raw)
        done.append(f"{way} at {start} of {file.name}")
    return "; ".join(done) or "no damage", moved


# --- the model -----------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """What a repair must keep, what it may keep, and what must be in its report: (segment, entry)."""

    must: list[Written]
    may: list[Written]
    lost: list[tuple[int, Written]]


def judge(path: Path, image: Image, *, has_manifest: bool, moved: bool) -> Verdict:
    now = {int(file.stem): file.read_bytes() for file in harness.segment_files(path)}
    verdict = Verdict([], [], [])
    if moved and not has_manifest:  # what was set aside is known again by what it begins with, if it is still there
        for segment_id, end in image.cut.items():
            raw = image.raws[segment_id].rstrip(b"\0")
            tails = (items_of(raw[:SEGMENT_HEADER_SIZE] + raw[at : at + 2000]) for at in range(end, len(raw)))
            verdict.may.extend(entry for items in tails for item in items[:1] for entry in item.entries)
    is_whole_header = {
        segment_id: now.get(segment_id, b"")[:SEGMENT_HEADER_SIZE] == raw[:SEGMENT_HEADER_SIZE]
        for segment_id, raw in image.raws.items()
    }
    headers = {
        segment_id: decode_segment_header(raw[:SEGMENT_HEADER_SIZE], "")
        for segment_id, raw in image.raws.items()
        if len(raw) >= SEGMENT_HEADER_SIZE
    }
    is_log = {segment_id for segment_id, header in headers.items() if header.kind == LOG}
    with_entries = [segment_id for segment_id in is_log if any(image.raws[segment_id][SEGMENT_HEADER_SIZE:])]
    newest = max(with_entries, default=0)
    all_headers = all(is_whole_header.values())
    for segment_id, items in image.items.items():
        if segment_id not in headers or (has_manifest and segment_id not in image.rows):
            continue
        raw, row = now.get(segment_id, b""), image.rows.get(segment_id)

        def is_whole(part: Any, raw: bytes = raw, before: bytes = image.raws[segment_id]) -> bool:
            end = part.offset + len(part.raw) if isinstance(part, Written) else part.end
            start = part.offset if isinstance(part, Written) else part.start
            return raw[start:end] == before[start:end]

        if has_manifest:
            is_open = row.state == ACTIVE and len(image.raws[segment_id]) != row.length
            durable_seq = max(row.last_seq, image.manifest.last_seq) if is_open else 1 << 63
        else:
            is_open = segment_id == newest and (row is None or row.state == ACTIVE)
            durable_seq = 0 if is_open else 1 << 63
        if is_open:
            durable_seq = max([durable_seq, *(item.mark for item in items if item.mark and is_whole(item))])
        readable = has_manifest or is_whole_header[segment_id]
        # Without a sound header it may pass for the newest.
        is_listed = has_manifest or segment_id not in is_log or (all_headers and segment_id != newest)
        surely_durable = durable_seq if is_listed else 0
        unbroken = True  # nothing of what nobody vouches for was missing so far
        before_is_whole = True
        for item in items:
            item_is_whole = not item.is_torn and is_whole(item)
            if item.mark:
                if (
                    not item_is_whole
                    and before_is_whole
                    and has_manifest
                    and is_open
                    and _last(items, item) >= durable_seq
                ):
                    unbroken = False
                before_is_whole = item_is_whole
                continue
            for entry in item.entries:
                if moved and not item.is_torn:
                    verdict.may.append(entry)
                if entry.seq <= durable_seq:
                    if is_whole(entry):
                        verdict.may.append(entry)
                        if readable and (entry.seq <= surely_durable or (item_is_whole and before_is_whole)):
                            verdict.must.append(entry)
                    elif has_manifest or (segment_id in now and (segment_id in is_log or len(raw) > entry.offset)):
                        # Else nothing tells that there was such a file, or how long an output was.
                        verdict.lost.append((segment_id, entry))
                elif item_is_whole and unbroken:
                    verdict.may.append(entry)
                    if readable and before_is_whole and not moved:
                        verdict.must.append(entry)
                elif item_is_whole and not has_manifest:
                    verdict.may.append(entry)
                    if readable and before_is_whole and not moved and all_headers:
                        verdict.must.append(entry)
                elif not has_manifest and any(raw[item.start :]):  # else it ends here as any log does
                    verdict.lost.append((segment_id, entry))
            if not item_is_whole and item.seq > durable_seq and (before_is_whole or not has_manifest):
                unbroken = False
            before_is_whole = item_is_whole
    return verdict


def _last(items: list[Item], until: Item) -> int:
    return max([0, *(item.seq for item in items if not item.mark and item.end <= until.start)])


def expect(db: Any, verdict: Verdict, now_ms: float) -> None:
    """Compare what is there with what must and may be there."""

    def has_expired(entry: Written) -> bool:
        return 0 < entry.expires_ms <= now_ms

    clears = [entry.seq for entry in verdict.must if entry.flags & KIND == CLEAR]
    cleared = max(clears, default=0)
    may_clear = [entry.seq for entry in verdict.may if entry.flags & KIND == CLEAR]
    keys = {entry.key for entry in verdict.may} | set(db)
    for key in keys:
        must = [entry for entry in verdict.must if entry.key == key and entry.flags & KIND != CLEAR]
        least = max([cleared, *(entry.seq for entry in must)])
        is_gone = any(entry.seq == least and entry.flags & KIND != PUT for entry in must)
        allowed = {
            (entry.seq, entry.value)
            for entry in verdict.may
            if entry.key == key
            and entry.seq >= least + is_gone
            and entry.flags & KIND == PUT
            and not has_expired(entry)
        }
        is_put = not is_gone and least > cleared and any(entry.seq == least for entry in must)
        gone = [e.seq for e in verdict.may if e.key == key and (e.flags & KIND not in (PUT, CLEAR) or has_expired(e))]
        may_be_absent = not is_put or any(seq >= least for seq in gone + may_clear)
        try:
            found = db.entry(key)
        except KeyError:
            assert may_be_absent, f"{key!r} is gone, seq {least}"
        else:
            assert (found.seq, found.value) in allowed, f"{key!r} has seq {found.seq}, at least {least}"
    highest = max((entry.seq for entry in verdict.must), default=0)
    assert db.last_seq >= highest


def expect_report(report: Report, verdict: Verdict, kept: set[int], image: Image) -> None:
    """Everything that was not kept is in the report: a place, from which on there is nothing that was."""
    places: dict[int, list[int]] = {}
    musts = {entry for entry in verdict.must if entry.seq in kept}
    for found in report.damage:
        stem = Path(found.path).stem
        if stem.isdigit():
            places.setdefault(int(stem), []).append(found.offset)
    for segment_id, entry in verdict.lost:
        if entry.seq in kept:
            continue  # from another file
        end = entry.offset + len(entry.raw)
        between = [
            other.offset
            for item in image.items[segment_id]
            for other in item.entries
            if other in musts and other.offset < entry.offset
        ]
        after = max(between, default=-1)
        assert any(after < place <= end for place in places.get(segment_id, [])), f"{entry} is not reported"


# --- a case --------------------------------------------------------------------------------------


def repair(path: Path, files: Files, limit: int = LIMIT) -> Report:
    """Do what `bytekv.repair` does, on these files and mostly with small segments."""
    directory = Directory(str(path), files, tuning=harness.TUNING)
    directory.find(lost_manifest_allowed=True)
    directory.acquire()
    try:
        return repair_directory(directory, limit)
    finally:
        directory.release()


def tree(path: Path) -> dict[str, bytes | None]:
    """Return names and bytes, directories included; but not of the lock, which holds a process id."""
    files = {str(file.relative_to(path)): None if file.is_dir() else file.read_bytes() for file in path.rglob("*")}
    return {name: content for name, content in files.items() if name != "LOCK"}


def contents(path: Path, now_s: float) -> dict[bytes, tuple[int, bytes]]:
    with open_store(path, "w", files=QuickFiles(now_s)) as db:
        return {key: (db.entry(key).seq, db[key]) for key in db}


def one_case(place: Path, chance: random.Random) -> str:
    path = place / "store"
    story, now_s = live(path, chance)
    has_manifest_now = (path / "MANIFEST").exists()
    if not has_manifest_now:
        return "no store"
    image = image_of(path)
    torn = _tear(path, chance) if chance.random() < 0.5 else ""
    damaged, moved = damage_some(path, chance)
    has_manifest = chance.random() < 0.6
    if not has_manifest and chance.random() < 0.5:
        (path / "MANIFEST").unlink()
    elif not has_manifest:
        harness.damage(path / "MANIFEST", chance.randrange((path / "MANIFEST").stat().st_size))
    if chance.random() < 0.2:
        for hint in path.glob("*.hint"):
            if size := hint.stat().st_size:
                harness.damage(hint, chance.randrange(size))
    if not has_manifest and not harness.segment_files(path):
        return "no store"
    if chance.random() < 0.2:
        _quarantine_something(path, chance)
    if chance.random() < 0.1:
        now_s -= 150  # somebody has set the clock back
    told = f"{story}; {torn}; {damaged}; {'with' if has_manifest else 'without'} a manifest"
    try:
        verdict = judge(path, image, has_manifest=has_manifest, moved=moved)
        _check(place, path, chance, verdict, image, now_s, moved=moved)
    except WRONG as error:
        error.add_note(told)
        raise
    return "with a manifest" if has_manifest else "without a manifest"


def _quarantine_something(path: Path, chance: random.Random) -> None:
    """Leave what earlier repairs may have left, under the names that this one will want."""
    (path / "quarantine").mkdir(exist_ok=True)
    for file in [*harness.segment_files(path), path / "MANIFEST"]:
        name = "MANIFEST.damaged" if file.name == "MANIFEST" else f"{file.stem}.damaged"
        way = chance.choice(["the same", "another", "a link", "half of it", "nothing"])
        if way == "nothing" or not file.exists() or (path / "quarantine" / name).exists():
            continue
        if way == "a link":
            os.link(file, path / "quarantine" / name)
        else:
            raw = file.read_bytes()
            (path / "quarantine" / name).write_bytes({"the same": raw, "another": b"?" * len(raw)}.get(way, raw[:50]))


def _check(
    place: Path, path: Path, chance: random.Random, verdict: Verdict, image: Image, now_s: float, *, moved: bool
) -> None:
    template = place / "template"
    shutil.copytree(path, template)
    beside = tree(path)
    limit = chance.choice([LIMIT, LIMIT, 4 * MIB])
    report = repair(path, QuickFiles(), limit)
    if report.ok:
        assert tree(path) == beside, "there was nothing to repair"
        assert not verdict.lost, verdict.lost
    after = tree(path)
    for kept in report.quarantined:
        name = Path(kept).name
        source = template / ("MANIFEST" if name.startswith("MANIFEST") else f"{name[:10]}.seg")
        assert Path(kept).read_bytes() == source.read_bytes()
    told = {Path(kept).name[:10] for kept in report.quarantined}
    gone = {name[:10] for name in beside.keys() - after.keys() if name.endswith(".seg")}
    assert gone <= told, f"removed without a word: {gone - told}"
    changed = {name for name in beside.keys() & after.keys() if beside[name] != after[name]}
    assert changed <= {"MANIFEST"}, f"changed: {changed}"
    assert repair(path, QuickFiles()).ok
    assert tree(path) == after, "once more changed something"
    with open_store(path, "w", files=QuickFiles(now_s)) as db:
        found = {key: (db.entry(key).seq, db[key]) for key in db}
        expect(db, verdict, now_s * 1000)
        assert db.verify().ok
        seq = db.put("more", "1")
        assert seq > max((entry.seq for entry in verdict.must), default=0)
        db.delete("more")
    if not moved:
        expect_report(report, verdict, {seq for seq, _ in found.values()}, image)
    assert contents(path, now_s) == found
    shutil.rmtree(path)
    shutil.copytree(template, path)
    with open_store(path, "w", files=QuickFiles(now_s), recover="salvage") as db:
        if db.recovery.salvaged is not None:  # else a hint speaks for what is damaged
            assert {key: (db.entry(key).seq, db[key]) for key in db} == found
        elif report.ok:
            assert dict(db.items()) == {key: value for key, (_, value) in found.items()}
    _fail(path, chance, template, found, now_s)


def _fail(path: Path, chance: random.Random, template: Path, found: dict[bytes, Any], now_s: float) -> None:
    """Let a repair end in the middle in one way or another; the next one comes to the same."""
    errors: list[tuple[Callable[[str], BaseException], bool]] = [
        (lambda path: DiskFullError(errno.ENOSPC, "no space left", path), True),
        (lambda path: StoreIOError(errno.EROFS, "read-only", path), False),
        (lambda path: StoreFailedError(f"{path}: sync failed"), False),
        (lambda path: KeyboardInterrupt(), False),
        (lambda path: Stop(), True),
    ]
    for error, for_ever in chance.sample(errors, 2):
        shutil.rmtree(path)
        shutil.copytree(template, path)
        is_dead = isinstance(error(""), Stop)
        for _ in range(2):
            before = tree(path)
            files = Forgiving() if not is_dead else Mortal()
            files.left, files.error, files.for_ever = chance.randrange(25), error, for_ever
            try:
                repair(path, files)
            except (BytekvError, KeyboardInterrupt, Stop):
                if not is_dead and not files.published:
                    changed = {
                        name
                        for name, content in {*tree(path).items()} ^ {*before.items()}
                        if name != "MANIFEST.new" or name not in before
                    }
                    assert not changed, f"left behind after {error('')!r}: {changed}"
        repair(path, QuickFiles())
        assert contents(path, now_s) == found, f"something else after {error('')!r}"


class Forgiving(Mortal):
    """A disk that is full, or refuses one call: names can be removed all the same."""

    published = False

    def replace(self, source: str, target: str) -> None:
        super().replace(source, target)
        self.published |= target.endswith("MANIFEST")

    def unlink(self, path: str) -> bool:
        return QuickFiles.unlink(self, path)

    def sync_directory(self, path: str) -> None:
        if isinstance(self.error(path), DiskFullError):
            QuickFiles.sync_directory(self, path)
        else:
            super().sync_directory(path)

    def sync(self, descriptor: int, path: str) -> None:
        if isinstance(self.error(path), DiskFullError):
            QuickFiles.sync(self, descriptor, path)
        else:
            super().sync(descriptor, path)


def repairs(place: Path, seed: int) -> Iterator[Case]:
    """Live, crash, damage, repair, and compare with the model, for ever."""
    for number in itertools.count():
        chance = random.Random(f"{seed}-{number}")
        here = place / f"repair-{number}"
        here.mkdir()
        patches = {
            **harness.NO_WORKER,
            **harness.tuned(prepare_from=1, hint_from=1 if chance.random() < 0.5 else Tuning().hint_from),
        }
        try:
            with harness.patched(patches):
                one_case(here, chance)
        except WRONG as error:
            error.add_note(f"case {number}")
            yield Case("repairs", error)
        else:
            yield Case("repairs")
        shutil.rmtree(here, ignore_errors=True)


def test_a_repair_keeps_what_its_page_promises(path: Path) -> None:
    path.mkdir()
    expect_no_violation(itertools.islice(repairs(path, 16), 60))


@pytest.mark.deep
def test_a_repair_keeps_what_its_page_promises_at_length(path: Path) -> None:
    path.mkdir()
    expect_no_violation(itertools.islice(repairs(path, 17), 2000))
