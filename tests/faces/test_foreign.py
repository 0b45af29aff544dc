"""Other libraries' databases: read as they are, never unpickled, and never believed."""

from __future__ import annotations

import dbm
import dbm.dumb
import errno
import math
import os
import pickle
import shelve
import shutil
import sqlite3
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytekv.transfer.foreign import SourceError, read_source
from tests.support.harness import fresh


@pytest.fixture
def folder(path):
    path.mkdir()
    return path


def read(kind, path, **more):
    return {key: (value, expires) for key, value, expires in read_source(kind, str(path), **more)}


class Bomb:
    """Goes off when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("something was unpickled",)


# --- dbm and shelve ----------------------------------------------------------------------------


@given(st.dictionaries(st.binary(max_size=20), st.binary(max_size=600), max_size=8))
@settings(max_examples=25)
def test_dbm_dumb_byte_for_byte(path, content):
    path = str(fresh(path) / "db")
    with dbm.dumb.open(path, "c") as db:
        for key, value in content.items():
            db[key] = value
    assert read("dbm", path) == {key: (value, None) for key, value in content.items()}


@pytest.mark.parametrize("name", ["dbm.gnu", "dbm.ndbm", "dbm.sqlite3"])
def test_other_kinds_of_dbm(folder, name):
    module = pytest.importorskip(name, reason=f"this Python was built without {name}")
    with closing(module.open(str(folder / "db"), "c")) as db:
        db[b"k\xff"] = b"v\x00"
    assert read("dbm", folder / "db") == {b"k\xff": (b"v\x00", None)}


def test_a_shelf_stays_pickled(folder):
    with shelve.Shelf(dbm.dumb.open(str(folder / "shelf"), "c")) as shelf:
        shelf["ä"] = {"a": 1}
        shelf["bomb"] = Bomb()
    found = read("shelve", folder / "shelf")
    assert pickle.loads(found["ä".encode()][0]) == {"a": 1}
    assert found[b"bomb"][0] == pickle.dumps(Bomb(), shelve.DEFAULT_PROTOCOL)


DUMB = {
    "not an entry": ("'a', (0, 1)\nxyz\n", "line 2 is no entry"),
    "an expression": ("'a', (0, 1)\n__import__('os'), (0, 1)\n", "line 2 is no entry"),
    "another literal": ("'a', [0, 1]\n", "line 1 is no entry"),
    "negative": ("'a', (0, -1)\n", "line 1 is no entry"),
    "beyond the end": ("'a', (0, 6)\n", "line 1 points beyond the end"),
    "far beyond the end": ("'a', (999999999999999999, 1)\n", "line 1 points beyond the end"),
    "an endless line": ("'" + "a" * 300_000 + "', (0, 1)\n", "line 1 is no entry"),
    "deep": ("'a', " + "(" * 200_000 + "\n", "line 1 is no entry"),
    "not Latin-1": ("'\\u1234', (0, 1)\n", "line 1 is no entry"),
}


@pytest.mark.parametrize(("index", "complaint"), DUMB.values(), ids=DUMB)
def test_a_hostile_dbm_dumb(folder, index, complaint):
    (folder / "db.dat").write_bytes(b"value")
    (folder / "db.dir").write_text(index)
    with pytest.raises(SourceError, match=complaint):
        read("dbm", folder / "db")


def test_entries_of_a_dbm_dumb_that_overlap(folder):
    """4 KB of index on 1 MiB of data became 200 MiB of values."""
    (folder / "db.dat").write_bytes(b"v" * 1000)
    (folder / "db.dir").write_text("".join(f"'k{number}', (0, 600)\n" for number in range(3)))
    with pytest.raises(SourceError, match="up to line 2 are longer than"):
        read("dbm", folder / "db")


@pytest.mark.parametrize("suffix", [".dat", ".dir", ".bak"])
def test_one_of_the_files_of_a_dbm_may_be_named(folder, suffix):
    with dbm.dumb.open(str(folder / "db"), "c") as db:
        db[b"k"] = b"v"
    with dbm.dumb.open(str(folder / "db"), "c") as db:
        db[b"k"] = b"v2"  # the second commit makes a .bak
    assert read("dbm", folder / f"db{suffix}") == {b"k": (b"v2", None)}


def test_a_dbm_that_no_module_here_reads_is_not_called_missing(folder, monkeypatch):
    """`dbm.whichdb` answers None for a .db file where dbm.ndbm is missing: "not there" was a lie."""
    monkeypatch.setattr(dbm, "whichdb", lambda name: None)
    (folder / "old.db").write_bytes(b"\0" * 12 + b"\x61\x15\x06\0")
    with pytest.raises(SourceError, match=r"old\.db is there, but no module of this Python reads it"):
        read("dbm", folder / "old")
    with pytest.raises(SourceError, match="not there"):
        read("dbm", folder / "older")
    with pytest.raises(SourceError, match="a directory"):
        read("dbm", folder)


@pytest.mark.parametrize("kind", ["dbm", "shelve", "sqlite", "sqlitedict", "diskcache"])
@pytest.mark.parametrize("name", ["cache.db", "cache.db-wal", "cache.db-journal", "cache.db.dat", "cache.db.db"])
def test_pipes_and_devices_are_no_databases(folder, kind, name):
    """Opening a FIFO that nobody writes to waits for ever."""
    if name in ("cache.db-wal", "cache.db-journal"):
        make(folder / "cache.db", "CREATE TABLE Dict (key, value)", CACHE)
    os.mkfifo(folder / name)
    with pytest.raises(SourceError):
        read(kind, folder if kind == "diskcache" else folder / "cache.db")
    os.unlink(folder / name)
    (folder / name).symlink_to("/dev/zero")
    with pytest.raises(SourceError):
        read(kind, folder if kind == "diskcache" else folder / "cache.db")


@pytest.mark.parametrize("kind", ["dbm", "shelve"])
def test_what_is_no_dbm(folder, kind):
    (folder / "text").write_text("some text, no database")
    (folder / "empty").write_text("")
    for name, complaint in (("text", "no kind of database"), ("empty", "no kind"), ("nothing", "not there")):
        with pytest.raises(SourceError, match=complaint):
            read(kind, folder / name)


# --- SQLite ------------------------------------------------------------------------------------


def make(file, *statements):
    with closing(sqlite3.connect(file)) as connection:
        for statement in statements:
            connection.execute(*statement if isinstance(statement, tuple) else (statement,))
        connection.commit()
    return file


def test_an_sqlite_file_as_python_3_13_writes_for_dbm(folder):
    file = make(
        folder / "shelf",
        "CREATE TABLE Dict (key BLOB UNIQUE NOT NULL, value BLOB NOT NULL)",
        ("INSERT INTO Dict VALUES (?, ?)", (b"k\xff", pickle.dumps([1]))),
    )
    assert read("shelve", file) == {b"k\xff": (pickle.dumps([1]), None)}


def test_any_table(folder):
    rows = [("text ä", b"\x00blob"), (b"\xff", "text"), (7, -1.5), ("", "")]
    file = make(
        folder / "file with 'odd' name %20?mode=rwc#.db",
        'CREATE TABLE "odd ""name" (id INTEGER PRIMARY KEY, "a ""key", value, b GENERATED ALWAYS AS (value || value))',
        *(('INSERT INTO "odd ""name" ("a ""key", value) VALUES (?, ?)', row) for row in rows),
    )
    wanted = {"text ä".encode(): b"\x00blob", b"\xff": b"text", b"7": b"-1.5", b"": b""}
    columns = ('a "key', "value")
    assert read("sqlite", file, columns=columns) == {key: (value, None) for key, value in wanted.items()}
    assert read("sqlite", file, table='odd "name')[b"1"] == ("text ä".encode(), None)
    assert {entry.name for entry in folder.iterdir()} == {file.name}


def test_a_table_has_to_be_chosen_where_there_are_several(folder):
    file = make(
        folder / "db", "CREATE TABLE one (k, v)", "CREATE TABLE two (k, v)", "INSERT INTO two VALUES ('a', 'b')"
    )
    with pytest.raises(SourceError, match="say which table with --table, there are one, two"):
        read("sqlite", file)
    assert read("sqlite", file, table="two") == {b"a": (b"b", None)}
    assert read("sqlite", file, table="two", columns=("v", "k")) == {b"b": (b"a", None)}


def test_a_database_that_is_being_written_is_read_as_of_its_last_commit(folder):
    file = make(folder / "db", "PRAGMA journal_mode = WAL", "CREATE TABLE t (k, v)", "INSERT INTO t VALUES ('a', 1)")
    with closing(sqlite3.connect(file)) as writer:
        writer.execute("INSERT INTO t VALUES ('b', 2)")
        writer.commit()
        writer.execute("INSERT INTO t VALUES ('c', 3)")
        assert read("sqlite", file) == {b"a": (b"1", None), b"b": (b"2", None)}


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def test_nothing_is_written_beside_a_database_in_wal_mode(folder):
    """Even a reader makes -wal and -shm files, and fails where it cannot."""
    file = make(folder / "db", "PRAGMA journal_mode = WAL", "CREATE TABLE t (k, v)", "INSERT INTO t VALUES ('a', 1)")
    before = contents(folder)
    assert read("sqlite", file) == {b"a": (b"1", None)}
    assert contents(folder) == before
    raw = bytearray(before["db"])
    raw[18] = 3  # only the byte beside it says that it is one
    file.write_bytes(raw)
    assert read("sqlite", file) == {b"a": (b"1", None)}
    assert contents(folder) == {"db": bytes(raw)}


@pytest.mark.parametrize("with_index", [False, True], ids=["a log alone", "a log and its index"])
def test_the_log_of_a_program_that_was_killed_is_read_and_left_alone(folder, with_index):
    """What is only in the -wal file counts; it is recovered in a copy."""
    live, killed = folder / "live", folder / "killed"
    live.mkdir()
    killed.mkdir()
    file = make(live / "db", "PRAGMA journal_mode = WAL", "CREATE TABLE t (k, v)", "INSERT INTO t VALUES ('a', 1)")
    with closing(sqlite3.connect(file)) as writer:
        writer.execute("INSERT INTO t VALUES ('b', 2)")
        writer.commit()
        for name in ("db", "db-wal", "db-shm")[: 2 + with_index]:
            (killed / name).write_bytes((live / name).read_bytes())
    before = contents(killed)
    assert read("sqlite", killed / "db") == {b"a": (b"1", None), b"b": (b"2", None)}
    assert {name: raw for name, raw in contents(killed).items() if name != "db-shm"} == {
        name: raw for name, raw in before.items() if name != "db-shm"
    }
    assert contents(killed).keys() == before.keys()


def test_a_transaction_that_was_cut_off_is_rolled_back_in_a_copy(folder):
    file = make(
        folder / "db", "CREATE TABLE t (k, v)", *(f"INSERT INTO t VALUES ({n}, '{'v' * 900}')" for n in range(100))
    )
    with closing(sqlite3.connect(file)) as writer:
        writer.execute("PRAGMA cache_size = 1")
        writer.execute("UPDATE t SET v = 'half'")
        hot = folder / "hot"
        hot.mkdir()
        for name in ("db", "db-journal"):
            (hot / name).write_bytes((folder / name).read_bytes())
    before = contents(hot)
    assert set(read("sqlite", hot / "db").values()) == {(b"v" * 900, None)}
    assert contents(hot) == before


def test_no_file_is_deleted_that_a_journal_names(folder):
    """A journal may name a super-journal, which SQLite deletes at the end of the rollback, wherever that is."""
    file = make(folder / "db", "CREATE TABLE t (k, v)", "INSERT INTO t VALUES ('a', 1)")
    victim = folder / "thesis"
    victim.write_text("the only copy")
    name, magic = os.fsencode(victim), bytes.fromhex("d9d505f920a163d7")
    numbers = (0, 1, file.stat().st_size // 4096, 512, 4096)  # no page, a nonce, pages before, sector and page size
    head = magic + b"".join(number.to_bytes(4, "big") for number in numbers)
    numbers = (2**30 // 4096 + 1, len(name), sum(name))
    first, *rest = (number.to_bytes(4, "big") for number in numbers)
    (folder / "db-journal").write_bytes(head.ljust(512, b"\0") + first + name + b"".join(rest) + magic)
    with pytest.raises(SourceError, match="db-journal: names another file"):
        read("sqlite", file)
    assert victim.read_text() == "the only copy"


def test_a_log_beside_a_database_without_one_is_not_opened_in_place(folder):
    """Whatever the header says, SQLite makes an index for a log that is there."""
    file = make(folder / "db", "CREATE TABLE t (k, v)", "INSERT INTO t VALUES ('a', 1)")
    (folder / "db-wal").write_bytes(b"something else" * 1000)
    before = contents(folder)
    assert read("sqlite", file) == {b"a": (b"1", None)}
    assert contents(folder) == before


def test_an_index_alone_is_no_sign_that_a_log_is_open(folder):
    file = make(folder / "db", "PRAGMA journal_mode = WAL", "CREATE TABLE t (k, v)", "INSERT INTO t VALUES ('a', 1)")
    (folder / "db-shm").write_bytes(b"")
    before = contents(folder)
    assert read("sqlite", file) == {b"a": (b"1", None)}
    assert contents(folder) == before


def test_a_database_in_wal_mode_that_changes_while_it_is_read(folder):
    """Nobody has it open at first, so it is read without locks; then a program comes and writes over its pages."""
    file = make(
        folder / "db",
        "PRAGMA journal_mode = WAL",
        "CREATE TABLE t (k INTEGER PRIMARY KEY, v)",
        *(f"INSERT INTO t VALUES ({n}, '{'old' * 300}')" for n in range(100)),
    )
    rows = read_source("sqlite", str(file))
    next(rows)
    with closing(sqlite3.connect(file)) as writer:
        writer.execute(f"UPDATE t SET v = '{'new' * 300}'")
        writer.commit()  # and, as the last one that closes it, writes the log into the file
    with pytest.raises(SourceError, match="was changed while it was read"):
        list(rows)


def test_a_reader_of_a_database_in_wal_mode_does_not_change_it(folder):
    """It makes a log and an index, and removes them."""
    file = make(
        folder / "db",
        "PRAGMA journal_mode = WAL",
        "CREATE TABLE t (k INTEGER PRIMARY KEY, v)",
        *(f"INSERT INTO t VALUES ({n}, '{'old' * 300}')" for n in range(100)),
    )
    rows = read_source("sqlite", str(file))
    next(rows)
    with closing(sqlite3.connect(file)) as reader:
        reader.execute("SELECT * FROM t").fetchall()
        assert contents(folder).keys() == {"db", "db-wal", "db-shm"}
        assert len(list(rows)) == 99


def test_a_database_that_changes_while_it_is_copied(folder, monkeypatch):
    file = make(folder / "db", "PRAGMA journal_mode = WAL", "CREATE TABLE t (k, v)", "INSERT INTO t VALUES ('a', 1)")
    (folder / "db-wal").write_bytes(b"a log")
    copy = shutil.copyfile

    def copy_and_change(source, target):
        copy(source, target)
        os.utime(folder / "db-wal", ns=(1, 1))

    monkeypatch.setattr(shutil, "copyfile", copy_and_change)
    with pytest.raises(SourceError, match="was changed while it was read"):
        read("sqlite", file)


def test_a_copy_for_which_there_is_no_room(folder, monkeypatch):
    def fail(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target)

    file = make(folder / "db", "PRAGMA journal_mode = WAL", "CREATE TABLE t (k, v)", "INSERT INTO t VALUES ('a', 1)")
    (folder / "db-wal").write_bytes(b"a log")
    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(SourceError, match=r"db-wal: cannot be copied into .*: No space left on device; .*TMPDIR"):
        read("sqlite", file)


def test_a_column_that_is_computed_when_it_is_written(folder):
    file = make(folder / "db", "CREATE TABLE t (k, v AS (k || '!') STORED)", "INSERT INTO t (k) VALUES ('a')")
    assert read("sqlite", file) == {b"a": (b"a!", None)}


def page(kind, cells, size=512, right=None):
    """Return a page of a B-tree: an interior one of a table if it has a child at the right."""
    found, at = bytearray(size), size
    head = 8 if right is None else 12
    for number, cell in enumerate(cells):
        at -= len(cell)
        found[at : at + len(cell)] = cell
        found[head + 2 * number : head + 2 * number + 2] = at.to_bytes(2, "big")
    found[:8] = bytes([kind, 0, 0]) + len(cells).to_bytes(2, "big") + at.to_bytes(2, "big") + b"\0"
    if right is not None:
        found[8:12] = right.to_bytes(4, "big")
    return bytes(found)


def small_pages(folder, *statements):
    return make(folder / "db", "PRAGMA page_size = 512", *statements)


def with_more_pages(file, first, *pages):
    """Put ``first`` in the place of the table's page and others behind."""
    raw = bytearray(file.read_bytes())
    raw[28:32] = (len(raw) // 512 + len(pages)).to_bytes(4, "big")
    file.write_bytes(raw[:512] + first + raw[1024:] + b"".join(pages))


def test_a_file_whose_pages_are_shared_ends(folder):
    """5 KB are 10¹⁴ rows if each page points 61 times at the next."""
    file = small_pages(folder, "CREATE TABLE t (k, v)", "INSERT INTO t VALUES ('k', 'v')")
    leaf = file.read_bytes()[512:1024]

    def interior(child):
        return page(5, [child.to_bytes(4, "big") + b"\1"] * 60, right=child)

    with_more_pages(file, interior(3), *(interior(4 + number) for number in range(6)), leaf)
    with pytest.raises(SourceError, match="more rows or longer values than its 4608 bytes can hold"):
        read("sqlite", file)


def test_a_schema_whose_pages_are_shared_ends(folder):
    """SQLite reads the schema before it answers the first question."""
    file = small_pages(folder, "CREATE TABLE t (k, v)")
    raw = bytearray(file.read_bytes())
    leaf = page(13, [bytes(raw[int.from_bytes(raw[108:110], "big") : 512])])

    def interior(child, head=0):
        # The first page has 100 bytes before its own header, and says where cells lie from its very beginning.
        found = bytearray(page(5, [child.to_bytes(4, "big") + b"\1"] * (60 if not head else 40), 512 - head, child))
        for at in (5, *range(12, 12 + 2 * 40, 2)) if head else ():
            found[at : at + 2] = (int.from_bytes(found[at : at + 2], "big") + head).to_bytes(2, "big")
        return bytes(found)

    raw[28:32] = (10).to_bytes(4, "big")
    pages = [interior(4 + number) for number in range(7)]
    file.write_bytes(bytes(raw[:100]) + interior(3, head=100) + bytes(raw[512:1024]) + b"".join(pages) + leaf)
    with pytest.raises(SourceError, match="more rows or longer values"):
        read("sqlite", file)


def test_a_value_whose_pages_are_a_circle_ends(folder):
    """The chain of a value's pages may lead back to itself, and its length say a gigabyte."""
    file = small_pages(folder, "CREATE TABLE t (k, v)")
    size = bytes([0x84, 0x80, 0x80, 0x80, 0x00])  # 1 GiB as a varint
    header = bytes([8, 15]) + bytes([0x88, 0x80, 0x80, 0x80, 0x00]) + b"\0"
    cell = size + b"\1" + (header + b"k" + b"v" * 500)[:39] + (3).to_bytes(4, "big")
    with_more_pages(file, page(13, [cell]), (3).to_bytes(4, "big") + b"v" * 508)
    with pytest.raises(SourceError):
        read("sqlite", file)


def test_a_length_in_the_schema_that_cannot_be(folder):
    small_pages(folder, "CREATE TABLE t (k, v)")
    raw = bytearray((folder / "db").read_bytes())
    at = int.from_bytes(raw[108:110], "big")
    for length in (b"\x88\x80\x80\x80\x7f", b"\xff\xff\xff\xff\x7f", b"\x81\x80\x80\x80\x80\x80\x80\x80\x7f"):
        raw[at : at + len(length)] = length
        (folder / "db").write_bytes(raw)
        with pytest.raises(SourceError):
            read("sqlite", folder / "db")


def test_more_than_a_column_stores(folder):
    """A default that was added later is in no row; small ones are read, one that is no match for the file is not."""
    rows = [f"INSERT INTO t VALUES ({number})" for number in range(2000)]
    file = make(folder / "db", "CREATE TABLE t (k)", *rows, "ALTER TABLE t ADD COLUMN v DEFAULT 'unknown'")
    assert len(read("sqlite", file)) == 2000
    file = make(folder / "big", "CREATE TABLE t (k)", *rows, f"ALTER TABLE t ADD COLUMN v DEFAULT '{'x' * 3000}'")
    with pytest.raises(SourceError, match="CREATE TABLE"):
        read("sqlite", file)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE copy AS SELECT * FROM t")
        connection.commit()
    assert len(read("sqlite", file, table="copy")) == 2000


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i AS key, i AS value FROM n"
SQLITE = {
    "no such table": (["CREATE TABLE t (k, v)"], {"table": "x"}, "has no table 'x', there are t"),
    "no table at all": (["PRAGMA user_version = 1"], {}, "say which table with --table, there are none"),
    "one column": (["CREATE TABLE t (k)"], {}, "fewer than two columns"),
    "no such column": (["CREATE TABLE t (k, v)"], {"columns": ("k", "w")}, "has no column 'w', there are k, v"),
    "a column that is computed": (["CREATE TABLE t (k, v AS (k || '!'), w)"], {}, "column 'v' of 't' is computed"),
    "a view": ([f"CREATE VIEW t AS {ENDLESS}"], {"table": "t"}, "'t' is a view"),
    "a virtual table": (["CREATE VIRTUAL TABLE t USING fts5(k, v)"], {"table": "t"}, "virtual table"),
    "a virtual table in disguise": (
        [
            "CREATE TABLE t (k, v)",
            "CREATE /* */ VIRTUAL TABLE f USING fts5(k, v)",
            "PRAGMA writable_schema = ON",
            "UPDATE sqlite_master SET sql = 'CREATE /**/ VIRTUAL TABLE f USING fts5(k, v)' WHERE name = 'f'",
        ],
        {"table": "f"},
        "virtual table",
    ),
    "a table without SQL": (
        ["CREATE TABLE t (k, v)", "PRAGMA writable_schema = ON", "UPDATE sqlite_master SET sql = NULL"],
        {},
        "db: ",
    ),
    "a null key": (
        ["CREATE TABLE t (k, v)", "INSERT INTO t VALUES (1, 1)", "INSERT INTO t VALUES (NULL, 2)"],
        {},
        "row 2: its key is NULL",
    ),
    "a null": (["CREATE TABLE t (k, v)", "INSERT INTO t VALUES ('a', NULL)"], {}, "is NULL"),
    "a long key": (["CREATE TABLE t (k, v)", "INSERT INTO t VALUES (zeroblob(65536), 1)"], {}, "a key of 65536 bytes"),
}


@pytest.mark.parametrize(("statements", "more", "complaint"), SQLITE.values(), ids=SQLITE)
def test_an_sqlite_database_that_does_not_fit(folder, statements, more, complaint):
    file = make(folder / "db", *statements)
    with pytest.raises(SourceError, match=complaint):
        read("sqlite", file, **more)


@pytest.mark.parametrize("kind", ["sqlite", "sqlitedict", "dbm", "diskcache"])
def test_a_damaged_sqlite_database(folder, kind):
    file = make(
        folder / "cache.db",
        *(f"CREATE TABLE {name} (key, value, expire_time, mode, filename)" for name in ("Dict", "unnamed", "Cache")),
        *(
            (f"INSERT INTO {name} VALUES (?, ?, NULL, 1, NULL)", (b"k%d" % number, b"v" * 500))
            for name in ("Dict", "unnamed", "Cache")
            for number in range(100)
        ),
    )
    more = {"table": "Dict"} if kind == "sqlite" else {}
    target = folder if kind == "diskcache" else file
    assert len(read(kind, target, **more)) == 100
    raw = bytearray(file.read_bytes())
    raw[5000:] = bytes(byte ^ 0x55 for byte in raw[5000:])
    file.write_bytes(raw)
    with pytest.raises(SourceError, match=r"malformed|corrupt"):
        read(kind, target, **more)
    file.write_bytes(b"SQLite format 3\0" + bytes(84))
    with pytest.raises(SourceError):
        read(kind, target, **more)
    file.write_bytes(b"text")
    with pytest.raises(SourceError, match="no kind of database" if kind == "dbm" else "not an SQLite database"):
        read(kind, target, **more)
    file.unlink()
    with pytest.raises(SourceError, match=r"not there|without diskcache"):
        read(kind, target, **more)


@pytest.mark.parametrize(("kind", "more"), [("dbm", {"table": "t"}), ("sqlitedict", {"columns": ("k", "v")})])
def test_what_a_source_has_not_cannot_be_chosen(folder, kind, more):
    with pytest.raises(SourceError, match="to choose"):
        read(kind, folder, **more)


# --- sqlitedict --------------------------------------------------------------------------------


def test_sqlitedict_stays_pickled(folder):
    file = make(
        folder / "dict.sqlite",
        'CREATE TABLE "unnamed" (key TEXT PRIMARY KEY, value BLOB)',
        'CREATE TABLE "other" (key TEXT PRIMARY KEY, value BLOB)',
        ('INSERT INTO "unnamed" VALUES (?, ?)', ("ä", pickle.dumps(Bomb()))),
        ('INSERT INTO "other" VALUES (?, ?)', ("b", b"raw")),
    )
    assert read("sqlitedict", file) == {"ä".encode(): (pickle.dumps(Bomb()), None)}
    assert read("sqlitedict", file, table="other") == {b"b": (b"raw", None)}


def test_sqlitedict_itself(folder):
    sqlitedict = pytest.importorskip("sqlitedict", reason="sqlitedict is not installed")
    with sqlitedict.SqliteDict(str(folder / "dict.sqlite"), autocommit=True) as source:
        source["a"] = [1, 2]
    assert pickle.loads(read("sqlitedict", folder / "dict.sqlite")[b"a"][0]) == [1, 2]


# --- diskcache ---------------------------------------------------------------------------------

CACHE = (
    "CREATE TABLE Cache (rowid INTEGER PRIMARY KEY, key BLOB, raw INTEGER, store_time REAL, expire_time REAL,"
    " access_time REAL, access_count INTEGER DEFAULT 0, tag BLOB, size INTEGER DEFAULT 0, mode INTEGER DEFAULT 0,"
    " filename TEXT, value BLOB)"
)


def cache(folder, *rows):
    insert = "INSERT INTO Cache (key, expire_time, mode, filename, value) VALUES (?, ?, ?, ?, ?)"
    make(folder / "cache.db", CACHE, *((insert, row) for row in rows))


def test_diskcache_with_values_in_the_database_and_in_files(folder):
    (folder / "ab" / "cd").mkdir(parents=True)
    (folder / "ab/cd/bytes.val").write_bytes(b"\x00\xff" * 1000)
    (folder / "ab/cd/text.val").write_text("größe")
    (folder / "ab/cd/bomb.val").write_bytes(pickle.dumps(Bomb()))
    cache(
        folder,
        ("raw", None, 1, None, b"value"),
        (5, 2e9 + 0.125, 1, None, 17),
        (b"bytes", None, 2, "ab/cd/bytes.val", None),
        ("text", None, 3, "ab/cd/text.val", None),
        ("bomb", None, 4, "ab/cd/bomb.val", None),
        (pickle.dumps(("a", 1)), None, 4, None, pickle.dumps(None)),
        ("for ever", math.inf, 1, None, b""),
        ("never", -5.0, 1, None, b""),
    )
    assert read("diskcache", folder) == {
        b"raw": (b"value", None),
        b"5": (b"17", 2e9 + 0.125),
        b"bytes": (b"\x00\xff" * 1000, None),
        b"text": ("größe".encode(), None),
        b"bomb": (pickle.dumps(Bomb()), None),
        pickle.dumps(("a", 1)): (pickle.dumps(None), None),
        b"for ever": (b"", None),
        b"never": (b"", -5.0),
    }


def test_a_fanout_cache(folder):
    for name, key in (("000", "a"), ("001", "b")):
        (folder / name).mkdir()
        cache(folder / name, (key, None, 1, None, b"v"))
    (folder / "other").mkdir()
    assert read("diskcache", folder) == {b"a": (b"v", None), b"b": (b"v", None)}


def test_a_cache_within_a_fanout_cache_is_named(folder):
    """FanoutCache.cache(name), .deque and .index are directories beside the shards, and were left out in silence."""
    for name in ("000", "cache/inner", "deque/jobs"):
        (folder / name).mkdir(parents=True)
        cache(folder / name, (name, None, 1, None, b"v"))
    told: list[str] = []
    assert read("diskcache", folder, left_out=told.append) == {b"000": (b"v", None)}
    assert sorted(told) == [
        f"{folder}/{name} is a separate cache and was left out; import it, too"
        for name in ("cache/inner", "deque/jobs")
    ]
    assert read("diskcache", folder / "cache/inner") == {b"cache/inner": (b"v", None)}


def test_what_is_called_as_the_caches_of_a_fanout_cache_and_is_a_file(folder):
    (folder / "000").mkdir()
    (folder / "deque").touch()
    with pytest.raises(SourceError, match="deque: Not a directory"):
        read("diskcache", folder)


def test_a_file_is_the_value_of_one_row(folder):
    """Rows that all name one file of a gigabyte would become terabytes."""
    (folder / "ab").mkdir()
    (folder / "ab/x.val").write_bytes(b"v" * 1000)
    os.link(folder / "ab/x.val", folder / "ab/y.val")
    cache(folder, ("k", None, 2, "ab/x.val", None), ("l", None, 2, "ab/y.val", None))
    with pytest.raises(SourceError, match="is the value of two rows"):
        read("diskcache", folder)


OUTSIDE = [
    "../secret",
    "ab/../../secret",
    "/etc/hostname",
    "ab//x",
    "ab/./x",
    "",
    "..",
    "link/secret",
    "ab/link",
    "..\\secret",
    "c:\\x",
    "ab/fifo",
    "ab",
    "ab/nothing",
    "a\0b",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_file_outside_of_the_cache_is_not_read(folder, name):
    inside = folder / "cache"
    (inside / "ab").mkdir(parents=True)
    (folder / "secret").write_text("secret")
    (inside / "link").symlink_to(folder)
    (inside / "ab" / "link").symlink_to(folder / "secret")
    os.mkfifo(inside / "ab" / "fifo")
    cache(inside, ("k", None, 2, name, None))
    with pytest.raises(SourceError):
        read("diskcache", inside)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (("k", None, 0, None, b"v"), "mode 0"),
        (("k", None, b"1", None, b"v"), "mode b'1'"),
        (("k", "soon", 1, None, b"v"), "expiry that is no number"),
        ((None, None, 1, None, b"v"), "NULL"),
        (("k", None, 1, None, None), "NULL"),
        (("k", None, 4, None, None), "NULL"),
    ],
)
def test_a_hostile_diskcache(folder, row, complaint):
    cache(folder, row)
    with pytest.raises(SourceError, match=complaint):
        read("diskcache", folder)


def test_a_value_that_is_too_long_is_not_read(folder):
    (folder / "ab").mkdir()
    with open(folder / "ab/huge.val", "wb") as file:
        file.truncate((1 << 30) + 1)
    cache(folder, ("k", None, 2, "ab/huge.val", None))
    with pytest.raises(SourceError, match="too many for a value"):
        read("diskcache", folder)


@pytest.mark.parametrize("kind", ["Cache", "FanoutCache", "Index"])
def test_diskcache_itself(folder, kind):
    diskcache = pytest.importorskip("diskcache", reason="diskcache is not installed")
    content = {"text": "t" * 100_000, "raw": b"\xff" * 100_000, "number": 5, "list": [1], ("tuple",): b"small"}
    source = getattr(diskcache, kind)(str(folder))
    for key, value in content.items():
        source[key] = value
    if kind != "Index":
        source.set("soon", "v", expire=1000)
    (source.cache if kind == "Index" else source).close()
    found = read("diskcache", folder)
    soon = found.pop(b"soon", None)
    assert (soon is None) == (kind == "Index")
    assert soon is None or (soon[0] == b"v" and 1.7e9 < soon[1] < 1e10)
    assert {expires for _, expires in found.values()} == {None}
    pickled = next(key for key in found if key not in (b"text", b"raw", b"number", b"list"))
    assert pickle.loads(pickled) == ("tuple",)
    assert found.pop(pickled)[0] == b"small"
    assert pickle.loads(found.pop(b"list")[0]) == [1]
    assert {key: value for key, (value, _) in found.items()} == {
        b"text": b"t" * 100_000,
        b"raw": b"\xff" * 100_000,
        b"number": b"5",
    }
