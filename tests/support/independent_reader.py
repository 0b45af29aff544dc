"""A reader of bytekv stores written from docs/reference/file-format.md alone; it shares no code with bytekv.

What it does not do: hint files, which save time and say nothing new, and reading beside a live writer.
"""

import re
import struct
import time
from pathlib import Path

from crc32c import crc32c

RESIDUE = 0x48674BC7  # the CRC of anything that ends in its own CRC
PUT, TOMBSTONE, SYNC_MARK, CLEAR, EXPIRES, CONTINUES = 1, 2, 3, 4, 0x10, 0x20
FIXED = {0x01: 23, 0x02: 23, 0x03: 23, 0x04: 23, 0x21: 23, 0x22: 23, 0x24: 23, 0x11: 31, 0x31: 31}


def require(condition, what):
    if not condition:
        raise ValueError(what)


def read_header(data, size, magic):
    """Check what the manifest and a segment header have in common: magic, CRC, version, incompat flags."""
    require(data[:8] == magic and len(data) >= size and crc32c(data) == RESIDUE, "damaged header")
    version, _, _, _, incompat = struct.unpack_from("<HHIII", data, 8)
    require((version, incompat) == (1, 0), "a newer format")


def read_store(folder, now=None):
    """Return {key: (value, seq, modified, expires)} of what is there at this moment, or at another (in ms)."""
    data, found, last_seq = Path(folder, "MANIFEST").read_bytes(), {}, 0
    now = time.time() * 1000 if now is None else now
    read_header(data, 72, b"BKVMAN\r\n")
    uuid, next_id, _, _, count = struct.unpack_from("<16sQQQI", data, 24)
    require(len(data) == 68 + 36 * count + 4, "damaged manifest")
    for row in struct.iter_unpack("<QQQQI", data[68:-4]):
        require(0 < row[0] < next_id and last_seq <= row[3], "damaged manifest")
        last_seq = read_segment(Path(folder, f"{row[0]:010d}.seg").read_bytes(), uuid, row, found)
    return {key: entry for key, entry in sorted(found.items()) if not 0 < entry[3] <= now}


def read_segment(data, uuid, row, found):
    """Apply the operations of one segment; return its last seq."""
    segment_id, salt, length, last_seq, state = row
    read_header(data[:80], 80, b"BKVSEG\r\n")
    require(struct.unpack_from("<16sQQ", data, 24) == (uuid, segment_id, salt), "another segment")
    kind, seq = struct.unpack_from("<H", data, 10)[0], struct.unpack_from("<Q", data, 64)[0]
    require(len(data) >= length, "segment too short")
    torn = state == 1 and len(data) > length
    data = data if torn else data[:length]
    seed, at, end, batch = crc32c(data[48:56]), 80, 80, []
    while len(data) - at >= 27 and data[at] in FIXED:
        flags, key_size, value_size, number, modified = struct.unpack_from("<BHIQQ", data, at)
        start = at + FIXED[flags]
        stop = start + key_size + value_size + 4
        if value_size > 1 << 30 or stop > len(data) or crc32c(data[at:stop], seed) != RESIDUE:
            break
        if batch if flags == SYNC_MARK else kind == 0 and number != seq + len(batch) + 1:
            break
        expires = struct.unpack_from("<Q", data, at + 23)[0] if flags & EXPIRES else 0
        key, value = data[start : start + key_size], data[start + key_size : stop - 4]
        at = stop
        if flags != SYNC_MARK:
            batch.append((flags & 15, key, (value, number, modified, expires)))
        if not flags & CONTINUES:
            for what, key, entry in batch:
                found.clear() if what == CLEAR else found.pop(key, None)
                found.update({key: entry} if what == PUT else {})
                seq = entry[1]
            end, batch = at, []
    require(end >= length and (kind or seq >= last_seq) and (torn or kind or seq == last_seq), "durable bytes missing")
    for mark in re.finditer(rb"\x03\0{6}", data[end:]) if torn else ():
        piece = data[end + mark.start() :][:27]
        valid = len(piece) == 27 and crc32c(piece, seed) == RESIDUE
        require(not valid or struct.unpack_from("<Q", piece, 7)[0] <= seq, "durable bytes missing")
    return max(seq, last_seq)
