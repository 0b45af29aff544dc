"""Entries as JSON Lines: the format of `bytekv export`, `import` and `scan`.

One line is one entry: ``{"key": …, "value": …, "expires": …}``. Bytes that are UTF-8 are written as a JSON string,
others in base64 under ``key_b64`` or ``value_b64``, so no byte is lost and text stays legible. ``expires`` is a time in
seconds since 1970, absent if the key does not expire. A line that says anything else is refused rather than half
understood.

Knows nothing of files or terminals. Whatever the source of the entries, `load` carries them into a store in batches.
"""

from __future__ import annotations

import binascii
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from json import decoder
from json.encoder import encode_basestring as _quoted

from .._lean import TYPE_CHECKING, NamedTuple
from ..contract.convert import MAX_KEY_SIZE, MAX_VALUE_SIZE, check_sizes, expiry_of
from ..errors import LimitError

if TYPE_CHECKING:
    from typing import Any, BinaryIO, Final, Literal

    from .. import Store

    Duplicates = Literal["refuse", "first", "last"]

__all__ = [
    "DuplicateError",
    "LineError",
    "Loaded",
    "Row",
    "decode_line",
    "encode_line",
    "encode_lines",
    "load",
    "read_lines",
    "text_of",
]

Row = tuple[bytes, bytes, float | None]  # key, value, expires

#: A batch holds at most this many entries, and is not added to once it has this many bytes.
BATCH_ENTRIES: Final = 1000
BATCH_BYTES: Final = 8 << 20
_FEW_TIMES: Final = 32  # at which entries of a batch expire that are put together

#: The longest line that can be right: JSON writes one byte as \u0000 at worst.
MAX_LINE_SIZE: Final = 6 * (MAX_KEY_SIZE + MAX_VALUE_SIZE) + 1024

_scan_string: Final[Callable[[str, int], tuple[str, int]]] = decoder.scanstring  # type: ignore[attr-defined]

#: A line as `encode_line` writes it.
_STRING: Final = rb'"([^"\\\x00-\x1f]*+(?:\\.[^"\\\x00-\x1f]*+)*+)"'
_USUAL: Final = re.compile(
    rb'\{"key(_b64)?": %b, "value(_b64)?": %b(?:, "expires": ([1-9][0-9]{0,10}(?:\.[0-9]{1,6})?))?\}\n?'
    % (_STRING, _STRING)
).fullmatch

_FIELDS: Final = {"key", "key_b64", "value", "value_b64", "expires"}
_OF_ITS_STORE: Final = {"seq", "modified"}  # what `bytekv get --json` tells besides; another store has its own


class LineError(ValueError):
    """Raised for a line that is no entry."""


class DuplicateError(ValueError):
    """Raised for an entry whose key has come before in the same source."""

    def __init__(self, number: int, key: bytes) -> None:
        super().__init__(f"entry {number}: an entry before it has the same key {key!r}")
        self.key = key


def encode_line(key: bytes, value: bytes | None, expires: float | None = None, **more: object) -> bytes:
    """Return one entry as a line, without a value if that is None, followed by ``more`` fields.

    >>> encode_line(b"colour", b"blue")
    b'{"key": "colour", "value": "blue"}\\n'
    >>> encode_line(b"\\xff", b"", 1700000000.5)
    b'{"key_b64": "/w==", "value": "", "expires": 1700000000.5}\\n'
    """
    fields: dict[str, object] = {**text_of("key", key)}
    if value is not None:
        fields |= text_of("value", value)
    if expires is not None:
        fields["expires"] = expires
    return json.dumps(fields | more, ensure_ascii=False).encode() + b"\n"


def encode_lines(pairs: Iterable[tuple[bytes, bytes]], expires: Mapping[bytes, float]) -> bytes:
    """Return entries as lines, as `encode_line` does in four times the time; ``expires``: of those keys that do."""
    lines: list[str] = []
    for key, value in pairs:
        try:
            lines.append(f'{{"key": {_quoted(key.decode())}, "value": {_quoted(value.decode())}')
        except UnicodeDecodeError:
            fields = text_of("key", key) | text_of("value", value)
            lines.append("{" + ", ".join([f'"{name}": {_quoted(text)}' for name, text in fields.items()]))
        if expires and key in expires:
            lines[-1] += f', "expires": {expires[key]!r}'
    return "".join(line + "}\n" for line in lines).encode()


def text_of(name: str, given: bytes) -> dict[str, str]:
    """Return bytes as a field of JSON, under ``name`` if they are UTF-8, else in base64 under ``name``_b64."""
    try:
        return {name: given.decode()}
    except UnicodeDecodeError:
        return {name + "_b64": binascii.b2a_base64(given, newline=False).decode()}


def decode_line(line: bytes) -> Row:
    """Return the entry of a line; `LineError` if it is none.

    >>> decode_line(b'{"key": "colour", "value_b64": "/w=="}')
    (b'colour', b'\\xff', None)
    """
    return _usual_row(line) or _any_row(line)


def _usual_row(line: bytes) -> Row | None:
    """Return the entry of a line as `encode_line` writes it, in a third of the time; None if anything is different."""
    found = _USUAL(line)
    if found is None:
        return None
    key_is_encoded, key, value_is_encoded, value, expires = found.groups()
    try:
        key, value = _content(key, key_is_encoded), _content(value, value_is_encoded)
    except ValueError:
        return None
    if len(key) > MAX_KEY_SIZE or len(value) > MAX_VALUE_SIZE:
        return None
    return key, value, None if expires is None else float(expires)


def _content(raw: bytes, is_encoded: bytes | None) -> bytes:
    """Return the bytes of a string of JSON; `ValueError` if it is none."""
    if is_encoded:
        return binascii.a2b_base64(raw, strict_mode=True)
    if b"\\" in raw:
        return _scan_string(raw.decode() + '"', 0)[0].encode()
    if not raw.isascii():
        raw.decode()
    return raw


def _any_row(line: bytes) -> Row:
    try:
        fields = json.loads(line.decode(), object_pairs_hook=_fields)
    except LineError:
        raise
    except UnicodeDecodeError as error:
        raise LineError(f"not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise LineError("nested too deeply") from None
    except json.JSONDecodeError as error:
        raise LineError(f"not JSON: {error}") from None
    except ValueError:
        raise LineError("a number with too many digits") from None
    if not isinstance(fields, dict):
        raise LineError("not a JSON object")
    if unknown := fields.keys() - _FIELDS - _OF_ITS_STORE:
        raise LineError(f"unknown field {min(unknown)!r}; there are {', '.join(sorted(_FIELDS))}")
    expires = fields.get("expires")
    if expires is not None and (isinstance(expires, bool) or not isinstance(expires, (int, float))):
        raise LineError("expires is not a number")
    key, value = _bytes(fields, "key"), _bytes(fields, "value")
    try:
        check_sizes(key, value)
        expiry_of(None, expires)
    except LimitError as error:
        raise LineError(str(error)) from None
    return key, value, expires


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise LineError("has a field twice")
    return fields


def _bytes(fields: dict[str, Any], name: str) -> bytes:
    text, encoded = fields.get(name), fields.get(name + "_b64")
    if (text is None) == (encoded is None):
        raise LineError(f"needs either {name} or {name}_b64")
    if not isinstance(text if encoded is None else encoded, str):
        raise LineError(f"{name} is not a string")
    try:
        if encoded is None:
            return str(text).encode()
        return binascii.a2b_base64(encoded.encode(), strict_mode=True)
    except UnicodeEncodeError:
        raise LineError(f"{name} contains half of a surrogate pair, which has no UTF-8 form") from None
    except binascii.Error as error:
        raise LineError(f"{name}_b64 is not base64: {error}") from None


def read_lines(stream: BinaryIO, advance: Callable[[int], object] = lambda _: None) -> Iterator[Row]:
    """Yield the entries of a stream, blank lines left out; ``advance`` is told the bytes read.

    Raises `LineError` with the number of the line.
    """
    number = 0
    while line := stream.readline(MAX_LINE_SIZE):
        number += 1
        advance(len(line))
        if len(line) == MAX_LINE_SIZE and not line.endswith(b"\n"):
            raise LineError(f"line {number}: too long for an entry")
        if (row := _usual_row(line)) is not None:
            yield row
            continue
        if not line.strip():
            continue
        try:
            yield _any_row(line)
        except LineError as error:
            raise LineError(f"line {number}: {error}") from None


class Loaded(NamedTuple):
    """What `load` did: keys that it stored, and entries that it did not because they had expired."""

    stored: int
    expired: int


def load(
    store: Store,
    rows: Iterable[Row],
    loaded: Callable[[int], object] = lambda _: None,
    *,
    duplicates: Duplicates = "last",
    clock: Callable[[], float] = time.time,
) -> Loaded:
    """Put entries into a store, in atomic batches; return how many there are now of them.

    An entry whose time has passed deletes the key. ``duplicates`` says which entry of one key counts, the "first" or
    the "last"; "refuse": neither, `DuplicateError` says which entry came second. ``loaded`` is told after each batch
    how many keys have been stored; if the source or the store raises, those stay. Complexity: O(bytes), and memory
    for one batch.
    """
    began, now_s = store.last_seq, clock()
    stored = expired = number = size = 0
    writes: dict[bytes, tuple[bytes, float | None] | None] = {}  # of a batch; None: has expired, and is deleted
    for key, value, expires in rows:
        number += 1
        if duplicates != "last" and (writes.get(key) is not None or _is_ours(store, key, began)):
            if duplicates == "refuse":
                raise DuplicateError(number, key)
            continue
        if expires is not None and expires <= now_s:
            writes[key] = None
            expired += 1
        else:
            writes[key] = value, expires
            size += len(key) + len(value)
        if len(writes) >= BATCH_ENTRIES or size >= BATCH_BYTES:
            stored += _carry_out(store, writes, began)
            loaded(stored)
            writes, size = {}, 0
    if writes:
        stored += _carry_out(store, writes, began)
        loaded(stored)
    return Loaded(stored, expired)


def _carry_out(store: Store, writes: Mapping[bytes, tuple[bytes, float | None] | None], began: int) -> int:
    """Carry out a batch; return how many more of the keys stored since the seq ``began`` there are now."""
    known = sum(_is_ours(store, key, began) for key in writes)
    together: dict[float | None, list[tuple[bytes, bytes]]] = {}  # by when they expire
    with store.batch() as batch:
        for key, write in writes.items():
            if write is None:
                batch.delete(key)
            elif (expires := write[1]) in together:
                together[expires].append((key, write[0]))
            elif len(together) < _FEW_TIMES:
                together[expires] = [(key, write[0])]
            else:
                batch.put(key, write[0], expires=expires)
        for expires, pairs in together.items():
            batch.put_all(pairs, expires=expires)
    return sum(write is not None for write in writes.values()) - known


def _is_ours(store: Store, key: bytes, began: int) -> bool:
    """Tell whether a key was stored since the seq ``began``."""
    try:
        return key in store and (not began or store.entry(key).seq > began)
    except KeyError:  # expired in between
        return False
