"""One key over HTTP: both surfaces, entity tags, conditions, ranges, expiry, keys that are bytes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytekv.http.conditions import Conditions, etag_of, part_of, seq_of
from bytekv.http.problem import Problem
from bytekv.http.routes import route_of


def quoted(key: bytes) -> str:
    """Percent-encode every byte of a key."""
    return "".join(f"%{byte:02X}" for byte in key)


# --- the simple surface ------------------------------------------------------------------------


def test_the_simple_surface_stores_shows_and_deletes_texts(door, open_store):
    db = open_store()
    http = door(db)
    assert http("GET", "/greeting").code == "no-such-key"
    stored = http("PUT", "/greeting", b"Hello, World!", headers={"content-type": "text/plain"})
    assert (stored.status, stored.body) == (200, b"OK\n")
    assert db["greeting"] == b"Hello, World!"
    shown = http("GET", "/greeting")
    assert (shown.status, shown.body) == (200, b"Hello, World!")
    assert shown.headers["content-type"] == "text/plain; charset=utf-8"
    assert http("DELETE", "/greeting").status == 202
    assert http("GET", "/greeting").status == 404
    assert http("DELETE", "/greeting").status == 202, "gone is gone, however often it is said"
    assert db.last_seq == 2


def test_a_value_is_never_run_by_a_browser(door, open_store):
    db = open_store()
    db.update({"text": "<script>alert(1)</script>", "bytes": b"\xff\xfe"})
    http = door(db)
    for key, media_type in (("text", "text/plain; charset=utf-8"), ("bytes", "application/octet-stream")):
        answer = http("GET", f"/{key}")
        assert answer.headers["content-type"] == media_type
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"


def test_both_surfaces_honour_the_same_conditions_and_ttl(door, open_store):
    db = open_store()
    http = door(db)
    assert http("PUT", "/a?ttl=100", b"1").headers["etag"] == '"1"'
    assert 99 < db.ttl("a") <= 100
    assert http("PUT", "/a", b"2", headers={"if-none-match": "*"}).status == 412
    assert http("PUT", "/a", b"2", headers={"if-match": '"9"'}).status == 412
    assert http("DELETE", "/a", headers={"if-match": '"9"'}).status == 412
    assert db["a"] == b"1"
    assert http("PUT", "/a", b"2", headers={"if-match": '"1"'}).status == 200
    assert http("GET", "/a", headers={"if-none-match": '"2"'}).status == 304
    assert http("GET", "/a", headers={"range": "bytes=0-0"}).status == 206


# --- values ------------------------------------------------------------------------------------


def test_put_tells_new_from_old_and_get_tells_the_entity_tag(door, open_store):
    db = open_store()
    http = door(db)
    created = http("PUT", "/v1/kv/k", b"\x00\xff")
    assert (created.status, created.headers["etag"], created.body) == (201, '"1"', b"")
    replaced = http("PUT", "/v1/kv/k", b"")
    assert (replaced.status, replaced.headers["etag"]) == (204, '"2"')
    assert "content-length" not in replaced.headers
    found = http("GET", "/v1/kv/k")
    assert (found.status, found.body, found.headers["etag"]) == (200, b"", '"2"')
    assert found.headers["content-type"] == "application/octet-stream"
    assert found.headers["cache-control"] == "no-cache"
    assert "bytekv-ttl" not in found.headers
    assert http("DELETE", "/v1/kv/k").status == 204
    missing = http("DELETE", "/v1/kv/k")
    assert (missing.status, missing.code, missing.json["key_b64"]) == (404, "no-such-key", "aw==")


def test_head_is_get_without_the_body(door, open_store):
    db = open_store()
    db["k"] = "value"
    http = door(db)
    whole, head = http("GET", "/v1/kv/k"), http("HEAD", "/v1/kv/k")
    assert (head.status, head.headers, head.body) == (200, whole.headers, b"")
    assert head.headers["content-length"] == "5"
    assert http("HEAD", "/v1/kv/k", headers={"range": "bytes=0-1"}).status == 200, "Range is for GET"
    missing = http("HEAD", "/v1/kv/none")
    assert (missing.status, missing.body) == (404, b"")
    for path in ("/-/healthy", "/v1/stats", "/v1/kv", "/metrics", "/-/console", "/k"):
        assert (http("HEAD", path).status, http("HEAD", path).body) == (200, b"")
    assert http("HEAD", "/v1/kv", headers={"accept": "application/x-ndjson"}).status == 200
    assert db.stats().open_views == 0


def test_expiry(door, open_store):
    db = open_store()
    http = door(db)
    http("PUT", "/v1/kv/k?ttl=0.5", b"x")
    assert 0 < float(http("GET", "/v1/kv/k").headers["bytekv-ttl"]) <= 0.5
    http("PUT", "/v1/kv/k?ttl=3600", b"x")
    assert 3599 < db.ttl("k") <= 3600
    http("PUT", "/v1/kv/k", b"x")
    assert db.ttl("k") is None


def test_a_ttl_is_a_plain_decimal_number(door, open_store):
    http = door(db := open_store())
    for ttl in ["0", "-1", "+5", "1_0", "1e3", "nan", "inf", "", "0.0", "1.", ".5.", "9" * 30, "%20 1"]:
        assert http("PUT", f"/v1/kv/k?ttl={ttl}", b"x").code == "malformed", ttl
        assert db.last_seq == 0


def test_what_is_not_understood_in_a_query_changes_nothing(door, open_store):
    http = door(db := open_store())
    for query in ["tll=5", "ttl=5&ttl=6", "ttl=5&x=1", "ttl=%zz", "%74%74%6c=0"]:
        assert http("PUT", f"/v1/kv/k?{query}", b"x").code == "malformed", query
        assert http("PUT", f"/k?{query}", b"x").code == "malformed", query
        assert db.last_seq == 0


def test_a_part_of_a_value_cannot_be_stored(door, open_store):
    http = door(db := open_store())
    assert http("PUT", "/v1/kv/k", b"x", headers={"content-range": "bytes 0-0/2"}).code == "malformed"
    assert http("PUT", "/v1/kv/k", b"x", headers={"content-encoding": "gzip"}).code == "wrong-media-type"
    assert db.last_seq == 0
    assert http("PUT", "/v1/kv/k", b"x", headers={"content-encoding": "identity"}).status == 201


# --- conditions --------------------------------------------------------------------------------


def test_compare_and_set(door, open_store):
    db = open_store()
    http = door(db)
    assert http("PUT", "/v1/kv/k", b"1", headers={"if-match": '"1"'}).code == "precondition-failed"
    assert http("PUT", "/v1/kv/k", b"1", headers={"if-match": "*"}).code == "precondition-failed"
    assert http("PUT", "/v1/kv/k", b"1", headers={"if-none-match": "*"}).status == 201
    failed = http("PUT", "/v1/kv/k", b"2", headers={"if-none-match": "*"})
    assert (failed.code, failed.json["etag"]) == ("precondition-failed", '"1"')
    assert http("PUT", "/v1/kv/k", b"2", headers={"if-match": '"1"'}).headers["etag"] == '"2"'
    assert http("PUT", "/v1/kv/k", b"3", headers={"if-match": '"1", "2"'}).status == 204
    assert http("PUT", "/v1/kv/k", b"4", headers={"if-match": "*"}).status == 204
    assert http("PUT", "/v1/kv/k", b"5", headers={"if-match": 'W/"4"'}).status == 412, "weak tags match nothing"
    assert http("PUT", "/v1/kv/k", b"5", headers={"if-none-match": '"4"'}).status == 412
    assert http("PUT", "/v1/kv/k", b"5", headers={"if-none-match": '"3"'}).status == 204
    assert http("DELETE", "/v1/kv/k", headers={"if-match": '"4"'}).status == 412
    assert http("DELETE", "/v1/kv/k", headers={"if-match": '"5"'}).status == 204
    assert http("DELETE", "/v1/kv/k", headers={"if-match": '"5"'}).status == 404
    assert (dict(db), db.last_seq) == ({}, 6)


def test_conditional_get(door, open_store):
    db = open_store()
    db["k"] = "v"
    http = door(db)
    for tag in ('"1"', 'W/"1"', '"7", "1"', "*", ' "1" ', '"a,b",,"1"'):
        answer = http("GET", "/v1/kv/k", headers={"if-none-match": tag})
        assert (answer.status, answer.headers["etag"], answer.body) == (304, '"1"', b""), tag
        assert "content-length" not in answer.headers
    assert http("GET", "/v1/kv/k", headers={"if-none-match": '"2"'}).body == b"v"
    assert http("GET", "/v1/kv/k", headers={"if-match": '"2"'}).status == 412
    assert http("GET", "/v1/kv/k", headers={"if-match": '"1"'}).status == 200
    assert http("GET", "/v1/kv/none", headers={"if-match": "*"}).status == 404


def test_a_condition_that_is_not_understood_is_an_error_and_no_permission(door, open_store):
    http = door(db := open_store())
    db["k"] = "v"
    for text in ["7", '"7', "'7'", '"7" "8"', "W/7", '"7";', "**"]:
        for name in ["if-match", "if-none-match"]:
            assert http("PUT", "/v1/kv/k", b"x", headers={name: text}).code == "malformed", text
            assert db["k"] == b"v"


def test_repeated_condition_headers_are_one_list():
    assert Conditions('"1", "2"', None).hold(2)
    assert not Conditions('"1", "2"', None).hold(3)
    assert not Conditions("", None).hold(3), "an empty list matches nothing"
    assert Conditions(None, "").hold(3)
    assert Conditions(None, None).hold(0)


@given(st.integers(1, 2**63))
def test_entity_tags_are_seqs(seq):
    assert seq_of(etag_of(seq)) == seq
    assert Conditions(etag_of(seq), None).hold(seq)
    assert not Conditions(etag_of(seq), None).hold(seq + 1)
    assert not Conditions(None, etag_of(seq)).hold(seq)


# --- ranges ------------------------------------------------------------------------------------

VALUE = bytes(range(10))


def test_ranges(door, open_store):
    http = door(db := open_store())
    db["k"] = VALUE
    for text, part in [
        ("bytes=0-0", VALUE[:1]),
        ("bytes=0-", VALUE),
        ("bytes=2-4", VALUE[2:5]),
        ("bytes=9-", VALUE[9:]),
        ("bytes=5-100", VALUE[5:]),
        ("bytes=-3", VALUE[-3:]),
        ("bytes=-100", VALUE),
        ("Bytes = 1-2", VALUE[1:3]),
    ]:
        answer = http("GET", "/v1/kv/k", headers={"range": text})
        assert (answer.status, answer.body) == (206, part)
        first = VALUE.index(part)
        assert answer.headers["content-range"] == f"bytes {first}-{first + len(part) - 1}/10"
        assert (answer.headers["etag"], answer.headers["accept-ranges"]) == ('"1"', "bytes")


def test_ranges_behind_the_end(door, open_store):
    http = door(db := open_store())
    db["k"] = VALUE
    for text in ["bytes=10-", "bytes=10-11", "bytes=-0", "bytes=99999999999-"]:
        answer = http("GET", "/v1/kv/k", headers={"range": text})
        assert (answer.code, answer.headers["content-range"]) == ("bad-range", "bytes */10")


def test_ranges_that_are_ignored(door, open_store):
    http = door(db := open_store())
    db["k"] = VALUE
    for text in ["bytes=4-2", "bytes=0-1,3-4", "items=0-1", "bytes=", "bytes=-", "bytes=a-b", "0-1", "bytes=+1-2"]:
        assert http("GET", "/v1/kv/k", headers={"range": text}).body == VALUE, text


def test_if_range_and_empty_values():
    assert part_of("bytes=0-1", '"7"', 7, 10) == (0, 2)
    assert part_of("bytes=0-1", '"8"', 7, 10) is None
    assert part_of("bytes=0-1", 'W/"7"', 7, 10) is None
    assert part_of("bytes=-5", None, 7, 0) is None
    with pytest.raises(Problem):
        part_of("bytes=0-", None, 7, 0)


@given(st.integers(0, 40), st.one_of(st.none(), st.integers(0, 40)), st.integers(0, 30))
def test_a_part_lies_within_the_value(first, last, size):
    text = f"bytes={first}-{'' if last is None else last}"
    if first >= size and (last is None or last >= first):
        with pytest.raises(Problem):
            part_of(text, None, 1, size)
    elif last is not None and last < first:
        assert part_of(text, None, 1, size) is None
    else:
        assert part_of(text, None, 1, size) == (first, size if last is None else min(last + 1, size))


# --- keys --------------------------------------------------------------------------------------

KEYS = [
    b"\x00",
    b"\xff\xfe",
    b"a/b",
    b"a%2Fb",
    b"+ ?#&=",
    b"..",
    b"/",
    b"//a//",
    b"\xc3\xa4",
    b"%",
    b"{key}",
    b"v1/kv",
    b"metrics",
]


def test_any_bytes_are_a_key(door, open_store):
    db = open_store()
    http = door(db)
    for key in KEYS:
        assert http("PUT", f"/v1/kv/{quoted(key)}", b"v").status == 201, key
        assert key in db
        assert http("GET", f"/v1/kv/{quoted(key)}").body == b"v", key


def test_a_key_is_decoded_exactly_once(door, open_store):
    db = open_store()
    http = door(db)
    for path in ("a%2520b", "a+b", "a/b%2Fc", "~user", "\xe4"):
        http("PUT", f"/v1/kv/{path}", b"")
        http("PUT", f"/{path}", b"")
    assert list(db) == sorted([b"a%20b", b"a+b", b"a/b/c", b"~user", b"\xe4"])


def test_the_empty_key(door, open_store):
    db = open_store()
    http = door(db)
    assert http("PUT", "/v1/kv/", b"v").status == 201
    assert dict(db) == {b"": b"v"}
    assert http("GET", "/v1/kv").json["items"] == [{"key": "", "key_b64": ""}]


def test_a_percent_sign_needs_two_digits(door, open_store):
    http = door(db := open_store())
    for url in ["/v1/kv/%", "/v1/kv/%4", "/v1/kv/%zz", "/a%", "/%2"]:
        assert http("PUT", url, b"v").code == "malformed", url
        assert len(db) == 0


def test_a_key_that_is_too_long(door, open_store):
    http = door(db := open_store())
    assert http("PUT", "/v1/kv/" + "a" * 65_535, b"v").status == 201
    assert http("PUT", "/v1/kv/" + "a" * 65_536, b"v").code == "malformed"
    assert http("PUT", "/" + "%61" * 65_536, b"v").code == "malformed"
    assert len(db) == 1


def test_what_looks_like_a_path_of_the_server_is_no_key_of_the_simple_surface(door, open_store):
    """Two programs that decode at different times must not take one URL for two things."""
    http = door(db := open_store())
    for url in [
        "/v1",
        "/v1/",
        "/v1/nothing",
        "/%76%31/stats",
        "/v1%2Fstats",
        "/v1%2Fkv%2Fa",
        "/v1/k%76/a",
        "/-/",
        "/-",
        "/%2D/ready",
        "/%6Detrics",
        "/v1/stats/",
        "/v1/admin",
    ]:
        for method in ("GET", "PUT", "DELETE"):
            assert http(method, url, b"").code == "no-such-path", method
        assert db.last_seq == 0


@settings(max_examples=300)
@given(st.binary(min_size=1, max_size=30))
def test_every_key_finds_its_way(key):
    assert route_of("GET", b"/v1/kv/" + quoted(key).encode()) == (route_of("GET", b"/v1/kv/x")[0], key)


@pytest.mark.parametrize(
    ("root_path", "url"),
    [
        ("/mounted", "/mounted/a%2Fb"),
        ("/mounted/", "/mounted/a%2Fb"),
        ("/my db/1", "/my%20db/1/a%2Fb"),
        ("/mounted", "/a%2Fb"),
        ("", "/a%2Fb"),
    ],
)
def test_below_a_prefix(door, open_store, root_path, url):
    db = open_store()
    http = door(db, root_path=root_path)
    http("PUT", url, b"v")
    assert dict(db) == {b"a/b": b"v"}
    root = url.removesuffix("a%2Fb")
    assert http("GET", root).headers["location"] == (root_path.rstrip("/").replace(" ", "%20")) + "/-/console"
    assert http("GET", f"{root}v1/kv/a%2Fb").body == b"v"


def test_a_prefix_is_whole_segments(door, open_store):
    http = door(db := open_store(), root_path="/ab")
    http("PUT", "/abc/d", b"v")
    assert dict(db) == {b"abc/d": b"v"}


def test_a_server_that_gives_no_raw_path_is_refused_rather_than_guessed_from(door):
    answer = door()("GET", "/a", raw_path=None)
    assert (answer.code, "raw_path" in answer.json["detail"]) == ("internal", True)


def test_targets_that_are_no_paths(door):
    http = door()
    for target in ["*", "http://localhost/a", "a"]:
        assert http("GET", "/", raw_path=target.encode()).code == "malformed", target


def test_unknown_methods(door):
    http = door()
    answer = http("POST", "/a")
    assert (answer.code, answer.headers["allow"]) == ("wrong-method", "DELETE, GET, HEAD, PUT")
    assert http("DELETE", "/v1/stats").headers["allow"] == "GET, HEAD"
    assert http("GET", "/v1/batch").headers["allow"] == "POST"
    for method in ("OPTIONS", "TRACE", "PATCH", "get", "CONNECT"):
        assert http(method, "/v1/kv/a").code == "wrong-method", method
