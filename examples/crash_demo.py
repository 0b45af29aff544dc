"""Does a write that has returned survive? A process writes, is killed in the middle, and the store is counted.

python examples/crash_demo.py [DIRECTORY]

The child says each number on a pipe once its put has returned. SIGKILL cannot be caught: no line of Python runs after
it. What has been said must be there. With sync="always" it would also be there after a power cut.
"""

import os
import signal
import subprocess
import sys
import tempfile

import bytekv


def write(path: str) -> None:
    """Write for ever; tell each number once it is safe."""
    with bytekv.open(path, sync="always") as db:
        number = db.incr("runs") * 1_000_000
        while True:
            number += 1
            db[f"order/{number}"] = f"{number} chairs"
            os.write(1, b"%d\n" % number)


def run_and_kill(path: str, after: int) -> list[int]:
    """Let a child write, kill it after this many answers, and return all that it had time to give."""
    child = subprocess.Popen([sys.executable, __file__, "write", path], stdout=subprocess.PIPE)
    assert child.stdout is not None
    said = [child.stdout.readline() for _ in range(after)]
    child.send_signal(signal.SIGKILL)
    said += child.stdout.read().splitlines(keepends=True)  # what was in the pipe
    child.stdout.close()
    numbers = [int(line) for line in said if line.endswith(b"\n")]
    print(f"killed ({child.wait()}) after {len(numbers)} acknowledged writes; ", end="")
    return numbers


def main(path: str) -> None:
    said: list[int] = []
    for after in (1, 10, 100):
        said += run_and_kill(path, after)
        with bytekv.open(path) as db:
            missing = [number for number in said if b"order/%d" % number not in db]
            found = sum(1 for _ in db.scan_keys("order/"))
            # One more than acknowledged may be there: written, and not told before the end.
            print(f"{found} found, {len(missing)} missing, clean end: {db.recovery.clean}, verified: {db.verify().ok}")
    with bytekv.open(path) as db:
        print(f"{len(said)} acknowledged in {int(db['runs'])} lives, all there: {not missing}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"]:
        write(sys.argv[2])
    elif len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as place:
            main(os.path.join(place, "store"))
