"""The script of the long run: it divides the time, counts, notices what goes wrong, and prints and writes the table."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import deep
from tests.deep import BEGIN, END, METHODS, PAGE, Method, Row, as_markdown, as_text, main, run_here, section, write_into
from tests.support.harness import Case

ROWS = [Row("kills", 2_000, 0, 7), Row("mutants", 34, 1, 7, True)]


def good(place: Path, seed: int) -> Iterator[Case]:
    (place / "file").write_bytes(b"1")
    yield Case("good", count=1000)
    yield Case("better", count=0)
    yield Case("good", count=500)
    yield Case("good", count=0, is_last=True)
    while True:
        yield Case("better")


def ending(place: Path, seed: int) -> Iterator[Case]:
    for number in range(seed):
        yield Case("ending", ValueError("bad") if number % 2 else None)


def endless(place: Path, seed: int) -> Iterator[Case]:
    while True:
        yield Case("endless", AssertionError("wrong"))


def breaking(place: Path, seed: int) -> Iterator[Case]:
    yield Case("breaking")
    raise KeyError("the method itself")


def dying(place: Path, seed: int) -> Iterator[Case]:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGBUS)
    yield Case("dying")


def tally(budget_s: float, seed: int) -> tuple[int, list[str], int]:
    return 12, ["one", "two"], seed


def impossible(budget_s: float, seed: int) -> tuple[int, list[str], int]:
    return 0, [], seed


FAKES = {
    function.__name__: Method(1, f"project.test_deep:{function.__name__}")
    for function in (good, ending, endless, breaking, dying, tally, impossible)
}


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deep, "METHODS", FAKES)
    monkeypatch.setattr(deep, "TALLIES", {"tally": "a tally", "impossible": "an impossible tally"})


@pytest.mark.usefixtures("fakes")
def test_a_method_is_gone_through_for_as_long_as_it_may() -> None:
    first, second = run_here("good", 0.2, 3)
    assert first == Row("good", 1500, 0, 3, True)
    assert second.cases > 0
    assert not second.is_all


@pytest.mark.usefixtures("fakes")
def test_what_goes_wrong_is_counted_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here("ending", 60, 6) == [Row("ending", 6, 3, 6, True)]
    assert run_here("endless", 60, 0) == [Row("endless", deep.VIOLATIONS, deep.VIOLATIONS, 0)]
    assert run_here("breaking", 60, 0) == [Row("breaking", 1, 1, 0)]
    assert run_here("tally", 60, 5) == [Row("a tally", 12, 2, 5, True)]
    assert run_here("tally", 0, 5) == [Row("a tally", 12, 2, 5)], "its time is over, and all is told"
    assert run_here("impossible", 60, 5) == []
    said = capsys.readouterr().err
    assert "ValueError: bad" in said
    assert "KeyError: 'the method itself'" in said


def test_a_process_that_dies_is_a_violation(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """In a process of its own, which knows nothing of what is patched here: a method that it does not know."""
    monkeypatch.setattr(deep, "METHODS", {"unknown": Method(1, "nowhere:nothing")})
    assert deep.run_all(["unknown"], 1, 4) == [Row("unknown", 0, 1, 4)]
    assert "unknown: the process ended with 2" in capfd.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="made of kill -9")
def test_the_script_from_outside(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--budget", "1", "--seed", "7", "--only", "kills", "--markdown"]) == 0
    out, err = capfd.readouterr()
    assert re.fullmatch(r"\| method \| cases.*\n\|[-:| ]+\n\| kills \| [1-9][0-9,]* \| 0 \| 7 \|\n", out)
    assert "kills: up to 1 s" in err


def test_time_is_divided_by_shares_and_what_is_left_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[str, float]] = []
    now = 0.0

    def run_apart(name: str, budget_s: float, seed: int) -> list[Row]:
        nonlocal now
        given.append((name, budget_s))
        now += 1.0 if name == "first" else budget_s
        return [Row(name, 1, 0, seed)]

    monkeypatch.setattr(deep, "METHODS", {"first": Method(2, ""), "second": Method(1, ""), "third": Method(1, "")})
    monkeypatch.setattr(deep, "run_apart", run_apart)
    monkeypatch.setattr(deep.time, "monotonic", lambda: now)
    assert [row.kind for row in deep.run_all(["first", "second", "third"], 101.0, 0)] == ["first", "second", "third"]
    assert given == [("first", 50.5), ("second", 50.0), ("third", 50.0)]


def test_the_table_as_text_and_as_markdown() -> None:
    assert as_text(ROWS).splitlines() == [
        "method      cases  violations  seed",
        "kills       2,000           0     7",
        "mutants  34 (all)           1     7",
    ]
    assert as_markdown(ROWS).splitlines() == [
        "| method | cases | violations | seed |",
        "| --- | ---: | ---: | ---: |",
        "| kills | 2,000 | 0 | 7 |",
        "| mutants | 34 (all) | 1 | 7 |",
    ]


def test_any_violation_makes_the_exit_status(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}old\n{END}after\n")
    monkeypatch.setattr(deep, "PAGE", page)
    monkeypatch.setattr(deep, "run_all", lambda names, budget_s, seed: ROWS)
    assert main(["--seed", "7", "--write"]) == 1
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}`python -m tests.deep --budget 600 --seed 7` on 20")
    assert text.endswith(f"{as_markdown(ROWS)}{END}after\n")
    monkeypatch.setattr(deep, "run_all", lambda names, budget_s, seed: ROWS[:1])
    assert main(["--seed", "7"]) == 0
    with pytest.raises(ValueError, match="lacks"):
        write_into("a page without markers", "")


def test_the_page_can_be_written_and_names_every_method() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1
    assert write_into(text, section(ROWS, 600.0, 7)) != text
    for method in METHODS.values():
        module = method.function.partition(":")[0]
        assert f"`tests/{module.replace('.', '/')}.py`" in text, f"the page does not say what {module} does"


@pytest.mark.deep
@pytest.mark.parametrize("name", METHODS)
def test_a_minute_of(name: str) -> None:
    rows = deep.run_apart(name, 60.0, 0)
    print("\n" + as_text(rows))
    assert not any(row.violations for row in rows)
