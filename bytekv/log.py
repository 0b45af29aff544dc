"""Messages for whoever listens to the standard library's logger "bytekv".

This module knows when `logging` is worth its import, which takes longer than all of bytekv's own modules
together, and would be most of the time of a command line that reads one key. Whoever wants to hear debug
and information has imported and configured it before; warnings and errors are for people who have not, too.
"""

from __future__ import annotations

import sys

__all__ = ["debug", "error", "info", "warning"]

_NAME = "bytekv"


def debug(text: str, *values: object) -> None:
    """Tell what a developer may want to know; free if nobody listens."""
    if sys.modules.get("logging"):  # None while the interpreter goes
        from logging import getLogger

        getLogger(_NAME).debug(text, *values, stacklevel=2)


def info(text: str, *values: object) -> None:
    """Tell what an operator may want to know; free if nobody listens."""
    if sys.modules.get("logging"):  # None while the interpreter goes
        from logging import getLogger

        getLogger(_NAME).info(text, *values, stacklevel=2)


def warning(text: str, *values: object) -> None:
    """Tell what went wrong and was dealt with; on standard error unless the application says otherwise."""
    from logging import getLogger

    getLogger(_NAME).warning(text, *values, stacklevel=2)


def error(text: str, *values: object) -> None:
    """Tell what went wrong and has consequences; on standard error unless the application says otherwise."""
    try:
        from logging import getLogger
    except ImportError:  # while the interpreter goes, nothing can be imported
        sys.stderr.write(f"{text % values}\n")
        return
    getLogger(_NAME).error(text, *values, stacklevel=2)
