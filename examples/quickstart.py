"""Keep things between two runs of a program: the first minutes with bytekv. Run it twice.

python examples/quickstart.py [DIRECTORY]
"""

import sys
import time

import bytekv


def main(path: str) -> None:
    with bytekv.open(path) as db:  # made if it is not there, closed at the end of the block
        run = db.incr("runs")  # one step, even if others count at the same time
        db[f"run/{run:06}"] = time.strftime("%H:%M:%S")  # str goes in as UTF-8, bytes come out
        print(f"run {run}; the last ones, newest first:")
        for key, when in db.scan("run/", reverse=True, limit=3):  # a range of keys, in order
            print(f"  {key.decode()}  {when.decode()}")

        with db.batch() as batch:  # all of it or nothing, even if the power goes in the middle
            batch["fruit/apple"] = "12"
            batch["fruit/pear"] = "3"
            batch["fruit/quince"] = "1"

        with db.transaction() as tx:  # reads and writes that no other writer comes between
            tx["fruit/apple"] = str(int(tx["fruit/apple"]) - 2)
            tx["sold"] = str(int(tx.get("sold", b"0")) + 2)

        with db.snapshot() as before:  # one moment, whatever is written meanwhile
            del db["fruit/quince"]
            print("fruit before:", ", ".join(key.decode()[6:] for key in before.scan_keys("fruit/")))
            print("fruit now:   ", ", ".join(key.decode()[6:] for key in db.scan_keys("fruit/")))

        db.put("offer", "3 for 2", ttl=60)  # gone in a minute
        print(f"{db['sold'].decode()} apples sold in all; the offer holds for {db.ttl('offer'):.0f} seconds")
        print(f"{len(db)} keys in {db.stats().total_bytes:,} bytes, operation {db.last_seq}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "quickstart-data")
