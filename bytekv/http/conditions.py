"""Entity tags, conditional requests and ranges: RFC 9110, sections 8.8.3, 13 and 14.

Pure: header texts in, decisions out. An entity tag is the seq of a key's entry in quotes, always strong, so
comparing tags is comparing seqs; 0 means a key that does not exist, as in `Store.put`.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from .problem import Problem

__all__ = ["Conditions", "Part", "etag_of", "part_of", "seq_of"]

#: One member of a list of entity tags (RFC 9110, 8.8.3), or an empty one (5.6.1: to be ignored).
_TAG: Final = re.compile(r'[ \t]*((?:W/)?"[\x21\x23-\x7e\x80-\xff]*"|)[ \t]*(?:,|$)')
_OURS: Final = re.compile(r'"([1-9][0-9]{0,19}|0)"')
_RANGE: Final = re.compile(r"bytes[ \t]*=[ \t]*(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))[ \t]*", re.IGNORECASE)


def etag_of(seq: int) -> str:
    """Return the entity tag of an entry.

    >>> etag_of(7)
    '"7"'
    """
    return f'"{seq}"'


def seq_of(etag: str) -> int | None:
    """Return the seq in one of our entity tags, None if it is not of our form."""
    found = _OURS.fullmatch(etag)
    return int(found[1]) if found else None


def _tags(name: str, text: str) -> list[str] | None:
    """Return the tags of a condition, None for ``*``."""
    if text.strip(" \t") == "*":
        return None
    found, at = [], 0
    while at < len(text):
        match = _TAG.match(text, at)
        if match is None:
            raise Problem("malformed", f'{name} must be * or a list of entity tags such as "7"')
        if match[1]:
            found.append(match[1])
        at = match.end()
    return found


class Conditions:
    """What a request's If-Match and If-None-Match demand.

    >>> Conditions('"7"', None).hold(7), Conditions('"7"', None).hold(8), Conditions(None, "*").hold(0)
    (True, False, True)
    """

    def __init__(self, if_match: str | None, if_none_match: str | None) -> None:
        self._match = self._none_match = frozenset[int]()
        self._wants_match, self._wants_none = if_match is not None, if_none_match is not None
        self._any_match = self._any_none = False
        if if_match is not None:
            tags = _tags("If-Match", if_match)
            self._any_match = tags is None
            # Strong comparison: a weak tag matches nothing.
            self._match = frozenset(seq for tag in tags or () if (seq := seq_of(tag)))
        if if_none_match is not None:
            tags = _tags("If-None-Match", if_none_match)
            self._any_none = tags is None
            self._none_match = frozenset(seq for tag in tags or () if (seq := seq_of(tag.removeprefix("W/"))))

    @property
    def are_given(self) -> bool:
        """Tell whether there is any condition."""
        return self._wants_match or self._wants_none

    def match(self, seq: int) -> bool:
        """Tell whether If-Match allows an entry of this seq."""
        return not self._wants_match or (seq != 0 and (self._any_match or seq in self._match))

    def none_match(self, seq: int) -> bool:
        """Tell whether If-None-Match allows an entry of this seq; where not, a GET answers 304."""
        return not self._wants_none or not (seq != 0 and (self._any_none or seq in self._none_match))

    def hold(self, seq: int) -> bool:
        """Tell whether a write may change an entry of this seq."""
        return self.match(seq) and self.none_match(seq)

    def require(self, seq: int) -> None:
        """Raise the problem if they do not hold; it says which entity tag the key has."""
        if not self.hold(seq):
            etag = etag_of(seq) if seq else None
            actual = f"its entity tag is {etag}" if etag else "it does not exist"
            raise Problem("precondition-failed", f"the key is in another state: {actual}", etag=etag)


class Part(NamedTuple):
    """The bytes of a value that were asked for."""

    start: int
    stop: int


def part_of(text: str | None, if_range: str | None, seq: int, size: int) -> Part | None:
    """Return the part that Range asks for; None: the whole.

    More than one range, other units and malformed ones are ignored, as RFC 9110, 14.2 allows. Raises the problem
    if the range begins after the value's end.

    >>> part_of("bytes=-3", None, 1, 10)
    Part(start=7, stop=10)
    """
    if text is None or (if_range is not None and if_range.strip(" \t") != etag_of(seq)):
        return None
    found = _RANGE.fullmatch(text)
    if found is None:
        return None
    first, last, suffix = found.groups()
    if suffix is not None:
        start, stop = max(0, size - int(suffix)), size
        if size == 0 and int(suffix) > 0:
            return None  # satisfiable, but there is no Content-Range for it
    else:
        start, stop = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < start:
            return None  # invalid, which is not unsatisfiable
    if start >= size:
        headers = [(b"content-range", b"bytes */%d" % size)]
        raise Problem("bad-range", f"the value has {size} bytes", headers=headers)
    return Part(start, stop)
