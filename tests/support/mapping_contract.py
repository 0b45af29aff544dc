"""What a mutable mapping of bytes to bytes that keeps its keys in order has to do, as one function.

`check_mapping` knows nothing of bytekv: it takes whatever makes an empty mapping, and says by assertions
whether that is one. `test_mapping_contract.py` runs it on stores and, to show that the contract was not cut
to fit, on ``sortedcontainers.SortedDict``. What differs from ``dict`` on purpose stands beside the assertion:

- keys come in bytewise order, not in the order of insertion, and ``popitem`` takes the last in that order;
- ``setdefault`` of a missing key without a default is not asked for here: None is no value for a store.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, MutableMapping, ValuesView

import pytest

Make = Callable[[], MutableMapping[bytes, bytes]]

#: In the order in which the mapping has to give them back; the awkward ones included.
PAIRS = [
    (b"", b"the empty key"),
    (b"\x00", b"\x00"),
    (b"\x00\x00", b""),
    (b"a", b"1"),
    (b"a\x00", b"2"),
    (b"aa", b"3"),
    (b"b", b""),
    (b"\x7f", b"4"),
    (b"\x80", b"4"),
    (b"\xff", b"5"),
    (b"\xff\xff", b"6"),
]
KEYS = [key for key, _ in PAIRS]
VALUES = [value for _, value in PAIRS]


def check_mapping(make: Make) -> None:
    """Assert that ``make`` makes mappings; each part begins with an empty one."""
    for part in PARTS:
        part(make())


def filled(mapping: MutableMapping[bytes, bytes]) -> MutableMapping[bytes, bytes]:
    """Put `PAIRS` in, in an order that is not theirs."""
    for key, value in PAIRS[1::2] + PAIRS[::2][::-1]:
        mapping[key] = value
    return mapping


def _empty(mapping: MutableMapping[bytes, bytes]) -> None:
    assert isinstance(mapping, MutableMapping)
    assert len(mapping) == 0
    assert not mapping
    assert list(mapping) == list(reversed(mapping)) == []
    assert list(mapping.keys()) == list(mapping.values()) == list(mapping.items()) == []
    assert mapping == {}
    assert b"a" not in mapping
    assert mapping.get(b"a") is None
    mapping.clear()
    mapping.update()
    mapping.update({})
    mapping.update([])
    assert len(mapping) == 0
    with pytest.raises(KeyError):
        mapping[b"a"]
    with pytest.raises(KeyError):
        del mapping[b"a"]
    with pytest.raises(KeyError):
        mapping.pop(b"a")
    with pytest.raises(KeyError):
        mapping.popitem()


def _single_keys(mapping: MutableMapping[bytes, bytes]) -> None:
    mapping[b"a"] = b"1"
    assert mapping[b"a"] == b"1"
    assert type(mapping[b"a"]) is bytes
    assert b"a" in mapping
    assert mapping
    assert len(mapping) == 1
    mapping[b"a"] = b"one"  # replacing adds no key
    assert mapping[b"a"] == b"one"
    assert len(mapping) == 1
    mapping[b"a"] = b""  # empty is a value, neither nothing nor a delete
    assert mapping[b"a"] == b""
    assert b"a" in mapping
    assert mapping.get(b"a", b"other") == b""
    assert mapping.setdefault(b"a", b"other") == b""
    assert mapping.pop(b"a", b"other") == b""
    mapping[b""] = b"empty key"
    assert b"" in mapping
    assert mapping[b""] == b"empty key"
    assert list(mapping) == [b""]
    del mapping[b""]
    assert b"" not in mapping
    assert not mapping
    with pytest.raises(KeyError) as caught:
        mapping[b"gone"]
    assert caught.value.args == (b"gone",)
    with pytest.raises(KeyError) as caught:
        del mapping[b"gone"]
    assert caught.value.args == (b"gone",)
    mapping[b"a"] = b"1"
    for _ in range(2):  # deleting and coming back leaves no trace
        del mapping[b"a"]
        assert b"a" not in mapping
        assert len(mapping) == 0
        with pytest.raises(KeyError):
            del mapping[b"a"]
        mapping[b"a"] = b"2"
        assert mapping[b"a"] == b"2"
        assert len(mapping) == 1


def _order(mapping: MutableMapping[bytes, bytes]) -> None:
    filled(mapping)
    assert len(mapping) == len(PAIRS)
    assert list(mapping) == KEYS
    assert list(reversed(mapping)) == KEYS[::-1]
    assert list(mapping.keys()) == KEYS
    assert list(reversed(mapping.keys())) == KEYS[::-1]
    assert list(mapping.values()) == VALUES
    assert list(reversed(mapping.values())) == VALUES[::-1]
    assert list(mapping.items()) == PAIRS
    assert list(reversed(mapping.items())) == PAIRS[::-1]
    assert dict(mapping) == dict(PAIRS)
    mapping[b"a"] = b"new"  # a new value does not move the key
    assert list(mapping) == KEYS
    del mapping[b"a\x00"]
    assert list(mapping) == [key for key in KEYS if key != b"a\x00"]
    mapping[b"a\x00"] = b"back"
    assert list(mapping) == KEYS
    assert [mapping[key] for key in mapping] == list(mapping.values())
    walk = iter(mapping)
    assert isinstance(walk, Iterator)
    assert next(walk) == KEYS[0]
    assert next(iter(mapping)) == KEYS[0]  # each iterator stands on its own
    assert next(walk) == KEYS[1]


def _get(mapping: MutableMapping[bytes, bytes]) -> None:
    filled(mapping)
    for key, value in PAIRS:
        assert mapping.get(key) == value
        assert mapping.get(key, b"default") == value
    default = object()
    assert mapping.get(b"missing") is None
    assert mapping.get(b"missing", default) is default  # type: ignore[call-overload]
    assert mapping.get(b"missing", b"default") == b"default"
    assert b"missing" not in mapping  # asking stores nothing


def _pop(mapping: MutableMapping[bytes, bytes]) -> None:
    filled(mapping)
    assert mapping.pop(b"a") == b"1"
    assert b"a" not in mapping
    assert len(mapping) == len(PAIRS) - 1
    with pytest.raises(KeyError) as caught:
        mapping.pop(b"a")
    assert caught.value.args == (b"a",)
    default = object()
    assert mapping.pop(b"a", default) is default  # type: ignore[call-overload]
    assert mapping.pop(b"a", None) is None  # type: ignore[call-overload]
    assert mapping.pop(b"aa", default) == b"3"  # type: ignore[call-overload]
    assert len(mapping) == len(PAIRS) - 2


def _popitem(mapping: MutableMapping[bytes, bytes]) -> None:
    filled(mapping)
    taken = []
    while mapping:
        taken.append(mapping.popitem())
        assert taken[-1][0] not in mapping
        assert len(mapping) == len(PAIRS) - len(taken)
    assert taken == PAIRS[::-1]  # dict: last in, first out; here the last in order
    with pytest.raises(KeyError):
        mapping.popitem()
    mapping[b"z"] = b"26"
    assert mapping.popitem() == (b"z", b"26")


def _setdefault(mapping: MutableMapping[bytes, bytes]) -> None:
    assert mapping.setdefault(b"a", b"1") == b"1"
    assert mapping[b"a"] == b"1"
    assert mapping.setdefault(b"a", b"2") == b"1"
    assert mapping.setdefault(b"a") == b"1"
    assert mapping[b"a"] == b"1"
    assert mapping.setdefault(b"e", b"") == b""
    assert b"e" in mapping
    assert len(mapping) == 2


class _Keyed:
    """Have `keys` and item access and nothing else: what dict.update asks of a mapping."""

    def keys(self) -> list[bytes]:
        return [b"k", b"a"]

    def __getitem__(self, key: bytes) -> bytes:
        return key * 2


def _update(mapping: MutableMapping[bytes, bytes]) -> None:
    mapping.update({b"a": b"1", b"b": b"2"})
    mapping.update([(b"b", b"3"), (b"c", b"4")])
    assert mapping == {b"a": b"1", b"b": b"3", b"c": b"4"}
    mapping.update((key, b"5") for key in (b"d", b"c"))
    assert mapping == {b"a": b"1", b"b": b"3", b"c": b"5", b"d": b"5"}
    mapping.update([[b"d", b"6"], (b"d", b"7")])  # the last one counts
    assert mapping[b"d"] == b"7"
    mapping.update(iter(()))
    mapping.update(_Keyed())
    assert mapping == {b"a": b"aa", b"b": b"3", b"c": b"5", b"d": b"7", b"k": b"kk"}
    mapping.update(mapping)
    mapping.update(mapping.items())
    assert len(mapping) == 5
    with pytest.raises(TypeError):
        mapping.update(7)  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        mapping.update([7])  # type: ignore[list-item]
    with pytest.raises(ValueError):
        mapping.update([(b"x",)])  # type: ignore[list-item]
    with pytest.raises(ValueError):
        mapping.update([(b"x", b"y", b"z")])  # type: ignore[list-item]
    with pytest.raises(TypeError):
        mapping.update({}, {})  # type: ignore[call-overload]
    assert b"x" not in mapping
    assert len(mapping) == 5


def _update_by_name(mapping: MutableMapping[bytes, bytes]) -> None:
    # Keyword arguments are str. A mapping of bytes may keep them as such or encode them, but must find them.
    mapping.update(word=b"1", other=b"2", pairs=b"3")  # names that an implementation may use itself
    assert len(mapping) == 3
    assert [mapping[name] for name in ("word", "other", "pairs")] == [b"1", b"2", b"3"]  # type: ignore[index]


def _clear(mapping: MutableMapping[bytes, bytes]) -> None:
    filled(mapping)
    mapping.clear()
    assert len(mapping) == 0
    assert list(mapping) == []
    assert KEYS[3] not in mapping
    mapping.clear()
    mapping[b"a"] = b"again"
    assert mapping == {b"a": b"again"}


def _operators(mapping: MutableMapping[bytes, bytes]) -> None:
    mapping[b"a"] = b"1"
    same = mapping
    mapping |= {b"b": b"2"}  # type: ignore[operator]
    mapping |= [(b"c", b"3")]  # type: ignore[operator]
    assert mapping is same
    assert mapping == {b"a": b"1", b"b": b"2", b"c": b"3"}
    joined = mapping | {b"a": b"other", b"d": b"4"}  # type: ignore[operator]
    assert joined == {b"a": b"other", b"b": b"2", b"c": b"3", b"d": b"4"}
    assert list(joined) == [b"a", b"b", b"c", b"d"]
    other = {b"a": b"other", b"d": b"4"} | mapping  # type: ignore[operator]
    assert other == {b"a": b"1", b"b": b"2", b"c": b"3", b"d": b"4"}
    assert mapping == {b"a": b"1", b"b": b"2", b"c": b"3"}  # neither changed it
    with pytest.raises(TypeError):
        mapping | [(b"x", b"y")]  # type: ignore[operator]
    with pytest.raises(TypeError):
        [(b"x", b"y")] | mapping  # type: ignore[operator]


def _equality(mapping: MutableMapping[bytes, bytes]) -> None:
    filled(mapping)
    plain = dict(PAIRS)
    assert mapping == mapping
    assert mapping == plain
    assert plain == mapping
    assert not mapping != plain  # noqa: SIM202 - the other operator is what is asked
    assert mapping == dict(PAIRS[::-1])  # order does not count
    assert mapping == _Frozen(plain)
    for different in (
        {},
        dict(PAIRS[1:]),
        {**plain, b"a": b"2"},
        {**plain, b"more": b""},
        {**dict(PAIRS[1:]), b"more": b""},
        {**plain, b"a": 1},
        {1: 2},
    ):
        assert mapping != different
        assert different != mapping
        assert not mapping == different  # noqa: SIM201
    for stranger in (None, 1, b"a", PAIRS, "text"):
        assert mapping != stranger
        assert not mapping == stranger  # noqa: SIM201
    with pytest.raises(TypeError):
        hash(mapping)
    with pytest.raises(TypeError):
        assert mapping < plain  # type: ignore[operator]


class _Frozen(Mapping[bytes, bytes]):
    """A mapping that is no dict."""

    def __init__(self, plain: dict[bytes, bytes]) -> None:
        self._plain = plain

    def __getitem__(self, key: bytes) -> bytes:
        return self._plain[key]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._plain)

    def __len__(self) -> int:
        return len(self._plain)


def _views_live(mapping: MutableMapping[bytes, bytes]) -> None:
    keys, values, items = mapping.keys(), mapping.values(), mapping.items()
    assert isinstance(keys, KeysView)
    assert isinstance(values, ValuesView)
    assert isinstance(items, ItemsView)
    assert len(keys) == len(values) == len(items) == 0
    filled(mapping)
    assert len(keys) == len(values) == len(items) == len(PAIRS)
    assert (list(keys), list(values), list(items)) == (KEYS, VALUES, PAIRS)
    del mapping[KEYS[0]]
    mapping[b"zz"] = b"26"
    assert KEYS[0] not in keys
    assert b"zz" in keys
    assert (b"zz", b"26") in items
    assert b"26" in values
    assert b"the empty key" not in values
    mapping.clear()
    assert not list(keys)
    assert not list(values)
    assert not list(items)
    assert len(keys) == len(values) == len(items) == 0


def _views_as_sets(mapping: MutableMapping[bytes, bytes]) -> None:
    mapping.update({b"a": b"1", b"b": b"2", b"c": b"2"})
    keys, items = mapping.keys(), mapping.items()
    assert keys == {b"a", b"b", b"c"}
    assert keys != {b"a", b"b"}
    assert {b"a", b"b", b"c"} == keys
    assert keys & {b"a", b"z"} == {b"a"}
    assert keys | {b"z"} == {b"a", b"b", b"c", b"z"}
    assert keys - {b"a"} == {b"b", b"c"}
    assert keys ^ {b"a", b"z"} == {b"b", b"c", b"z"}
    assert {b"a", b"z"} & keys == {b"a"}
    assert {b"z"} | keys == {b"a", b"b", b"c", b"z"}
    assert {b"a", b"z"} - keys == {b"z"}
    assert {b"a", b"z"} ^ keys == {b"b", b"c", b"z"}
    assert keys & [b"a", b"z"] == {b"a"}  # type: ignore[operator] # any iterable, as with dict
    assert keys < {b"a", b"b", b"c", b"z"}
    assert keys <= {b"a", b"b", b"c"}
    assert keys >= {b"a"}
    assert keys > {b"a"}
    assert not keys < {b"a", b"b", b"c"}
    assert keys.isdisjoint({b"z"})
    assert not keys.isdisjoint([b"a"])
    assert items == {(b"a", b"1"), (b"b", b"2"), (b"c", b"2")}
    assert items & {(b"a", b"1"), (b"b", b"other")} == {(b"a", b"1")}
    assert items | {(b"z", b"")} == {(b"a", b"1"), (b"b", b"2"), (b"c", b"2"), (b"z", b"")}
    assert items - {(b"a", b"1")} == {(b"b", b"2"), (b"c", b"2")}
    assert items ^ {(b"a", b"1"), (b"z", b"")} == {(b"b", b"2"), (b"c", b"2"), (b"z", b"")}
    assert (b"a", b"1") in items
    assert (b"a", b"2") not in items
    assert (b"z", b"1") not in items
    assert items.isdisjoint({(b"a", b"other")})
    values = mapping.values()
    assert b"2" in values
    assert b"3" not in values
    assert sorted(values) == [b"1", b"2", b"2"]
    assert values != mapping.values() or values is mapping.values()  # as with dict: values are no set


def _odd_types(mapping: MutableMapping[bytes, bytes]) -> None:
    mapping[b"a"] = b"1"
    for unfit in ([], {}, set()):  # what cannot be hashed is no key of a dict either
        with pytest.raises(TypeError):
            mapping[unfit]  # type: ignore[index]
        with pytest.raises(TypeError):
            mapping[unfit] = b""  # type: ignore[index]
        with pytest.raises(TypeError):
            del mapping[unfit]  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            assert unfit in mapping
        with pytest.raises(TypeError):
            mapping.get(unfit)  # type: ignore[call-overload]
        with pytest.raises(TypeError):
            mapping.pop(unfit, None)  # type: ignore[call-overload]
        with pytest.raises(TypeError):
            mapping.setdefault(unfit, b"")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        mapping.pop()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        mapping.get()  # type: ignore[call-overload]
    assert mapping == {b"a": b"1"}


PARTS = [
    _empty,
    _single_keys,
    _order,
    _get,
    _pop,
    _popitem,
    _setdefault,
    _update,
    _update_by_name,
    _clear,
    _operators,
    _equality,
    _views_live,
    _views_as_sets,
    _odd_types,
]
