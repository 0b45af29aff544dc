"""What a get and a put are made of: ``python -m tests.benchmarks.parts [KEYS]``.

Each part is timed alone, in a loop over the same keys in the same random order, less the loop. First for a thousand
keys, which the processor's cache holds: that is what the interpreter takes. Then for KEYS (100,000), whose places in
memory nobody has looked at for long: what comes on top is waiting for memory. Processor time, best of several rounds.
"""

from __future__ import annotations

import mmap
import random
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import bytekv
from bytekv.engine.codec.checksum import checksum

VALUE = bytes(100)
ROUNDS = 15
HOT = 1000


def timed(function: Callable[[Any], object], given: list[Any]) -> float:
    """Return µs a call, less those of a loop that calls nothing."""
    best = empty = 1e9
    for _ in range(ROUNDS):
        began = time.thread_time()
        for each in given:
            function(each)
        best = min(best, time.thread_time() - began)
        began = time.thread_time()
        for _ in given:
            pass
        empty = min(empty, time.thread_time() - began)
    return (best - empty) / len(given) * 1e6


def parts(count: int) -> dict[str, float]:
    """Return the parts and the whole, in µs, for so many keys; short lists are gone through often enough."""
    shuffle = random.Random(1).shuffle
    keys = [random.Random(number).randbytes(16) for number in range(count)]
    turns = max(1, 20_000 // count)
    pack, unpack, pack_crc = struct.Struct("<BHIQQ").pack, struct.Struct("<BH").unpack_from, struct.Struct("<I").pack
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, bytekv.open(folder, auto_compact=False) as db:
        for key in keys:
            db[key] = VALUE
        order = keys[:]
        shuffle(order)
        order *= turns
        locations = [db._locations[key] for key in order]
        view, seed = next(iter(db._readers.values()))
        slices = [slice(at >> 13 & 0x7FFFFFFF, (at >> 13 & 0x7FFFFFFF) + (at & 8191)) for at in locations]
        raw = view[slices[0]]
        lock = threading.RLock()
        page = mmap.mmap(-1, 1 << 16)

        def locked(_: object) -> None:
            with lock:
                pass

        def written(_: object) -> None:
            page[1000:1143] = raw

        def encoded(key: bytes) -> bytes:
            body = pack(1, 16, 100, 7, time.time_ns() // 1000000) + key + VALUE
            return body + pack_crc(checksum(body, seed))

        def called(_: object) -> None:
            pass

        call = timed(called, order)
        found["get: the call"] = call
        found["get: look the key up"] = timed(db._locations.get, order)
        found["get: slice the mapping"] = timed(view.__getitem__, slices)
        found["get: checksum"] = timed(lambda _: checksum(raw, seed), order) - call
        found["get: header and value"] = timed(lambda _: (unpack(raw), raw[23:39], raw[39:-4]), order) - call
        found["get"] = timed(db.get, order)
        found["put: the calls"] = 2 * call
        found["put: lock"] = timed(locked, order) - call
        found["put: time, header, checksum, joined"] = timed(encoded, order) - call
        found["put: copy into the mapping"] = timed(written, order) - call
        found["put: keydir"] = timed(lambda key: db._locations.setdefault(key, 7), order) - call
        put = db.put
        found["put"] = timed(lambda key: put(key, VALUE), order) - call
    return found


def main() -> None:
    """Print both columns."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    columns = [parts(HOT), parts(count)]
    print(f"{'µs':38}{HOT:>10,}{count:>12,} keys")
    for name, hot, cold in zip(columns[0], *(column.values() for column in columns), strict=True):
        print(f"{name:38}{hot:>10.2f}{cold:>12.2f}")


if __name__ == "__main__":
    main()
