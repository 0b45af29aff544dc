"""The OpenAPI document: a literal that the tests compare with the table of routes and fuzz.

It says what the code does and is not made from it, so that the two can disagree and a test can see it.
"""

from __future__ import annotations

from typing import Any, Final

from .operations import MAX_BATCH_OPS, MAX_PAGE_ITEMS, PAGE_ITEMS
from .problem import PROBLEMS

__all__ = ["DOCUMENT"]

Json = dict[str, Any]

# --- parts -------------------------------------------------------------------------------------

_ETAG: Final[Json] = {"type": "string", "pattern": '^"[1-9][0-9]{0,18}"$', "examples": ['"7"']}
_MAYBE_ETAG: Final[Json] = {**_ETAG, "type": ["string", "null"]}
_BASE64: Final[Json] = {
    "type": "string",
    "contentEncoding": "base64",
    "pattern": "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
}
_MAYBE_BASE64: Final[Json] = {**_BASE64, "type": ["string", "null"]}
_INTEGER: Final[Json] = {"type": "integer"}
_SEQ: Final[Json] = {"type": "integer", "minimum": 0}
_SECONDS: Final[Json] = {"type": "number", "exclusiveMinimum": 0, "maximum": 1_000_000_000}
_TTL_LEFT: Final[Json] = {
    "type": ["number", "null"],
    "minimum": 0,
    "description": "Seconds left; null: it does not expire.",
}


def _object(needed: Json, optional: Json | None = None, *, open_: bool = False, **more: object) -> Json:
    found: Json = {"type": "object", "properties": {**needed, **(optional or {})}, "required": [*needed], **more}
    return found if open_ else {**found, "additionalProperties": False}


def _query(name: str, schema: Json, description: str) -> Json:
    return {"name": name, "in": "query", "schema": schema, "description": description}


def _header(name: str, schema: Json, description: str) -> Json:
    return {"name": name, "in": "header", "schema": schema, "description": description}


def _content(media_type: str, schema: Json) -> Json:
    return {media_type: {"schema": schema}}


def _ref(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


def _problems(*statuses: int) -> Json:
    """Return the replies that every operation may give, and those of this one."""
    return {str(status): _ref("responses", f"Problem{status}") for status in sorted({400, 405, 500, 503, *statuses})}


def _operation(operation: str, scopes: str, summary: str, responses: Json, **more: object) -> Json:
    """Return an operation; a token with one of the ``scopes`` is needed, none if there are none."""
    statuses = (401, 403, 429) if scopes else ()
    security: Json = {"security": [{"bearer": [scope]} for scope in scopes.split()]}
    return {
        "operationId": operation,
        "summary": summary,
        **security,
        **more,
        "responses": {**responses, **{k: v for k, v in _problems(*statuses).items() if k not in responses}},
    }


_KEY: Final[Json] = {
    "name": "key",
    "in": "path",
    "required": True,
    "description": "The key, percent-encoded once: any bytes, at most 65,535. A + is a plus.",
    "schema": {"type": "string", "minLength": 1},
}
_TEXT_KEY: Final[Json] = {
    **_KEY,
    "description": _KEY["description"] + " Keys that begin with v1/ or -/, and the key metrics, are at /v1/kv only.",
}
_TTL: Final = _query(
    "ttl",
    {"type": "string", "pattern": "^(?!0+([.]0+)?$)[0-9]{1,9}([.][0-9]{1,3})?$"},
    "Seconds after which the key is gone.",
)
_TAGS: Final[Json] = {
    "type": "string",
    "pattern": '^ *([*]|((W/)?"[!#-~]*")? *(, *((W/)?"[!#-~]*")? *)*) *$',
    "examples": ["*", '"7"', '"7", "8"'],
}
_IF_MATCH: Final = _header("If-Match", _TAGS, "Only if the key has one of these entity tags; * for any.")
_IF_NONE_MATCH: Final = _header("If-None-Match", _TAGS, "Only if it has none of these; * if it is new.")
_RANGE: Final = [
    _query("prefix", {"type": "string"}, "Only keys that begin with it."),
    _query("start", {"type": "string"}, "Only this key and those after it."),
    _query("stop", {"type": "string"}, "Only keys before this one."),
]
_READ_HEADERS: Final = [
    _IF_MATCH,
    _IF_NONE_MATCH,
    _header("Range", {"type": "string"}, "One range of bytes, such as bytes=0-99."),
    _header("If-Range", {"type": "string"}, "The entity tag for which the range is meant."),
]
_ANY_BODY: Final[Json] = {
    "required": False,
    "description": "The value, byte for byte, whatever its media type.",
    "content": {"application/octet-stream": {}, "text/plain": {}, "application/x-www-form-urlencoded": {}},
}
_ETAG_HEADER: Final[Json] = {"ETag": {"schema": _ETAG, "description": "The seq of the entry, in quotes."}}
_VALUE_HEADERS: Final[Json] = {
    **_ETAG_HEADER,
    "Bytekv-TTL": {"schema": {"type": "string"}, "description": "Seconds that the key has left, if it expires."},
    "Accept-Ranges": {"schema": {"const": "bytes"}},
}
_BYTES: Final[Json] = {"application/octet-stream": {}}
_TEXT: Final[Json] = {"text/plain": {}, "application/octet-stream": {}}


def _value_responses(content: Json) -> Json:
    partial = {**_VALUE_HEADERS, "Content-Range": {"schema": {"type": "string"}}}
    return {
        "200": {"description": "The value.", "headers": _VALUE_HEADERS, "content": content},
        "206": {"description": "The requested part of it.", "headers": partial, "content": content},
        "304": {"description": "The client has this entry already.", "headers": _ETAG_HEADER},
        **_problems(404, 412, 416),
    }


_LINKS: Final[Json] = {
    name: {"operationId": f"{name}_value", "parameters": {"key": "$request.path.key"}} for name in ("get", "delete")
}
_OK: Final[Json] = {"text/plain": {"schema": {"const": "OK\n"}}}
_WRITE_PROBLEMS: Final = (408, 409, 412, 413, 415, 507)
_STATUS: Final = _content("application/json", _object({"status": {"const": "ok"}}, {"readonly": {"type": "boolean"}}))

# --- the document ------------------------------------------------------------------------------

DOCUMENT: Final[Json] = {
    "openapi": "3.1.0",
    "info": {
        "title": "bytekv",
        "version": "1.0.0",
        "summary": "A key-value store over HTTP: bytes under keys, in key order, with compare-and-set.",
        "license": {"name": "MIT", "identifier": "MIT"},
    },
    "servers": [{"url": ".."}],
    "tags": [
        {"name": "values", "description": "One key: its value as the body, its seq as the entity tag."},
        {"name": "many", "description": "Listings, batches, the change feed."},
        {"name": "store", "description": "Statistics and administration."},
        {"name": "server", "description": "Health, metrics, this document, the console."},
        {"name": "simple", "description": "The same values for curl: texts directly below the root."},
    ],
    "paths": {
        "/{key}": {
            "parameters": [_TEXT_KEY],
            "get": _operation(
                "get_text",
                "read",
                "Get a value as text",
                _value_responses(_TEXT),
                tags=["simple"],
                parameters=_READ_HEADERS,
            ),
            "put": _operation(
                "put_text",
                "write",
                "Store a value",
                {
                    "200": {"description": "Stored.", "headers": _ETAG_HEADER, "content": _OK},
                    **_problems(404, *_WRITE_PROBLEMS),
                },
                tags=["simple"],
                parameters=[_TTL, _IF_MATCH, _IF_NONE_MATCH],
                requestBody=_ANY_BODY,
            ),
            "delete": _operation(
                "delete_text",
                "write",
                "Delete a key, whether it exists or not",
                {"202": {"description": "It is gone.", "content": _OK}, **_problems(404, 409, 412, 507)},
                tags=["simple"],
                parameters=[_IF_MATCH, _IF_NONE_MATCH],
            ),
        },
        "/v1/kv/{key}": {
            "parameters": [_KEY],
            "get": _operation(
                "get_value",
                "read",
                "Get a value",
                _value_responses(_BYTES),
                tags=["values"],
                parameters=_READ_HEADERS,
            ),
            "put": _operation(
                "put_value",
                "write",
                "Store a value, on condition if asked to",
                {
                    "201": {"description": "Stored; the key is new.", "headers": _ETAG_HEADER, "links": _LINKS},
                    "204": {
                        "description": "Stored in place of another value.",
                        "headers": _ETAG_HEADER,
                        "links": _LINKS,
                    },
                    **_problems(*_WRITE_PROBLEMS),
                },
                tags=["values"],
                parameters=[_TTL, _IF_MATCH, _IF_NONE_MATCH],
                requestBody=_ANY_BODY,
            ),
            "delete": _operation(
                "delete_value",
                "write",
                "Delete a key, on condition if asked to",
                {"204": {"description": "Deleted."}, **_problems(404, 409, 412, 507)},
                tags=["values"],
                parameters=[_IF_MATCH, _IF_NONE_MATCH],
            ),
        },
        "/v1/stat/{key}": {
            "parameters": [_KEY],
            "get": _operation(
                "get_stat",
                "read",
                "Tell size, entity tag and times of a key's value, without reading it",
                {
                    "200": {
                        "description": "What is known.",
                        "content": _content("application/json", _ref("schemas", "Stat")),
                    },
                    **_problems(404),
                },
                tags=["values"],
            ),
        },
        "/v1/count": {
            "get": _operation(
                "count_keys",
                "read",
                "Count keys",
                {
                    "200": {
                        "description": "How many there are.",
                        "content": _content("application/json", _object({"count": _SEQ})),
                    },
                    **_problems(),
                },
                tags=["many"],
                parameters=_RANGE,
            )
        },
        "/v1/kv": {
            "delete": _operation(
                "delete_range",
                "write",
                "Delete the keys with a prefix, or those from start up to stop",
                {
                    "200": {
                        "description": "How many keys were deleted.",
                        "content": _content("application/json", _object({"deleted": _SEQ})),
                    },
                    **_problems(409, 507),
                },
                tags=["many"],
                parameters=_RANGE,
            ),
            "get": _operation(
                "list_keys",
                "read",
                "List keys in order, with their entries if asked to",
                {
                    "200": {
                        "description": "A page, or with Accept: application/x-ndjson all items, one a line.",
                        "headers": {
                            "Bytekv-Seq": {"schema": _SEQ, "description": "The moment; its changes come from here on."}
                        },
                        "content": {
                            **_content("application/json", _ref("schemas", "Page")),
                            "application/x-ndjson": {},
                        },
                    },
                    **_problems(),
                },
                tags=["many"],
                parameters=[
                    *_RANGE,
                    _query(
                        "limit",
                        {"type": "integer", "minimum": 1, "maximum": 10**18 - 1},
                        f"The most keys to list; a page has {PAGE_ITEMS} by default and {MAX_PAGE_ITEMS} at most.",
                    ),
                    _query("reverse", {"type": "boolean"}, "From the last key to the first."),
                    _query("values", {"type": "boolean"}, "With value_b64, etag and ttl of each key."),
                    _query(
                        "cursor",
                        {"type": "string", "pattern": "^[A-Za-z0-9_-]{8,90000}$"},
                        "The cursor of the previous page. Repeat its prefix, start, stop and reverse.",
                    ),
                ],
            ),
        },
        "/v1/batch": {
            "post": _operation(
                "run_batch",
                "read write",
                "Carry out several operations, all or none; a token needs the scopes of all of them",
                {
                    "200": {
                        "description": "Carried out.",
                        "content": _content("application/json", _ref("schemas", "BatchResult")),
                    },
                    **_problems(*_WRITE_PROBLEMS),
                },
                tags=["many"],
                requestBody={"required": True, "content": _content("application/json", _ref("schemas", "Batch"))},
            )
        },
        "/v1/changes": {
            "get": _operation(
                "get_changes",
                "read",
                "Tell what has changed since a seq, as far back as compaction has kept it",
                {
                    "200": {
                        "description": "Changes in order, one a line or one an event; the id of an event is its seq.",
                        "content": {"application/x-ndjson": {}, "text/event-stream": {}},
                    },
                    **_problems(410),
                },
                tags=["many"],
                parameters=[
                    _query(
                        "since",
                        {"type": "integer", "minimum": 0, "maximum": 10**18 - 1},
                        "Only changes after this seq.",
                    ),
                    _query("follow", {"type": "boolean"}, "Go on with what comes; events do unless told not to."),
                    _header(
                        "Last-Event-ID",
                        {"type": "string", "pattern": "^[0-9]{0,18}$"},
                        "Instead of since, when a client of events returns.",
                    ),
                ],
            )
        },
        "/v1/stats": {
            "get": _operation(
                "get_stats",
                "read",
                "Count keys and bytes",
                {
                    "200": {
                        "description": "Counts.",
                        "content": _content("application/json", _ref("schemas", "Stats")),
                    },
                    **_problems(),
                },
                tags=["store"],
            )
        },
        "/v1/admin/compact": {
            "post": _operation(
                "compact",
                "admin",
                "Give back the space of what is dead, now",
                {
                    "200": {
                        "description": "Done.",
                        "content": _content("application/json", _ref("schemas", "Compaction")),
                    },
                    **_problems(409, 507),
                },
                tags=["store"],
            )
        },
        "/v1/admin/sync": {
            "post": _operation(
                "sync",
                "admin",
                "Make everything written so far durable",
                {
                    "200": {
                        "description": "Everything up to this seq survives a power cut.",
                        "content": _content("application/json", _object({"durable_seq": _SEQ})),
                    },
                    **_problems(409, 507),
                },
                tags=["store"],
            )
        },
        "/v1/openapi.json": {
            "get": _operation(
                "get_openapi",
                "",
                "This document",
                {"200": {"description": "It.", "content": _content("application/json", {"type": "object"})}},
                tags=["server"],
            )
        },
        "/metrics": {
            "get": _operation(
                "get_metrics",
                "read",
                "Metrics for Prometheus",
                {"200": {"description": "Text format 0.0.4.", "content": {"text/plain": {}}}},
                tags=["server"],
            )
        },
        "/-/healthy": {
            "get": _operation(
                "get_health",
                "",
                "Tell that the process answers",
                {"200": {"description": "It does.", "content": _STATUS}},
                tags=["server"],
            )
        },
        "/-/ready": {
            "get": _operation(
                "get_readiness",
                "",
                "Tell whether the store is open and has not failed",
                {"200": {"description": "It is.", "content": _STATUS}},
                tags=["server"],
            )
        },
        "/-/console": {
            "get": _operation(
                "get_console",
                "",
                "A page for people",
                {"200": {"description": "It asks for a token itself.", "content": {"text/html": {}}}},
                tags=["server"],
            )
        },
        "/": {
            "get": _operation(
                "get_root",
                "",
                "Lead to the console",
                {"307": {"description": "There.", "headers": {"Location": {"schema": {"type": "string"}}}}},
                tags=["server"],
            )
        },
    },
    "components": {
        "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        "responses": {
            f"Problem{status}": {
                "description": "; ".join(title for other, title in PROBLEMS.values() if other == status) + ".",
                "content": _content("application/problem+json", _ref("schemas", "Problem")),
            }
            for status in sorted({status for status, _ in PROBLEMS.values()})
        },
        "schemas": {
            "Problem": _object(
                {
                    "type": {"const": "about:blank"},
                    "title": {"type": "string"},
                    "status": {"type": "integer"},
                    "detail": {"type": "string"},
                    "code": {"enum": [*PROBLEMS]},
                },
                open_=True,
            ),
            "Item": _object(
                {"key": {"type": ["string", "null"], "description": "null: not UTF-8."}, "key_b64": _BASE64},
                {"value_b64": _BASE64, "etag": _ETAG, "ttl": _TTL_LEFT},
            ),
            "Page": _object(
                {
                    "items": {"type": "array", "items": _ref("schemas", "Item"), "maxItems": MAX_PAGE_ITEMS},
                    "cursor": {"type": ["string", "null"], "description": "null: this was the last page."},
                }
            ),
            "Stat": _object(
                {
                    "key": {"type": ["string", "null"], "description": "null: not UTF-8."},
                    "key_b64": _BASE64,
                    "size": _SEQ,
                    "etag": _ETAG,
                    "modified": {"type": "number", "description": "Seconds since 1970."},
                    "ttl": _TTL_LEFT,
                }
            ),
            "Batch": _object(
                {
                    "ops": {
                        "type": "array",
                        "maxItems": MAX_BATCH_OPS,
                        "items": {
                            "oneOf": [
                                _object(
                                    {"op": {"const": "put"}, "key_b64": _BASE64, "value_b64": _BASE64},
                                    {"ttl": {**_SECONDS, "type": ["number", "null"]}},
                                ),
                                _object({"op": {"enum": ["delete", "get"]}, "key_b64": _BASE64}),
                            ]
                        },
                    }
                },
                {
                    "if": {
                        "type": "array",
                        "maxItems": MAX_BATCH_OPS,
                        "items": _object({"key_b64": _BASE64, "etag": _MAYBE_ETAG}),
                    }
                },
            ),
            "BatchResult": _object(
                {
                    "seq": {"type": ["integer", "null"], "description": "Of the last write; null: nothing changed."},
                    "results": {
                        "type": "array",
                        "items": _object(
                            {"op": {"enum": ["put", "delete", "get"]}, "key_b64": _BASE64},
                            {"value_b64": _MAYBE_BASE64, "etag": _MAYBE_ETAG, "ttl": _TTL_LEFT},
                        ),
                    },
                }
            ),
            "Stats": _object(
                {
                    **dict.fromkeys(("keys", "last_seq", "durable_seq", "expired_keys"), _SEQ),
                    **dict.fromkeys(("total_bytes", "live_bytes", "dead_bytes", "pinned_bytes"), _SEQ),
                    "segments": {
                        "type": "array",
                        "items": _object(
                            dict.fromkeys(("segment_id", "length_bytes", "dead_bytes", "tombstone_bytes"), _SEQ),
                            open_=True,
                        ),
                    },
                    "compaction": {
                        "oneOf": [{"type": "null"}, _object({"done_bytes": _SEQ, "total_bytes": _SEQ})],
                        "description": "How far one that was asked for here has come.",
                    },
                    "requests": {"type": "object", "additionalProperties": _SEQ},
                },
                open_=True,
            ),
            "Compaction": _object(
                dict.fromkeys(
                    ("segments_before", "segments_after", "bytes_before", "bytes_after", "reclaimed_bytes"), _INTEGER
                ),
                open_=True,
            ),
        },
    },
}
