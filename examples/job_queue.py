"""A queue of jobs for threads that survives the death of the process: no job is lost, no result is stored twice.

python examples/job_queue.py
    todo/<number>   the job       doing/<number>   the same, while a thread is at it       done/<number>   its result

A job moves on in one step. Only one process has the store open for writing: what is "doing" when a queue is opened was
left by one that died, and is to do again. A job may begin more than once; it ends once.
"""

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import bytekv


class Queue:
    """Jobs and their results, in the order in which the jobs came."""

    def __init__(self, db: bytekv.Store) -> None:
        self.db = db
        self.left_behind = [self._try_again(key.decode()[6:]) for key in db.scan_keys("doing/")]

    def add(self, job: str) -> None:
        with self.db.transaction() as tx:
            tx["added"] = number = f"{int(tx.get('added', b'0')) + 1:010}"
            tx[f"todo/{number}"] = job

    def claim(self) -> tuple[str, str] | None:
        with self.db.transaction() as tx:  # nobody comes between finding a job and taking it
            for key, job in tx.scan("todo/", limit=1):
                number = key.decode()[5:]
                tx[f"doing/{number}"] = tx.pop(key)
                tx[f"tries/{number}"] = str(int(tx.get(f"tries/{number}", b"0")) + 1)
                return number, job.decode()
        return None

    def work(self, do: Callable[[str], str]) -> None:
        """Do jobs until there is none left to begin; to be called by as many threads as you like."""
        for number, job in iter(self.claim, None):
            try:
                self._move(number, "done", do(job))
            except Exception as error:
                print(f"  {error}: {self._try_again(number)}\n", end="")  # in one piece, beside others

    def _try_again(self, number: str) -> str:
        state = "todo" if int(self.db[f"tries/{number}"]) < 3 else "failed"  # or it might kill processes for ever
        self._move(number, state, self.db[f"doing/{number}"])
        return state

    def _move(self, number: str, state: str, value: str | bytes) -> None:
        with self.db.batch() as batch:
            del batch[f"doing/{number}"]
            batch[f"{state}/{number}"] = value


def die_working(path: str) -> None:
    Queue(bytekv.open(path)).work(lambda job: job if job < "1003" else os._exit(9))


def main(path: str) -> None:
    with bytekv.open(path) as db:
        queue = Queue(db)  # one for each opening: it begins with what was left behind
        for job in (*range(1001, 1020), "a million"):
            queue.add(str(job))
    process = multiprocessing.get_context("spawn").Process(target=die_working, args=(path,))
    process.start()
    process.join()
    with bytekv.open(path) as db, ThreadPoolExecutor(4) as pool:
        queue = Queue(db)
        print(f"left behind by process {process.pid}, status {process.exitcode}: {queue.left_behind}")
        list(pool.map(queue.work, [lambda job: f"{int(job):,}"] * 4))
        print({state: sum(1 for _ in db.scan_keys(state)) for state in ("todo/", "doing/", "done/", "failed/")})


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(os.path.join(place, "jobs"))
