"""Every page of docs/ runs from top to bottom, Python and terminal alike: what it shows is what there is to see."""

from __future__ import annotations

import ast
import doctest
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bytekv

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [
    page
    for page in sorted(DOCS.rglob("*.md"))
    if BLOCK.search(page.read_text(encoding="utf-8")) and page.name != "cli.md"  # which test_cli.py reads
]


def commands(block: str) -> Iterator[tuple[str, str]]:
    """Yield the commands of a block, ``$`` before the first line and ``>`` before the others, and what each shows."""
    for part in re.findall(r"^\$ .*\n(?:(?!\$ ).*\n)*", block, re.MULTILINE):
        lines = part.splitlines(keepends=True)
        count = next((number for number, line in enumerate(lines[1:], 1) if not line.startswith(">")), len(lines))
        yield "".join(line[2:] for line in lines[:count]), "".join(lines[count:])


@pytest.fixture
def terminal(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to an empty directory, with the commands `python` and `bytekv` of this Python; return it."""
    folder, programs = path.parent / "home", path.parent / "bin"
    folder.mkdir()
    programs.mkdir()
    for name, arguments in (("python", ""), ("bytekv", "-m bytekv ")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments}"$@"\n')
        (programs / name).chmod(0o700)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(bytekv.__file__).parents[1]))
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8")
    monkeypatch.delenv("BYTEKV_DIR", raising=False)
    monkeypatch.chdir(folder)
    return folder


def run(*command: str) -> str:
    """Run a program; return what a terminal would show."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60
    )
    return done.stdout


def run_session(block: str, names: dict[str, Any], page: Path) -> dict[str, Any]:
    """Run what was typed at Python's prompt and compare what it printed; return the names it has left."""
    report: list[str] = []
    session = doctest.DocTestParser().get_doctest(block, names, page.name, str(page), 0)
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(session, out=report.append, clear_globs=False)
    assert result.attempted
    assert result.failed == 0, "".join(report)
    return session.globs


def run_program(block: str) -> None:
    """Run a program: with pytest if it has tests in it; not at all, but read, if it stands in somebody's coroutine."""
    tree = compile(block, "<block>", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    try:
        compile(block, "<block>", "exec")
    except SyntaxError:
        assert any(isinstance(node, ast.Await) for node in ast.walk(tree))
        return
    Path("test_block.py").write_text(block, encoding="utf-8")
    pytest_ = ["-m", "pytest", "-q", "-p", "no:cacheprovider"] if "\ndef test_" in block else []
    done = subprocess.run(
        [sys.executable, *pytest_, "test_block.py"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_runs_from_top_to_bottom(page: Path, terminal: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    checker = doctest.OutputChecker()
    for kind, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        if kind == "console":
            shown_commands = list(commands(block))
            assert shown_commands, "a block without a command"
            for command, shown in shown_commands:
                seen = run("bash", "-c", command)
                assert checker.check_output(shown, seen, doctest.ELLIPSIS), f"$ {command}\n{seen}instead of\n{shown}"
        elif block.startswith(">>>"):
            names = run_session(block, names, page)
        else:
            run_program(block)


def test_pages_are_found() -> None:
    assert {"first-store", "move", "recover", "design", "http", "resp"} <= {page.stem for page in PAGES}
