"""`bytekv.dbm` where programs expect a module of `dbm`: by itself, under shelve, as a crawler's cache."""

from __future__ import annotations

import dbm as standard
import importlib
import os
import pickle
import shelve
import stat
import time

import pytest

import bytekv
from bytekv import dbm


def test_str_and_bytes_in_bytes_out(path):
    with dbm.open(path, "c") as db:
        db["text"] = "größe"
        db[b"bytes"] = bytearray(b"\xff")
        assert db[b"text"] == "größe".encode()
        assert (db["bytes"], db.get("bytes"), db.get("nothing"), db.get("nothing", 5)) == (b"\xff", b"\xff", None, 5)
        assert (db.keys(), list(db), len(db)) == ([b"bytes", b"text"], [b"bytes", b"text"], 2)
        assert "text" in db
        assert "nothing" not in db
        assert db.setdefault("text", "other") == "größe".encode()
        assert db.setdefault("new", "n") == b"n"
        assert db.setdefault("empty") == b""
        del db["empty"]
        assert db.pop("new") == b"n"
        assert db.pop("new", None) is None
        assert dict(db.items()) == {b"bytes": b"\xff", b"text": "größe".encode()}
        db.update({"a": "1"}, b="2")
        for missing in (lambda: db["nothing"], lambda: db.__delitem__("nothing"), lambda: db.pop("nothing")):
            with pytest.raises(KeyError):
                missing()
        for wrong in (lambda: db[1], lambda: db.__setitem__("k", 1), lambda: 1 in db):
            with pytest.raises(TypeError):
                wrong()
    with dbm.open(str(path)) as db:  # for reading, as dbm.open by default
        assert db.keys() == [b"a", b"b", b"bytes", b"text"]


def test_a_list_of_keys_may_be_deleted_while_going_through_it(path):
    with dbm.open(path, "c") as db:
        db.update({str(number): "x" for number in range(10)})
        for key in db.keys():  # noqa: SIM118
            del db[key]
        assert len(db) == 0
        db["a"] = "1"
        db.clear()
        assert not db


FLAGS = {
    "r": (False, False, True),
    "w": (False, True, True),
    "c": (True, True, True),
    "n": (True, True, False),
}


@pytest.mark.parametrize(("flag", "creates", "writes", "keeps"), [(flag, *does) for flag, does in FLAGS.items()])
def test_flags_do_what_dbm_says(path, flag, creates, writes, keeps):
    if creates:
        dbm.open(path, flag).close()
    else:
        with pytest.raises(dbm.error):
            dbm.open(path, flag)
        assert not path.exists()
    with bytekv.open(path) as store:
        store["old"] = "1"
    with dbm.open(path, flag, 0o644) as db:
        assert ("old" in db) is keeps
        if writes:
            db["new"] = "2"
        else:
            with pytest.raises(dbm.error, match="flag 'r'"):
                db["new"] = "2"
            with pytest.raises(dbm.error):
                del db["old"]
    assert stat.S_IMODE(os.stat(next(path.glob("*.seg"))).st_mode) == 0o600
    with pytest.raises(ValueError, match="flag"):
        dbm.open(path, "x")


def test_what_goes_wrong_is_caught_by_except_dbm_error(path):
    with pytest.raises(standard.error) as missing:
        dbm.open(path)
    assert isinstance(missing.value, OSError)
    assert (missing.value.errno, missing.value.filename) == (2, str(path))
    with dbm.open(path, "c"), pytest.raises(standard.error, match="locked by this process"):
        dbm.open(path, "c")
    db = dbm.open(path, "c")
    db.close()
    db.close()
    calls = [
        lambda: db["a"],
        lambda: db.__setitem__("a", "1"),
        lambda: "a" in db,
        lambda: len(db),
        db.keys,
        lambda: db.get("a"),
        lambda: db.setdefault("a", "1"),
        db.sync,
        db.firstkey,
        db.first,
    ]
    for call in calls:
        with pytest.raises(dbm.error, match="closed") as closed:
            call()
        assert isinstance(closed.value.__cause__, bytekv.StoreClosedError)


def test_sync_makes_durable_and_reorganize_gives_back(path):
    with dbm.open(path, "c", sync="os") as db:
        db["a"] = "x" * 10_000
        store = db._store
        assert store.durable_seq < store.last_seq
        db.sync()
        assert store.durable_seq == store.last_seq
        del db["a"]
        db.reorganize()
        assert store.stats().total_bytes < 1000


def test_the_loop_of_dbm_gnu(path):
    with dbm.open(path, "c") as db:
        assert db.firstkey() is None
        db.update({"a": "1", "b": "2", "c": "3"})
        found, key = [], db.firstkey()
        while key is not None:
            found.append(key)
            key = db.nextkey(key)
        assert found == [b"a", b"b", b"c"]


# --- shelve ------------------------------------------------------------------------------------


@pytest.mark.parametrize("writeback", [False, True])
def test_a_shelf(path, writeback):
    with shelve.Shelf(dbm.open(path, "c"), writeback=writeback) as shelf:
        shelf["list"] = [1, 2]
        shelf["list"].append(3)
        shelf["dict"] = {"ä": None}
        del shelf["dict"]
        shelf.sync()
        assert shelf.get("nothing", 5) == 5
        assert list(shelf) == ["list"]
    with shelve.Shelf(dbm.open(path, "r")) as shelf:
        assert shelf["list"] == ([1, 2, 3] if writeback else [1, 2])
        assert ("list" in shelf, "dict" in shelf, len(shelf)) == (True, False, 1)


def test_a_shelf_with_a_cursor(path):
    with shelve.BsdDbShelf(dbm.open(path, "c")) as shelf:
        for number, name in enumerate("bdf"):
            shelf[name] = number
        assert shelf.first() == ("b", 0)
        assert shelf.next() == ("d", 1)
        assert shelf.next() == ("f", 2)
        with pytest.raises(KeyError):
            shelf.next()
        assert shelf.previous() == ("d", 1)
        assert shelf.set_location("c") == ("d", 1)
        assert shelf.set_location("b") == ("b", 0)
        with pytest.raises(KeyError):
            shelf.previous()
        with pytest.raises(KeyError):
            shelf.set_location("g")
        assert shelf.last() == ("f", 2)
        shelf.dict.clear()
        for move in (shelf.first, shelf.last):
            with pytest.raises(KeyError):
                move()


# --- Scrapy ------------------------------------------------------------------------------------


def test_the_calls_of_scrapys_dbm_cache(path):
    """What DbmCacheStorage does with HTTPCACHE_DBM_MODULE: import by name, open(str, "c"), str keys and values."""
    module = importlib.import_module("bytekv.dbm")
    db = module.open(str(path), "c")
    response = {"status": 200, "url": "http://example.org", "headers": {}, "body": b"\x00\xff"}
    assert "0a_time" not in db
    db["0a_data"] = pickle.dumps(response, protocol=4)
    db["0a_time"] = str(now := time.time())
    assert "0a_time" in db
    assert float(db["0a_time"]) == now
    assert pickle.loads(db["0a_data"]) == response
    db.close()


def test_scrapy_itself(path):
    scrapy = pytest.importorskip("scrapy", reason="Scrapy is not installed")
    from scrapy.extensions.httpcache import DbmCacheStorage
    from scrapy.http import Request, Response
    from scrapy.settings import Settings
    from scrapy.utils.test import get_crawler

    crawler = get_crawler()
    spider = scrapy.Spider.from_crawler(crawler, name="crawls")
    path.parent.joinpath("cache").mkdir()
    settings = Settings(
        {
            "HTTPCACHE_DBM_MODULE": "bytekv.dbm",
            "HTTPCACHE_DIR": str(path.parent / "cache"),
            "HTTPCACHE_EXPIRATION_SECS": 0,
        }
    )
    request = Request("http://example.org/a")
    for _ in range(2):
        storage = DbmCacheStorage(settings)
        storage.open_spider(spider)
        found = storage.retrieve_response(spider, request)
        storage.store_response(spider, request, Response("http://example.org/a", body=b"\xff"))
        storage.close_spider(spider)
    assert found.body == b"\xff"
