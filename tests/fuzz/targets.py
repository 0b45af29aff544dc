"""The targets. Each takes any bytes; a `BytekvError` is an answer, everything else that is raised is a bug.

A CRC keeps a fuzzer out, so a target tries its input as it is and once more with every CRC made to fit. What is then
accepted must hold: it comes back the same when it is encoded again, it is what the independent reader reads, and what a
repair leaves opens, verifies and takes writes.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import bytekv
from bytekv.engine.codec import entry as codec
from bytekv.engine.codec.checksum import CRC, RESIDUE, checksum, seed_of
from bytekv.engine.codec.entry import FIXED_SIZE, MIN_ENTRY_SIZE
from bytekv.engine.codec.hint import HINT_HEADER, decode_hint, encode_hint
from bytekv.engine.codec.manifest import (
    LOG,
    SEALED,
    SEGMENT_HEADER_SIZE,
    SegmentHeader,
    decode_manifest,
    decode_segment_header,
    encode_manifest,
    encode_segment_header,
)
from bytekv.engine.log.resync import Resync, find_sync_mark
from bytekv.engine.log.scan import Scan
from bytekv.engine.log.summary import hint_of
from bytekv.errors import BytekvError, LimitError
from bytekv.transfer.foreign import SourceError, read_source
from bytekv.transfer.json_lines import LineError, encode_line, read_lines
from tests.fuzz import doors
from tests.fuzz.doors import http, resp
from tests.support import harness
from tests.support.forge import with_crc
from tests.support.harness import QuickFiles
from tests.support.independent_reader import read_store

GOLDEN = Path(__file__).parent.parent / "golden"
SALT = 0xA7A6A5A4A3A2A1A0
SEED = seed_of(SALT)
HEADER = SegmentHeader(bytes(range(16)), 1, SALT, LOG, 0, 0)
MIB = 1 << 20


def _with_crcs(data: bytes) -> Iterable[bytes]:
    return (data, with_crc(data)) if len(data) >= 4 else (data,)


# --- single structures -------------------------------------------------------------------------


def entry(data: bytes) -> None:
    """Decode one entry: what is accepted is what would be written for it."""
    codec.measure_entry(data)
    for raw in data, data[:-4] + CRC.pack(checksum(data[:-4], SEED)):
        with contextlib.suppress(BytekvError):
            found = codec.decode_entry(raw, SEED, "p", 0)
            flags, key, value, seq, modified_ms, expires_ms = found
            assert codec.measure_entry(raw) == len(raw)
            if expires_ms or not flags & codec.EXPIRES:  # an expiry of 0 is never written
                assert b"".join(codec.encode_entry(flags, key, value, seq, modified_ms, expires_ms, SEED)) == raw


def header(data: bytes) -> None:
    """Decode a segment header, for reading and for writing."""
    for raw in (
        data,
        *((with_crc(data[:SEGMENT_HEADER_SIZE]) + data[SEGMENT_HEADER_SIZE:],) if len(data) >= 4 else ()),
    ):
        for for_writing in False, True:
            with contextlib.suppress(BytekvError):
                found = decode_segment_header(raw, "p", for_writing=for_writing)
                again = encode_segment_header(found)
                assert decode_segment_header(again, "p", for_writing=True) == found


def manifest(data: bytes) -> None:
    """Decode a manifest, for reading and for writing."""
    for raw in _with_crcs(data):
        for for_writing in False, True:
            with contextlib.suppress(BytekvError):
                found = decode_manifest(raw, "p", for_writing=for_writing)
                assert len(found.segments) * 36 + 72 == len(raw)
                assert len({row.segment_id for row in found.segments}) == len(found.segments)
                assert [row.last_seq for row in found.segments] == sorted(row.last_seq for row in found.segments)
                assert all(row.state == SEALED for row in found.segments[:-1])
                assert decode_manifest(encode_manifest(found), "p", for_writing=True) == found


def hint(data: bytes) -> None:
    """Decode a hint of the segment that it names."""
    for raw in _with_crcs(data):
        names = HEADER
        if len(raw) >= HINT_HEADER.size:
            _, _, _, _, uuid, segment_id, salt, *_ = HINT_HEADER.unpack_from(raw)
            names = HEADER._replace(store_uuid=uuid, segment_id=segment_id, salt=salt)
        with contextlib.suppress(BytekvError):
            found = decode_hint(raw, names, "p")
            assert all(0 <= place < 1 << codec.SEGMENT_SHIFT for place in found.positions)
            assert len(found.keys) == len(found.positions)
            if len(set(found.keys)) == len(found.keys):  # else it was not made by a hint
                again = decode_hint(b"".join(encode_hint(found, names)), names, "p")
                for one, other in zip(found, again, strict=True):
                    assert one == other or list(one) == list(other)


# --- a segment ---------------------------------------------------------------------------------


def _reading(raw: bytes) -> Callable[[int, int], bytes]:
    return lambda size, offset: raw[offset : offset + size]


def _with_entry_crcs(raw: bytes) -> bytes:
    """Return the bytes behind a segment header with the CRC of every entry that follows from the lengths before it."""
    made, at = bytearray(raw), 0
    while size := codec.measure_entry(bytes(made[at : at + 7])):
        if at + size > len(made):
            break
        made[at + size - 4 : at + size] = CRC.pack(checksum(bytes(made[at : at + size - 4]), SEED))
        at += size
    return bytes(made)


def segment(data: bytes) -> None:
    """Scan what follows a segment header, contiguous and in any order, and look behind damage."""
    for raw in data, _with_entry_crcs(data):
        for first in 0, None:
            scan = Scan(_reading(raw), 0, len(raw), SEED, first)
            end, seqs, count = 0, [], 0
            for flags, key, seq, expires_ms, offset, part in scan:
                found = codec.decode_entry(part, SEED, "p", offset)
                assert (found.flags, found.key, found.seq, found.expires_ms) == (flags, key, seq, expires_ms)
                assert raw[offset : offset + len(part)] == part
                assert offset >= end
                end, count = offset + len(part), count + 1
                seqs.append(seq)
            assert end <= scan.end <= len(raw)
            assert scan.entries == count
            assert first is None or seqs == list(range(1, count + 1))
            assert scan.last_seq == (seqs[-1] if seqs else 0)
            again = Scan(_reading(raw[: scan.end]), 0, scan.end, SEED, first)
            assert (len(list(again)), again.end, again.damage) == (count, scan.end, None)
            hint = hint_of(Scan(_reading(raw), 0, len(raw), SEED, first))
            assert hint.length == scan.end
            assert 0 <= hint.live_bytes + hint.tombstone_bytes <= scan.end
            mark = find_sync_mark(_reading(raw), scan.end, len(raw), SEED, scan.last_seq)
            highest = Resync(_reading(raw), 0, len(raw), SEED).highest_mark()
            assert highest >= scan.durable_seq
            assert mark is None or highest > scan.last_seq
        following = Resync(_reading(raw), 0, len(raw), SEED).find_entry(1, range(1 << 20))
        if following is not None:
            size = codec.measure_entry(raw[following:])
            assert following >= 1
            assert size >= MIN_ENTRY_SIZE
            assert FIXED_SIZE[raw[following]]
            assert checksum(raw[following : following + size], SEED) == RESIDUE


# --- a directory -------------------------------------------------------------------------------

NAMES = ("MANIFEST", *(f"{number:010d}.{kind}" for number in range(1, 13) for kind in ("seg", "hint")), "LOCK")


def pack(files: dict[str, bytes]) -> bytes:
    """Return a directory as one piece, as the target takes it: for each file its number, length and bytes."""
    return b"".join(
        bytes((NAMES.index(name),)) + len(content).to_bytes(3, "little") + content for name, content in files.items()
    )


def unpack(data: bytes) -> dict[str, bytes]:
    files, at = {}, 0
    while at + 4 <= len(data):
        size = int.from_bytes(data[at + 1 : at + 4], "little")
        files[NAMES[data[at] % len(NAMES)]] = data[at + 4 : at + 4 + size]
        at += 4 + size
    return files


def _fitting(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return the files with CRCs that fit: manifest, hints, headers, and the entries that follow from the lengths."""
    fitting = {}
    for name, content in files.items():
        if name.endswith(".seg") and len(content) >= SEGMENT_HEADER_SIZE:
            head, at = with_crc(content[:SEGMENT_HEADER_SIZE]), SEGMENT_HEADER_SIZE
            seed, made = checksum(head[48:56]), bytearray(head + content[SEGMENT_HEADER_SIZE:])
            while (size := codec.measure_entry(bytes(made[at : at + 7]))) and at + size <= len(made):
                made[at + size - 4 : at + size] = CRC.pack(checksum(bytes(made[at : at + size - 4]), seed))
                at += size
            content = bytes(made)
        elif not name.endswith(".seg") and len(content) >= 4:
            content = with_crc(content)
        fitting[name] = content
    return fitting


_place: Path | None = None


def _fresh() -> Path:
    """Return an empty directory, the same each time; nobody wants to find thousands."""
    global _place
    if _place is None:
        _place = Path(
            tempfile.mkdtemp(prefix="bytekv-fuzz-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
        )
        atexit.register(shutil.rmtree, _place, ignore_errors=True)
    path = _place / "store"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return path


class _Files(QuickFiles):
    def yield_cpu(self) -> None:
        pass


def directory(data: bytes) -> None:
    """Open what may be a store, compare it with the independent reader, repair it and go on."""
    for files in (found := unpack(data)), _fitting(found):
        path = _fresh()
        for name, content in files.items():
            (path / name).write_bytes(content)
        content, is_from_hints = _read(path)
        if content is not None and not is_from_hints:
            independent = read_store(path, QuickFiles().now_ms())
            assert {key: value for key, (value, *_) in independent.items()} == content
        try:
            bytekv.repair(path)
        except BytekvError:
            continue
        _go_on(path)


def _read(path: Path) -> tuple[dict[bytes, bytes] | None, bool]:
    try:
        db = harness.open_store(path, "r", files=_Files(), io="pread")
    except BytekvError:
        return None, False
    try:
        return dict(db.items()), db.recovery.hints_used > 0
    except BytekvError:  # a hint that passes its checks is believed
        return None, True
    finally:
        db.close()


def _go_on(path: Path) -> None:
    """Open a repaired store, verify, write, and find all of it again; hints that lie may say what they like."""
    for name in os.listdir(path):
        if name.endswith(".hint"):
            (path / name).unlink()
    with harness.open_store(path, "w", files=_Files(), io="pread", segment_size_bytes=1000) as db:
        report = db.verify()
        assert report.ok, report
        with contextlib.suppress(LimitError):  # ids or seqs may be used up
            db[b"after"] = b"the repair"
            db.compact()
        content, seq = dict(db.items()), db.last_seq
    with harness.open_store(path, "w", files=_Files(), io="pread") as db:
        assert (dict(db.items()), db.last_seq) == (content, seq)


# --- what others wrote -------------------------------------------------------------------------


def source(data: bytes) -> None:
    """Read what may be another library's database: it ends, and gives no more than its file can hold."""
    path = _fresh()
    (path / "cache.db").write_bytes(data)
    half = len(data) // 2
    (path / "dumb.dir").write_bytes(data[:half])
    (path / "dumb.dat").write_bytes(data[half:])
    ways = [("sqlite", "cache.db", name) for name in ("Dict", "Cache")]
    for kind, name, table in (*ways, ("dbm", "cache.db", None), ("dbm", "dumb", None), ("diskcache", "", None)):
        read = 0
        with contextlib.suppress(SourceError):
            for key, value, _ in read_source(kind, str(path / name), table):
                read += len(key) + len(value)
        assert read <= 9 * len(data) + MIB
    assert {entry.name for entry in path.iterdir()} == {"cache.db", "dumb.dir", "dumb.dat"}


def lines(data: bytes) -> None:
    """Read lines of JSON: each is an entry or an error that says which line it is."""
    complaint, found = "line ", []
    try:
        found = list(read_lines(io.BytesIO(data)))
    except LineError as error:
        complaint = str(error)
    assert complaint.startswith("line ")
    assert list(read_lines(io.BytesIO(b"".join(encode_line(*row) for row in found)))) == found


def _databases() -> list[bytes]:
    """Return small databases: tables as dbm.sqlite3 and diskcache make them, in pages of 512 bytes and a WAL."""
    found: list[bytes] = []
    for first in ("PRAGMA page_size = 512", "PRAGMA journal_mode = WAL", "PRAGMA auto_vacuum = FULL"):
        path = _fresh()
        with contextlib.closing(sqlite3.connect(path / "db")) as connection:
            connection.execute(first)
            connection.execute("CREATE TABLE Dict (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")
            connection.execute("CREATE TABLE Cache (key, expire_time, mode, filename, value)")
            connection.execute("CREATE VIEW v AS SELECT * FROM Dict")
            for number in range(30):
                connection.execute("INSERT INTO Dict VALUES (?, ?)", (b"k%d" % number, b"v" * 40 * number))
                connection.execute("INSERT INTO Cache VALUES (?, NULL, 1, NULL, ?)", (number, "v" * number))
            connection.commit()
        found.append((path / "db").read_bytes())
    return found


# --- where to begin ----------------------------------------------------------------------------


def _golden() -> Iterator[tuple[str, bytes]]:
    for file in sorted(GOLDEN.rglob("store/*")):
        yield file.name, file.read_bytes()


def _small(files: dict[str, bytes]) -> dict[str, bytes]:
    """Cut off what follows in preallocated files, and leave out what is too large to be mutated with effect."""
    return {name: content.rstrip(b"\0") + bytes(64) for name, content in files.items() if len(content) < MIB}


def corpus(target: str) -> list[bytes]:
    """Return inputs to begin with, from the golden stores."""
    files = [(name, raw) for name, raw in _golden() if len(raw) < MIB]
    segments = [raw for name, raw in files if name.endswith(".seg")]
    if target == "source":
        return [*_databases(), b"'k', (0, 4)\n'l', (512, 9)\n" + b"v" * 30]
    if target == "lines":
        return [b'{"key": "a", "value_b64": "/w=="}\n\n{"key": "\\u00e9", "value": "", "expires": 2e9}\n']
    if target == "manifest":
        return [raw for name, raw in files if name == "MANIFEST"]
    if target == "hint":
        return [raw for name, raw in files if name.endswith(".hint")]
    if target == "header":
        return [raw[:SEGMENT_HEADER_SIZE] for raw in segments]
    stores = [
        {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.name in NAMES}
        for folder in sorted(GOLDEN.rglob("store"))
    ]
    if target == "directory":
        return [pack(small) for store in stores if sum(map(len, (small := _small(store)).values())) < 64 << 10]
    bodies = [_with_entry_crcs(raw[SEGMENT_HEADER_SIZE:].rstrip(b"\0"))[: 16 << 10] for raw in segments]
    if target == "segment":
        return bodies
    if target in ("resp", "http"):
        return doors.corpus(target)
    return [part for body in bodies for *_, part in Scan(_reading(body), 0, len(body), SEED, None)][:200]


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (entry, header, hint, manifest, segment, directory, source, lines, resp, http)
}
