"""The format page is enough: a reader written from it alone and bytekv find the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from crc32c import crc32c

from bytekv.errors import CorruptionError, UnsupportedFormatError
from tests.golden import make_v1
from tests.support import harness
from tests.support.harness import crash, open_store, segment_files
from tests.support.independent_reader import read_store

GOLDEN = sorted(folder.name for folder in make_v1.HERE.iterdir())
OPENING = [name for name in GOLDEN if name != "damaged"]

Content = dict[bytes, tuple[bytes, int, int, int]]


def read_with_bytekv(path: Path) -> Content:
    with open_store(path, "r", io="pread") as db:
        found = {}
        for key in db:
            entry = db.entry(key)
            expires_ms = round(entry.expires * 1000) if entry.expires is not None else 0
            found[key] = entry.value, entry.seq, round(entry.modified * 1000), expires_ms
        return found


def outcome(read, path: Path) -> Content | str:
    try:
        return read(path)
    except (ValueError, CorruptionError, UnsupportedFormatError):
        return "refused"


def test_it_shares_nothing_with_bytekv():
    source = (Path(__file__).parents[2] / "support/independent_reader.py").read_text()
    imports = [line for line in source.splitlines() if line.startswith(("import ", "from "))]
    assert imports == [
        "import re",
        "import struct",
        "import time",
        "from pathlib import Path",
        "from crc32c import crc32c",
    ]


@pytest.mark.parametrize("name", OPENING)
def test_both_read_the_same_from_a_golden_store(name, path):
    shutil.copytree(make_v1.HERE / name / "store", path)
    found = read_store(path)
    assert found or name == "empty"
    assert found == read_with_bytekv(path)


def test_both_refuse_the_damaged_one(path):
    shutil.copytree(make_v1.HERE / "damaged" / "store", path)
    assert outcome(read_store, path) == outcome(read_with_bytekv, path) == "refused"


def test_both_read_the_same_from_a_store_that_has_lived(open_store, path):
    db = open_store(segment_size_bytes=400)
    for number in range(200):
        db[f"key {number * 7 % 30}"] = f"value {number}"
        if number % 9 == 0:
            db.delete(f"key {number % 30}")
        if number % 40 == 20:
            with db.batch() as batch:
                for one in range(10):
                    batch[f"batch {one}"] = bytes(one)
        if number == 100:
            db.clear()
        if number % 70 == 69:
            db.compact()
        if number % 60 == 0:
            db.sync()
    crash(db)
    assert read_store(path) == read_with_bytekv(path)
    open_store(segment_size_bytes=400).close()
    assert read_store(path) == read_with_bytekv(path)


@pytest.mark.parametrize("name", ["crashed", "compacted"])
def test_both_say_the_same_of_every_flipped_byte(name, path, monkeypatch):
    """The rules of the page for damage and for torn tails are those of the engine."""
    harness.tune(monkeypatch, tries=1)  # there is no writer to wait for
    shutil.copytree(make_v1.HERE / name / "store", path)
    whole = read_store(path)
    answers = set()
    for file in [path / "MANIFEST", *segment_files(path)]:
        content = file.read_bytes()
        for offset in range(len(content.rstrip(b"\0")) + 2):
            if offset >= len(content):
                break
            damaged = bytearray(content)
            damaged[offset] ^= 0x01
            with file.open("r+b") as out:
                out.seek(offset)
                out.write(damaged[offset : offset + 1])
            theirs, ours = outcome(read_store, path), outcome(read_with_bytekv, path)
            assert theirs == ours, (file.name, offset)
            answers.add("refused" if ours == "refused" else "whole" if ours == whole else "less")
            with file.open("r+b") as out:
                out.seek(offset)
                out.write(content[offset : offset + 1])
    # Only the entries that nothing vouches for may be lost without an error: those of a torn tail.
    assert answers == ({"refused", "whole", "less"} if name == "crashed" else {"refused"})


def test_what_was_there_at_the_last_clean_close_is_never_a_torn_tail(path, monkeypatch):
    """No sync mark follows, only the length in the manifest vouches for it."""
    harness.tune(monkeypatch, tries=1)
    with open_store(path, sync="os", io="pread") as db:
        db.update({"a": "1", "b": "2"})
    (file,) = segment_files(path)
    closed = file.stat().st_size
    db = open_store(path, sync="os", io="pread")
    db["c"] = "3"
    crash(db)
    content = file.read_bytes()
    whole = read_store(path)
    for offset in range(len(content.rstrip(b"\0"))):
        file.write_bytes(content[:offset] + bytes([content[offset] ^ 0x40]) + content[offset + 1 :])
        theirs, ours = outcome(read_store, path), outcome(read_with_bytekv, path)
        assert theirs == ours == ("refused" if offset < closed else {key: whole[key] for key in (b"a", b"b")}), offset


def test_both_refuse_a_segment_of_another_store(path):
    """Same length, same keys, same seqs; only uuid and salt tell them apart."""
    other = path.with_name("other")
    for at in (path, other):
        with open_store(at, sync="os", io="pread") as db:
            db["a"] = "1"
    shutil.copy(other / "0000000001.seg", path)
    assert outcome(read_store, path) == "refused"
    with pytest.raises(CorruptionError, match="another store"):
        open_store(path, "r")


@pytest.mark.parametrize("more", [-1, 1])
@pytest.mark.parametrize("name", ["plain", "crashed"])
def test_both_refuse_a_log_that_does_not_end_at_the_seq_that_the_manifest_says(name, more, path):
    shutil.copytree(make_v1.HERE / name / "store", path)
    content = bytearray((path / "MANIFEST").read_bytes())
    content[-4 - 36 + 24] += more if name == "plain" else 10
    content[-4:] = crc32c(bytes(content[:-4])).to_bytes(4, "little")
    (path / "MANIFEST").write_bytes(content)
    assert outcome(read_store, path) == outcome(read_with_bytekv, path) == "refused"


def test_what_lies_behind_a_sealed_segment_is_no_part_of_it(path):
    """As after a kill between publishing a segment's length and cutting its file."""
    shutil.copytree(make_v1.HERE / "plain" / "store", path)
    whole = read_store(path)
    with segment_files(path)[0].open("ab") as file:
        file.write(bytes(100) + segment_files(path)[1].read_bytes())
    assert read_store(path) == read_with_bytekv(path) == whole


def test_both_say_the_same_of_every_cut(path):
    shutil.copytree(make_v1.HERE / "crashed" / "store", path)
    (file,) = segment_files(path)
    content = file.read_bytes().rstrip(b"\0")
    for size in range(len(content), -1, -1):
        file.write_bytes(content[:size])
        assert outcome(read_store, path) == outcome(read_with_bytekv, path), size


@pytest.mark.parametrize(
    ("file", "at", "size"),
    [("MANIFEST", 8, None), ("MANIFEST", 20, None), ("0000000001.seg", 8, 80), ("0000000001.seg", 20, 80)],
    ids=["manifest version", "manifest incompat", "segment version", "segment incompat"],
)
def test_both_refuse_a_newer_format(file, at, size, path):
    shutil.copytree(make_v1.HERE / "plain" / "store", path)
    content = bytearray((path / file).read_bytes())
    content[at] ^= 0x80
    end = (size or len(content)) - 4
    content[end : end + 4] = crc32c(bytes(content[:end])).to_bytes(4, "little")
    (path / file).write_bytes(content)
    assert outcome(read_store, path) == outcome(read_with_bytekv, path) == "refused"


@pytest.mark.parametrize("at", [12, 16], ids=["compat", "read-only compat"])
def test_both_read_on_over_flags_that_do_not_concern_readers(at, path):
    shutil.copytree(make_v1.HERE / "plain" / "store", path)
    whole = read_store(path)
    for file, end in (("MANIFEST", -4), ("0000000001.seg", 76)):
        content = bytearray((path / file).read_bytes())
        content[at] ^= 0x80
        end %= len(content)
        content[end : end + 4] = crc32c(bytes(content[:end])).to_bytes(4, "little")
        (path / file).write_bytes(content)
    assert read_store(path) == read_with_bytekv(path) == whole
