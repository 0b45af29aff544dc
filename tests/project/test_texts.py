"""What people read of objects and errors, what travels between processes, what a wrong option is told."""

from __future__ import annotations

import copy
import os
import pickle
import re
import sys
from array import array
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import bytekv
from bytekv import errors
from bytekv.engine.codec.checksum import _load_crc32c
from bytekv.engine.codec.hint import _little_endian
from bytekv.engine.log.open_segments import PreadFile
from bytekv.engine.log.resync import Resync
from bytekv.engine.log.scan import is_whole
from bytekv.engine.log.segment import Writer

RAISED = [
    errors.StoreLockedError("/store", 7),
    errors.StoreBusyError("/store", 7, "stopped"),
    errors.CorruptionError("/store/0000000001.seg", 80, "entry fails its CRC32C"),
    errors.ConflictError(b"key", 1, 2),
    errors.ChangesLostError("/store", 1, 20),
    errors.DiskFullError(28, "No space left on device", "/store"),
    errors.StoreFailedError("/store: sync failed"),
]


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_an_error_comes_whole_out_of_another_process(error: bytekv.BytekvError) -> None:
    """Exceptions of more than one argument are not by themselves: multiprocessing would hang on them."""
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again) == vars(error)


def test_what_a_store_and_its_moments_say_of_themselves(open_store: Any, path: Path) -> None:
    db = open_store()
    db["a"] = "1"
    assert repr(db) == f"<bytekv.Store {str(path)!r}, 1 keys>"
    with db.snapshot() as snapshot:
        assert repr(snapshot) == "<bytekv.Snapshot at seq 1>"
    assert repr(snapshot) == "<bytekv.Snapshot at seq 1, closed>"
    with open_store("r") as reader:
        assert repr(reader) == f"<bytekv.Store {str(path)!r}, read-only, 1 keys>"
    db.close()
    assert repr(db) == f"<bytekv.Store {str(path)!r}, closed>"


def test_recovery_says_what_it_did(open_store: Any, path: Path) -> None:
    open_store(segment_size_bytes=1 << 20).update({f"{number:05}": bytes(100) for number in range(2000)})
    with open_store("r") as reader:
        text = str(reader.recovery)
    assert text.startswith("2000 keys in 1 segment, last seq 2000, ")
    assert "the last process did not close the store" in text


def test_recovery_counts_the_hints_that_it_missed(open_store: Any, path: Path) -> None:
    with open_store() as db:
        db.update({f"{number:05}": bytes(100) for number in range(2000)})
    for hint in path.glob("*.hint"):
        hint.unlink()
    with open_store("r") as reader:
        assert str(reader.recovery).endswith(" ms; 1 segment without a hint file scanned")


def test_recovery_names_what_it_set_aside_and_removed(path: Path) -> None:
    with bytekv.open(path) as db:
        db["a"] = bytes(200_000)
        (segment,) = path.glob("*.seg")
        whole = {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}
        end = db._segments.writer.end  # type: ignore[union-attr]
    for name, content in whole.items():
        (path / name).write_bytes(content[:end] + b"\x01torn" if name == segment.name else content)
    for number in range(70, 80):
        (path / f"00000000{number}.seg").write_bytes(b"left over")
    with bytekv.open(path) as db:
        text = str(db.recovery)
        assert db.recovery.torn_bytes == 5
    assert "; 5 bytes of an unfinished write set aside in " in text
    assert "leftovers removed: 0000000070.seg, " in text
    assert text.endswith(" and 2 more")


def test_options_are_checked_and_cannot_be_changed() -> None:
    with pytest.raises(TypeError, match="unknown option 'colour'; there are sync, "):
        bytekv.Options(colour="blue")  # type: ignore[call-arg]
    options = bytekv.Options(sync="os", follow=None)
    for change in (lambda: setattr(options, "sync", "always"), lambda: delattr(options, "sync")):
        with pytest.raises(AttributeError, match="options cannot be changed: sync"):
            change()
    assert options.sync == "os"
    assert repr(options).startswith("Options(sync='os', sync_interval_s=1.0, ")
    assert eval(repr(options), vars(bytekv)).sync == "os"


def test_a_batch_counts_keys(open_store: Any) -> None:
    with open_store().batch() as batch:
        batch["a"] = "1"
        batch["a"] = "2"
        del batch["b"]
        assert len(batch) == 2


def test_columns_are_little_endian_on_every_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "byteorder", "big")
    assert _little_endian(array("I", [1])) == array("I", [1 << 24])


def test_a_file_cut_short_while_it_is_searched_holds_nothing_whole() -> None:
    assert not is_whole(lambda size, offset: b"", 0, 100, 0)


def test_nothing_is_found_in_nothing() -> None:
    assert Resync(lambda size, offset: b"", 100, 100, 0).find_entry(100, range(1, 9)) is None


def test_a_missing_crc32c_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "crc32c", raising=False)
    monkeypatch.setattr(sys, "meta_path", [SimpleNamespace(find_spec=lambda *_: None)])
    with pytest.raises(ImportError, match="crc32c"):
        _load_crc32c()


@pytest.mark.parametrize("io", ["mmap", "pread"])
def test_a_segment_gives_back_what_it_does_not_need_once(open_store: Any, path: Path, io: str) -> None:
    db = open_store(io=io)
    db["a"] = "1"
    writer = db._segments.writer
    for _ in range(2):
        writer.shrink_to_fit()
        assert path.joinpath(os.path.basename(writer.path)).stat().st_size == writer.end
    db["b"] = "2"
    assert dict(db) == {b"a": b"1", b"b": b"2"}


@pytest.mark.parametrize("kind", [PreadFile, Writer])
def test_an_object_whose_making_was_interrupted_closes_nothing(kind: type) -> None:
    """Else KeyboardInterrupt in `__init__` would be followed by an AttributeError in `__del__`."""
    kind.__new__(kind).__del__()


DECISIONS = sorted((Path(__file__).parents[2] / "docs" / "decisions").glob("[0-9]*.md"))


def test_each_decision_has_a_number_a_date_and_a_status() -> None:
    listed = (DECISIONS[0].parent / "README.md").read_text(encoding="utf-8")
    names = {file.name for file in DECISIONS}
    assert len({name[:4] for name in names}) == len(names)
    for file in DECISIONS:
        title, blank, status, *_ = file.read_text(encoding="utf-8").splitlines()
        assert title.startswith(f"# {file.name[:4]}: ")
        assert blank == ""
        found = re.fullmatch(r"20\d\d-\d\d-\d\d · (in force|superseded by \[\d{4}\]\((\S+)\))", status)
        assert found, f"{file.name}: {status}"
        assert found[2] is None or found[2] in names
        assert f"[{file.name[:4]}]({file.name})" in listed
