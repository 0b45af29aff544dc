"""`typing.NamedTuple` without `typing`: the same classes for checkers and readers, made in half the time.

Knows nothing of bytekv. Importing `typing` and letting it look at each field takes 3 to 4 ms, about as long as
all that bytekv itself has to import; a command line that reads one key would spend a sixth of its time on it.
"""

from __future__ import annotations

from collections import namedtuple

__all__ = ["NamedTuple"]

TYPE_CHECKING = False
if TYPE_CHECKING:
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
