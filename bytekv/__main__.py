"""The program: `bytekv`, and `python -m bytekv`.

Python's search for garbage, while modules are imported and at the end, takes a fifth of the time of a command for
one key, which leaves none; it is turned on for what takes longer.
"""

from __future__ import annotations

import gc
import sys


def run() -> None:
    """Carry out the command line and end."""
    gc.disable()
    from .cli import main

    status = main(before_long_work=gc.enable)
    gc.freeze()
    sys.exit(status)


if __name__ == "__main__":
    run()
