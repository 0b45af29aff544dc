"""Write the golden stores of format version 1; run once, when the version was frozen.

::

    python -m tests.golden.make_v1

A golden store is what this version of the format looks like on disk. Every later bytekv must read it as
it was meant, so what is there already is never written again: a store that differs from what is committed
would only show that the promise was broken. A new version of the format gets a script and a folder of
its own.

Each folder holds ``store/``, the directory as its last writer left it (without LOCK, which may be lost),
and ``expected.json``, what opening it must find. The latter comes from the `Author`'s own notes, not from
reading the store. In it one character stands for one byte (latin-1), and ``[piece, n]`` for n times piece.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bytekv.engine.codec.entry import CONTINUES, ENTRY_SIZE, PUT, encode_entry
from bytekv.engine.codec.manifest import SEGMENT_HEADER_SIZE
from tests.support.harness import FakeFiles, crash, damage, open_store, segment_files

HERE = Path(__file__).parent / "v1"
Y2100_MS = 4_102_444_800_000


class FixedFiles(FakeFiles):
    """The real files with a clock set by hand and salts that are the same every time."""

    def __init__(self, *random: bytes) -> None:
        super().__init__()
        self._random = list(random)
        self._drawn = 0

    def random(self, size: int) -> bytes:
        if self._random:
            return self._random.pop(0)
        self._drawn += 1
        return hashlib.sha256(b"golden %d" % self._drawn).digest()[:size]


class Author:
    """Write a store and note beside it, in a dict, what must be read from it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "store"
        self.files = FixedFiles()
        self.seq = 0
        self.entries: dict[bytes, tuple[bytes, int, int, int | None]] = {}
        self.store: Any = None

    def open(self, **options: Any) -> None:
        self.store = open_store(self.path, files=self.files, sync="os", **{"io": "pread", **options})

    def put(self, key: bytes, value: bytes, expires_ms: int | None = None) -> None:
        self.files.sleep(0.001)
        ttl = None if expires_ms is None else (expires_ms - self.files.now_ms()) / 1000
        self.store.put(key, value, ttl=ttl)
        self._noted(key, value, expires_ms)

    def delete(self, key: bytes) -> None:
        self.files.sleep(0.001)
        assert self.store.delete(key)
        self._noted(key, None)

    def batch(self, puts: dict[bytes, bytes], deletes: tuple[bytes, ...] = ()) -> None:
        self.files.sleep(0.001)
        with self.store.batch() as batch:
            for key, value in puts.items():
                batch[key] = value
                self._noted(key, value)
            for key in deletes:
                del batch[key]
                self._noted(key, None)

    def clear(self) -> None:
        self.files.sleep(0.001)
        self.store.clear()
        self.seq += 1
        self.entries.clear()

    def _noted(self, key: bytes, value: bytes | None, expires_ms: int | None = None) -> None:
        self.seq += 1
        self.entries.pop(key, None)
        if value is not None:
            self.entries[key] = value, self.seq, self.files.now_ms(), expires_ms

    def compact(self, *victims: int) -> None:
        """Compact one run, which need not begin at the oldest segment."""
        with self.store._state.compacting:
            self.store._maintenance.compactor.run(list(victims), lambda: None, lambda _: None)

    def close(self) -> None:
        self.store.close()
        (self.path / "LOCK").unlink()

    def crash(self) -> None:
        crash(self.store)
        (self.path / "LOCK").unlink()

    def expected(self) -> dict[str, Any]:
        """Return what opening finds: keys in order, those that have expired by any clock of today left out."""
        return {
            "last_seq": self.seq,
            "entries": [
                [_text(key), _text(value), seq, modified_ms, expires_ms]
                for key, (value, seq, modified_ms, expires_ms) in sorted(self.entries.items())
                if expires_ms is None or expires_ms == Y2100_MS
            ],
        }


def _text(piece: bytes) -> str | list[Any]:
    unit = piece[: (piece + piece).find(piece, 1)] if piece else piece
    return piece.decode("latin-1") if len(piece) < 200 else [unit.decode("latin-1"), len(piece) // len(unit)]


# --- the stores --------------------------------------------------------------------------------


def empty(author: Author) -> dict[str, Any]:
    """A store in which nothing was ever written: a manifest without rows."""
    author.open()
    author.close()
    return {"clean": True, "torn_bytes": 0, "quarantined": [], "hints_used": 0}


def plain(author: Author) -> dict[str, Any]:
    """Everything that an application may write, in several segments; closed, continued, closed."""
    author.open(segment_size_bytes=320)
    author.put(b"a", b"1")
    author.put(b"b", b"2")
    author.put(b"a", b"1, changed")
    author.delete(b"b")
    author.put(b"", b"the empty key")
    author.put(b"the empty value", b"")
    author.put(bytes(range(256)), b"every byte as a key")
    author.store.sync()
    author.put("schlüssel".encode(), "größe".encode())
    author.batch({b"from": b"90", b"to": b"110"}, deletes=(b"a",))
    author.put(b"until 2100", b"still here", Y2100_MS)
    author.put(b"until 2023", b"long gone", author.files.now_ms() + 1000)
    author.put(b"more than a segment", b"0123456789" * 50)
    author.close()
    author.open(segment_size_bytes=320)
    author.put(b"a", b"1, again")
    author.close()
    return {"clean": True, "torn_bytes": 0, "quarantined": [], "hints_used": 0}


def clean_with_hints(author: Author) -> dict[str, Any]:
    """Two segments with hint files: keys of mixed and of equal sizes; the second was continued since."""
    author.open(segment_size_bytes=70_000)
    author.put(b"key 0", b"hidden by the clear")
    author.clear()
    for number in range(20):
        author.put(b"key %d" % number, b"old " * 500)
    author.put(b"large", b"8 KiB and more, " * 520)
    author.delete(b"key 3")
    author.delete(b"key 4")
    author.put(b"key 4", b"back again")
    for number in range(5, 8):
        author.put(b"key %d" % number, b"expires", Y2100_MS)
    author.put(b"", b"the empty key")
    author.put(b"fills up", b"fill" * 4600)
    while len(segment_files(author.path)) == 1:
        author.put(b"%06d" % author.seq, b"one kind of key " * 30)
    for number in range(35):
        author.put(b"%06d" % number, b"one kind of key " * 120)
    author.close()
    author.open(segment_size_bytes=70_000)
    author.put(b"after the hint", b"1")
    author.delete(b"000007")
    author.close()
    return {"clean": True, "torn_bytes": 0, "quarantined": [], "hints_used": 2}


def crashed(author: Author) -> dict[str, Any]:
    """A killed writer: the active segment is preallocated and ends in half a batch."""
    author.open(segment_size_bytes=4096)
    author.put(b"closed", b"cleanly")
    author.close()
    author.open(segment_size_bytes=4096, io="mmap")
    author.put(b"synced", b"1")
    author.store.sync()
    author.put(b"acknowledged", b"not synced, but the kernel has it")
    author.batch({b"batch:1": b"whole", b"batch:2": b"whole"})
    writer = author.store._segments.writer
    end, seed = writer.end, writer.seed
    author.crash()
    torn = b"".join(encode_entry(PUT | CONTINUES, b"lost:1", b"v", author.seq + 1, author.files.now_ms(), 0, seed))
    torn += b"".join(encode_entry(PUT, b"lost:2", b"v", author.seq + 2, author.files.now_ms(), 0, seed))[:-3]
    content = bytearray((author.path / "0000000001.seg").read_bytes())
    content[end : end + len(torn)] = torn
    (author.path / "0000000001.seg").write_bytes(content)
    return {
        "clean": False,
        "torn_bytes": len(torn),
        "quarantined": [f"quarantine/0000000001-{end}.torn"],
        "hints_used": 0,
    }


def compacted(author: Author) -> dict[str, Any]:
    """Compactions of runs in the middle: a clear and tombstones are kept, outputs lie before older ids."""
    author.open(segment_size_bytes=260)
    for number in range(8):
        author.put(b"first %d" % number, b"hidden by the clear")
    author.put(b"first 1", b"hidden, too")
    author.clear()
    for number in range(8):
        author.put(b"second %d" % number, b"2")
    author.put(b"first 2", b"newer than the clear")
    for number in range(0, 8, 2):
        author.delete(b"second %d" % number)
    author.put(b"second 4", b"put again after its delete")
    author.put(b"until 2100", b"copied with its expiry", Y2100_MS)
    author.batch({b"third 1": b"3", b"third 2": b"3"})
    rows = [row.segment_id for row in author.store._segments.sealed()]
    author.compact(*rows[1:4])  # begins after the oldest: the clear stays
    author.compact(*rows[-2:])  # tombstones stay
    author.put(b"last", b"written after the compactions")
    author.close()
    return {"clean": True, "torn_bytes": 0, "quarantined": [], "hints_used": 0}


def damaged(author: Author) -> dict[str, Any]:
    """One bit of one value in a sealed segment has changed: to be refused, never to be shortened."""
    author.open(segment_size_bytes=256)
    for number in range(12):
        author.put(b"key %d" % number, b"value %d" % number)
    author.close()
    third = SEGMENT_HEADER_SIZE + 2 * (ENTRY_SIZE + len("key 0value 0") + 4)
    damage(author.path / "0000000001.seg", third + ENTRY_SIZE + len("key 0"), 0x10)
    return {"error": {"path": "0000000001.seg", "offset": third}}


STORES: dict[str, Callable[[Author], dict[str, Any]]] = {
    "empty": empty,
    "plain": plain,
    "clean-with-hints": clean_with_hints,
    "crashed": crashed,
    "compacted": compacted,
    "damaged": damaged,
}


def _json(expected: dict[str, Any]) -> str:
    """Return JSON with one line for each entry."""
    lines = ",\n  ".join(json.dumps(entry) for entry in expected.get("entries", ()))
    text = json.dumps({**expected, "entries": []} if lines else expected, indent=1)
    return text.replace('"entries": []', f'"entries": [\n  {lines}\n ]') + "\n"


def make(name: str, folder: Path) -> None:
    """Write one golden store with what is expected of it; `FileExistsError` if there is one."""
    folder.mkdir(parents=True)
    author = Author(folder)
    recovery = STORES[name](author)
    error = recovery.pop("error", None)
    expected = {"store": " ".join((STORES[name].__doc__ or "").split())}
    expected |= {"error": error} if error else {**author.expected(), "recovery": recovery}
    (folder / "expected.json").write_text(_json(expected))


def main(root: Path = HERE) -> int:
    """Write those golden stores that do not exist."""
    for name in STORES:
        try:
            make(name, root / name)
        except FileExistsError:
            print(f"{name}: exists and is kept")
        else:
            print(f"{name}: written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
