"""Back up a store that is being written to, again and again into the same place, and restore it.

python examples/backup_while_open.py

Sealed segments never change: on the same file system the backup shares them (hard links), and the next backup into the
same place takes only what is new. To be safe from the death of the disk, copy the backup elsewhere, or make it there.
"""

import os
import tempfile
import threading

import bytekv


def write(db: bytekv.Store, stop: threading.Event) -> None:
    """Book transfers between two accounts: the sum is 1,000 at every moment."""
    number = 0
    while not stop.is_set():
        number += 1
        with db.batch() as batch:
            batch["left"], batch["right"] = str(number % 1001), str(1000 - number % 1001)
            batch[f"booking/{number:09}"] = os.urandom(50)


def check(path: str) -> int:
    """Read every byte of a backup, compare with what must hold at each moment, return the number of bookings."""
    with bytekv.open(path, "r") as db:
        assert db.verify().ok
        assert int(db["left"]) + int(db["right"]) == 1000
        return sum(1 for _ in db.scan_keys("booking/"))


def main(folder: str) -> None:
    path, copy, restored = (os.path.join(folder, name) for name in ("store", "backup", "restored"))
    with bytekv.open(path, segment_size_bytes=64 * 1024) as db:  # small ones, so that there are some
        stop = threading.Event()
        writer = threading.Thread(target=write, args=(db, stop))
        writer.start()
        try:
            for _ in range(3):
                goal = db.last_seq + 3000
                while db.last_seq < goal:  # until there is something to back up
                    stop.wait(0.001)
                report = db.backup(copy)
                print(
                    f"backup up to seq {report.seq:,}: {report.segments} segments, {report.kept} there already, "
                    f"{report.linked} linked, {report.copied_bytes:,} bytes copied; it holds {check(copy):,} bookings"
                )
        finally:
            stop.set()
            writer.join()
        print(f"the store is at seq {db.last_seq:,}")

    # A restore is a backup of the backup: it leaves the backup as it is.
    with bytekv.open(copy, "r") as backup:
        backup.backup(restored)
    with bytekv.open(restored) as db:
        db["note"] = "restored, and written to again"
        print(f"restored: seq {db.last_seq:,}, {check(copy):,} bookings in the backup still")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(place)
