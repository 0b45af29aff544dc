"""Keys that form a tree, like files in folders: what lies in one folder, how large is it, take all of it away.

python examples/prefix_scan.py [FOLDER]        the sizes of Python's own library, if no folder is given

Keys are in order, so all that lies below lib/email/ is one range, wherever in the tree that is. What lies *directly*
in a folder is found by leaps: after lib/email/... the scan goes on behind everything that begins with lib/email/.
"""

import os
import sys
import sysconfig
import tempfile
from collections.abc import Iterator

import bytekv

BEHIND = bytes([ord("/") + 1])  # sorts behind all that goes on with a slash


def fill(db: bytekv.Store, folder: str) -> int:
    """Store the size of every file below a folder under its path, as one batch; return how many there are."""
    with db.batch() as batch:
        for place, _, names in os.walk(folder):
            for name in names:
                file = os.path.join(place, name)
                key = os.path.relpath(file, folder).replace(os.sep, "/")
                batch[os.fsencode(key)] = str(os.lstat(file).st_size)
        return len(batch)


def listing(db: bytekv.Store, folder: bytes = b"") -> Iterator[bytes]:
    """Yield what lies directly in a folder, folders with a slash; takes as many look-ups as there are names."""
    key = next(db.scan_keys(folder, limit=1), None)
    while key is not None:
        name, slash, _ = key[len(folder) :].partition(b"/")
        yield name + slash
        start = folder + name + BEHIND if slash else key + b"\0"  # behind the whole folder, or the next key
        key = next(db.scan_keys(folder, start=start, limit=1), None)


def size(db: bytekv.Store, folder: bytes = b"") -> int:
    """Return how many bytes lie in a folder and below."""
    return sum(int(value) for _, value in db.scan(folder))


def remove(db: bytekv.Store, folder: bytes) -> int:
    """Delete a folder and all below as one step; return how many keys that were."""
    with db.batch() as batch:
        for key in db.scan_keys(folder):
            del batch[key]
        return len(batch)


def main(folder: str) -> None:
    with tempfile.TemporaryDirectory() as place, bytekv.open(os.path.join(place, "store")) as db:
        print(f"{fill(db, folder):,} files in {folder}, {size(db) / 1e6:,.1f} MB")
        folders = sorted((size(db, name), name) for name in listing(db) if name.endswith(b"/"))
        for total, name in folders[:-9:-1]:
            bar = "█" * max(1, 40 * total // max(folders[-1][0], 1))
            print(f"  {os.fsdecode(name):<20} {total / 1e6:8.2f} MB  {bar}")
        if folders:
            total, largest = folders[-1]
            count = remove(db, largest)
            print(f"without {os.fsdecode(largest)} and its {count:,} files: {size(db) / 1e6:,.1f} MB")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else sysconfig.get_path("stdlib"))
