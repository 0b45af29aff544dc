"""Watch a store from another process while it is being written: every moment seen is one that there was.

python examples/reader_process.py

The writer moves money between ten accounts. The reader takes no lock and leaves no trace; what it sees between two
calls of refresh() is one moment, in which no transfer is half done.
"""

import os
import random
import subprocess
import sys
import tempfile
import time

import bytekv

ACCOUNTS = [f"account/{number}" for number in range(10)]


def watch(path: str) -> None:
    """Follow the writer until it says that it is done, and tell what was seen."""
    moments = wrong = seq = 0
    with bytekv.open(path, "r") as db:
        print("the reader sees", sum(int(value) for _, value in db.scan("account/")), flush=True)
        while b"done" not in db:
            if db.refresh():
                moments += 1
                wrong += sum(int(value) for _, value in db.scan("account/")) != 1000 or db.last_seq < seq
                seq = db.last_seq
            else:
                time.sleep(0.001)  # or open it with follow=0.001, and a thread will refresh
        print(f"it saw {moments:,} more moments up to seq {seq:,}; in {wrong} of them the sum was not 1000")


def write(db: bytekv.Store, transfers: int) -> None:
    chance = random.Random(1)
    for _ in range(transfers):
        giver, taker = chance.sample(ACCOUNTS, 2)
        amount = chance.randint(1, 50)
        with db.transaction() as tx:
            tx[giver] = str(int(tx[giver]) - amount)
            tx[taker] = str(int(tx[taker]) + amount)
    db["done"] = ""


def main(path: str) -> None:
    with bytekv.open(path, segment_size_bytes=64 * 1024, compact_dead_bytes=16 * 1024) as db:
        db.update(dict.fromkeys(ACCOUNTS, "100"))
        reader = subprocess.Popen([sys.executable, __file__, path], stdout=subprocess.PIPE, text=True)
        assert reader.stdout is not None
        print(reader.stdout.readline(), end="")  # now it is there
        write(db, 5000)
        print(reader.communicate()[0], end="")
        print(f"the writer is at seq {db.last_seq:,}, after {db.stats().compactions} compactions")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        watch(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as place:
            main(os.path.join(place, "store"))
