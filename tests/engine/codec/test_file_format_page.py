"""docs/reference/file-format.md says the same as bytekv/engine/codec/.

The page is written for people without this source, so nothing of it is generated. Instead each table is
read back and compared with the struct it describes, and the worked example is made anew.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from struct import Struct, calcsize
from typing import NamedTuple

import pytest

import bytekv
from bytekv.contract import convert
from bytekv.engine.codec import entry as codec
from bytekv.engine.codec.checksum import CRC_SIZE, FORMAT_VERSION, RESIDUE, checksum, seed_of
from bytekv.engine.codec.hint import HINT_CLEARS, HINT_HEADER, HINT_MAGIC, Hint, encode_hint
from bytekv.engine.codec.manifest import (
    ACTIVE,
    LOG,
    MANIFEST_HEADER,
    MANIFEST_MAGIC,
    MANIFEST_ROW,
    MAX_NUMBER,
    MAX_SEGMENT_SIZE,
    MAX_SEGMENTS,
    MAX_SEQ_TO_BEGIN_AFTER,
    OUTPUT,
    SEALED,
    SEGMENT_HEADER,
    SEGMENT_HEADER_SIZE,
    SEGMENT_MAGIC,
    Manifest,
    SegmentHeader,
    SegmentRow,
    encode_manifest,
    encode_segment_header,
)
from tests.golden.make_v1 import Y2100_MS, FixedFiles
from tests.support.harness import open_store

PAGE = (Path(__file__).parents[3] / "docs/reference/file-format.md").read_text(encoding="utf-8")

UUID = bytes(range(16))
SALT = bytes(range(0xA0, 0xA8))
NOW_MS = 1_700_000_000_000

# --- reading the page --------------------------------------------------------------------------


class Field(NamedTuple):
    """A row of a layout table."""

    offset: str
    size: str
    type: str
    name: str
    meaning: str


def section(heading: str) -> str:
    """Return the text from a heading to the next one."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert found, f"no section {heading!r}"
    return found[1]


def prose(heading: str) -> str:
    """Return a section as one line, so that it does not matter where its lines break."""
    return " ".join(section(heading).split())


def tables(heading: str) -> list[list[list[str]]]:
    """Return the tables of a section, each a list of rows, the row of titles first."""
    found: list[list[list[str]]] = []
    previous = ""
    for line in section(heading).splitlines():
        if line.startswith("|---"):
            found.append([_cells(previous)])
        elif line.startswith("|") and previous.startswith("|"):
            found[-1].append(_cells(line))
        previous = line
    return found


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def layout(heading: str, number: int = 0) -> list[Field]:
    titles, *rows = tables(heading)[number]
    assert titles == ["offset", "size", "type", "field", "meaning"]
    return [Field(*row) for row in rows]


def dumps() -> Iterator[list[tuple[int, bytes, str]]]:
    """Yield the dumps of the example: offset, bytes and annotation of each line."""
    for block in re.findall(r"^ at  bytes +field\n(.*?)^```", section("An example"), re.DOTALL | re.MULTILINE):
        lines = []
        for line in filter(None, block.splitlines()):
            found = re.fullmatch(r"([ 0-9]{3})  ((?:[0-9a-f]{2} )+) *(.+)", line)
            assert found, line
            lines.append((int(found[1]), bytes.fromhex(found[2]), found[3]))
        yield lines


# --- layouts -----------------------------------------------------------------------------------

_TYPES = {"B": "u8", "H": "u16", "I": "u32", "Q": "u64", "s": "bytes"}


def fields_of(struct: Struct, base: int = 0) -> list[tuple[str, str, str]]:
    """Return offset, size and type of each field of a struct, as the page writes them."""
    found = []
    for count, code in re.findall(r"(\d*)([a-zA-Z])", struct.format.removeprefix("<")):
        size = calcsize(f"<{count}{code}")
        found.append((str(base), str(size), _TYPES[code]))
        base += size
    return found


@pytest.mark.parametrize(
    ("heading", "number", "struct", "base"),
    [
        ("Manifest header", 0, MANIFEST_HEADER, 0),
        ("Manifest row", 0, MANIFEST_ROW, 0),
        ("Segment header", 0, Struct(SEGMENT_HEADER.format + "I"), 0),
        ("Entry", 0, codec.ENTRY, 0),
        ("Entry", 1, codec.ENTRY_EXPIRES, codec.ENTRY_SIZE),
        ("Sync mark", 0, Struct(codec.ENTRY.format + "I"), 0),
        ("Hint header", 0, HINT_HEADER, 0),
    ],
)
def test_every_layout_table_has_the_offsets_sizes_and_types_of_its_struct(heading, number, struct, base):
    written = [(field.offset, field.size, field.type) for field in layout(heading, number)]
    assert written == fields_of(struct, base)
    names = [field.name for field in layout(heading, number)]
    assert all(names)
    assert len({name for name in names if name != "reserved"}) == sum(name != "reserved" for name in names)


@pytest.mark.parametrize(
    ("heading", "named"),
    [
        ("Manifest header", [name for name in Manifest._fields if name != "segments"]),  # without the rows
        ("Manifest row", SegmentRow._fields),
        ("Segment header", SegmentHeader._fields),
        ("Entry", ["flags", "seq", "modified"]),
    ],
)
def test_fields_have_the_names_that_the_source_uses(heading, named):
    assert set(named) <= {field.name.replace(" ", "_") for field in layout(heading)}


def test_the_rest_of_a_manifest_is_what_the_page_says():
    manifest = Manifest(UUID, 9, 8, 1, (SegmentRow(1, 2, 80, 3, SEALED), SegmentRow(4, 5, 80, 6, ACTIVE)))
    found = re.search(r"Size: (\d+) \+ (\d+) × rows \+ (\d+)\.", prose("Manifest"))
    assert found
    header, row, crc = map(int, found.groups())
    assert (header, row, crc) == (MANIFEST_HEADER.size, MANIFEST_ROW.size, CRC_SIZE)
    assert len(encode_manifest(manifest)) == header + 2 * row + crc
    state = next(field for field in layout("Manifest row") if field.name == "state")
    assert f"{SEALED} sealed" in state.meaning
    assert f"{ACTIVE} active" in state.meaning
    low, high = re.findall(r"Lengths lie between ([\d,]+) and ([\d,]+)\.", prose("Manifest row"))[0]
    assert (number_in(low), number_in(high)) == (SEGMENT_HEADER_SIZE, codec.OFFSET_MASK)


@pytest.mark.parametrize(
    ("heading", "magic"),
    [
        ("Manifest header", MANIFEST_MAGIC),
        ("Segment header", SEGMENT_MAGIC),
        ("Hint header", HINT_MAGIC),
    ],
)
def test_magic_bytes_and_versions(heading, magic):
    first, second = layout(heading)[:2]
    assert first.name == "magic"
    assert first.meaning == f"`{magic.hex(' ').upper()}`, " + '"' + magic[:-2].decode() + r'\r\n"'
    assert second.name == "format version"
    assert second.meaning == str(FORMAT_VERSION)
    assert f"# File format, version {FORMAT_VERSION}\n" in PAGE
    assert f"This is version {FORMAT_VERSION}." in prose("Versions")


def test_kinds_of_segments():
    kind = next(field for field in layout("Segment header") if field.name == "kind")
    assert kind.meaning.startswith(f"{LOG} log")
    assert f"; {OUTPUT} output" in kind.meaning


# --- entries -----------------------------------------------------------------------------------


def test_flag_values_and_names():
    _, *rows = tables("Entry")[2]
    names = ["PUT", "TOMBSTONE", "SYNC_MARK", "CLEAR", "EXPIRES", "CONTINUES"]
    assert [name for _, name, _ in rows] == names
    assert [int(value, 16) for value, _, _ in rows] == [getattr(codec, name) for name in names]


def test_first_bytes_that_are_legal():
    _, *rows = tables("Entry")[3]
    sizes = {int(byte, 16): int(size) for bytes_, size in rows for byte in bytes_.split(",")}
    assert sizes == {byte: size for byte, size in enumerate(codec.FIXED_SIZE) if size}


def test_sizes_named_in_passing():
    text = prose("Entry")
    found = re.search(r"takes (\d+) bytes beside key and value, (\d+) with", text)
    assert found
    assert int(found[1]) == codec.entry_size(0, 0) == codec.OVERHEAD
    assert int(found[2]) == codec.entry_size(0, 0, 1)
    assert f"follow at offset {SEGMENT_HEADER_SIZE}" in text
    assert f"{codec.MIN_ENTRY_SIZE} bytes" in prose("Sync mark")


def test_a_sync_mark_is_what_its_table_says():
    fields = {field.name: field for field in layout("Sync mark")}
    mark = b"".join(codec.encode_entry(codec.SYNC_MARK, b"", b"", 7, NOW_MS, 0, 0))
    assert len(mark) == sum(int(field.size) for field in fields.values())
    flags, key_size, value_size = [int(fields[name].meaning) for name in ("flags", "key length", "value length")]
    assert codec.ENTRY.unpack_from(mark) == (flags, key_size, value_size, 7, NOW_MS)


# --- the CRC -----------------------------------------------------------------------------------


def test_the_crc_is_the_one_described():
    text = prose("The CRC")
    check, residue = re.search(r"`123456789` is (0x\w+)", text), re.search(r"always (0x\w+)", text)
    polynomial = re.search(r"polynomial (0x\w+)", text)
    assert check
    assert residue
    assert polynomial
    assert checksum(b"123456789") == int(check[1], 16) == bitwise_crc(b"123456789", int(polynomial[1], 16))
    assert int(residue[1], 16) == RESIDUE
    for start in (0, 1, 0xFFFFFFFF, seed_of(int.from_bytes(SALT, "little"))):
        crc = checksum(b"anything", start)
        assert checksum(b"anything" + crc.to_bytes(4, "little"), start) == RESIDUE
    # "the CRC of y starting from the CRC of x is the CRC of x followed by y", and the seed is the salt's CRC
    assert checksum(b"y", seed_of(int.from_bytes(SALT, "little"))) == checksum(SALT + b"y")


def bitwise_crc(piece: bytes, polynomial: int) -> int:
    """Return a CRC by the words of the page: reflected, register initially and finally inverted."""
    reflected = int(f"{polynomial:032b}"[::-1], 2)
    register = 0xFFFFFFFF
    for byte in piece:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (reflected if register & 1 else 0)
    return register ^ 0xFFFFFFFF


# --- hints -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixed", [False, True])
def test_hint_columns_come_in_the_order_and_size_of_the_table(mixed):
    keys = [b"k1", b"k2", b"longer"] if mixed else [b"k1", b"k2", b"k3"]
    positions = [codec.pack_position(80, 40), codec.pack_position(120, 9000), codec.pack_position(9120, 50)]
    expires = {keys[2]: 5, keys[0]: Y2100_MS}
    content = Hint(9200, 17, True, keys, positions, [b"gone", b""], expires, 9090, 99)
    hint = b"".join(encode_hint(content, SegmentHeader(UUID, 3, 4, LOG, 2, 1)))
    sizes = {
        "8 × puts": 8 * 3,
        "4 × expiring puts": 4 * 2,
        "8 × expiring puts": 8 * 2,
        "2 × tombstones": 2 * 2,
        "their sum": 4,
        "2 × puts": 2 * 3 if mixed else 0,
        "puts × key size, or their sum": sum(map(len, keys)),
    }
    expected = {
        "places": array("Q", positions).tobytes(),
        "expiring": array("I", [2, 0]).tobytes(),
        "expires": array("Q", [5, Y2100_MS]).tobytes(),
        "tombstone key sizes": array("H", [4, 0]).tobytes(),
        "tombstone keys": b"gone",
        "key sizes": array("H", map(len, keys)).tobytes() if mixed else b"",
        "keys": b"".join(keys),
    }
    columns = layout("Hint columns")
    assert [field.name for field in columns] == list(expected)
    at = int(columns[0].offset)
    assert at == HINT_HEADER.size
    for number, field in enumerate(columns):
        assert field.offset == ("+" if number else str(at))
        assert hint[at : at + sizes[field.size]] == expected[field.name], field.name
        at += sizes[field.size]
    assert len(hint) == at + CRC_SIZE
    assert [field.type for field in columns] == ["u64 each", "u32 each", "u64 each", "u16 each", "bytes"] + [
        "u16 each",
        "bytes",
    ]
    header = dict(zip([field.name for field in layout("Hint header")], HINT_HEADER.unpack_from(hint), strict=True))
    assert header["key size"] == (0xFFFFFFFF if mixed else 2)
    assert header["flags"] == HINT_CLEARS == 1
    assert (header["length"], header["last seq"], header["live bytes"], header["tombstone bytes"]) == (
        9200,
        17,
        9090,
        99,
    )
    assert (header["puts"], header["expiring puts"], header["tombstones"]) == (3, 2, 2)
    assert (header["store uuid"], header["segment id"], header["salt"]) == (UUID, 3, 4)


def test_a_place_is_packed_as_the_page_says():
    found = re.search(r"offset × ([\d,]+) \+ size .* above ([\d,]+)", layout("Hint columns")[0].meaning)
    assert found
    factor, largest = number_in(found[1]), number_in(found[2])
    assert largest == codec.SIZE_MASK
    assert codec.pack_position(123, largest) == 123 * factor + largest
    assert codec.pack_position(123, largest + 1) == 123 * factor


# --- limits ------------------------------------------------------------------------------------


def number_in(text: str) -> int:
    return int(text.replace(",", ""))


def test_limits():
    _, *rows = tables("Limits")[0]
    assert {name: number_in(value) for name, value in rows} == {
        "key length": convert.MAX_KEY_SIZE,
        "value length": convert.MAX_VALUE_SIZE,
        "entries of a batch together": convert.MAX_BATCH_SIZE,
        "segment length": MAX_SEGMENT_SIZE,
        "expiry time": convert.MAX_EXPIRES_MS,
        "rows of a manifest": MAX_SEGMENTS,
        "seqs, segment ids and generations": MAX_NUMBER,
    }
    assert f"at most {MAX_SEQ_TO_BEGIN_AFTER:,}" in prose("Segment header")


# --- the example -------------------------------------------------------------------------------


def test_the_example_is_what_the_codec_makes():
    manifest, segment = (b"".join(piece for _, piece, _ in dump) for dump in dumps())
    salt = int.from_bytes(SALT, "little")
    seed = seed_of(salt)
    entries = [
        (codec.PUT, b"ab", b"1", 1, 0),
        (codec.PUT, b"c", b"", 2, Y2100_MS),
        (codec.SYNC_MARK, b"", b"", 2, 0),
        (codec.PUT | codec.CONTINUES, b"d", b"4", 3, 0),
        (codec.TOMBSTONE, b"ab", b"", 4, 0),
    ]
    parts = [encode_segment_header(SegmentHeader(UUID, 1, salt, LOG, 0, 0))]
    for flags, key, value, seq, expires_ms in entries:
        parts += codec.encode_entry(flags, key, value, seq, NOW_MS, expires_ms, seed)
    assert segment == b"".join(parts)
    row = SegmentRow(1, salt, len(segment), 4, ACTIVE)
    assert manifest == encode_manifest(Manifest(UUID, 2, 4, 3, (row,)))
    assert f"a0 … a7`, 0x{seed:08X}:" in prose("An example")


def test_the_example_is_what_a_store_writes(path):
    files = FixedFiles(UUID, SALT)
    with open_store(path, files=files, sync="os", io="pread") as db:
        db["ab"] = "1"
        db.put("c", "", ttl=(Y2100_MS - NOW_MS) / 1000)
        db.sync()
        with db.batch() as batch:
            batch["d"] = "4"
            del batch["ab"]
    written = [path / "MANIFEST", path / "0000000001.seg"]
    assert [file.read_bytes() for file in written] == [b"".join(piece for _, piece, _ in dump) for dump in dumps()]


def test_the_example_reads_as_the_page_says(path):
    path.mkdir()
    for name, dump in zip(("MANIFEST", "0000000001.seg"), dumps(), strict=True):
        (path / name).write_bytes(b"".join(piece for _, piece, _ in dump))
    with open_store(path, "r") as db:
        assert dict(db) == {b"c": b"", b"d": b"4"}
        assert db.recovery.clean
        assert db.verify().ok


def test_every_line_of_the_example_is_one_field_with_its_right_name_and_value():
    manifest, segment = dumps()
    expected = [layout("Manifest header"), layout("Manifest row"), [Field("", "4", "u32", "crc", "")]]
    check_lines(manifest, [field for fields in expected for field in fields])
    entry, expiry = layout("Entry", 0), layout("Entry", 1)
    key, value, crc = Field("", "", "bytes", "key", ""), Field("", "", "bytes", "value", ""), expected[-1]
    fields = layout("Segment header")
    fields += [*entry, key, value, *crc]
    fields += [*entry, *expiry, key, *crc]
    fields += [*entry, *crc]
    fields += [*entry, key, value, *crc]
    fields += [*entry, key, *crc]
    check_lines(segment, fields)


def check_lines(lines: list[tuple[int, bytes, str]], fields: list[Field]) -> None:
    at = 0
    for (offset, piece, text), field in zip(lines, fields, strict=True):
        assert offset == at, text
        assert text.startswith(field.name), text
        if field.size:
            assert len(piece) == int(field.size), text
        said = text.removeprefix(field.name).split(":")[0].strip()
        if said and field.type != "bytes":
            value = int.from_bytes(piece, "little")
            if field.name == "flags":
                assert sum(getattr(codec, name) for name in said.split(", ")) == value
            else:
                assert int(said, 0) == value
        elif said:
            assert said == f'"{piece.decode()}"'
        at += len(piece)


def test_the_directory_table_names_every_file_that_a_store_makes(path):
    """Fails when the engine begins to write a file that the page does not know."""
    _, *rows = tables("The directory")[0]
    named = {name.strip("`").rstrip("/") for name, _, _ in rows}
    with open_store(path, sync="os", segment_size_bytes=70_000) as db:
        for number in range(3):
            db[str(number)] = bytes(66_000)
        db.sync()
        unfinished: set[str] = set()
        copy = path.parent / "copy"
        db.backup(copy, progress=lambda _: unfinished.update(file.name for file in copy.iterdir()))
    found = {re.sub("[0-9]{10}", "N" * 10, file.name) for file in path.iterdir()}
    assert found == {"LOCK", "MANIFEST", "NNNNNNNNNN.seg", "NNNNNNNNNN.hint"}
    with bytekv.open(path, shared=True):
        found.update(file.name for file in path.iterdir() if not file.suffix)
    of_backups = unfinished - {file.name for file in copy.iterdir()}
    assert of_backups == {"BACKUP.unfinished", "segment.new"}
    assert named == {*found, *of_backups, "MANIFEST.new", "quarantine"}
