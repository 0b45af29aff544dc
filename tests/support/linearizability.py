"""Is there an order of these calls, within the times they took, in which a dict would have answered the same?

A history is a list of calls with the moments at which each began and ended, by a counter that all threads share.
It is linearizable if every call can be given a point between its two moments so that the calls, done one after the
other in that order, return what they returned. A history of many keys is linearizable if that of each key is
(Herlihy and Wing), so each is judged on its own. The search is Wing and Gong's, with Lowe's memory of what has been
tried: the calls done so far and the state they led to.

The model of one key knows more than its value: its seq, as far as somebody has been told, and when it expires. Time is
a call like any other: it passes for every key. A call looks at the clock first, and what it finds or does may be seen
later, with sync="always" much later; so each may judge what has expired by any time since it began.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple


class Call(NamedTuple):
    """One call as a thread has recorded it."""

    began: int
    ended: int
    thread: int
    verb: str
    arguments: tuple[Any, ...]
    result: Any


class Key(NamedTuple):
    """What a key is: absent if it has no value or if its time has come."""

    value: bytes | None = None
    seq: int | None = 0  # 0 if absent; None: nobody has been told
    expires_ms: int = 0  # 0: never
    now_ms: int = 0
    newest_seq: int = 0  # the highest that anybody has been told

    @property
    def left(self) -> bytes | None:
        return None if 0 < self.expires_ms <= self.now_ms else self.value

    def knows(self, seq: int) -> Iterator[Key]:
        """Yield the key with this seq, if it may have it."""
        if self.left is None:
            if seq == 0:
                yield self
        elif self.seq == seq or (self.seq is None and seq > self.newest_seq):
            yield self._replace(seq=seq, newest_seq=max(seq, self.newest_seq))

    def becomes(self, value: bytes, seq: int | None, expires_ms: int) -> Iterator[Key]:
        """Yield the key after a put."""
        if seq is None:
            yield self._replace(value=value, seq=None, expires_ms=expires_ms)
        elif seq > self.newest_seq:
            yield self._replace(value=value, seq=seq, expires_ms=expires_ms, newest_seq=seq)

    def goes(self) -> Key:
        """Return the key after a delete."""
        return self._replace(value=None, seq=0, expires_ms=0)


def do(key: Key, call: Call) -> Iterator[Key]:
    """Yield each state in which a call that returned what it did may have left the key; none if it cannot have."""
    verb, arguments, result = call.verb, call.arguments, call.result
    there = key.left is not None
    if verb == "time":
        yield key._replace(now_ms=arguments[0])
    elif verb == "get":
        if result == key.left:
            yield key
    elif verb == "in":
        if result == there:
            yield key
    elif verb == "entry":  # None, or value, seq and expiry
        if result is None:
            if not there:
                yield key
        elif there and result[0] == key.value and result[2] == key.expires_ms:
            yield from key.knows(result[1])
    elif verb == "ttl":  # None if absent, 0 if it does not expire
        if result is None:
            if not there:
                yield key
        elif there and result == (key.expires_ms - key.now_ms if key.expires_ms else 0):
            yield key
    elif verb == "put":  # seq
        yield from key.becomes(arguments[0], result, until(key, arguments[1]))
    elif verb == "put_if":  # (done, seq): its own, or the one found
        value, expected = arguments
        done, seq = result
        if not done:
            if seq != expected:
                yield from key.knows(seq)
        else:
            for known in key.knows(expected):
                yield from known.becomes(value, seq, 0)
    elif verb == "add":
        if result and not there:
            yield from key.becomes(arguments[0], None, until(key, arguments[1]))
        elif not result and there:
            yield key
    elif verb == "delete":
        if result == there:
            yield key.goes() if there else key
    elif verb == "pop":
        if result == key.left:
            yield key.goes() if there else key
    elif verb == "incr":  # None if the value is no number
        is_number = not there or (key.value or b"").removeprefix(b"-").isdigit()
        if result is None:
            if not is_number:
                yield key
        elif is_number and result == arguments[0] + int(key.left or 0):
            yield from key.becomes(b"%d" % result, None, key.expires_ms if there else 0)
    elif verb == "expire":
        if result == there:
            yield from key.becomes(key.value or b"", None, until(key, arguments[0])) if there else [key]
    elif verb == "persist":
        if result == (there and key.expires_ms > 0):
            yield from key.becomes(key.value or b"", None, 0) if result else [key]
    else:
        raise AssertionError(verb)


def until(key: Key, ttl_ms: int) -> int:
    """Return when a key will be gone that is written now."""
    return key.now_ms + ttl_ms if ttl_ms else 0


def explain(history: Iterable[Call], *, clock_first: bool = False) -> list[Call] | None:
    """Return the calls on one key in an order that explains what they returned, None if there is none."""
    calls = sorted(history)
    times = _times(calls) if clock_first else {}
    whole = (1 << len(calls)) - 1
    tried: set[tuple[int, Key]] = set()
    order: list[Call] = []
    steps: list[Iterator[tuple[Call, int, Key]]] = [_steps(calls, times, 0, Key())]
    while steps:
        for call, done, key in steps[-1]:
            if (done, key) not in tried:
                tried.add((done, key))
                order.append(call)
                if done == whole:
                    return order
                steps.append(_steps(calls, times, done, key))
                break
        else:
            steps.pop()
            if order:
                order.pop()
    return None if calls else order


def _times(calls: Sequence[Call]) -> dict[Call, list[int]]:
    """Return for each call what the time may have been since it began."""
    ticks = [call for call in calls if call.verb == "time"]
    return {
        call: [
            tick.arguments[0]
            for tick, following in zip_longest(ticks, ticks[1:])
            if tick.began < call.ended and (following is None or following.ended > call.began)
        ]
        for call in calls
        if call.verb != "time"
    }


def _steps(calls: Sequence[Call], times: dict[Call, list[int]], done: int, key: Key) -> Iterator[tuple[Call, int, Key]]:
    """Yield what may come next: any call that is not done and began before all of those have ended."""
    number = ((done + 1) & ~done).bit_length() - 1  # of the first that is not done
    ended = calls[number].ended if number < len(calls) else 0
    while number < len(calls) and calls[number].began < ended:
        call = calls[number]
        if not done >> number & 1:
            ended = min(ended, call.ended)
            for after in do(key, call):
                yield call, done | 1 << number, after
            for now_ms in times.get(call, ()):
                if now_ms < key.now_ms:
                    for after in do(key._replace(now_ms=now_ms), call):
                        yield call, done | 1 << number, after._replace(now_ms=key.now_ms)
        number += 1
