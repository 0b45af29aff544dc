"""Let worker processes share one queue: a job is taken by one of them, and is not lost with it.

python examples/shared_queue.py
    todo/<number>   the job      doing/<worker>/<number>   the same, while one is at it      done/<number>   by whom

All have the store open with shared=True. A job moves on in one step, which no other process can come between. A worker
that finds none waits until something is written. What a dead worker had is put back by the process that started it.
"""

import multiprocessing
import os
import tempfile
from collections import Counter
from multiprocessing.context import SpawnProcess

import bytekv


def claim(db: bytekv.Store, worker: str) -> tuple[str, str] | None:
    """Take the oldest job; return its number and what it is."""
    with db.transaction() as tx:
        for key, job in tx.scan("todo/", limit=1):
            number = key.decode()[5:]
            tx[f"doing/{worker}/{number}"] = tx.pop(key)
            return number, job.decode()
    return None


def give_back(db: bytekv.Store, worker: str) -> list[str]:
    """Make what a dead worker was doing a job to do again; return the numbers."""
    with db.transaction() as tx:
        left = [(key.decode().rpartition("/")[2], tx.pop(key)) for key in list(tx.scan_keys(f"doing/{worker}/"))]
        tx.update({f"todo/{number}": job for number, job in left})
    return [number for number, _ in left]


def work(db: bytekv.Store, worker: str) -> None:
    """Do jobs until there are none left and none will come."""
    db.put(f"here/{worker}", "")
    while True:
        seen, closed = db.last_seq, "closed" in db  # before it looks: what is written from now on ends the waiting
        if job := claim(db, worker):
            number, text = job
            if text == "deadly" and db.incr(f"tries/{number}") == 1:
                os._exit(9)
            with db.batch() as batch:
                del batch[f"doing/{worker}/{number}"]
                batch[f"done/{number}"] = worker
        elif closed:
            return db.close()
        else:
            db.wait(seen)


def start(db: bytekv.Store, worker: str) -> SpawnProcess:
    process = multiprocessing.get_context("spawn").Process(target=work, args=(db, worker))  # it opens the store itself
    process.start()
    return process


def main(path: str) -> None:
    with bytekv.open(path, shared=True) as db:
        workers = {name: start(db, name) for name in ("ann", "bob")}
        seen = 0
        while sum(1 for _ in db.scan_keys("here/")) < len(workers):
            seen = db.wait(seen)
        db.update({f"todo/{number:03}": "deadly" if number == 7 else "easy" for number in range(1, 101)})
        db["closed"] = ""
        while workers:
            name, process = workers.popitem()
            process.join()
            if process.exitcode:
                print(f"{name} died with status {process.exitcode}, and job {give_back(db, name)} is to do again")
                workers[name] = start(db, name)
        print("done by each:", dict(sorted(Counter(name.decode() for _, name in db.scan("done/")).items())))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(os.path.join(place, "jobs"))
