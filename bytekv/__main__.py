"""The program: `bytekv`, and `python -m bytekv`.

A command for one key is mostly the start and the end of Python, and both are shortened: no search for garbage,
of which it leaves none, and no taking apart of what the kernel takes back anyway. What takes longer is done
with garbage collection and ends as every program does.
"""

from __future__ import annotations

import gc
import os
import sys


def run() -> None:
    """Carry out the command line and end."""
    gc.disable()
    from .cli.main import main

    status = main(before_long_work=gc.enable)
    if gc.isenabled():
        sys.exit(status)
    os._exit(status)  # the store is closed, and `main` has flushed the output


if __name__ == "__main__":
    run()
