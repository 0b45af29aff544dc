"""Count the instructions of put, get, scan, delete and batch: times on a shared machine are noise, these are not.

``python -m tests.benchmarks.instructions`` runs each call a thousand times, in a store of a thousand keys and in one
of a hundred thousand, under ``valgrind --tool=callgrind``, and compares the user-space instructions of one call with
those in ``instructions.json``. They are kept under the whole of ``sys.version``: with another Python the figures are
shown and nothing is compared. The exit status is 1 if one has grown by more than 3 %; ``--write`` keeps the new ones,
for a change that is worth them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FILE = Path(__file__).with_suffix(".json")
ROOT = Path(__file__).parents[2]
SIZES = (1000, 100_000)
CALLS = 1000
TOLERANCE = 1.03
CASES = ("put", "get", "get of a missing key", "scan", "delete", "batch")


# --- what is measured --------------------------------------------------------------------------


def _measured(size: int, path: str) -> None:
    """Run the cases, each between two calls of getppid, at which callgrind writes down what it has counted."""
    import bytekv
    from tests.support.harness import NO_WORKER, patched

    chance = random.Random(1)
    keys = [b"%016x" % chance.getrandbits(64) for _ in range(size)]
    value, more = bytes(100), [b"%016x" % chance.getrandbits(64) for _ in range(CALLS)]
    # Without what the worker happens to do meanwhile: hints and the file of the next segment.
    with patched(NO_WORKER), bytekv.open(path, sync="os", auto_compact=False) as db:
        for first in range(0, size, 10_000):
            db.update(dict.fromkeys(keys[first : first + 10_000], value))
        chosen = [bytes(bytearray(key)) for key in chance.sample(keys, CALLS)]  # not the keydir's own objects
        for _ in db.scan():  # so that the index is there, and each segment open
            pass
        marked, put, get, delete = os.getppid, db.put, db.get, db.delete
        put(keys[0], value)
        get(keys[0])
        marked()
        for key in chosen:
            put(key, value)
        marked()
        for key in chosen:
            get(key)
        marked()
        for key in more:
            get(key)
        marked()
        for _ in db.scan(limit=CALLS):
            pass
        marked()
        for key in chosen:
            delete(key)
        marked()
        db.update(dict.fromkeys(more, value))
        marked()


# --- how -------------------------------------------------------------------------------------


def count(size: int) -> dict[str, int]:
    """Return the instructions of one call of each case in a store of so many keys."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--tool=callgrind", "--dump-before=getppid", f"--callgrind-out-file={folder}/out"]
        script = f"from tests.benchmarks.instructions import _measured; _measured({size}, {folder + '/store'!r})"
        environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [*command, sys.executable, "-c", script], env=environment, cwd=folder, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"valgrind ended with status {done.returncode}:\n{done.stderr[-2000:]}")
        totals = []
        for number in range(2, len(CASES) + 2):  # the first is what led there
            text = Path(f"{folder}/out.{number}").read_text()
            totals.append(int(re.findall(r"^(?:summary|totals): (\d+)", text, re.MULTILINE)[0]))
    return {case: round(total / CALLS) for case, total in zip(CASES, totals, strict=True)}


def compare(found: dict[str, dict[str, int]], kept: dict[str, dict[str, int]]) -> list[str]:
    """Return a line for each figure that has grown too much, or is not kept at all."""
    complaints = []
    for size, figures in found.items():
        for case, figure in figures.items():
            before = kept.get(size, {}).get(case)
            if before is None:
                complaints.append(f"{case}, {size} keys: no figure is kept; add it with --write")
            elif figure > before * TOLERANCE:
                complaints.append(f"{case}, {size} keys: {figure} instructions instead of {before}")
    return complaints


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.instructions", description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep the figures of this run")
    arguments = parser.parse_args()
    if shutil.which("valgrind") is None:
        print("valgrind is not here; nothing was counted")
        return 0
    found = {str(size): count(size) for size in SIZES}
    everything = json.loads(FILE.read_text()) if FILE.exists() else {}
    kept = everything.get(sys.version)
    print(f"{'instructions of one call':24}", *(f"{f'{int(size):,} keys':>14} {'kept':>8}" for size in found))
    for case in CASES:
        cells = (f"{found[size][case]:14,} {(kept or {}).get(size, {}).get(case, '–'):>8}" for size in found)
        print(f"{case:24}", *cells)
    if arguments.write:
        FILE.write_text(json.dumps({**everything, sys.version: found}, indent=1, sort_keys=True) + "\n")
        return 0
    if kept is None:
        print(f"nothing is kept for {sys.version!r}, so nothing is compared")
        return 0
    complaints = compare(found, kept)
    for complaint in complaints:
        print(complaint)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
