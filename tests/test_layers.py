"""The layers as the source has them: who imports whom, which module alone may import what, what is public.

A module may import only from those above it in `LAYERS`. With a total order a circle needs at least one
import that goes up, so looking for those finds circles, too.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import bytekv
from bytekv import errors

PACKAGE = Path(bytekv.__file__).parent

LAYERS = [
    "_lean",
    "errors",
    "log",
    "options",
    "contract.convert",
    "engine.log.sizes",
    "engine.codec.entry",
    "engine.log.files",
    "engine.log.directory",
    "engine.log.segment",
    "engine.log.segment_manager",
    "engine.index.deadlines",
    "engine.index.keydir",
    "engine.recovery",
    "engine.log.builder",
    "engine.write.throttle",
    "engine.write.change",
    "engine.write.durability",
    "engine.write.turn",
    "engine.write.unseen",
    "engine.write.commit",
    "engine.space.picker",
    "engine.space.compactor",
    "engine.replication.follower",
    "engine.replication.feed",
    "engine.replication.backup",
    "engine.integrity.repair",
    "engine.open",
    "contract.ordered",
    "contract.batch",
    "engine.fast",
    "engine.space.worker",
    "engine.space.maintenance",
    "engine.stats",
    "engine.reader",
    "contract.snapshot",
    "contract.transaction",
    "engine.exit_and_fork",
    "engine.store",
    "server.sockets",
    "http.problem",
    "http.conditions",
    "http.access",
    "http.message",
    "http.operations",
    "http.routes",
    "http.streams",
    "http.metrics",
    "http.openapi",
    "http.console",
    "http.application",
    "http.server",
    "http",
    "",  # bytekv/__init__.py: the public names
    # The faces, which nobody below imports.
    "resp.protocol",
    "resp.arguments",
    "resp.work",
    "resp.commands.table",
    "resp.commands.strings",
    "resp.commands.keys",
    "resp.executor",
    "resp.session",
    "resp.commands.server",
    "resp.connection",
    "resp.server",
    "resp",
    "dbm",
    "transfer.json_lines",
    "transfer.sqlite_source",
    "transfer.foreign",
    "engine.integrity.inspection",
    "cli.terminal",
    "server.lifecycle",
    "cli.commands",
    "cli.inspect",
    "cli.serve",
    "cli.main",
    "__main__",
]

#: Foreign modules that only one of ours may import, and those that none may.
ONLY_IN = {
    "crc32c": "engine.codec.entry",
    "sortedcontainers": "engine.index.keydir",
    "mmap": "engine.log.files",
    "fcntl": "engine.log.files",
    "msvcrt": "engine.log.files",
    "resource": "engine.log.files",
    "pickle": None,
    "shelve": None,
    "marshal": None,
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


def module_of(imported: str, modules: Mapping[str, str]) -> str | None:
    """Return which of our modules a dotted name lies in, None if in none of them."""
    if imported != "bytekv" and not imported.startswith("bytekv."):
        return None
    inner = imported.removeprefix("bytekv").removeprefix(".")
    while inner not in modules and inner:
        inner = inner.rpartition(".")[0]
    return inner


def complaints(sources: Mapping[str, str], layers: list[str]) -> list[str]:
    """Say everything that is wrong with a package, given as module name -> source ("": its __init__)."""
    found = [f"{name} is not in the list of layers" for name in sources if name not in layers]
    found += [f"the list of layers has {name}, which does not exist" for name in layers if name not in sources]
    rank = {name: number for number, name in enumerate(layers)}
    subpackages = {name.rpartition(".")[0] for name in sources}
    for name, source in sources.items():
        tree = ast.parse(source)
        inside = name if name in subpackages else name.rpartition(".")[0]
        for imported in imports_of(tree, f"bytekv.{inside}".rstrip(".")):
            target = module_of(imported.name, sources)
            top = imported.name.partition(".")[0]
            if target is not None:
                if rank.get(target, -1) >= rank.get(name, len(layers)):
                    found.append(f"{name}:{imported.line} imports {target or '__init__'}, which is not above it")
            elif top in ONLY_IN and ONLY_IN[top] != name and (top != "mmap" or calls_of(tree, top)):
                found.append(f"{name}:{imported.line} imports {top}, allowed in {ONLY_IN[top] or 'no module'}")
        found += [f"{name}:{line} prints" for line in calls_of(tree, "print")]
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


def test_bytekv_keeps_its_layers():
    sources = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        source = file.read_text(encoding="utf-8")
        if parts[-1] != "__init__" or len(ast.parse(source).body) > 1:  # more than a docstring
            sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = source
    assert complaints(sources, LAYERS) == []


# --- and that it would say so ------------------------------------------------------------------

WRONG = {
    "upward": ({"low": "from .high import x", "high": ""}, "low:1 imports high, which is not above it"),
    "upward as a module": ({"low": "from . import high", "high": ""}, "low:1 imports high, which is not above it"),
    "upward, absolute": ({"low": "import bytekv.high", "high": ""}, "low:1 imports high, which is not above it"),
    "upward, absolute from": (
        {"low": "from bytekv.high import x", "high": ""},
        "low:1 imports high, which is not above it",
    ),
    "upward, module of the package": (
        {"low": "from bytekv import high", "high": ""},
        "low:1 imports high, which is not above it",
    ),
    "upward in a function": (
        {"low": "def f():\n    from .high import x", "high": ""},
        "low:2 imports high, which is not above it",
    ),
    "upward for types only": (
        {"low": "if TYPE_CHECKING:\n    from .high import x", "high": ""},
        "low:2 imports high, which is not above it",
    ),
    "circle": (
        {"low": "from .high import x", "high": "from .low import y"},
        "low:1 imports high, which is not above it",
    ),
    "itself": ({"low": "from . import low", "high": ""}, "low:1 imports low, which is not above it"),
    "the package": ({"low": "import bytekv", "high": ""}, "low:1 imports __init__, which is not above it"),
    "a public name": (
        {"low": "from bytekv import Store", "high": ""},
        "low:1 imports __init__, which is not above it",
    ),
    "a name of the package": (
        {"low": "from . import __version__", "high": ""},
        "low:1 imports __init__, which is not above it",
    ),
    "unknown module": ({"low": "", "high": "", "new": ""}, "new is not in the list of layers"),
    "vanished module": ({"low": ""}, "the list of layers has high, which does not exist"),
    "crc32c": ({"low": "import crc32c", "high": ""}, "low:1 imports crc32c, allowed in engine.codec.entry"),
    "crc32c from": (
        {"low": "from crc32c import crc32c", "high": ""},
        "low:1 imports crc32c, allowed in engine.codec.entry",
    ),
    "pickle": ({"low": "", "high": "import pickle"}, "high:1 imports pickle, allowed in no module"),
    "pickle within": (
        {"low": "", "high": "def f():\n    import pickle as p"},
        "high:2 imports pickle, allowed in no module",
    ),
    "fcntl": ({"low": "try:\n    import fcntl\nexcept ImportError: pass", "high": ""}, "low:2 imports fcntl"),
    "mmap": (
        {"low": "import mmap\nm = mmap.mmap(-1, 1)", "high": ""},
        "low:1 imports mmap, allowed in engine.log.files",
    ),
    "print": ({"low": "def f():\n    print(1)", "high": ""}, "low:2 prints"),
}


@pytest.mark.parametrize(("sources", "complaint"), WRONG.values(), ids=WRONG)
def test_the_checker_finds(sources, complaint):
    found = complaints({"": "", **sources}, ["low", "high", ""])
    assert [line for line in found if line.startswith(complaint)], found
    assert len(found) == 1


RIGHT = {
    "downward": {"low": "", "high": "from .low import x"},
    "downward, absolute": {"low": "", "high": "import bytekv.low\nfrom bytekv.low import x\nfrom bytekv import low"},
    "the public names": {"low": "", "high": "", "": "from .low import x\nfrom .high import y"},
    "mmap as a type": {"low": "import mmap\nView = mmap.mmap | bytes\ndef f(m: mmap.mmap): ...", "high": ""},
    "another package": {"low": "import bytekvtools, printing", "high": ""},
    "print as a method": {"low": "def f(x): x.print()", "high": ""},
}


@pytest.mark.parametrize("sources", RIGHT.values(), ids=RIGHT)
def test_the_checker_accepts(sources):
    assert complaints({"": "", **sources}, ["low", "high", ""]) == []


def test_the_checker_knows_packages_in_the_package():
    layers = ["low", "web.protocol", "web.server", "web", ""]
    right = {"": "", "low": "", "web": "from .server import x", "web.protocol": "", "web.server": ""}
    right["web.server"] = "from . import protocol\nfrom ..low import x\nfrom .. import low"
    assert complaints(right, layers) == []
    wrong = {**right, "web.protocol": "from .server import x", "low": "from .web import server"}
    assert sorted(complaints(wrong, layers)) == [
        "low:1 imports web.server, which is not above it",
        "web.protocol:1 imports web.server, which is not above it",
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
