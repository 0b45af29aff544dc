"""Lean import: keep `import bytekv` short by cheap stand-ins and late imports.

`import bytekv`, and a command for one key, are over in a few milliseconds, so what they import is chosen with care.
Processor time of Python 3.11 and 3.13, which start in 11 and 13 ms: `typing` takes 10 and 6 more, `dataclasses` 16 and
19, `logging` 15 and 16. None of them is needed before somebody uses it, so nothing here imports them by itself.
Annotations are never evaluated, and their names are imported under `TYPE_CHECKING`, which checkers take for true.
`NamedTuple`, `dataclass` and `suppress` are those of the standard library for checkers, and make what they make for
readers. `log` asks for `logging` when there is something to say. tests/test_imports.py says what may come along.

A module of our own is a third of a million instructions, an empty one, too; Python itself starts in 40 million. So what
a store that is opened, read and written by one key does not need is imported by the method that needs it: reports,
views, snapshots, transactions, the feed, the search after a crash; and, in a store that compacts by itself, the
compactor when it is opened. Such an import stands in `errors.translated`, because no descriptor may be left for it.
A class of named fields is 0.4 million by `namedtuple` and 0.1 by what is made here; contextlib is 4.5 million.
"""

from __future__ import annotations

import sys
from collections import namedtuple
from operator import itemgetter

__all__ = ["TYPE_CHECKING", "NamedTuple", "dataclass", "log", "suppress"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import suppress
    from dataclasses import dataclass
    from typing import NamedTuple
else:
    try:
        from collections import _tuplegetter
    except ImportError:  # another Python than CPython

        def _tuplegetter(place, doc):
            return property(itemgetter(place), doc=doc)

    _new = tuple.__new__

    #: `__new__` for each number of fields, whose names its arguments are given: to compile it anew for each class is
    #: most of what `collections.namedtuple` costs.
    _NEW_OF = [
        lambda _cls, a: _new(_cls, (a,)),
        lambda _cls, a, b: _new(_cls, (a, b)),
        lambda _cls, a, b, c: _new(_cls, (a, b, c)),
        lambda _cls, a, b, c, d: _new(_cls, (a, b, c, d)),
        lambda _cls, a, b, c, d, e: _new(_cls, (a, b, c, d, e)),
        lambda _cls, a, b, c, d, e, f: _new(_cls, (a, b, c, d, e, f)),
        lambda _cls, a, b, c, d, e, f, g: _new(_cls, (a, b, c, d, e, f, g)),
        lambda _cls, a, b, c, d, e, f, g, h: _new(_cls, (a, b, c, d, e, f, g, h)),
    ]

    class _Fields:
        """What every named tuple can do, as the standard library has it."""

        def _make(cls, iterable):
            made = _new(cls, iterable)
            if len(made) != len(cls._fields):
                raise TypeError(f"Expected {len(cls._fields)} arguments, got {len(made)}")
            return made

        def _replace(self, /, **named):
            made = self._make(map(named.pop, self._fields, self))
            if named:
                raise TypeError(f"Got unexpected field names: {list(named)!r}")
            return made

        def _asdict(self):
            return dict(zip(self._fields, self, strict=True))

        def __repr__(self):
            shown = ", ".join(f"{field}={value!r}" for field, value in zip(self._fields, self, strict=True))
            return f"{type(self).__name__}({shown})"

        def __getnewargs__(self):
            return tuple(self)

    _METHODS = {
        "_make": classmethod(_Fields._make),
        "_replace": _Fields._replace,
        "__replace__": _Fields._replace,
        "_asdict": _Fields._asdict,
        "__repr__": _Fields.__repr__,
        "__getnewargs__": _Fields.__getnewargs__,
        "__slots__": (),
    }

    class _Maker(type):
        def __new__(cls, name, bases, body):
            fields = tuple(body["__annotations__"])
            defaults = {field: body[field] for field in fields if field in body}
            if len(fields) > len(_NEW_OF):
                made_new = namedtuple(name, fields).__new__
            else:
                template = _NEW_OF[len(fields) - 1]
                code = template.__code__.replace(co_varnames=("_cls", *fields), co_name="__new__")
                made_new = type(template)(code, globals(), "__new__")
            made_new.__defaults__ = tuple(defaults.values())
            getters = {field: _tuplegetter(place, field) for place, field in enumerate(fields)}
            own = {"__new__": made_new, "_fields": fields, "__match_args__": fields, "_field_defaults": defaults}
            return type(name, (tuple,), _METHODS | own | body | getters)

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
