"""The rooms as the source has them: who imports whom, which module alone may import what, what is public.

A room is a folder, or a module that lies in none. `ARROWS` says which rooms a room may import; the order of its keys
goes from the ground up, and docs/explanation/design.md draws it. Within a room modules may import each other, but not
in a circle. A new module in a folder needs no line here.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest

import bytekv
from bytekv import errors

PACKAGE = Path(bytekv.__file__).parent

#: From the ground up. A room may import those of the lines below its own, not those beside it.
LEVELS = [
    ("_lean",),
    ("errors", "events"),
    ("options", "contract"),
    ("engine.tuning", "engine.listener"),
    ("engine.codec",),
    ("engine.log", "engine.index"),  # files without keys, keys without files
    ("engine.pacer",),
    ("engine.state",),
    ("engine.recovery", "engine.integrity", "engine.write"),
    ("engine.fast", "engine.replication"),
    ("engine.reader", "engine.space"),
    ("engine.sharing",),
    ("engine.exit_and_fork", "engine.open"),
    ("engine.store",),
    ("engine.shared_store",),
    ("engine.stores",),
    ("backends",),
    ("",),  # bytekv/__init__.py: the public names
]

#: What is offered on top of a store sees what a program sees: these, and what stands beside its own name.
PUBLIC = {"errors", "_lean", "events", "options", "contract", ""}
FACES = {
    "views": set(),
    "cache": set(),
    "adapters": set(),
    "testing": set(),
    "dbm": set(),
    "transfer": set(),
    "server": set(),
    "http": {"server", "transfer"},
    "resp": {"server", "transfer"},
    "cli": {"server", "transfer", "http", "resp", "engine.integrity.inspection"},
    "__main__": {"cli"},
}

ARROWS: dict[str, set[str]] = {
    **{
        room: {below for level in LEVELS[:height] for below in level}
        for height, level in enumerate(LEVELS)
        for room in level
    },
    **{face: PUBLIC | more for face, more in FACES.items()},
}

#: Rooms that have their place before they are built.
TO_COME = {"backends", "views", "cache", "adapters", "testing"}

#: Rooms without I/O, and what is I/O.
PURE = {"contract", "engine.codec", "engine.index"}
IO = {"io", "mmap", "os", "pathlib", "select", "selectors", "shutil", "socket", "subprocess", "tempfile"}

#: Foreign modules that only some of ours may import, and those that none may.
ONLY_IN = {
    "crc32c": ["engine.codec.checksum"],
    "sortedcontainers": ["contract.ordered"],
    "mmap": ["engine.log.files"],
    "fcntl": ["engine.log.files"],
    "msvcrt": ["engine.log.files"],
    "resource": ["engine.log.files", "server.sockets"],  # how many files may be open, and how many connections
    "pickle": [],
    "shelve": [],
    "marshal": [],
}


# --- the checker: sources in, complaints out ---------------------------------------------------


class Import:
    """One imported module, or a name that may be one, as an absolute dotted name."""

    def __init__(self, name: str, line: int) -> None:
        self.name, self.line = name, line


def imports_of(tree: ast.AST, package: str) -> Iterator[Import]:
    """Yield every import of a module that lies in ``package``, wherever in the source it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            for alias in node.names:
                yield Import(f"{base}.{alias.name}", node.lineno)


def nearest(name: str, known: Collection[str]) -> str:
    """Return a dotted name or the longest beginning of it that is known; "" if none is."""
    while name not in known and name:
        name = name.rpartition(".")[0]
    return name


def module_of(imported: str, modules: Collection[str]) -> str | None:
    """Return which of our modules a dotted name lies in, None if in none of them."""
    if imported != "bytekv" and not imported.startswith("bytekv."):
        return None
    return nearest(imported.removeprefix("bytekv").removeprefix("."), modules)


def all_imports(sources: Mapping[str, str]) -> dict[str, list[Import]]:
    """Return the imports of each module."""
    packages = {name.rpartition(".")[0] for name in sources}
    inside = {name: name if name in packages else name.rpartition(".")[0] for name in sources}
    return {
        name: list(imports_of(ast.parse(source), f"bytekv.{inside[name]}".rstrip(".")))
        for name, source in sources.items()
    }


def inner_imports(sources: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """Return for each module which others of the package it imports, and on which line first."""
    found: dict[str, dict[str, int]] = {}
    for name, imports in all_imports(sources).items():
        targets = found[name] = {}
        for imported in imports:
            target = module_of(imported.name, sources)
            if target is not None:
                targets.setdefault(target, imported.line)
    return found


def circle_in(imports: Mapping[str, Collection[str]]) -> list[str]:
    """Return the modules of one circle in order, none if there is no circle."""
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> list[str]:
        if name in way:
            return way[way.index(name) :]
        if name not in done:
            for target in sorted(imports.get(name, ())):
                if circle := walk(target, [*way, name]):
                    return circle
            done.add(name)
        return []

    return next((circle for name in sorted(imports) if (circle := walk(name, []))), [])


def complaints(
    sources: Mapping[str, str],
    arrows: Mapping[str, Collection[str]],
    pure: Collection[str] = (),
) -> list[str]:
    """Say everything that is wrong with a package, given as module name -> source ("": its __init__)."""
    rooms = {name: nearest(name, arrows) for name in sources}
    imports = inner_imports(sources)
    every = all_imports(sources)
    found = [f"{name} lies in no room" for name, room in rooms.items() if not room and name]
    found += [f"there is no room {room or '__init__'}" for room in arrows if room not in rooms.values()]
    for name, room in rooms.items():
        tree = ast.parse(sources[name])
        for target, line in imports[name].items():
            if target == name:
                found.append(f"{name}:{line} imports itself")
            elif rooms[target] != room and not {rooms[target], target} & {*arrows[room]}:
                found.append(f"{name}:{line} imports {target or '__init__'}, to which no arrow leads from {room}")
        for imported in every[name]:
            top = imported.name.partition(".")[0]
            if top == "mmap" and not calls_of(tree, top):
                continue  # the name of a type
            if top in ONLY_IN and name not in ONLY_IN[top]:
                allowed = " and ".join(ONLY_IN[top]) or "no module"
                found.append(f"{name}:{imported.line} imports {top}, allowed in {allowed}")
            elif top in IO and room in pure:
                found.append(f"{name}:{imported.line} imports {top}, but {room} does no I/O")
        found += [f"{name}:{line} prints" for line in calls_of(tree, "print")]
        if room in pure:
            found += [f"{name}:{line} opens a file, but {room} does no I/O" for line in calls_of(tree, "open")]
    for room in arrows:
        inside = {name: {*imports[name]} - {name} for name in sources if rooms[name] == room}
        if circle := circle_in({name: targets & {*inside} for name, targets in inside.items()}):
            found.append(f"a circle in {room}: {' -> '.join([*circle, circle[0]])}")
    return found


def calls_of(tree: ast.AST, name: str) -> list[int]:
    """Return the lines on which ``name`` or something of it is called.

    `mmap` may be named elsewhere as a type; what it does to the operating system is for `files` alone.
    """
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func
            while isinstance(function, ast.Attribute):
                function = function.value
            if isinstance(function, ast.Name) and function.id == name:
                lines.append(node.lineno)
    return lines


# --- what it says of bytekv --------------------------------------------------------------------


def sources_of(package: Path) -> dict[str, str]:
    """Return module name -> source. A package whose `__init__` has only a docstring is a folder, not a module."""
    sources = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package).with_suffix("").parts
        source = file.read_text(encoding="utf-8")
        if parts[-1] != "__init__" or len(ast.parse(source).body) > 1:
            sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = source
    return sources


def test_bytekv_keeps_its_rooms():
    sources = sources_of(PACKAGE)
    built = {nearest(name, ARROWS) for name in sources}
    arrows = {room: targets for room, targets in ARROWS.items() if room in built or room not in TO_COME}
    assert complaints(sources, arrows, PURE) == []


def test_no_arrow_of_the_plan_leads_in_a_circle():
    rooms = {room: {nearest(target, ARROWS) for target in targets} for room, targets in ARROWS.items()}
    assert circle_in(rooms) == []


# --- and that it would say so ------------------------------------------------------------------

#: Three rooms: ground, a folder of two modules above it, and the public names on top.
SMALL = {"ground": set(), "hall": {"ground"}, "": {"ground", "hall"}}
HOUSE = {"ground": "", "hall.door": "", "hall.seat": "", "": ""}

NO_ARROW = "ground:1 imports hall.door, to which no arrow leads from ground"
WRONG = {
    "upward": ({"ground": "from .hall.door import x"}, NO_ARROW),
    "upward as a module": ({"ground": "from .hall import door"}, NO_ARROW),
    "upward, absolute": ({"ground": "import bytekv.hall.door"}, NO_ARROW),
    "upward, absolute from": ({"ground": "from bytekv.hall.door import x"}, NO_ARROW),
    "upward, module of the package": ({"ground": "from bytekv.hall import door"}, NO_ARROW),
    "upward in a function": ({"ground": "def f():\n    from .hall.door import x"}, NO_ARROW.replace(":1", ":2")),
    "upward for types only": (
        {"ground": "if TYPE_CHECKING:\n    from .hall.door import x"},
        NO_ARROW.replace(":1", ":2"),
    ),
    "circle of two": (
        {"hall.door": "from .seat import x", "hall.seat": "from . import door"},
        "a circle in hall: hall.door -> hall.seat -> hall.door",
    ),
    "circle of three": (
        {"hall.door": "from .seat import x", "hall.seat": "from .wall import x", "hall.wall": "from .door import x"},
        "a circle in hall: hall.door -> hall.seat -> hall.wall -> hall.door",
    ),
    "circle through the room's own names": (
        {"hall": "from .door import x", "hall.door": "from . import x"},
        "a circle in hall: hall -> hall.door -> hall",
    ),
    "itself": ({"hall.door": "from . import door"}, "hall.door:1 imports itself"),
    "the package": ({"ground": "import bytekv"}, "ground:1 imports __init__, to which no arrow"),
    "a public name": ({"ground": "from bytekv import Store"}, "ground:1 imports __init__, to which no arrow"),
    "a name of the package": ({"ground": "from . import __version__"}, "ground:1 imports __init__, to which no arrow"),
    "a module outside of the rooms": ({"new": ""}, "new lies in no room"),
    "crc32c": ({"ground": "import crc32c"}, "ground:1 imports crc32c, allowed in engine.codec"),
    "crc32c from": ({"ground": "from crc32c import crc32c"}, "ground:1 imports crc32c, allowed in engine.codec"),
    "pickle": ({"hall.door": "import pickle"}, "hall.door:1 imports pickle, allowed in no module"),
    "pickle within": ({"ground": "def f():\n    import pickle as p"}, "ground:2 imports pickle, allowed in no module"),
    "fcntl": ({"ground": "try:\n    import fcntl\nexcept ImportError: pass"}, "ground:2 imports fcntl"),
    "mmap": ({"ground": "import mmap\nm = mmap.mmap(-1, 1)"}, "ground:1 imports mmap, allowed in engine.log.files"),
    "print": ({"ground": "def f():\n    print(1)"}, "ground:2 prints"),
    "I/O": ({"hall.door": "import os"}, "hall.door:1 imports os, but hall does no I/O"),
    "I/O from": ({"hall.door": "from os.path import join"}, "hall.door:1 imports os, but hall does no I/O"),
    "a file opened": ({"hall.door": "def f(p):\n    return open(p)"}, "hall.door:2 opens a file, but hall does no I/O"),
}


@pytest.mark.parametrize(("sources", "complaint"), WRONG.values(), ids=WRONG)
def test_the_checker_finds(sources, complaint):
    found = complaints({**HOUSE, **sources}, SMALL, pure={"hall"})
    assert [line for line in found if line.startswith(complaint)], found
    assert len(found) == 1


def test_the_checker_finds_a_room_that_has_gone():
    assert complaints({"ground": "", "": ""}, SMALL) == ["there is no room hall"]


RIGHT = {
    "downward": {"hall.door": "from ..ground import x"},
    "downward, absolute": {"hall.door": "import bytekv.ground\nfrom bytekv.ground import x\nfrom bytekv import ground"},
    "within a room": {"hall.door": "from .seat import x", "hall": "from .door import y\nfrom .seat import x"},
    "a module that was not there": {"hall.new": "from .door import x"},
    "a folder in a room": {"hall.corner.lamp": "from ..door import x\nfrom ...ground import y"},
    "the public names": {"": "from .ground import x\nfrom .hall.door import y"},
    "mmap as a type": {"ground": "import mmap\nView = mmap.mmap | bytes\ndef f(m: mmap.mmap): ..."},
    "another package": {"ground": "import bytekvtools, printing"},
    "print as a method": {"ground": "def f(x): x.print()"},
    "I/O where it may be": {"ground": "import os\nfile = open('x')"},
    "open as a method": {"hall.door": "def f(x): x.open()"},
}


@pytest.mark.parametrize("sources", RIGHT.values(), ids=RIGHT)
def test_the_checker_accepts(sources):
    assert complaints({**HOUSE, **sources}, SMALL, pure={"hall"}) == []


def test_an_arrow_may_lead_to_one_module_of_a_room():
    arrows = {**SMALL, "face": {"hall.door"}}
    assert complaints({**HOUSE, "face": "from .hall.door import x"}, arrows) == []
    assert complaints({**HOUSE, "face": "from .hall import seat"}, arrows) == [
        "face:1 imports hall.seat, to which no arrow leads from face"
    ]


# --- the public names --------------------------------------------------------------------------


def test_every_public_name_is_listed_once_and_in_order():
    assert bytekv.__all__ == sorted(set(bytekv.__all__))
    tree = ast.parse(inspect.getsource(bytekv))
    later = [node for block in tree.body if isinstance(block, ast.If) for node in block.body]  # imported when asked for
    imported = {
        alias.asname or alias.name
        for node in [*tree.body, *later]
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert all(hasattr(bytekv, name) for name in imported)
    assert not hasattr(bytekv, "nothing")
    assert imported == set(bytekv.__all__)
    assert set(errors.__all__) <= imported


@pytest.mark.parametrize("name", bytekv.__all__)
def test_every_public_name_is_documented(name):
    public = getattr(bytekv, name)
    own = [(name, public)]
    if inspect.isclass(public):
        own += [(f"{name}.{each}", value) for each, value in vars(public).items() if is_api(each, value)]
    for label, value in own:
        text = value.__doc__ or ""
        assert text.strip(), f"{label} has no docstring"
        assert not text.startswith(f"{name}("), f"{label} has only a generated docstring"


def is_api(name: str, value: object) -> bool:
    """Tell whether a class attribute is a public method or property."""
    return not name.startswith("_") and (inspect.isroutine(value) or isinstance(value, (property, classmethod)))


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_can_be_caught_as_one(name):
    assert issubclass(getattr(bytekv, name), bytekv.BytekvError)
