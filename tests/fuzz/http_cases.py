"""Requests to every endpoint of a node: valid ones, and ones that are damaged in some place."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

from ackord.wire.frames import encode_frame
from ackord.wire.messages import MSGPACK_CONTENT_TYPE, STREAM_CONTENT_TYPE
from ackord.wire.values import encode_columns
from tests.fuzz.mutation import Mutator

TABLE = "orders"
JSON_CONTENT_TYPE = "application/json"
METHODS = ("GET", "PUT", "POST", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "BREW")
PATHS = (
    "/health",
    "/ready",
    "/metrics",
    "/v1/status",
    "/v1/routing",
    "/v1/tables",
    f"/v1/tables/{TABLE}",
    f"/v1/tables/{TABLE}/rows",
    f"/v1/tables/{TABLE}/rows/alice/1",
    "/admin/v1/recover",
    "/v1/stream",
    "/peer/v1/stream",
    "/peer/v1/inventory",
    "/peer/v1/status",
)
QUERIES: tuple[dict[str, str], ...] = (
    {"limit": "3"},
    {"prefix": '["alice"]', "reverse": "true"},
    {"start": '["alice", 2]', "end": '["bob"]'},
    {"after": "ZgAA"},
    {"if_version": "5"},
    {"if_absent": "true"},
    {"if_exists": "false"},
)
ROW = {"total": 990, "state": "new", "price": 1.5, "tags": ["a", {"b": 1}], "blob": {"$bytes": "AAH/"}}
UPDATE = {"set": {"state": "paid"}, "delete": ["blob"], "increment": {"tries": 1}}
ODD_TABLE = {"name": "other", "key": [["customer", "str"], ["order", "int"]], "split_at": ["m"]}
RECOVER = {"action": "inspect", "tablet": 65536}
COLUMNS = encode_columns({"total": 1})
GROUPS: tuple[list[Any], ...] = (
    [1, 1, 101, [b"alice\x00\x01\x80\x00\x00\x00\x00\x00\x00\x01"]],
    [2, 2, 101, b"c" * 16, 1 << 60, 0, [[1, 1, b"a\x00\x01\x80" + bytes(7), COLUMNS, 0, None, 1]]],
    [3, 3, 101, b"", None, False, 10, 1000],
    [4, 2, 101, b"c" * 16, 1 << 60, 0, [1, [b"a\x00\x01\x80" + bytes(7)], [COLUMNS]]],
)


@dataclass(slots=True)
class Case:
    method: str
    path: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None

    def __str__(self) -> str:
        return f"{self.method} {self.path[:200]} {self.headers} {(self.body or b'')[:200]!r}"


class HttpCases:
    """``tablets`` are ids that groups of streams name."""

    def __init__(self, mutator: Mutator, tablets: tuple[int, ...] = (101,)) -> None:
        self._mutator = mutator
        self._chance: random.Random = mutator.chance
        self._tablets = tablets

    def next(self) -> Case:
        chance = self._chance
        kind = chance.random()
        if kind < 0.45:
            case = self._written()
        elif kind < 0.65:
            case = self._stream()
        elif kind < 0.8:
            case = Case(chance.choice(METHODS[:5]), chance.choice(PATHS), {}, None)
            if chance.random() < 0.5:
                case.body = chance.randbytes(chance.randrange(200))
        else:
            case = Case("GET", chance.choice(PATHS[5:9]))
        if chance.random() < 0.4:
            case.path += "?" + self._query()
        if chance.random() < 0.25:
            case.path = self._odd_path(case.path)
        if chance.random() < 0.2:
            self._odd_header(case)
        return case

    def _written(self) -> Case:
        """A write, a table or an admin request, whose body is damaged as a value or as bytes."""
        chance = self._chance
        method, path, value = chance.choice(
            (
                ("PUT", PATHS[8], ROW),
                ("PUT", PATHS[8], ROW),
                ("PATCH", PATHS[8], UPDATE),
                ("PATCH", PATHS[8], UPDATE),
                ("POST", PATHS[5], ODD_TABLE),
                ("POST", PATHS[9], RECOVER),
                ("DELETE", PATHS[8], None),
            )
        )
        if value is None:
            return Case(method, path, {}, None if chance.random() < 0.7 else b"x")
        if chance.random() < 0.5:
            body = self._mutator.packed(value)
            return Case(method, path, {"Content-Type": MSGPACK_CONTENT_TYPE}, body)
        changed = self._mutator.value(value) if chance.random() < 0.8 else value
        body = json.dumps(changed, default=lambda raw: {"$bytes": repr(raw)}, skipkeys=True).encode()
        if chance.random() < 0.3:
            body = self._mutator.damaged(body)
        if chance.random() < 0.02:
            body = b"[" * 50_000 + body
        return Case(method, path, {"Content-Type": JSON_CONTENT_TYPE}, body)

    def _stream(self) -> Case:
        """A whole stream in one body: hello, some frames, the end."""
        chance = self._chance
        hello: Any = [1, None, "fuzz"]
        if chance.random() < 0.2:
            hello = self._mutator.value(hello)
        data = self._frame(hello)
        for _ in range(chance.randrange(4)):
            groups = [[*chance.choice(GROUPS)] for _ in range(chance.randrange(1, 4))]
            for number, group in enumerate(groups):
                group[0], group[2] = number + 1, chance.choice(self._tablets)
            changed = self._mutator.value(groups) if chance.random() < 0.7 else groups
            data += self._frame(changed)
        if chance.random() < 0.2:
            data = self._mutator.damaged(data)
        return Case("POST", "/v1/stream", {"Content-Type": STREAM_CONTENT_TYPE}, data)

    def _frame(self, value: Any) -> bytes:
        frame = encode_frame(value)
        if self._chance.random() < 0.05:  # a length that is not true
            wrong = self._chance.choice((0, 1, 0xFFFFFFFF, 0x7FFFFFFF, len(frame)))
            frame = wrong.to_bytes(4, "big") + frame[4:]
        if self._chance.random() < 0.05:
            frame = (len(bomb := self._mutator.bomb())).to_bytes(4, "big") + bomb
        return frame

    def _query(self) -> str:
        chance = self._chance
        query = dict(chance.choice(QUERIES))
        if chance.random() < 0.7:
            name = chance.choice(sorted(query))
            odd = ("", "-1", "0", "1e9", "null", "[", "[[]]", '["é"]', "true ", "9" * 400, "\x00", "[" * 3000)
            query[name] = chance.choice(odd)
        if chance.random() < 0.1:
            query["unknown"] = "1"
        text = urlencode(query)
        return text + "&" + text if chance.random() < 0.05 else text

    def _odd_path(self, path: str) -> str:
        chance = self._chance
        odd = (
            "é", "\x00", "../..", "a" * 3000, "%ff", "\u202e", "1", "-9223372036854775809", "", "/", "//", "😀",
        )  # fmt: skip
        cut, _, query = path.partition("?")
        parts = cut.split("/")
        at = chance.randrange(len(parts))
        parts[at] = quote(chance.choice(odd), safe="%/") if chance.random() < 0.7 else parts[at] * 2
        changed = "/".join(parts)
        if not changed.startswith("/"):
            changed = "/" + changed
        return changed + (f"?{query}" if query else "")

    def _odd_header(self, case: Case) -> None:
        name, value = self._chance.choice(
            (
                ("Content-Type", "text/plain"),
                ("Content-Type", "application/msgpack; charset=x"),
                ("Content-Type", ";;;"),
                ("Content-Type", "application/json; charset=utf-16"),
                ("Accept", "application/msgpack"),
                ("Accept", "image/*, ;q=0"),
                ("Content-Encoding", "gzip"),
                ("Content-Encoding", "deflate"),
                ("Idempotency-Key", "x"),
                ("Idempotency-Key", "1700000000000-é".encode().decode("latin-1")),
                ("Idempotency-Key", "9999999999999-" + "k" * 300),
                ("Idempotency-Key", "1700000000000-token"),
                ("Expect", "100-continue"),
                ("Ackord-Forwarded", "1"),
                ("X-Long", "y" * 7000),
                ("Cookie", "a=b; ; =;"),
            )
        )
        case.headers[name] = value
