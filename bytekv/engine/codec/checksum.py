"""The checksum: CRC32C, and what all files have in common. No I/O.

A message followed by its own little-endian CRC has a constant CRC (the residue), whatever the seed: it is checked by
one call and one comparison.
"""

from __future__ import annotations

import sys
from struct import Struct

from ..._lean import TYPE_CHECKING
from ...errors import CorruptionError, UnsupportedFormatError

if TYPE_CHECKING:
    from typing import Final

    from crc32c import crc32c
else:

    def _load_crc32c():
        """Return `crc32c.crc32c` without what its package imports besides, a command line and importlib.metadata.

        Measured: 35 ms against 0.4. Where the extension module is not a file of its own (zipped, frozen, another
        layout), the package is imported.
        """
        if "crc32c" not in sys.modules:
            for finder in sys.meta_path:  # as an import does; importlib's own functions would be two modules more
                package = finder.find_spec("crc32c", None) if hasattr(finder, "find_spec") else None
                if package is None:
                    continue
                spec = finder.find_spec("crc32c._crc32c", package.submodule_search_locations)
                if spec is not None and type(spec.loader).__name__ == "ExtensionFileLoader":
                    module = spec.loader.create_module(spec)
                    spec.loader.exec_module(module)
                    return module.crc32c
                break
        from crc32c import crc32c

        return crc32c

    crc32c = _load_crc32c()

checksum = crc32c  # for the modules that check bytes in their hot loops: (bytes, CRC before them) -> CRC

FORMAT_VERSION: Final = 1
CRC: Final = Struct("<I")
CRC_SIZE: Final = CRC.size
RESIDUE: Final = 0x48674BC7


def seed_of(salt: int) -> int:
    """Return the CRC's initial value for a segment with this salt."""
    return crc32c(salt.to_bytes(8, "little"))


def check_file(what: str, data: bytes, magic: bytes, minimum: int, path: str) -> None:
    """Raise ``CorruptionError`` unless a whole file begins with its magic and ends with its CRC."""
    if data[: len(magic)] != magic:
        raise CorruptionError(path, 0, f"not a bytekv {what} (magic bytes missing)")
    if len(data) < minimum:
        raise CorruptionError(path, len(data), f"{what} cut short at {len(data)} bytes")
    if crc32c(data) != RESIDUE:
        raise CorruptionError(path, 0, f"{what} fails its CRC32C")


def check_version(what: str, version: int, readonly: int, incompatible: int, path: str, *, for_writing: bool) -> None:
    """Refuse what this version cannot read, or may read but not write.

    Flag words as in ext4: an unknown *compatible* flag may be ignored, an unknown *read-only
    compatible* one forbids writing, an unknown *incompatible* one forbids reading.
    """
    if version != FORMAT_VERSION:
        raise UnsupportedFormatError(
            f"{path}: {what} has format version {version}, this bytekv knows {FORMAT_VERSION}; use a newer bytekv"
        )
    if incompatible:
        raise UnsupportedFormatError(f"{path}: {what} needs unknown features {incompatible:#x}; use a newer bytekv")
    if readonly and for_writing:
        raise UnsupportedFormatError(f"{path}: {what} has unknown features {readonly:#x}; open it with flag 'r'")
