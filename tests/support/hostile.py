"""Directories that somebody made to do harm, and what every operation may do about them.

A `Craft` turns a store that was good into something else: lies in any field, with CRCs that fit; files that are
links, pipes, devices or directories; files that seem to be terabytes. An `Arena` lets an operation loose on it and sees
to it that

- nothing but a `BytekvError` is raised, and nothing hangs;
- memory stays within a few windows of 1 MiB, and the number of system calls within a bound, whatever a file asks for;
- nothing outside of the directory is touched, neither contents nor metadata, and a reader touches nothing inside;
- whatever is made has mode 0600, or 0700 if it is a directory, whatever the umask.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import signal
import socket
import stat
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple
from unittest import mock

from bytekv.engine.codec.entry import CLEAR, CONTINUES, EXPIRES, PUT, SYNC_MARK, TOMBSTONE
from bytekv.engine.codec.manifest import ACTIVE
from bytekv.engine.store import Store
from bytekv.errors import BytekvError
from tests.engine.integrity.test_sweeps import STORIES, Story
from tests.support import forge, harness
from tests.support.fault_files import SystemCalls
from tests.support.forge import OUTPUT, Entry, Segment
from tests.support.harness import WRONG, Case, QuickFiles, patched, repair, tuned
from tests.support.independent_reader import read_store

MEMORY_BYTES = 24 << 20
SYSTEM_CALLS = 4000
PASSES = (
    22  # over a file, at 1 MiB a call: 16 are what a search behind damage may spend on what only looks like entries
)
HANGS_AFTER_S = 60
TOP = (1 << 64) - 1

# --- what is done to a directory ---------------------------------------------------------------


def _try(call: Callable[[], object]) -> None:
    with contextlib.suppress(BytekvError):
        call()


def _read(db: Store) -> None:
    _try(lambda: dict(db.items()))
    _try(lambda: list(reversed(db)))
    for key in list(db)[:20]:
        for look in db.get, db.ttl, db.entry, db.read:
            _try(lambda look=look, key=key: look(key))  # type: ignore[misc]
    _try(db.stats)
    _try(lambda: [*itertools.islice(db.changes(), 1000)])
    _try(db.verify)


def _write(db: Store) -> None:
    keys = list(db)
    for number in range(12):
        _try(lambda number=number: db.put(b"new %d" % number, b"v" * 60))  # type: ignore[misc]
    _try(lambda: db.put(b"late", b"v", ttl=1000))
    _try(lambda: db.update({b"b 1": b"1", b"b 2": b"2", b"new 0": b"3"}))
    for key in keys[:4]:
        _try(lambda key=key: db.delete(key))  # type: ignore[misc]
    _try(lambda: db.incr(b"counter"))
    _try(db.sync)
    _try(db._work)
    _try(lambda: db.compact())
    _try(db.verify)


def _open(path: Path, flag: str, io: str, **options: Any) -> None:
    db = harness.open_store(path, flag, files=_Files(), segment_size_bytes=600, io=io, auto_compact=True, **options)
    try:
        if flag == "r" and not db.recovery.hints_used:
            _compare(path, db)
        _read(db)
        if flag != "r":
            _write(db)
            _read(db)
    finally:
        db.close()


def _compare(path: Path, db: Store) -> None:
    """Compare with a reader that knows the format page and nothing else, unless files are too large for it."""
    if sum(file.lstat().st_size for file in path.iterdir()) > 1 << 20:
        return
    independent = read_store(path, db._files.now_ms())
    assert {key: value for key, (value, *_) in independent.items()} == dict(db.items())


class _Files(QuickFiles):
    """The usual quick ones; a reader need not wait for a writer that is not there."""

    def yield_cpu(self) -> None:
        pass


def _refresh(reader: Store | None) -> None:
    """Have a reader that saw the good store look at what has become of it."""
    assert reader is not None
    _try(reader.refresh)
    _read(reader)
    _try(reader.refresh)


OPERATIONS: dict[str, Callable[[Arena, str], object]] = {
    "w": lambda arena, io: _open(arena.path, "w", io),
    "r": lambda arena, io: _open(arena.path, "r", io),
    "c": lambda arena, io: _open(arena.path, "c", io),
    "repair": lambda arena, io: repair(arena.path),
    "n": lambda arena, io: _open(arena.path, "n", io),
    "salvage": lambda arena, io: _open(arena.path, "w", io, recover="salvage"),
    "refresh": lambda arena, io: _refresh(arena.reader),
}
READS_ONLY = ("r", "refresh")


# --- where it is done --------------------------------------------------------------------------


class Described(NamedTuple):
    """What must not change about a file; only reading it may leave a trace, its access time."""

    mode: int
    owner: int
    group: int
    size: int
    modified_ns: int
    content: object


def _described(path: str) -> Described:
    found = os.lstat(path)
    content: object = None
    if stat.S_ISREG(found.st_mode) and found.st_size < 1 << 20:
        with contextlib.suppress(PermissionError), open(path, "rb") as file:
            content = file.read()
    elif stat.S_ISLNK(found.st_mode):
        content = os.readlink(path)
    return Described(found.st_mode, found.st_uid, found.st_gid, found.st_size, found.st_mtime_ns, content)


def tree_of(root: Path) -> dict[bytes, Described]:
    """Describe everything below a directory, and itself; nothing if it is no directory."""
    found = {os.fsencode(root): _described(str(root))} if os.path.lexists(root) else {}
    if not root.is_symlink():
        for folder, folders, names in os.walk(root):
            for name in [*folders, *names]:
                path = os.path.join(folder, name)
                found[os.fsencode(path)] = _described(path)
    return found


def _windows(tree: dict[bytes, Described]) -> int:
    """Return how many MiB all files seem to have, none more than a segment can; a row of a manifest counts as one."""
    manifests = (found.size // 36 for path, found in tree.items() if path.endswith(b"MANIFEST"))
    return sum(min(found.size, 1 << 31) >> 20 for found in tree.values()) + sum(
        min(rows, 1 << 20) for rows in manifests
    )


def _mode(path: bytes) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


class Arena:
    """A place with a store that was good, and with things outside of it that nobody may touch."""

    def __init__(self, place: Path) -> None:
        self.place, self.path, self.outside = place, place / "store", place / "outside"
        self.sockets: list[socket.socket] = []
        self.pristine: dict[str, bytes] = {}
        self.reader: Store | None = None
        self.calls = 0
        self.peak = 0

    def prepare(self, pristine: dict[str, bytes], make: Callable[[Arena], None], *, with_reader: bool = False) -> None:
        """Put a store down, open a reader if it is wanted, and let the store be spoilt."""
        self.clear()
        self.pristine = pristine
        self.path.mkdir(mode=0o700)
        (self.outside / "folder").mkdir(parents=True)
        (self.outside / "precious").write_bytes(b"precious" * 100)
        (self.outside / "folder" / "inside").write_bytes(b"inside")
        for name, content in pristine.items():
            (self.path / name).write_bytes(content)
        if with_reader:  # not through a mapping: no Python program survives it if somebody cuts a mapped file
            self.reader = harness.open_store(self.path, "r", files=_Files(), io="pread")
        make(self)

    def clear(self) -> None:
        if self.reader is not None:
            self.reader.close()
            self.reader = None
        while self.sockets:
            self.sockets.pop().close()
        for path in self.path, self.outside:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.chmod(path, 0o700, follow_symlinks=False) if not path.is_symlink() else None
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif os.path.lexists(path):
                path.unlink()

    def run(self, operation: str, io: str, umask: int) -> None:
        """Carry out one operation and check all that is promised."""
        before, outside = tree_of(self.path), tree_of(self.outside)
        old_umask = os.umask(umask)
        try:
            with _measured(self) as calls, contextlib.suppress(BytekvError):
                OPERATIONS[operation](self, io)
        finally:
            os.umask(old_umask)
        self.calls = calls.counts["any"]
        after = tree_of(self.path)
        assert tree_of(self.outside) == outside, "something outside was touched"
        if operation in READS_ONLY:
            assert after == before, "a reader changed something"
        for path in after.keys() - before.keys():
            wanted = 0o700 if stat.S_ISDIR(os.lstat(path).st_mode) else 0o600
            assert _mode(path) == wanted, f"{path!r} has mode {_mode(path):o}"
        assert self.peak < MEMORY_BYTES, f"{self.peak:,} bytes of memory"
        bound = SYSTEM_CALLS + PASSES * _windows(before)
        assert self.calls < bound, f"{self.calls:,} system calls of {bound:,}: {calls.counts}"


class Hung(Exception):
    """An operation did not come back."""


def _hung(number: int, frame: FrameType | None) -> None:
    raise Hung(f"after {HANGS_AFTER_S} s")


@contextlib.contextmanager
def _measured(arena: Arena) -> Iterator[SystemCalls]:
    """Count system calls, measure memory, and end what hangs."""
    old = signal.signal(signal.SIGALRM, _hung)
    signal.alarm(HANGS_AFTER_S)
    tracemalloc.start()
    try:
        with SystemCalls() as calls:
            calls.count()
            yield calls
    finally:
        arena.peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


# --- how it is spoilt --------------------------------------------------------------------------


class Craft(NamedTuple):
    """A way to spoil a store: which one, and how."""

    name: str
    story: str
    make: Callable[[Arena], None]


def _rewritten(name: str, content: bytes) -> Callable[[Arena], None]:
    return lambda arena: (arena.path / name).write_bytes(content) and None


def _lies_in(
    story: str, name: str, raw: bytes, fields: list[forge.Field], crc: Callable[[bytes], bytes]
) -> Iterator[Craft]:
    for field in fields:
        for value in forge.values_for(field.size, field.get(raw)):
            lie = f"{name}: {field.name} = {value:#x}"
            yield Craft(lie, story, _rewritten(name, crc(field.set(raw, value))))


def lies(story: str, pristine: dict[str, bytes]) -> Iterator[Craft]:
    """Yield a lie for every integer of every file, with CRCs that fit."""
    raw = pristine["MANIFEST"]
    rows = (len(raw) - 72) // 36
    fields = [*forge.MANIFEST_FIELDS, *itertools.chain.from_iterable(map(forge.row_fields, range(rows)))]
    yield from _lies_in(story, "MANIFEST", raw, fields, forge.with_crc)
    for name, raw in pristine.items():
        if name.endswith(".hint"):
            yield from _lies_in(story, name, raw, forge.HINT_FIELDS, forge.with_crc)
            puts = forge.HINT_FIELDS[-3].get(raw)
            columns = [forge.Field(f"column_{at}", at, 8) for at in range(92, 92 + 8 * puts, 8)[:3]]
            columns += [forge.Field(f"column_{at}", at, 2) for at in range(92 + 8 * puts, len(raw) - 6, 2)[:8]]
            yield from _lies_in(story, name, raw, columns, forge.with_crc)
        elif name.endswith(".seg"):
            yield from _lies_in(story, name, raw, forge.SEGMENT_FIELDS, forge.with_header_crc)
            for offset, size in [*forge.places_of(raw)][::3]:
                yield from _lies_in(
                    story,
                    name,
                    raw,
                    forge.entry_fields(offset),
                    lambda lie, offset=offset, size=size: forge.with_entry_crc(lie, offset, size),  # type: ignore[misc]
                )


def _names(pristine: dict[str, bytes]) -> list[str]:
    """Name what may be replaced by something that is no file."""
    segments = [name for name in pristine if name.endswith(".seg")]
    hints = [name for name in pristine if name.endswith(".hint")]
    strangers = ["MANIFEST.new", "quarantine", "0000000077.seg", "0000000077.hint", "stranger"]
    return [*segments[:1], *segments[-1:], *hints[:1], "MANIFEST", "LOCK", *strangers]


def _removed(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def _device(path: Path, major: int, minor: int) -> None:
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(major, minor))
    except PermissionError:
        path.symlink_to("/dev/null")  # not root, or no devices here


def _socket(arena: Arena, path: Path) -> None:
    made = socket.socket(socket.AF_UNIX)
    made.bind(os.path.relpath(path))
    arena.sockets.append(made)


def _linked(arena: Arena, path: Path, name: str) -> None:
    """Give the good file a second name outside; where there is none, another file."""
    twin = arena.outside / "twin"
    twin.write_bytes(arena.pristine.get(name, b"precious"))
    os.link(twin, path)


KINDS: dict[str, Callable[[Arena, Path, str], object]] = {
    "a link to a file outside": lambda arena, path, name: path.symlink_to(arena.outside / "precious"),
    "a link to its like outside": lambda arena, path, name: (
        (arena.outside / "twin").write_bytes(arena.pristine.get(name, b"")),
        path.symlink_to(arena.outside / "twin"),
    ),
    "a link to a directory outside": lambda arena, path, name: path.symlink_to(arena.outside / "folder"),
    "a dangling link to outside": lambda arena, path, name: path.symlink_to(arena.outside / "not there"),
    "a link to itself": lambda arena, path, name: path.symlink_to(path.name),
    "a link to /dev/zero": lambda arena, path, name: path.symlink_to("/dev/zero"),
    "a link to /dev/full": lambda arena, path, name: path.symlink_to("/dev/full"),
    "a second name of a file outside": _linked,
    "a pipe": lambda arena, path, name: os.mkfifo(path),
    "a socket": lambda arena, path, name: _socket(arena, path),
    "/dev/zero": lambda arena, path, name: _device(path, 1, 5),
    "/dev/full": lambda arena, path, name: _device(path, 1, 7),
    "an empty directory": lambda arena, path, name: path.mkdir(),
    "a directory with a file": lambda arena, path, name: (path.mkdir(), (path / "0000000001.seg").write_bytes(b"1")),
    "missing": lambda arena, path, name: None,
    "empty": lambda arena, path, name: path.write_bytes(b""),
    "a terabyte of nothing": lambda arena, path, name: _sparse(path, b"", 1 << 40),
    "followed by a terabyte of nothing": lambda arena, path, name: _sparse(
        path, arena.pristine.get(name, b""), 1 << 40
    ),
    "followed by a gigabyte, and a byte": lambda arena, path, name: _sparse(
        path, arena.pristine.get(name, b""), 1 << 30, b"!"
    ),
}


def _sparse(path: Path, content: bytes, length: int, end: bytes = b"") -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.truncate(length)
        file.seek(length)
        file.write(end)


def strange_files(story: str, pristine: dict[str, bytes]) -> Iterator[Craft]:
    """Yield a store with something else in the place of each of its files."""
    for name in _names(pristine):
        for kind, make in KINDS.items():

            def spoil(arena: Arena, name: str = name, make: Callable[..., object] = make) -> None:
                _removed(arena.path / name)
                make(arena, arena.path / name, name)

            yield Craft(f"{name}: {kind}", story, spoil)
    for kind in "a link to a file outside", "a link to a directory outside", "a dangling link to outside", "a pipe":

        def spoil_inside(arena: Arena, make: Callable[..., object] = KINDS[kind]) -> None:
            (arena.path / "quarantine").mkdir(mode=0o700)
            for name in [*arena.pristine, "0000000003-80.torn"]:
                for suffix in ".damaged", ".damaged.new", ".new", "":
                    with contextlib.suppress(FileExistsError):
                        make(arena, arena.path / "quarantine" / (name.removesuffix(".seg") + suffix), name)

        yield Craft(f"in quarantine: {kind}", story, spoil_inside)
    for kind, make in KINDS.items():

        def spoil_all(arena: Arena, make: Callable[..., object] = make) -> None:
            shutil.rmtree(arena.path)
            make(arena, arena.path, "MANIFEST")

        yield Craft(f"the directory: {kind}", story, spoil_all)


#: Names that are nearly names of segments.
NEARLY = [
    b"000000001.seg",
    b"00000000001.seg",
    b"0000000001.seg.",
    b"0000000001.SEG",
    b"0000000001.seg\n",
    b"+000000001.seg",
    b"0000000000.seg",
    b"99999999999999999999.seg",
    b"18446744073709551615.seg",
    b"18446744073709551616.hint",
    b"9223372036854775807.seg",
    "٠٠٠٠٠٠٠٠٠٧.seg".encode(),
    b"\xff\xfe.seg",
    b"0000000007\xff.seg",
    b"MANIFEST\xff",
    b"LOCK.new",
    b"manifest",
    b"...",
    b"-rf",
    b"\x1b]0;title\x07.seg",
    b"%s%n.hint",
    b"n" * 255,
]


def strange_names(story: str) -> Iterator[Craft]:
    for name in NEARLY:

        def spoil(arena: Arena, name: bytes = name) -> None:
            with open(os.path.join(os.fsencode(arena.path), name), "wb") as file:
                file.write(b"a stranger's")

        yield Craft(f"beside it: {name!r}", story, spoil)


def _forged(name: str, *segments: Segment, **lies: int) -> Craft:
    return Craft(name, "closed", lambda arena: _forge(arena, segments, lies))


def _forge(arena: Arena, segments: tuple[Segment, ...], lies: dict[str, int]) -> None:
    for name in os.listdir(arena.path):
        (arena.path / name).unlink()
    forge.write_store(arena.path, segments, **lies)


def _some(first: int, count: int = 3) -> tuple[Entry, ...]:
    return tuple(Entry(seq, b"key %d" % (seq % 5)) for seq in range(first, first + count))


def forged() -> Iterator[Craft]:
    """Yield stores that were never written by bytekv, and whose CRCs fit."""
    seqs = [1, (1 << 63) - 4, (1 << 63) - 2, (1 << 63) - 1, 1 << 63, TOP - 4, TOP - 3, TOP]
    for seq, state, kind in itertools.product(seqs, (0, 1), (0, 1, 2, 9)):
        entries = _some(min(seq + 1, TOP - 2))
        last = entries[-1].seq
        how = f"kind {kind}, state {state}, seqs from {seq + 1:#x}"
        yield _forged(how, Segment(1, entries, kind, (0, seq), last, state))
        yield _forged(how + ", last of all", Segment(1, entries, kind, (0, seq), last, state), last_seq=TOP)
        yield _forged(how + ", none in it", Segment(1, (), kind, (0, seq), seq, state), last_seq=seq)
        torn = Segment(1, entries, kind, (0, seq), seq, ACTIVE, length=80, file_length=5000)
        yield _forged(how + ", torn", torn, last_seq=seq)
    for segment_id in 1, (1 << 32), (1 << 60), (1 << 63), TOP - 1, TOP:
        for state in 0, 1:
            yield _forged(f"id {segment_id:#x}, state {state}", Segment(segment_id, _some(1), state=state))
        yield _forged(f"next id {segment_id:#x}", Segment(1, _some(1), state=ACTIVE), next_id=segment_id)
    one, two, three = Segment(1, _some(1)), Segment(2, _some(4), previous=(1, 3)), Segment(3, _some(7), previous=(2, 6))
    active = three._replace(state=ACTIVE)
    yield _forged("the same segment twice", one, one)
    yield _forged("the same segment three times, active", one, two, one._replace(state=ACTIVE))
    yield _forged("two are active", one._replace(state=ACTIVE), two._replace(state=ACTIVE))
    yield _forged("in the wrong order", two, one)
    yield _forged("the first is missing in the list", two, three)
    yield _forged("names itself as predecessor", one, two._replace(previous=(2, 3)), active)
    yield _forged("names itself, and only it is there", two._replace(previous=(2, 3)))
    yield _forged("predecessors in a circle", one._replace(previous=(3, 0)), two, active)
    yield _forged("names one that does not exist", one, two._replace(previous=(TOP, 3)), active)
    yield _forged("begins after what was never written", one, two._replace(previous=(9, 100)))
    yield _forged("begins after what was never written, active", one, active._replace(previous=(9, 100), last_seq=100))
    yield _forged("of another store", one, two._replace(uuid=bytes(16)), active)
    yield _forged("with the salt of another", one, two._replace(salt=8), active)
    yield _forged("shorter than its row", one, two._replace(length=5000), active)
    yield _forged("longer than its row", one, two._replace(length=100), active)
    yield _forged("as long as a segment can be", one, two._replace(length=(1 << 31) - 1, file_length=(1 << 31) - 1))
    yield _forged("active, and much longer than a segment can be", one, two._replace(state=ACTIVE, file_length=1 << 42))
    yield _forged("no segments, seqs at the end", last_seq=TOP)
    yield _forged("no segments, ids at the end", next_id=TOP)
    yield _forged("no segments, ids at the beginning", next_id=0)
    many = tuple(Segment(number, salt=number, last_seq=0) for number in range(1, 3000))
    yield Craft(
        "a list of thousands that are not there",
        "closed",
        lambda arena: _rewritten("MANIFEST", forge.manifest(many))(arena),
    )
    yield from _strange_entries()


def _strange_entries() -> Iterator[Craft]:
    far = (1 << 63) - 1
    tables: dict[str, tuple[Entry, ...]] = {
        "a batch without end": (Entry(1, flags=PUT | CONTINUES), Entry(2, flags=PUT | CONTINUES)),
        "a sync mark in a batch": (Entry(1, flags=PUT | CONTINUES), Entry(1, b"", b"", SYNC_MARK), Entry(2)),
        "a sync mark for what was never written": (Entry(1), Entry(TOP, b"", b"", SYNC_MARK)),
        "a sync mark with a key": (Entry(1), Entry(1, b"key", b"value", SYNC_MARK)),
        "a clear with a key": (Entry(1), Entry(2, b"key", b"value", CLEAR)),
        "a tombstone with a value": (Entry(1), Entry(2, b"key", b"value", TOMBSTONE)),
        "a tombstone in a batch with a clear": (Entry(1, flags=TOMBSTONE | CONTINUES), Entry(2, b"", b"", CLEAR)),
        "expired since 1970": (Entry(1, flags=PUT | EXPIRES, expires_ms=1), Entry(2)),
        "expires at no time": (Entry(1, flags=PUT | EXPIRES, expires_ms=0), Entry(2)),
        "expires at the end of time": (Entry(1, flags=PUT | EXPIRES, expires_ms=TOP), Entry(2, b"2", b"", far & 1)),
        "the longest key": (Entry(1, b"k" * 65_535), Entry(2)),
        "a value like a segment": (Entry(1, value=Segment(1, _some(1)).encode()), Entry(2)),
        "the same seq again": (Entry(1), Entry(1), Entry(1, flags=TOMBSTONE)),
        "a gap": (Entry(1), Entry(3)),
        "backwards": (Entry(2), Entry(1)),
    }
    for name, entries in tables.items():
        for kind, state in itertools.product((0, OUTPUT), (0, ACTIVE)):
            segment = Segment(1, entries, kind, state=state)
            yield _forged(f"{name}, kind {kind}, state {state}", segment)
            yield _forged(f"{name}, kind {kind}, torn", segment._replace(state=ACTIVE, length=80, file_length=3000))


def asks_for_gigabytes() -> Iterator[Craft]:
    """Yield entries that say they are as long as can be, in files that seem to be."""
    for value_size in (1 << 30) - 200, 1 << 30, (1 << 31) - 200, (1 << 32) - 1:
        for state in 0, 1:
            for times in 1, 200:

                def spoil(arena: Arena, value_size: int = value_size, state: int = state, times: int = times) -> None:
                    length = (1 << 31) - 1
                    _forge(arena, (Segment(1, _some(1), state=state, length=length, file_length=length),), {})
                    with open(arena.path / "0000000001.seg", "r+b") as file:
                        file.seek(80 + 3 * 37)
                        for number in range(times):
                            file.write(forge.ENTRY.pack(PUT, 5, value_size, 4 + number, 0))

                yield Craft(f"{times} entries of {value_size:,} bytes, state {state}", "closed", spoil)


def a_hint_of_gigabytes() -> Iterator[Craft]:
    def spoil(arena: Arena) -> None:
        for name in arena.pristine:
            if name.endswith(".hint"):
                _sparse(arena.path / name, arena.pristine[name][:-4], 1 << 31)

    yield Craft("hints of two gigabytes", "closed", spoil)


def all_crafts(stories: dict[str, Story]) -> list[Craft]:
    found = [*forged(), *asks_for_gigabytes(), *a_hint_of_gigabytes()]
    for story, (pristine, *_) in stories.items():
        found += [*lies(story, pristine), *strange_files(story, pristine), *strange_names(story)]
    return found


# --- all of it ---------------------------------------------------------------------------------


@contextlib.contextmanager
def small_things_count() -> Iterator[None]:
    """Have hint files for the smallest segments, no thread, and few tries beside a writer that is not there."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch("bytekv.engine.space.worker.Worker.wake", return_value=True))
        stack.enter_context(patched(tuned(hint_from=1, tries=2)))
        yield


def stories_of(place: Path) -> dict[str, Story]:
    """Build the stores that are spoilt, in memory."""
    found = {}
    for name, (build, options) in STORIES.items():
        found[name] = build(place / name, 2, **options)
        shutil.rmtree(place / name)
    return found


UMASKS = (0o022, 0o000, 0o777, 0o077)


def hostile_directories(place: Path, seed: int, every: int = 1) -> Iterator[Case]:
    """Let every operation loose on every craft, in an order that the seed decides; or each ``every``-th of them."""
    with small_things_count():
        stories, arena = stories_of(place), Arena(place)
        cases = [*itertools.product(all_crafts(stories), OPERATIONS)]
        random.Random(seed).shuffle(cases)
        try:
            for number, (craft, operation) in enumerate(itertools.islice(cases, 0, None, every)):
                io, umask = ("mmap", "pread")[number // 2 % 2], UMASKS[number % len(UMASKS)]
                try:
                    arena.prepare(stories[craft.story].pristine, craft.make, with_reader=operation == "refresh")
                    arena.run(operation, io, umask)
                except WRONG as error:
                    error.add_note(f"{craft.story}; {craft.name}; {operation}; io {io}, umask {umask:o}")
                    yield Case("hostile directories", error)
                else:
                    yield Case("hostile directories")
        finally:
            arena.clear()
