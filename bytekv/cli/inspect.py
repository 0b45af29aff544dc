"""The command `inspect`: one segment, entry by entry."""

from __future__ import annotations

import os

from .._lean import TYPE_CHECKING
from ..engine.integrity.inspection import Found, Header, Inspection
from ..errors import StoreNotFoundError
from .commands import DONE, FAILED, UsageError, write_json, write_line

if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Final

__all__ = ["inspect_segment"]

_SHOWN_KEY_SIZE: Final = 60


def inspect_segment(arguments: Namespace) -> int:
    """Write out what lies in a segment; `FAILED` if it is damaged."""
    path = arguments.segment
    if path.isdecimal() and path.isascii() and len(path) < 20 and not os.path.exists(path):
        path = os.path.join(arguments.dir, f"{int(path):010d}.seg")
    try:
        inspection = Inspection(path)
    except StoreNotFoundError:
        raise UsageError(f"{path}: no such segment; ls shows which there are, NUMBER.seg") from None
    with inspection:
        is_damaged = _show_header(arguments, inspection.header)
        for found in inspection:
            is_damaged |= found.kind == "damage"
            _show_found(arguments, found)
    return FAILED if is_damaged else DONE


def _show_header(arguments: Namespace, header: Header) -> bool:
    if arguments.json:
        write_json({**header._asdict(), "kind": "header", "segment_kind": header.kind})
        return header.wrong is not None
    write_line(f"{ascii(header.path)[1:-1]}: {header.size_bytes} bytes, format version {header.version}, {header.kind}")
    write_line(f"segment {header.segment_id} of store {header.store_uuid}, salt {header.salt:#018x}")
    write_line(f"after segment {header.previous_id} and seq {header.previous_seq}")
    if header.wrong is not None:
        write_line(f"the header is damaged: {header.wrong}")
    write_line("")
    write_line(f"{'offset':>10} {'size':>10} {'seq':>10}  what")
    return header.wrong is not None


def _show_found(arguments: Namespace, found: Found) -> None:
    if arguments.json:
        from ..transfer.json_lines import text_of

        fields = {name: value for name, value in found._asdict().items() if value or name in ("offset", "size", "kind")}
        if found.kind in ("put", "delete"):
            fields.pop("key", None)
            fields |= text_of("key", found.key)
        write_json(fields)
        return
    text = found.kind
    if found.kind in ("put", "delete"):
        key = repr(found.key[:_SHOWN_KEY_SIZE])
        text += f" {key}" + ("…" if len(found.key) > _SHOWN_KEY_SIZE else "")
    if found.kind == "put":
        text += f", {found.value_size} bytes"
    if found.expires_ms:
        text += f", expires at {found.expires_ms / 1000:.3f}"
    if found.continues:
        text += ", more of the batch follows"
    if found.note:
        text += f": {found.note}"
    write_line(f"{found.offset:10} {found.size:10} {found.seq or '':>10}  {text}")
