"""Operations on a store: one blocking function for each.

Knows the store's public surface and the JSON of the interface, and nothing of ASGI. A compare-and-set is atomic
because the store compares: `Store.put` with ``if_seq``, or a transaction, which keeps other writers out.

In JSON a key is base64 (``key_b64``), since keys are bytes; where it is UTF-8 it is shown as text (``key``), too.
"""

from __future__ import annotations

import binascii
import json
import re
from base64 import b64encode, urlsafe_b64decode, urlsafe_b64encode
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from hashlib import sha256
from typing import Any, Final, NamedTuple, NoReturn

from .. import Store
from ..contract.batch import Batch
from ..contract.convert import MAX_KEY_SIZE, Entry, EntryStat
from ..contract.reports import Change
from ..contract.snapshot import Snapshot
from ..contract.transaction import Transaction
from ..errors import ConflictError
from .access import STEP_SCOPES, require_scopes
from .conditions import Conditions, etag_of, seq_of
from .problem import Problem

__all__ = [
    "MAX_BATCH_OPS",
    "MAX_PAGE_ITEMS",
    "PAGE_ITEMS",
    "KeyRange",
    "Listing",
    "change_line",
    "check_key",
    "count",
    "delete",
    "delete_range",
    "find",
    "find_text",
    "no_such_key",
    "open_listing",
    "page",
    "put",
    "run_batch",
    "stat",
    "ttl_left",
    "ttl_of",
]

#: Items on one page at most, and the bytes of keys and values after which a page ends.
MAX_PAGE_ITEMS: Final = 1000
PAGE_ITEMS: Final = 100
_PAGE_BYTES: Final = 4 * 1024 * 1024
_FINGERPRINT_BYTES: Final = 6

#: Up to nine digits of seconds, thirty years, as `_MAX_TTL_S` in JSON. `float` would take "+5", " 5 " and "1_0", too.
_TTL: Final = re.compile(rb"[0-9]{1,9}(?:\.[0-9]{1,3})?")
_MAX_TTL_S: Final = 1_000_000_000
#: Preconditions of one batch at most, and operations.
MAX_BATCH_OPS: Final = 10_000


def check_key(key: bytes) -> bytes:
    """Return the key; raise the problem if it is too long for any store."""
    if len(key) > MAX_KEY_SIZE:
        raise Problem("malformed", f"a key has {MAX_KEY_SIZE} bytes at most, this one {len(key)}")
    return key


def ttl_of(text: bytes | None) -> float | None:
    """Return the seconds that a parameter asks for."""
    if text is None:
        return None
    if not _TTL.fullmatch(text) or float(text) == 0:
        raise Problem("malformed", "ttl is a decimal number of seconds, such as 60 or 0.5", parameter="ttl")
    return float(text)


# --- one key -----------------------------------------------------------------------------------


def find(store: Store, key: bytes) -> Entry:
    """Return the entry of a key; raise the problem if there is none."""
    try:
        return store.entry(key)
    except KeyError:
        raise no_such_key(key) from None


def find_text(store: Store, key: bytes) -> tuple[Entry, bytes]:
    """Return the entry of a key and the media type to show it as."""
    entry = find(store, key)
    try:
        entry.value.decode()
    except UnicodeDecodeError:
        return entry, b"application/octet-stream"
    return entry, b"text/plain; charset=utf-8"


def stat(store: Store, key: bytes) -> dict[str, object]:
    """Return what is known of a key besides its value; raise the problem if there is none."""
    try:
        found = store.stat(key)
    except KeyError:
        raise no_such_key(key) from None
    return {
        **_shown(key),
        "size": found.size,
        "etag": etag_of(found.seq),
        "modified": found.modified,
        "ttl": ttl_left(store, found),
    }


def put(store: Store, key: bytes, value: bytes, ttl: float | None, conditions: Conditions) -> tuple[bool, int]:
    """Store a value if the conditions hold; tell whether the key is new, and its seq.

    Each try is one compare-and-set, and one that fails says what is there now, so that a lost race costs no
    second look, and an entry that only waits for its sync is taken into account.
    """
    expected = _seq(store, key)
    while True:
        conditions.require(expected)
        try:
            return expected == 0, store.put(key, value, ttl=ttl, if_seq=expected)
        except ConflictError as error:
            expected = error.seq


def delete(store: Store, key: bytes, conditions: Conditions) -> bool:
    """Delete a key if the conditions hold; tell whether it existed."""
    if not conditions.are_given:
        return store.delete(key)
    with store.transaction() as tx:
        seq = _seq(store, key)
        if seq == 0:
            return False
        conditions.require(seq)
        return tx.pop(key, None) is not None


def _seq(store: Store, key: bytes) -> int:
    try:
        return store.entry(key).seq
    except KeyError:
        return 0


def no_such_key(key: bytes) -> Problem:
    """Return the problem of a missing key."""
    return Problem("no-such-key", f"no key of these {len(key)} bytes", key_b64=_b64(key[:256]))


# --- listings ----------------------------------------------------------------------------------


class KeyRange(NamedTuple):
    """Which keys to count or delete."""

    prefix: bytes
    start: bytes | None
    stop: bytes | None


def count(store: Store, keys: KeyRange) -> int:
    """Return how many keys there are."""
    return store.count(keys.prefix, start=keys.start, stop=keys.stop)


def delete_range(store: Store, keys: KeyRange) -> int:
    """Delete keys; return how many there were. Every key is not to be deleted by forgetting a parameter."""
    if not keys.prefix and keys.start is None and keys.stop is None:
        raise Problem("malformed", "say which keys to delete: by a prefix, or by start or stop")
    if keys.prefix and (keys.start is not None or keys.stop is not None):
        raise Problem("malformed", "say which keys to delete by a prefix or by start and stop, not by both")
    return store.delete_prefix(keys.prefix) if keys.prefix else store.delete_range(keys.start, keys.stop)


class Listing(NamedTuple):
    """Which keys to list, and how."""

    prefix: bytes
    start: bytes | None
    stop: bytes | None
    reverse: bool
    limit: int | None
    values: bool
    cursor: bytes | None

    def _fingerprint(self) -> bytes:
        parts = (self.prefix, self.start, self.stop, self.reverse)
        return sha256(repr(parts).encode()).digest()[:_FINGERPRINT_BYTES]

    def cursor_after(self, key: bytes) -> str:
        """Return a cursor for what follows a key; it holds all that a later request needs."""
        return urlsafe_b64encode(self._fingerprint() + key).decode().rstrip("=")

    def keys(self, snapshot: Snapshot) -> Iterator[bytes]:
        """Iterate over the keys in a snapshot; raise the problem for a cursor of another listing."""
        start, stop = self.start, self.stop
        after = self._position()
        if after is not None and self.reverse:
            stop = after if stop is None else min(stop, after)
        elif after is not None:
            start = after if start is None else max(start, after)
        return snapshot.scan_keys(
            self.prefix, start=start, stop=stop, include_start=after is None or start != after, reverse=self.reverse
        )

    def _position(self) -> bytes | None:
        if self.cursor is None:
            return None
        with suppress(ValueError):
            key = urlsafe_b64decode(self.cursor + b"=" * (-len(self.cursor) % 4))[_FINGERPRINT_BYTES:]
            if self.cursor_after(key).encode() == self.cursor:
                return key
        raise Problem("malformed", "this cursor belongs to a listing with another prefix, start, stop or order")


def page(store: Store, listing: Listing) -> tuple[int, dict[str, object]]:
    """Return one page of a listing as of one moment, and the seq of that moment."""
    items: list[dict[str, object]] = []
    size, last = 0, b""
    limit = min(listing.limit or PAGE_ITEMS, MAX_PAGE_ITEMS)
    with store.snapshot() as snapshot:
        for key in listing.keys(snapshot):
            if len(items) == limit or size >= _PAGE_BYTES:
                return snapshot.seq, {"items": items, "cursor": listing.cursor_after(last)}
            item = _item(store, snapshot, key, listing.values)
            if item is not None:
                items.append(item)
                size += len(key) + len(str(item.get("value_b64", "")))
                last = key
    return snapshot.seq, {"items": items, "cursor": None}


def open_listing(store: Store, listing: Listing) -> tuple[int, Generator[bytes, None, None]]:
    """Return the lines of a whole listing as of one moment, and the seq of that moment."""
    snapshot = store.snapshot()
    return snapshot.seq, _lines(store, snapshot, listing)


def _lines(store: Store, snapshot: Snapshot, listing: Listing) -> Generator[bytes, None, None]:
    with snapshot:
        left = listing.limit
        for key in listing.keys(snapshot):
            item = _item(store, snapshot, key, listing.values)
            if item is not None:
                yield json_line(item)
                if left is not None:
                    left -= 1
                    if left == 0:
                        return


def _item(store: Store, snapshot: Snapshot, key: bytes, values: bool) -> dict[str, object] | None:
    item = _shown(key)
    if values:
        try:
            item |= _content(store, snapshot.entry(key))
        except KeyError:
            return None  # expired between the two
    return item


# --- batches -----------------------------------------------------------------------------------


class _Step(NamedTuple):
    """One step of a batch; the value is None for a delete and a get."""

    op: str
    key: bytes
    value: bytes | None
    ttl: float | None


def run_batch(store: Store, body: bytes, limit_bytes: int, allowed: frozenset[str]) -> dict[str, object]:
    """Carry out a batch, all of it or nothing; ``limit_bytes`` bounds the values that it may get.

    Raises the problem unless the scopes of all its steps are ``allowed``, before it looks at the store.
    """
    wanted, operations = _parse_batch(body)
    require_scopes({STEP_SCOPES[step.op] for step in operations} or {"read"}, allowed)
    results: list[dict[str, object]] = []
    if all(step.op == "get" for step in operations):
        with store.snapshot() as snapshot:  # one moment for all, also where nothing may be written
            _require_all(snapshot.entry, wanted)
            _carry_out(store, operations, results, snapshot.entry, None, limit_bytes)
        return {"seq": None, "results": results}
    # What reads nothing needs no transaction, and then its sync is shared with other writers.
    reads = bool(wanted) or any(step.op == "get" for step in operations)
    with store.transaction() if reads else store.batch() as writer:
        _require_all(store.entry, wanted)
        _carry_out(store, operations, results, store.entry, writer, limit_bytes)
    for step, result in zip(operations, results, strict=True):
        if step.op == "put":
            # Seqs at and below the batch's own are the batch's, as this key was written in it. A newer one is
            # somebody else's: then there is no entity tag to tell any more.
            seq = _seq(store, step.key)
            result["etag"] = etag_of(seq) if writer.seq is not None and 0 < seq <= writer.seq else None
    return {"seq": writer.seq, "results": results}


def _require_all(entry_of: Callable[[bytes], Entry], wanted: list[tuple[bytes, int]]) -> None:
    failed = []
    for index, (key, seq) in enumerate(wanted):
        actual = 0
        with suppress(KeyError):
            actual = entry_of(key).seq
        if actual != seq:
            failed.append({"index": index, "key_b64": _b64(key), "etag": etag_of(actual) if actual else None})
    if failed:
        raise Problem("precondition-failed", f"{len(failed)} of {len(wanted)} preconditions do not hold", failed=failed)


def _carry_out(
    store: Store,
    operations: list[_Step],
    results: list[dict[str, object]],
    entry_of: Callable[[bytes], Entry],
    writer: Batch | Transaction | None,
    limit_bytes: int,
) -> None:
    own: dict[bytes, _Step] = {}
    for step in operations:
        result: dict[str, object] = {"op": step.op, "key_b64": _b64(step.key)}
        if step.op == "get":
            got, limit_bytes = _got(store, step.key, own.get(step.key), entry_of, limit_bytes)
            result |= got
        elif writer is not None:
            own[step.key] = step
            if step.value is not None:
                writer.put(step.key, step.value, ttl=step.ttl)
            else:
                with suppress(KeyError):
                    del writer[step.key]
        results.append(result)


def _got(
    store: Store, key: bytes, own: _Step | None, entry_of: Callable[[bytes], Entry], limit_bytes: int
) -> tuple[dict[str, object], int]:
    """Return what a get answers and how many bytes the others may have."""
    entry: Entry | None = None
    if own is None:
        with suppress(KeyError):
            entry = entry_of(key)
        value = None if entry is None else entry.value
    else:  # written by an earlier step, so it has no seq yet
        value = own.value
    limit_bytes -= 0 if value is None else 4 * len(value) // 3
    if limit_bytes < 0:
        raise Problem("too-large", "the values that the batch gets are too large together; nothing was changed")
    if entry is not None:
        return _content(store, entry), limit_bytes
    encoded = None if value is None else _b64(value)
    return {"value_b64": encoded, "etag": None, "ttl": None if own is None else own.ttl}, limit_bytes


def _parse_batch(body: bytes) -> tuple[list[tuple[bytes, int]], list[_Step]]:
    # Before it is parsed, as a megabyte of empty objects would take a hundred: base64 has none of these characters.
    if max(body.count(b"{") - 1, body.count(b",") // 3) > 2 * MAX_BATCH_OPS:
        raise _too_many()
    if body.count(b"[") > 2:
        _refuse("", "is nested too deeply")
    try:
        document = json.loads(body.decode(), parse_constant=_no_constant, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise Problem("malformed", f"the body is not JSON: {error}"[:200]) from None
    _members("the batch", document, {"ops"}, {"if"})
    wanted, operations = document.get("if", []), document["ops"]
    if not isinstance(wanted, list) or not isinstance(operations, list):
        _refuse("if and ops", "must be arrays")
    if max(len(wanted), len(operations)) > MAX_BATCH_OPS:
        raise _too_many()
    return (
        [_parse_precondition(f"if[{index}]", each) for index, each in enumerate(wanted)],
        [_parse_operation(f"ops[{index}]", each) for index, each in enumerate(operations)],
    )


def _too_many() -> Problem:
    return Problem("too-large", f"a batch has {MAX_BATCH_OPS} preconditions and {MAX_BATCH_OPS} operations at most")


def _parse_precondition(where: str, given: Any) -> tuple[bytes, int]:
    _members(where, given, {"key_b64", "etag"}, set())
    etag = given["etag"]
    seq = 0 if etag is None else seq_of(etag) if isinstance(etag, str) else None
    if seq is None or (seq == 0 and etag is not None):
        _refuse(f"{where}.etag", 'must be an entity tag such as "\\"7\\"", or null: the key must not exist')
    return _key(where, given), seq


def _parse_operation(where: str, given: Any) -> _Step:
    op = given.get("op") if isinstance(given, dict) else None
    if op == "put":
        _members(where, given, {"op", "key_b64", "value_b64"}, {"ttl"})
        ttl = given.get("ttl")
        if ttl is not None:
            is_number = isinstance(ttl, int | float) and not isinstance(ttl, bool)
            if not is_number or not 0 < ttl <= _MAX_TTL_S:
                _refuse(f"{where}.ttl", f"must be a number of seconds, more than 0 and at most {_MAX_TTL_S}")
        return _Step(op, _key(where, given), _bytes(f"{where}.value_b64", given["value_b64"]), ttl)
    if not isinstance(op, str) or op not in STEP_SCOPES:
        _refuse(f"{where}.op", 'must be "put", "delete" or "get"')
    _members(where, given, {"op", "key_b64"}, set())
    return _Step(op, _key(where, given), None, None)


def _members(where: str, given: Any, needed: set[str], optional: set[str]) -> None:
    if not isinstance(given, dict):
        _refuse(where, "must be an object")
    if missing := sorted(needed - given.keys()):
        _refuse(where, f"lacks {missing[0]}")
    if given.keys() - needed - optional:
        _refuse(where, f"may only have the members {', '.join(sorted(needed | optional))}")


def _key(where: str, given: Any) -> bytes:
    return check_key(_bytes(f"{where}.key_b64", given["key_b64"]))


def _bytes(where: str, given: Any) -> bytes:
    if not isinstance(given, str):
        _refuse(where, "must be a string of base64")
    try:
        return binascii.a2b_base64(given, strict_mode=True)
    except ValueError:
        _refuse(where, "is not base64 (with padding, without line breaks)")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):  # of two "ops" only the last would be carried out
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"an object has the member {twice[:100]!r} twice")
    return members


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _refuse(where: str, text: str) -> NoReturn:
    raise Problem("malformed", f"{where} {text}".strip())


# --- JSON --------------------------------------------------------------------------------------


def change_line(change: Change) -> bytes:
    """Return a change as one line of JSON; "clear" has no key, only "put" a value."""
    document: dict[str, object] = {"seq": change.seq, "op": change.op}
    if change.op != "clear":
        document |= _shown(change.key)
    if change.op == "put":
        document |= {"value_b64": _b64(change.value), "expires": change.expires}
    return json_line({**document, "more": change.more})


def json_line(document: object) -> bytes:
    """Return a JSON document in one line."""
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def ttl_left(store: Store, entry: Entry | EntryStat) -> float | None:
    """Return the seconds that an entry has left by the store's clock, to the millisecond."""
    return None if entry.expires is None else max(0.0, round(entry.expires - store._now_ms() / 1000, 3))


def _shown(key: bytes) -> dict[str, object]:
    try:
        text: str | None = key.decode()
    except UnicodeDecodeError:
        text = None
    return {"key": text, "key_b64": _b64(key)}


def _content(store: Store, entry: Entry) -> dict[str, object]:
    return {"value_b64": _b64(entry.value), "etag": etag_of(entry.seq), "ttl": ttl_left(store, entry)}


def _b64(raw: bytes) -> str:
    return b64encode(raw).decode()
