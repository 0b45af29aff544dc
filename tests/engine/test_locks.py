"""A lock taken by ``with`` is given back whatever strikes, at every instruction.

From Python 3.12 on, the compiler may leave the backward jump of a loop at the end of a ``with`` block
outside the range that the block's exception handler covers, and a signal handler may run exactly there:
its exception then skips the release. So no such jump may lie inside a block that holds a lock.
"""

from __future__ import annotations

import ast
import dis
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pytest

import bytekv

PACKAGE = Path(bytekv.__file__).parent
LOCKS = ("lock", "compacting", "ordering", "_held_guard", "_starting", "_seeking")


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def uncovered(source: str) -> list[tuple[str, int]]:
    """List (function, line) of backward jumps inside a lock's block that no handler covers."""
    blocks = [
        (node.body[0].lineno, node.body[-1].end_lineno or 0)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.With) and any(name in ast.unparse(node.items[0].context_expr) for name in LOCKS)
    ]
    found = []
    for code in _codes(compile(source, "source", "exec")):
        table = dis._parse_exception_table(code)  # type: ignore[attr-defined]
        for instruction in dis.get_instructions(code):
            line = instruction.positions.lineno if instruction.positions else None
            if line is None or "JUMP_BACKWARD" not in instruction.opname:
                continue
            inside = any(first <= line <= last and code.co_firstlineno < first for first, last in blocks)
            if inside and not any(entry.start <= instruction.offset < entry.end for entry in table):
                found.append((code.co_name, line))
    return found


@pytest.mark.parametrize("module", sorted(PACKAGE.rglob("*.py")), ids=lambda module: str(module.relative_to(PACKAGE)))
def test_no_lock_can_leak_at_a_loop(module: Path) -> None:
    assert uncovered(module.read_text(encoding="utf-8")) == []


def test_the_check_bites() -> None:
    source = """
def f(lock, items):
    with lock:
        for item in items:
            if not item:
                item()
"""
    assert bool(uncovered(source)) == (sys.version_info >= (3, 12))


#: The flattened writes and `Committer.change` (by `State.ready`) set the intent themselves, before they look at
#: anything that a handler might change.
_SAY_SO_THEMSELVES = {"put", "put_for", "write_few", "delete", "_put_durably", "_carry_out"}
#: Those of a shared store have its turn meanwhile, of which `SharedTurn.check_reentry` tells a handler.
_SAY_SO_THEMSELVES |= {"_put_in_turn", "_defer_in_turn"}


def unsaid(source: str) -> list[tuple[str, int]]:
    """List (function, line) of blocks that take a store's lock without saying so: ``x.lock``, not ``x.lock, x``."""
    found = []
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef) or function.name in _SAY_SO_THEMSELVES:
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.With):
                taken = [ast.unparse(item.context_expr) for item in node.items]
                found += [
                    (function.name, node.lineno)
                    for lock, following in zip(taken, [*taken[1:], ""], strict=True)
                    if lock.endswith(".lock") and f"{following}.lock" != lock
                ]
    return found


@pytest.mark.parametrize("module", sorted(PACKAGE.rglob("*.py")), ids=lambda module: str(module.relative_to(PACKAGE)))
def test_a_thread_that_takes_the_stores_lock_says_so(module: Path) -> None:
    """Then a signal handler or a finaliser of the same thread, which the lock lets in once more, is refused."""
    assert unsaid(module.read_text(encoding="utf-8")) == []


def test_the_check_for_unsaid_locks_bites() -> None:
    assert unsaid("def f(self):\n    with self.lock:\n        pass") == [("f", 2)]
    assert unsaid("def f(self):\n    with self.sync_lock, self.lock:\n        pass") == [("f", 2)]
    assert unsaid("def f(self):\n    with self.sync_lock, self.lock, self:\n        pass") == []
