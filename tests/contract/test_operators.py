"""What each operator does with each mapping: it works as that of a dict does, or it says that it does not.

Where a class lacks an in-place operator, Python takes ``tx |= {…}`` for ``tx = tx | {…}``: the name was a plain dict
from then on, and what was written to it was lost in silence.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import bytekv
from bytekv import dbm

KINDS = ["store", "transaction", "snapshot", "batch", "dbm"]
WRITABLE = {"store", "transaction", "batch", "dbm"}
MAPPINGS = {"store", "transaction", "snapshot", "dbm"}
ORDERED = {"store", "transaction", "snapshot"}
A, B = b"a", b"b"


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def made(kind: str, tmp_path: Path) -> Iterator[tuple[Any, Callable[[], dict[bytes, bytes]]]]:
    """A mapping that holds {a: 1}, and what tells what the store holds at the end."""
    path = tmp_path / "store"
    if kind == "dbm":
        with dbm.open(path, "c") as db:
            db["a"] = "1"
            yield db, lambda: dict(db.items())
        return
    with bytekv.open(path) as db:
        db["a"] = "1"
        if kind == "store":
            yield db, lambda: dict(db)
        else:
            with getattr(db, kind)() as mapping:
                if kind != "batch":
                    yield mapping, lambda: dict(mapping)
                else:
                    yield mapping, lambda: {A: b"1"} | mapping._writes


def test_update_in_place(made: Any, kind: str) -> None:
    mapping, content = made
    before = mapping
    for other in ({B: b"2"}, {"c": "3"}, [("d", b"4")], {"e": "5"}.items()):
        if kind in WRITABLE:
            mapping |= other
        else:
            with pytest.raises(TypeError, match="read-only"):
                mapping |= other
        assert mapping is before
    expected = {A: b"1", B: b"2", b"c": b"3", b"d": b"4", b"e": b"5"}
    assert content() == (expected if kind in WRITABLE else {A: b"1"})


@pytest.mark.parametrize("name", ["iand", "isub", "ixor"])
def test_no_other_operator_rebinds_the_name(made: Any, name: str, tmp_path: Path) -> None:
    """A view of keys answers ``&``, ``-`` and ``^`` from the right, with a set."""
    mapping, content = made
    with bytekv.open(tmp_path / "other") as other:
        other["b"] = "2"
        for right in (other, {B: b"2"}, {B: b"2"}.keys(), other.keys(), {B}):
            with pytest.raises(TypeError, match="keys"):
                getattr(operator, name)(mapping, right)
    assert content() == {A: b"1"}


@pytest.mark.parametrize(
    "name", ["iadd", "imul", "itruediv", "ifloordiv", "imod", "ipow", "ilshift", "irshift", "imatmul", "iconcat"]
)
def test_what_a_dict_has_not_is_refused(made: Any, name: str) -> None:
    for right in ({B: b"2"}, {}, [], 2):
        with pytest.raises(TypeError):
            getattr(operator, name)(made[0], right)


def test_joining_gives_a_dict_of_bytes(made: Any, kind: str, tmp_path: Path) -> None:
    mapping, content = made
    if kind not in MAPPINGS:
        for other in ({B: b"2"}, mapping):
            with pytest.raises(TypeError):
                mapping | other
            with pytest.raises(TypeError):
                other | mapping
        return
    assert mapping | {"a": "left", "b": "2"} == {A: b"left", B: b"2"}
    assert {"a": "left", "b": "2"} | mapping == {A: b"1", B: b"2"}
    assert mapping | mapping == {A: b"1"}
    plain = {B: b"2"}
    plain |= mapping
    assert plain == {A: b"1", B: b"2"}
    with bytekv.open(tmp_path / "other") as other:
        other["a"] = "0"
        assert type(mapping | other) is dict
        assert (mapping | other, other | mapping) == ({A: b"0"}, {A: b"1"})
        before = other
        other |= mapping
        assert other is before
        assert dict(other) == {A: b"1"}
    for wrong in ([(A, b"1")], None, 1, {A}):
        with pytest.raises(TypeError):
            mapping | wrong
        with pytest.raises(TypeError):
            wrong | mapping
    with pytest.raises(TypeError, match="value"):
        mapping | {A: 1}
    assert content() == {A: b"1"}


def test_comparison(made: Any, kind: str) -> None:
    mapping, _ = made
    same = {A: b"1"}
    if kind in MAPPINGS:
        assert mapping == same
        assert same == mapping
        assert mapping == same
        assert mapping != {A: b"2"}
        assert mapping != {}
        assert mapping != [(A, b"1")]
        with pytest.raises(TypeError):
            hash(mapping)
    else:
        assert mapping != same
        assert mapping != {}
        assert mapping == mapping
        assert hash(mapping) == hash(mapping)
    for compare in (operator.lt, operator.le, operator.gt, operator.ge):
        with pytest.raises(TypeError):
            compare(mapping, same)
        with pytest.raises(TypeError):
            compare(mapping, mapping)


def test_asking(made: Any, kind: str) -> None:
    mapping, _ = made
    if kind == "batch":
        assert (len(mapping), bool(mapping)) == (0, False)
        for ask in (lambda: "a" in mapping, lambda: iter(mapping), lambda: reversed(mapping), lambda: mapping["a"]):
            with pytest.raises(TypeError):
                ask()
        return
    assert (len(mapping), bool(mapping), "a" in mapping, "b" in mapping) == (1, True, True, False)
    assert (list(mapping), mapping["a"], mapping.get("b", 0)) == ([A], b"1", 0)
    if kind in ORDERED:
        assert list(reversed(mapping)) == [A]
    else:
        with pytest.raises(TypeError):
            reversed(mapping)
    with pytest.raises(TypeError):
        assert 1 in mapping


def test_there_is_no_copy_and_no_fromkeys(made: Any, kind: str) -> None:
    mapping, _ = made
    for name in ("copy", "fromkeys"):
        assert not hasattr(mapping, name)
    if kind in MAPPINGS:
        assert dict(mapping) == {A: b"1"}


def test_popitem_takes_the_last_of_the_order(made: Any, kind: str) -> None:
    mapping, _ = made
    if kind not in WRITABLE or kind == "batch":
        assert not hasattr(mapping, "popitem")
        return
    mapping.update({"c": "3", "b": "2"})
    assert [mapping.popitem() for _ in range(3)] == [(b"c", b"3"), (b"b", b"2"), (b"a", b"1")]
    with pytest.raises(KeyError):
        mapping.popitem()
    assert not mapping
