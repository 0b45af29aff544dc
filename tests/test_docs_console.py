"""The tutorial and the how-to pages that show a terminal, run from top to bottom, show what there is to see."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import bytekv

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = [
    page
    for page in sorted([*DOCS.glob("tutorial/*.md"), *DOCS.glob("how-to/*.md")])
    if "\n```console\n" in page.read_text(encoding="utf-8")
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_runs_from_top_to_bottom(page: Path, terminal: Path) -> None:
    python, parser, ran = {"__name__": "__main__"}, doctest.DocTestParser(), 0
    checker, flags = doctest.OutputChecker(), doctest.ELLIPSIS
    for kind, block in re.findall(
        r"^```(python|console)\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL
    ):
        if kind == "python" and block.startswith(">>>"):
            report: list[str] = []
            session = parser.get_doctest(block, python, page.name, str(page), 0)
            result = doctest.DocTestRunner(optionflags=flags).run(session, out=report.append, clear_globs=False)
            assert result.failed == 0, "".join(report)
            python = session.globs
        elif kind == "console":
            for command, shown in commands(block):
                done = subprocess.run(
                    ["bash", "-c", command],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    timeout=60,
                )
                assert checker.check_output(shown, done.stdout, flags), f"$ {command}\n{done.stdout}instead of\n{shown}"
                ran += 1
    assert ran > 1


def test_pages_are_found() -> None:
    assert {"first-store", "move", "recover"} <= {page.stem for page in PAGES}
