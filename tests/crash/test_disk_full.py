"""A full disk (D11): a write that cannot be stored has no effect, what is stored stays readable and can be deleted.

First on a pretended small disk, where every capacity can be tried, then on real ones: a tmpfs and an ext4 image,
mounted in a mount namespace of their own, which takes the mount along when the process ends. There a store that wrote
to pages without blocks behind them would die of SIGBUS, so it runs in a process of its own; its exit code tells.
"""

from __future__ import annotations

import errno
import functools
import os
import shutil
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import bytekv
from bytekv.engine.store import Store
from bytekv.engine.tuning import TUNING
from bytekv.errors import DiskFullError
from tests.support.harness import FakeFiles, crash, open_store, segment_files

Content = dict[bytes, bytes]

BLOCK = 4096
KIB = 1024

ios = pytest.mark.parametrize("io", ["mmap", "pread"])
#: One active segment that grows, or many sealed ones.
segments = pytest.mark.parametrize("segment_size_bytes", [64 * KIB, 64 * KIB * KIB], ids=["small", "large"])


class SmallDisk(FakeFiles):
    """A disk of so many bytes below one directory; a refused allocation or write has taken what was left."""

    def __init__(self, root: Path, capacity: int) -> None:
        super().__init__()
        self.root, self.capacity = root, capacity

    @property
    def used(self) -> int:
        blocks = 0
        for folder, _, names in os.walk(self.root):
            for name in names:
                with suppress(FileNotFoundError):  # removed meanwhile by another thread of the store
                    blocks += os.lstat(os.path.join(folder, name)).st_blocks
        return blocks * 512

    def fill_up(self, leave: int = 0) -> None:
        """Let somebody else take what is free but for ``leave`` bytes."""
        self.capacity = self.used + leave

    def _granted(self, descriptor: int, stop: int) -> int:
        """Return how far a file that is to grow to ``stop`` may, in bytes."""
        have = os.fstat(descriptor).st_blocks * 512
        wanted = -(-stop // BLOCK) * BLOCK
        free = max(0, self.capacity - self.used) // BLOCK * BLOCK
        return stop if wanted <= have + free else have + free

    def reserve(self, descriptor: int, size: int, path: str) -> None:
        granted = self._granted(descriptor, size)
        if granted:
            super().reserve(descriptor, granted, path)
        if granted < size:
            raise DiskFullError(errno.ENOSPC, "No space left on device", path)

    def write(self, descriptor: int, piece: bytes | memoryview, offset: int, path: str) -> None:
        fits = max(0, self._granted(descriptor, offset + len(piece)) - offset)
        super().write(descriptor, memoryview(piece)[:fits], offset, path)
        if fits < len(piece):
            raise DiskFullError(errno.ENOSPC, "No space left on device", path)

    def maps_safely(self, path: str) -> bool:
        return True  # pretended, too: blocks are allocated in advance and written in place

    def free_bytes(self, path: str) -> int:
        return max(0, self.capacity - self.used)


class Tenant:
    """A store on a small disk with what it should hold."""

    def __init__(self, path: Path, capacity: int, **options: Any) -> None:
        self.path, self.options = path, options
        self.disk = SmallDisk(path.parent, capacity)
        self.model: Content = {}
        self.store = self.open()

    def open(self, **more: Any) -> Store:
        self.store = open_store(self.path, files=self.disk, **self.options, **more)
        return self.store

    def reopen(self) -> None:
        self.store.close()
        self.open()

    def put(self, key: bytes, value: bytes) -> None:
        self.store[key] = value
        self.model[key] = value

    def delete(self, *keys: bytes) -> None:
        for key in keys:
            assert self.store.delete(key)
            del self.model[key]

    def clear(self) -> None:
        self.store.clear()
        self.model = {}

    def fill(self, size: int = 300) -> None:
        """Put until the disk is full."""
        with pytest.raises(DiskFullError):
            for number in range(1 << 20):
                self.put(b"fill-%06d" % number, b"%d" % number * (size // 6))

    def expect(self) -> None:
        assert dict(self.store.items()) == self.model
        report = self.store.verify()
        assert report.ok, report
        assert self.disk.used <= max(self.disk.capacity, 0)

    def expect_refused(self, call: Any) -> None:
        """A call that cannot be stored raises, has no effect and, however often it is repeated, takes no room."""
        before, used = self.store.last_seq, []
        for _ in range(3):  # the first may begin a new segment
            with pytest.raises(DiskFullError) as caught:
                call()
            assert caught.value.errno == errno.ENOSPC
            used.append((self.disk.used, len(segment_files(self.path))))
            assert self.store.last_seq == before
            self.expect()
        assert used[0] == used[1] == used[2]


@pytest.fixture
def tenant(path: Path) -> Any:
    """Make tenants; their stores are closed and must be whole when opened with enough room."""
    tenants: list[Tenant] = []

    def make(capacity: int, **options: Any) -> Tenant:
        tenants.append(Tenant(path, capacity, **options))
        return tenants[-1]

    yield make
    for one in tenants:
        one.disk.capacity = 1 << 40
        one.store.close()
        with open_store(path) as store:
            assert dict(store.items()) == one.model
            report = store.verify()
            assert report.ok, report
            store[b"room"] = b"again"


@pytest.mark.parametrize("free", [0, BLOCK])
def test_what_a_kill_tore_is_set_aside_on_a_full_disk(path: Path, free: int):
    """The store could not be opened for writing, so that nothing could be deleted either."""
    disk = SmallDisk(path, 1 << 30)
    db = open_store(path, files=disk)
    db["whole"] = b"1"
    db.update({"torn": b"2" * 20_000, "in the middle": b"3"})
    crash(db)
    (file,) = segment_files(path)
    at = file.read_bytes().index(b"in the middle")
    with open(file, "r+b") as rewritten:
        rewritten.seek(at)
        rewritten.write(bytes(30))
    disk.fill_up(free)
    with open_store(path, files=disk) as db:
        assert dict(db) == {b"whole": b"1"}
        assert db.recovery.torn_bytes > 20_000
        assert len(Path(db.recovery.quarantined[0]).read_bytes()) == db.recovery.torn_bytes
        del db["whole"]
    with open_store(path, files=disk) as db:
        assert not db


@segments
@ios
def test_a_put_that_does_not_fit_has_no_effect(tenant: Any, io: str, segment_size_bytes: int) -> None:
    t = tenant(512 * KIB, io=io, segment_size_bytes=segment_size_bytes)
    t.fill()
    assert t.disk.free_bytes("") < 2 * TUNING.reserve + 64 * KIB, "refused though there was room"
    t.expect_refused(lambda: t.store.put(b"new", b"n" * 500))
    t.expect_refused(lambda: t.store.__setitem__(b"fill-000001", b"n" * 500))
    t.expect_refused(lambda: t.store.put(b"new", b"n" * 500, ttl=60))
    t.expect_refused(lambda: t.store.add(b"new", b"n" * 500))
    t.store.sync()
    assert t.store.durable_seq == t.store.last_seq


@segments
@ios
def test_a_value_larger_than_the_disk(tenant: Any, io: str, segment_size_bytes: int) -> None:
    t = tenant(512 * KIB, io=io, segment_size_bytes=segment_size_bytes)
    t.put(b"small", b"s")
    t.expect_refused(lambda: t.store.put(b"large", bytes(600 * KIB)))
    t.put(b"next", b"n" * 1000)
    t.expect()
    t.reopen()
    t.expect()


@segments
@ios
def test_a_batch_fits_or_does_not(tenant: Any, io: str, segment_size_bytes: int) -> None:
    t = tenant(512 * KIB, io=io, segment_size_bytes=segment_size_bytes)
    t.put(b"both", b"before")
    many = {b"b-%d" % number: bytes(7 * KIB) for number in range(100)}
    t.expect_refused(lambda: t.store.update({b"both": b"after"} | many))
    few = dict(list(many.items())[:3])
    t.store.update(few)
    t.model |= few
    t.expect()


@segments
@ios
def test_what_is_stored_can_be_deleted(tenant: Any, io: str, segment_size_bytes: int) -> None:
    """Each delete needs a few bytes; they were kept back while there was room."""
    t = tenant(512 * KIB, io=io, segment_size_bytes=segment_size_bytes)
    t.fill()
    t.delete(*list(t.model)[:200])
    with t.store.batch() as batch:
        for key in list(t.model)[:50]:
            del batch[key]
            del t.model[key]
    t.expect()


@segments
@ios
def test_deleting_and_compacting_makes_room(tenant: Any, io: str, segment_size_bytes: int) -> None:
    """Delete as long as there is room for it, compact, go on.

    A segment is copied before it goes. So if there is only one, the deletes that have room must leave little of it.
    """
    t = tenant(512 * KIB, io=io, segment_size_bytes=segment_size_bytes)
    small = segment_size_bytes == 64 * KIB
    for _ in range(3):
        t.fill(300 if small else 3000)
        kept = list(t.model)[:: 10 if small else 100]
        doomed = [key for key in t.model if key not in kept]
        while doomed:  # as many as there is room for, then make some
            try:
                while doomed:
                    t.delete(doomed[-1])
                    doomed.pop()
            except DiskFullError:
                free = t.disk.free_bytes("")
                with suppress(DiskFullError):  # no room for the whole, but for a part
                    t.store.compact()
                assert t.disk.free_bytes("") > free + TUNING.reserve
        t.store.compact()
        t.expect()
        assert t.disk.used < 256 * KIB
        t.put(b"new", b"n" * 10_000)
    t.expect()


@segments
@ios
def test_clear_and_compact_on_a_full_disk(tenant: Any, io: str, segment_size_bytes: int) -> None:
    t = tenant(512 * KIB, io=io, segment_size_bytes=segment_size_bytes)
    t.fill()
    t.clear()
    t.store.compact()
    assert segment_files(t.path) == []
    t.fill()
    t.expect()


@segments
@ios
def test_closing_and_opening_on_a_full_disk(tenant: Any, io: str, segment_size_bytes: int) -> None:
    t = tenant(512 * KIB, io=io, segment_size_bytes=segment_size_bytes)
    t.fill()
    for _ in range(3):
        t.reopen()
        assert t.store.recovery.clean
        t.expect()
        t.delete(next(iter(t.model)))


@segments
@ios
def test_a_crash_on_a_full_disk(tenant: Any, io: str, segment_size_bytes: int) -> None:
    t = tenant(512 * KIB, io=io, segment_size_bytes=segment_size_bytes)
    t.fill()
    for _ in range(3):
        crash(t.store)
        t.open()
        t.expect()
        t.delete(next(iter(t.model)))


@segments
@ios
def test_a_disk_that_others_fill_to_the_last_block(tenant: Any, io: str, segment_size_bytes: int) -> None:
    """Not a single block is left for the manifest, which every change of the set of segments replaces."""
    t = tenant(512 * KIB, io=io, segment_size_bytes=segment_size_bytes)
    t.fill()
    t.disk.fill_up()
    t.expect_refused(lambda: t.store.put(b"new", b"n" * 5000))
    t.delete(*list(t.model)[:20])
    t.reopen()  # which gives back what had been kept back, and somebody else takes it
    t.disk.fill_up()
    t.expect()
    t.expect_refused(lambda: t.store.put(b"new", b"n" * 5000))
    t.store.close()
    assert t.store.closed
    with open_store(t.path, "r", files=t.disk) as reader:
        assert dict(reader.items()) == t.model
    t.disk.capacity += 64 * KIB
    t.open()
    t.expect()
    t.delete(*list(t.model)[:20])
    t.clear()
    t.store.compact()
    t.put(b"new", b"n")
    t.expect()


@segments
@ios
def test_once_there_is_room_again_writing_goes_on(tenant: Any, io: str, segment_size_bytes: int) -> None:
    t = tenant(512 * KIB, io=io, segment_size_bytes=segment_size_bytes)
    t.fill()
    t.expect_refused(lambda: t.store.put(b"new", b"n" * 500))
    t.disk.capacity += 512 * KIB
    for number in range(500):
        t.put(b"more-%d" % number, b"m" * 500)
    t.expect()
    t.reopen()
    t.expect()


@ios
def test_a_compaction_without_room_for_the_copies_changes_nothing(tenant: Any, io: str) -> None:
    t = tenant(900 * KIB, io=io, segment_size_bytes=64 * KIB)
    for round_ in range(2):  # the older half of it is dead
        for number in range(1000):
            t.put(b"k-%d" % number, b"%d" % round_ * 300)
    for free in (0, BLOCK, 20 * KIB, 100 * KIB):
        t.disk.fill_up(leave=free)
        before = {file.name for file in segment_files(t.path)}
        try:
            t.store.compact()
        except DiskFullError:
            assert {file.name for file in segment_files(t.path)} <= before, "copies left behind"
        t.expect()
    t.disk.capacity += 512 * KIB
    t.put(b"new", b"n" * 1000)
    t.store.compact()
    t.expect()
    assert t.store.stats().dead_bytes < 100  # a sync mark


@ios
def test_a_compaction_in_the_background_is_put_off(tenant: Any, io: str, caplog: pytest.LogCaptureFixture) -> None:
    t = tenant(900 * KIB, io=io, segment_size_bytes=64 * KIB, compact_dead_bytes=1, compact_dead_ratio=0.1)
    for round_ in range(2):
        for number in range(1000):
            t.put(b"k-%d" % number, b"%d" % round_ * 300)
    t.store._worker.stop()
    t.store._maintenance.may_compact = True
    t.store._worker._stopped = False
    t.disk.fill_up()
    # Victims that are dead altogether go one run after the other, until one needs a block for copies.
    t.store._work()
    t.expect()
    t.disk.capacity += 512 * KIB
    t.put(b"new", b"n")
    t.store._work()
    assert t.store.stats().background_error is None
    assert t.store.stats().dead_bytes < 100 * KIB
    t.expect()


@ios
@segments
def test_every_capacity(path: Path, io: str, segment_size_bytes: int) -> None:
    """One short life on disks of 0, 1, 2, … blocks: each allocation and write is the first that fails, once."""
    blocks = 0
    while True:
        home = path / str(blocks)
        home.mkdir(parents=True)
        disk = SmallDisk(home, blocks * BLOCK)
        refused = _short_life(disk, home / "store", io, segment_size_bytes)
        shutil.rmtree(home)
        if not refused:
            break
        blocks += 1
    assert blocks > 20


def _short_life(disk: SmallDisk, path: Path, io: str, segment_size_bytes: int) -> int:
    """Live through everything that takes room; return how many calls were refused."""
    model: Content = {}
    refused = 0
    options: dict[str, Any] = {"io": io, "segment_size_bytes": segment_size_bytes, "files": disk}
    store: Store | None = None

    def attempt(call: Any, key: bytes | None = None, value: bytes | None = None) -> None:
        nonlocal refused
        try:
            call()
        except DiskFullError:
            refused += 1
        else:
            if value is not None:
                model[key] = value
            elif key is not None:
                model.pop(key, None)
        if store is not None and not store.closed:
            assert dict(store.items()) == model

    for round_ in range(3):
        try:
            store = open_store(path, **options)
        except DiskFullError:
            refused += 1
            continue
        here: Store = store
        assert dict(here.items()) == model
        for number in range(round_, 9, 2):
            key, value = b"k-%d" % number, b"%d" % round_ * 9000
            attempt(functools.partial(here.put, key, value), key, value)
        attempt(functools.partial(here.delete, b"k-2"), b"k-2")
        attempt(here.sync)
        attempt(here.compact)
        attempt(functools.partial(here.delete, b"k-3"), b"k-3")
        if round_ == 1:
            crash(here)
        else:
            attempt(here.close)
    disk.capacity = 1 << 40
    with open_store(path, files=disk) as store:
        assert dict(store.items()) == model
        report = store.verify()
        assert report.ok, report
    return refused


# --- real ones -----------------------------------------------------------------------------------

_TMPFS = 'mount -t tmpfs -o size=1m,mode=700 bytekv "$0"; exec "$@"'
_EXT4 = 'truncate -s 8M "$0.img"; mkfs.ext4 -q -m 0 "$0.img"; mount -o loop "$0.img" "$0"; exec "$@"'


def _in_namespace(script: str, mount_point: Path, *command: str) -> list[str]:
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    return [*unshare, "sh", "-ec", script, str(mount_point), *command]


@pytest.fixture(params=["tmpfs", "ext4"])
def real_disk(request: pytest.FixtureRequest, path: Path) -> Any:
    """Return what runs a script on a small file system of its own; skip where that is not permitted."""
    if not sys.platform.startswith("linux") or shutil.which("unshare") is None:
        pytest.skip("unshare(1) of Linux is needed to mount a small file system")
    if request.param == "ext4" and (shutil.which("mkfs.ext4") is None or os.geteuid() != 0):
        pytest.skip("mkfs.ext4 and the right to set up a loop device are needed")
    script = {"tmpfs": _TMPFS, "ext4": _EXT4}[request.param]
    mount_point = path  # in memory, as the image is: this is about space, not about a disk's speed
    mount_point.mkdir()
    probe = subprocess.run(_in_namespace(script, mount_point, "true"), capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"no small {request.param} to be had here: {probe.stderr.strip()}")

    def run(source: str, *arguments: object) -> None:
        code = textwrap.dedent(_PRELUDE) + textwrap.dedent(source)
        command = [sys.executable, "-c", code, str(mount_point), *map(str, arguments)]
        done = subprocess.run(
            _in_namespace(script, mount_point, *command),
            capture_output=True,
            text=True,
            timeout=120,
            env=os.environ | {"PYTHONPATH": str(Path(bytekv.__file__).parents[1])},
        )
        # A negative code is a signal: -7 would be SIGBUS.
        assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"

    return run


_PRELUDE = """
    import os, random, sys
    import bytekv
    from bytekv import DiskFullError

    disk, options = sys.argv[1], eval(sys.argv[2])
    path = os.path.join(disk, "store")
    with open(os.path.join(disk, "spare"), "wb") as spare:
        spare.write(bytes(65536))
    noise = random.Random(7)
    model = {}

    def open_it():
        return bytekv.open(path, **options)

    def fill(db, size=500):
        try:
            for number in range(1 << 20):
                key, value = b"k-%06d" % number, noise.randbytes(size)
                db[key] = value
                model[key] = value
        except DiskFullError:
            return
        raise SystemExit("never full")

    def fill_to_the_last_block():
        with open(os.path.join(disk, "filler"), "ab", buffering=0) as filler:
            try:
                while True:
                    filler.write(b"f" * 4096)
            except OSError:
                pass
            try:
                while True:
                    filler.write(b"f")
            except OSError:
                return

    def expect(db):
        assert dict(db.items()) == model, (len(db), len(model))
        report = db.verify()
        assert report.ok, str(report)

    def expect_refused(db, call):
        before = db.last_seq
        try:
            call()
        except DiskFullError:
            assert db.last_seq == before
        else:
            raise SystemExit("accepted")
"""

_OPTIONS = [
    {"io": io, "segment_size_bytes": size, "sync": sync, "auto_compact": False}
    for io in ("mmap", "pread")
    for size, sync in ((64 * KIB, "interval"), (64 * KIB * KIB, "os"))
]


@pytest.mark.parametrize("options", _OPTIONS, ids=str)
def test_really_full(real_disk: Any, options: dict[str, Any]) -> None:
    real_disk(
        """
        small = options["segment_size_bytes"] == 65536
        db = open_it()
        fill(db, 500 if small else 9000)
        expect(db)
        expect_refused(db, lambda: db.put(b"large", bytes(9 << 20)))
        expect_refused(db, lambda: db.update({b"b-%d" % number: bytes(90_000) for number in range(100)}))
        expect(db)
        db.sync()
        for key in list(model)[:50]:
            db.delete(key)
            del model[key]
        expect(db)
        db.close()
        db = open_it()
        expect(db)
        for key in list(model)[:-1]:
            try:
                db.delete(key)
            except DiskFullError:
                try:
                    db.compact()
                except DiskFullError:
                    pass  # no room for the whole, but for a part
                db.delete(key)
            del model[key]
        db.compact()
        expect(db)
        db[b"new"] = model[b"new"] = bytes(100_000)
        expect(db)
        db.close()
        """,
        options,
    )


@pytest.mark.parametrize("options", _OPTIONS, ids=str)
def test_really_full_to_the_last_block(real_disk: Any, options: dict[str, Any]) -> None:
    """Somebody else's file grows into every block that the store gives back."""
    real_disk(
        """
        db = open_it()
        fill(db)
        fill_to_the_last_block()
        expect_refused(db, lambda: db.put(b"new", bytes(5000)))
        expect(db)
        for key in list(model)[:20]:
            db.delete(key)
            del model[key]
        db.close()
        expect(bytekv.open(path, "r"))
        os.unlink(os.path.join(disk, "filler"))
        os.unlink(os.path.join(disk, "spare"))
        db = open_it()
        expect(db)
        db[b"new"] = model[b"new"] = bytes(1000)
        expect(db)
        db.close()
        """,
        options,
    )


@pytest.mark.parametrize("options", _OPTIONS, ids=str)
def test_killed_on_a_really_full_disk(real_disk: Any, options: dict[str, Any]) -> None:
    real_disk(
        """
        import signal
        child = os.fork()
        if child == 0:
            db = open_it()
            fill(db)
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        db = open_it()
        assert not db.recovery.clean
        model = dict(db.items())
        assert len(model) > 500
        expect(db)
        key = next(iter(model))
        db.delete(key)
        del model[key]
        expect(db)
        db.clear()
        model = {}
        db.compact()
        db[b"new"] = model[b"new"] = bytes(1000)
        expect(db)
        db.close()
        """,
        options,
    )
