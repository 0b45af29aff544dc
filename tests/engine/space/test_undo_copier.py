"""What views need of replaced segments is gathered in side files, and none of these is forgotten on the disk."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import CodeType

import pytest

from bytekv.engine.log import obsolete
from bytekv.engine.space import undo_copier
from bytekv.engine.space.undo_copier import _Turn
from tests.crash.test_interrupts import InterruptAt
from tests.support.harness import FakeFiles, open_store, segment_files
from tests.support.interrupted_calls import Bench


class _InterruptHere(InterruptAt):
    """Strike in what decides which files there are."""

    @staticmethod
    def left_out(code: CodeType) -> frozenset[int] | None:
        """Leave out what only writes and computes: to strike in it is to strike at the call."""
        is_here = code.co_filename in (undo_copier.__file__, obsolete.__file__)
        return InterruptAt.left_out(code) if is_here else None


def test_a_side_file_that_was_interrupted_is_removed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Struck between the end of the file and its being listed, it stayed until the next open: a `compact` that is
    interrupted again and again under one snapshot, by a time limit of the caller's, left one file each."""
    run = _Turn.run
    number, is_struck = 0, True
    while is_struck:
        number += 1
        interrupt = _InterruptHere(number)

        def run_struck(turn: _Turn, interrupt: InterruptAt = interrupt) -> bool:
            found: list[bool] = []
            interrupt.carry_out(lambda: found.append(run(turn)))
            if interrupt.struck:
                raise KeyboardInterrupt
            return found[0]

        home = path.with_name(f"gathered-{number}")
        with open_store(home, files=FakeFiles(), sync="os", auto_compact=False) as store:
            content = {b"%d" % key: b"old" * 20 for key in range(6)}
            store.update(content)
            store.compact()
            with store.snapshot() as snapshot:
                store["0"] = b"new"
                with monkeypatch.context() as patch:
                    patch.setattr(_Turn, "run", run_struck)
                    with contextlib.suppress(KeyboardInterrupt):
                        store.compact()
                is_struck = interrupt.struck
                on_disk = {int(file.stem) for file in segment_files(home)}
                known = {*store._segments.lengths(), *store._segments.obsolete.replaced}
                assert on_disk <= known, f"opcode {number}: {interrupt.where}"
                assert dict(snapshot) == content
                store["1"] = b"new"
                store.compact()
                assert dict(snapshot) == content
            store.compact()
            assert {int(file.stem) for file in segment_files(home)} == {*store._segments.lengths()}
            assert store.verify().ok
    Bench(path.parent).close_strays()
    assert number > 100
