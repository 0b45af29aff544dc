"""A disk that can be asked, at any moment, what a power cut would leave of it.

Real files in a real directory, so mapped writes are real, too: they are found by comparing contents at
the calls of the seam (the boundaries), not by watching who writes. The fault model:

- A sync makes a file's bytes and length durable, not its name. Since its last sync each unit of a file
  (512 bytes or 4 KiB, what a disk writes at once) independently holds any version that it had at a
  boundary, and the file has any length that it had; where that outgrows the bytes, there are zeros.
- A name created, replaced or removed survives for certain once its directory has been synced. Until then
  any prefix of what was done in that directory survives or, ``adversarial``, any subset that can be: a
  rename needs its source. A file without a name is gone, synced or not; so is all in a directory without one.
- What lies on the disk when the double is made is durable. A second crash is a second double, made on an
  image of the first.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.harness import QuickFiles


class Image(NamedTuple):
    """What a power cut leaves: directories, and files as (path, bytes before the zeros at the end, length)."""

    folders: tuple[str, ...]
    files: tuple[tuple[str, bytes, int], ...]

    def digest(self) -> bytes:
        names = [(name, len(content), length) for name, content, length in self.files]
        whole = [repr((self.folders, names)).encode(), *(content for _, content, _ in self.files)]
        return hashlib.blake2b(b"".join(whole), digest_size=16).digest()

    def put_into(self, root: Path) -> None:
        for folder in self.folders:
            os.mkdir(f"{root}/{folder}")
        for name, content, length in self.files:
            with open(f"{root}/{name}", "wb", buffering=0) as file:
                file.write(content)
                file.truncate(length)  # sparse: most of a preallocated file is zeros


class _File:
    """The bytes of one file: as durable, and every version since, by the offset of the unit; of its length, by None."""

    def __init__(self, content: bytes = b"") -> None:
        self.raw, self.now = content, content.rstrip(b"\0")
        self.synced()

    def synced(self) -> None:
        self.durable, self.versions = self.now, dict[Any, dict[Any, None]]({None: {len(self.raw): None}})

    def see(self, content: bytes, unit: int) -> None:
        if content == self.raw:
            return
        before, self.raw, self.now = self.now, content, content.rstrip(b"\0")
        self.versions[None].setdefault(len(content))
        for at in range(0, max(len(before), len(self.now)), unit):
            old, new = (version[at : at + unit].rstrip(b"\0") for version in (before, self.now))
            if old != new:
                self.versions.setdefault(at, {old: None}).setdefault(new)


class CrashFiles(QuickFiles):
    """The real files below ``root``, and what would survive of them; ``at_boundary`` is told before each change.

    ``seed`` decides which images are taken where there are too many. What the store gets as random bytes depends
    only on ``life``, so that many a story leaves the same bytes as another, which are then judged once.
    """

    def __init__(self, root: Path, *, unit: int = 512, seed: int = 0, life: int = 0, adversarial: bool = True) -> None:
        super().__init__()
        self.root, self.unit, self.adversarial = os.path.abspath(root), unit, adversarial
        self.at_boundary: Callable[[str], None] = lambda call: None
        self.random, self.dice = random.Random(life).randbytes, random.Random(seed)
        paths = sorted(path for path in Path(self.root).rglob("*") if not path.is_symlink())
        self.names = {str(path): None if path.is_dir() else _File(path.read_bytes()) for path in paths}
        self.durable = dict(self.names)  # None: a directory
        self.pending: dict[str, list[tuple[str | None, str | None, _File | None]]] = {}  # removed, added, what
        self.written: set[str] = set()

    def see(self) -> None:
        """Take note of every version that there is now."""
        for path in self.written:
            with open(path, "rb", buffering=0) as file:
                self.names[path].see(file.read(), self.unit)  # type: ignore[union-attr]

    def images(self, at_most: int) -> Iterator[Image]:
        """Yield what a power cut may leave now: all of it up to ``at_most`` combinations, above that a sample."""
        self.see()
        choices: dict[tuple[Any, Any], list[Any]] = {}  # (whose, which part) -> its versions
        for folder, changes in self.pending.items():
            each = {(folder, number): [False, True] for number in range(len(changes))}
            choices |= each if self.adversarial else {(folder, None): [*range(len(changes) + 1)]}
        changed = [what for changes in self.pending.values() for _, _, what in changes]
        for file in filter(None, dict.fromkeys([*self.durable.values(), *changed])):
            choices |= {(file, at): [*versions] for at, versions in file.versions.items() if len(versions) > 1}
        picks = self._picks([*choices.values()], at_most)
        yield from filter(None, (self._image(dict(zip(choices, pick, strict=True))) for pick in picks))

    def _picks(self, choices: list[list[Any]], at_most: int) -> Iterator[Iterable[Any]]:
        if math.prod(map(len, choices)) <= at_most:
            yield from itertools.product(*choices)
            return
        yield from (corners := [[each[end] for each in choices] for end in (0, -1)])
        for _ in range(at_most - 2):  # half of them: all old or all new but for one, where most bugs live
            pick = [*map(self.dice.choice, choices)]
            if self.dice.random() < 0.5:
                odd, corner = self.dice.randrange(len(pick)), self.dice.choice(corners)
                pick = [*corner[:odd], pick[odd], *corner[odd + 1 :]]
            yield pick

    def _image(self, pick: dict[tuple[Any, Any], Any]) -> Image | None:
        names = dict(self.durable)
        for folder, changes in self.pending.items():
            for number, (removed, added, what) in enumerate(changes):
                if not (pick[folder, number] if self.adversarial else number < pick[folder, None]):
                    continue
                # Its source has not survived, or what was there before has not gone.
                if names.pop(removed, self) is not what if removed else added in names:
                    return None
                names |= {added: what} if added else {}
        folders, files = [self.root], list[tuple[str, bytes, int]]()
        for path, file in sorted(names.items()):  # a folder comes before what it holds
            if os.path.dirname(path) in folders and file is None:
                folders.append(path)
            elif os.path.dirname(path) in folders:
                files.append((path[len(self.root) + 1 :], *self._outcome(file, pick)))
        return Image(tuple(path[len(self.root) + 1 :] for path in folders[1:]), tuple(files))

    def _outcome(self, file: _File, pick: dict[tuple[Any, Any], Any]) -> tuple[bytes, int]:
        content, length = bytearray(file.durable), pick.get((file, None), len(file.raw))
        for at in file.versions.keys() - {None}:
            content += bytes(max(0, at + self.unit - len(content)))
            content[at : at + self.unit] = pick[file, at].ljust(self.unit, b"\0")
        return bytes(content[:length].rstrip(b"\0")), length

    # --- the seam --------------------------------------------------------------------------------

    def _boundary(self, call: str) -> None:
        self.see()
        self.at_boundary(call)

    def _changed(self, removed: str | None, added: str | None, what: _File | None) -> None:
        self.names.pop(removed or "", None)
        self.names |= {added: what} if added else {}
        self.written.discard(removed or "")
        self.pending.setdefault(os.path.dirname(removed or added or ""), []).append((removed, added, what))

    def make_directory(self, path: str) -> bool:
        self._boundary("make_directory")
        if made := super().make_directory(path):
            self._changed(None, path, None)
        return made

    def open(self, path: str, *, write: bool = False, create: bool = False, exclusive: bool = False) -> int:
        is_new = (create or exclusive) and path not in self.names
        if is_new:
            self._boundary("create")
        descriptor = super().open(path, write=write, create=create, exclusive=exclusive)
        if is_new:
            self._changed(None, path, _File())
        if write and os.path.basename(path) != "LOCK":  # a pid, which nobody relies on
            self.written.add(path)
        return descriptor

    def replace(self, source: str, target: str) -> None:
        self._boundary("replace")
        super().replace(source, target)
        if not os.path.lexists(source):  # else both were names of one file, and still are
            self._changed(source, target, self.names[source])

    def link(self, source: str, target: str) -> bool:
        if made := super().link(source, target):
            self._changed(None, target, self.names[source])
        return made

    def unlink(self, path: str) -> bool:
        self._boundary("unlink")
        if removed := super().unlink(path):
            self._changed(path, None, self.names[path])
        return removed

    def sync(self, descriptor: int, path: str) -> None:
        self._boundary("sync")
        super().sync(descriptor, path)
        if (file := self.names.get(path)) is not None:
            file.synced()

    def sync_directory(self, path: str) -> None:
        self._boundary("sync_directory")
        super().sync_directory(path)
        for removed, added, what in self.pending.pop(path, []):
            self.durable.pop(removed, None)  # type: ignore[arg-type]
            self.durable.update({added: what} if added else {})

    def write(self, descriptor: int, piece: bytes | memoryview, offset: int, path: str) -> None:
        super().write(descriptor, piece, offset, path)
        self.see()

    def truncate(self, descriptor: int, size: int, path: str) -> None:
        self.see()
        super().truncate(descriptor, size, path)
        self.see()
