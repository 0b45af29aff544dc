"""Count words in a pool of processes, which all add to one store.

python examples/shared_counter.py [file ...]

The store is opened with shared=True. Passed to another process it is opened there anew, as here by the pool. A file's
words are added in one transaction: no count is lost between two processes, and a process that is killed leaves no file
counted by half. Without arguments it counts the words of some modules of Python.
"""

import glob
import multiprocessing
import os
import re
import sys
import tempfile
from collections import Counter

import bytekv

WORD = re.compile(rb"[a-z]{2,}")


def begin(store: bytekv.Store) -> None:
    """Keep the store for all files that this process will count."""
    global db
    db = store


def count(file: str) -> int:
    """Add a file's words to those of all files, unless that was done before; return how many there are."""
    with open(file, "rb") as source:
        words = Counter(WORD.findall(source.read().lower()))
    with db.transaction() as tx:  # the others wait for its end, so what takes long was done before
        if f"file/{file}" in tx:
            return 0
        tx[f"file/{file}"] = str(words.total())
        tx["total"] = str(words.total() + int(tx.get("total", b"0")))
        for word, times in words.items():
            tx[b"word/" + word] = str(times + int(tx.get(b"word/" + word, b"0")))
    return words.total()


def main(path: str, files: list[str]) -> None:
    with bytekv.open(path, shared=True) as store:
        with multiprocessing.get_context("spawn").Pool(4, begin, (store,)) as pool:
            for number, words in enumerate(pool.imap_unordered(count, files), 1):
                if number % 10 == 0 or number == len(files):
                    print(f"{number} files, the last with {words:,} words; {int(store['total']):,} in all")
            pool.close()
            pool.join()
        counts = Counter({key.decode()[5:]: int(times) for key, times in store.scan("word/")})
        print(", ".join(f"{word} {times:,}" for word, times in counts.most_common(5)))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        modules = sorted(glob.glob(os.path.join(os.path.dirname(os.__file__), "*.py")))
        main(os.path.join(place, "words"), sys.argv[1:] or modules[:40])
