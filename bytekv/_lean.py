"""Lean import: keep `import bytekv` short by cheap stand-ins and late imports.

`import bytekv`, and a command for one key, are over in a few milliseconds, so what they import is chosen with care.
Processor time of Python 3.11 and 3.13, which start in 11 and 13 ms: `typing` takes 10 and 6 more, `dataclasses` 16
and 19, `logging` 15 and 16. None of them is needed before somebody uses it, so nothing here imports them by itself.
Annotations are never evaluated, and their names are imported under `TYPE_CHECKING`, which checkers take for true.
`NamedTuple`, `dataclass` and `suppress` are those of the standard library for checkers, and make what they make for
readers. `log` asks for `logging` when there is something to say. tests/project/test_imports.py says what may come
along.

A module of our own is a third of a million instructions, an empty one, too; Python itself starts in 40 million. So what
a store that is opened, read and written by one key does not need is imported by the method that needs it: reports,
views, snapshots, transactions, the feed, the search after a crash; and, in a store that compacts by itself, the
compactor when it is opened. Such an import is wrapped in `errors.translated`, because no descriptor may be left for it.
contextlib alone is 4.5 million.
"""

from __future__ import annotations

import sys
from collections import namedtuple

__all__ = ["TYPE_CHECKING", "NamedTuple", "dataclass", "log", "suppress"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import suppress
    from dataclasses import dataclass
    from typing import NamedTuple
else:

    class _Maker(type):
        def __new__(cls, name, bases, body):
            fields = tuple(body["__annotations__"])
            defaults = [body[field] for field in fields if field in body]
            made = namedtuple(name, fields, defaults=defaults, module=body["__module__"])
            for attribute, given in body.items():
                if attribute not in fields and attribute != "__module__":
                    setattr(made, attribute, given)
            return made

    NamedTuple = type.__new__(_Maker, "NamedTuple", (), {"__doc__": "Make a class of named fields a tuple."})

    def dataclass(**_):
        """Leave the class as it is: its fields are the annotations, and its methods are written out."""
        return lambda cls: cls

    class suppress:
        """Swallow exceptions of these kinds."""

        __slots__ = ("_kinds",)

        def __init__(self, *kinds):
            self._kinds = kinds

        def __enter__(self):
            pass

        def __exit__(self, kind, error, trace):
            return kind is not None and issubclass(kind, self._kinds)


class _Log:
    """Messages for the standard library's logger "bytekv".

    An application that wants debug and information has imported and configured `logging` before; warnings and errors
    are for people who have not, too.
    """

    _name = "bytekv"

    def debug(self, text: str, *values: object) -> None:
        """Tell what a developer may want to know; free if nobody listens."""
        if sys.modules.get("logging"):  # None while the interpreter shuts down
            from logging import getLogger

            getLogger(self._name).debug(text, *values, stacklevel=2)

    def info(self, text: str, *values: object) -> None:
        """Tell what an operator may want to know; free if nobody listens."""
        if sys.modules.get("logging"):  # None while the interpreter shuts down
            from logging import getLogger

            getLogger(self._name).info(text, *values, stacklevel=2)

    def warning(self, text: str, *values: object) -> None:
        """Tell what went wrong and was dealt with; on standard error unless the application says otherwise."""
        from logging import getLogger

        getLogger(self._name).warning(text, *values, stacklevel=2)

    def error(self, text: str, *values: object) -> None:
        """Tell what went wrong and has consequences; on standard error unless the application says otherwise."""
        try:
            from logging import getLogger
        except ImportError:  # while the interpreter shuts down, nothing can be imported
            sys.stderr.write(f"{text % values}\n")
            return
        getLogger(self._name).error(text, *values, stacklevel=2)


log = _Log()
