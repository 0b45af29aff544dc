"""What must hold of the set of segments can be asked, and the answer is no empty promise: each breach is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bytekv.engine.codec.manifest import ACTIVE, SEALED
from bytekv.engine.log.segment_manager import SegmentManager
from tests.support.harness import NO_WORKER, open_store, patched


@pytest.fixture
def segments(path: Path) -> Iterator[SegmentManager]:
    """Sealed segments, one of them open, an active one, and one that is prepared."""
    with patched(NO_WORKER), open_store(path, segment_size_bytes=2_000, auto_compact=False) as db:
        for number in range(60):
            db[b"%02d" % number] = b"v" * 100
        assert db[b"00"]
        db._commit.prepare_next()
        segments = db._segments
        assert segments.check() == []
        assert len(segments.manifest.segments) > 3
        assert segments.prepared is not None
        found = dict(vars(segments)), dict(segments.open.table)
        yield segments
        vars(segments).update(found[0])
        segments.open.table.clear()
        segments.open.table.update(found[1])
        segments.obsolete.zombies.clear()
        segments.hinted.pop(99, None)


def _lists(segments: SegmentManager, *places: int) -> None:
    rows = segments.manifest.segments
    segments.manifest = segments.manifest._replace(segments=tuple(rows[place] for place in places))


def _state(segments: SegmentManager, place: int, state: int) -> None:
    rows = list(segments.manifest.segments)
    rows[place] = rows[place]._replace(state=state)
    segments.manifest = segments.manifest._replace(segments=tuple(rows))


def _longer(segments: SegmentManager) -> None:
    rows = list(segments.manifest.segments)
    rows[0] = rows[0]._replace(length=1 << 20)
    segments.manifest = segments.manifest._replace(segments=tuple(rows))


BREACHES: dict[str, Callable[[SegmentManager], object]] = {
    "listed twice": lambda segments: _lists(segments, 0, 1, 2, 2, -1),
    "not the last$": lambda segments: _state(segments, 1, ACTIVE),
    "not the last that is listed": lambda segments: _lists(segments, 0, 1, -1, 2),
    "used again": lambda segments: setattr(segments, "manifest", segments.manifest._replace(next_id=2)),
    "prepared segment 1 is listed": lambda segments: setattr(
        segments.prepared, "header", segments.prepared.header._replace(segment_id=1) if segments.prepared else None
    ),
    "1 is listed and a zombie": lambda segments: segments.obsolete.zombies.update(
        {1: segments.manifest.segments[0]._replace(state=SEALED)}
    ),
    "1 is open, and is neither": lambda segments: _lists(segments, *range(1, len(segments.manifest.segments))),
    "99 is gone": lambda segments: segments.hinted.update({99: 1}),
    "1 is open, and not up to": _longer,
}


@pytest.mark.parametrize("complaint", BREACHES)
def test_a_breach_is_told(segments: SegmentManager, complaint: str) -> None:
    BREACHES[complaint](segments)
    with pytest.raises(AssertionError, match=complaint):
        raise AssertionError("\n".join(segments.check()))
