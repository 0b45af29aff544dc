"""What `import bytekv` costs, told by what it brings along: times depend on the machine, names do not."""

from __future__ import annotations

import json
import logging
import pickle
import subprocess
import sys
from typing import NamedTuple as FromTyping

import pytest

import bytekv
from bytekv import _lean as record
from bytekv._lean import log
from bytekv.engine.codec.checksum import checksum

#: 44 ms for the package crc32c (a command line, importlib.metadata and with it email and socket), 5 for dataclasses
#: (inspect, ast), 3 or 4 each for typing, logging, sortedcontainers (traceback) and secrets (hmac, OpenSSL).
HEAVY = {
    "argparse",
    "ast",
    "asyncio",
    "bytekv.cli.main",
    "bytekv.dbm",
    "crc32c",
    "dataclasses",
    "email",
    "hashlib",
    "importlib.machinery",
    "importlib.metadata",
    "inspect",
    "json",
    "logging",
    "random",
    "re",
    "socket",
    "sortedcontainers",
    "sqlite3",
    "tempfile",
    "traceback",
    "typing",
}


def run(source: str) -> str:
    """Run a program in a Python that has imported nothing yet; return what it prints."""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


NEW = "import sys, json\nbefore = set(sys.modules)\n{}\nprint(json.dumps(sorted(set(sys.modules) - before)))"


def test_importing_bytekv_brings_nothing_heavy():
    # What Python's own modules bring on this version is not ours to save.
    own = set(json.loads(run(NEW.format("import weakref, threading, contextlib, heapq, struct"))))
    brought = set(json.loads(run(NEW.format("import bytekv"))))
    assert "bytekv.engine.store" in brought
    assert not (brought - own) & HEAVY


def test_a_set_and_a_get_bring_nothing_heavy(path):
    use = (
        f"import bytekv\ndb = bytekv.open({str(path)!r}, sync='os')\ndb['a'] = 'b'\nassert db['a'] == b'b'\ndb.close()"
    )
    own = set(json.loads(run(NEW.format("import weakref, threading, contextlib, heapq, struct"))))
    assert not (set(json.loads(run(NEW.format(use)))) - own) & HEAVY


# --- crc32c without its package ----------------------------------------------------------------

CHECK = "assert codec.checksum(b'123456789', 0) == 0xE3069283 and crc32c.crc32c(b'123456789') == 0xE3069283"


@pytest.mark.parametrize(
    "imports",
    [
        "from bytekv.engine.codec import checksum as codec\nimport crc32c",
        "import crc32c\nfrom bytekv.engine.codec import checksum as codec",
    ],
)
def test_the_extension_module_alone_computes_the_same_as_its_package(imports):
    run(f"{imports}\n{CHECK}")


def test_a_crc32c_that_is_no_file_of_its_own_is_imported_as_a_package():
    hidden = "from importlib.machinery import PathFinder\nfind = PathFinder.find_spec\n"
    hidden += "PathFinder.find_spec = lambda name, *rest: None if name == 'crc32c._crc32c' else find(name, *rest)\n"
    # The package itself needs its extension module, once it is looked for in earnest.
    hidden += (
        "import sys\nsys.meta_path.append(type('Late', (), {'find_spec': lambda self, *rest: find(*rest[:2])})())\n"
    )
    run(
        hidden
        + f"from bytekv.engine.codec import checksum as codec\nassert 'crc32c' in sys.modules\nimport crc32c\n{CHECK}"
    )


def test_the_checksum_is_the_extension_module_s_own_function():
    assert type(checksum).__name__ == "builtin_function_or_method"  # no wrapper slows every read down


# --- messages without logging ------------------------------------------------------------------


def test_debug_and_information_import_no_logging():
    run("import sys\nfrom bytekv._lean import log\nlog.debug('x')\nlog.info('x')\nassert 'logging' not in sys.modules")


def test_a_warning_reaches_a_person_who_has_configured_nothing():
    assert run("from bytekv._lean import log\nlog.warning('look at %s', 'this')\nlog.error('and that')") == (
        "look at this\nand that\n"
    )


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_messages_name_who_said_them(level, caplog):
    with caplog.at_level(logging.DEBUG, "bytekv"):
        getattr(log, level)("%d of %d", 1, 2)
    (said,) = caplog.records
    assert (said.name, said.levelname, said.getMessage()) == ("bytekv", level.upper(), "1 of 2")
    assert said.filename == "test_imports.py"


# --- named tuples without typing ---------------------------------------------------------------


class Ours(record.NamedTuple):
    """Say what it is."""

    number: int
    text: str = "none"

    def twice(self) -> int:
        """Return two times the number."""
        return 2 * self.number


class Theirs(FromTyping):
    """Say what it is."""

    number: int
    text: str = "none"

    def twice(self) -> int:
        """Return two times the number."""
        return 2 * self.number


def test_records_are_what_typing_makes():
    assert Ours.__mro__[1:] == Theirs.__mro__[1:]
    assert Ours._fields == Theirs._fields
    assert Ours._field_defaults == Theirs._field_defaults
    assert (Ours.__doc__, Ours.__module__, Ours.__qualname__) == (Theirs.__doc__, Theirs.__module__, "Ours")
    assert Ours(1) == Theirs(1) == (1, "none")
    assert repr(Ours(1)) == "Ours(number=1, text='none')"
    assert Ours(4, text="x").twice() == Theirs(4, text="x").twice() == 8
    assert Ours(1)._replace(number=2).number == 2
    with pytest.raises(TypeError):
        Ours()
    with pytest.raises(AttributeError):
        Ours(1).number = 2


def test_records_survive_pickling():
    damage = bytekv.Damage("path", 1, "reason")
    assert pickle.loads(pickle.dumps(damage)) == damage
    assert type(pickle.loads(pickle.dumps(Ours(1)))) is Ours
