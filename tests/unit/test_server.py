"""The plain HTTP faces of a node: rows, tables, operators' endpoints, refusals and forwarding."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest

from ackord.wire.frames import packb
from ackord.wire.limits import DEFAULT_LIMITS
from ackord.wire.messages import OP_WRITE
from ackord.wire.ranges import seal
from ackord_node.server.metrics import Metrics
from tests.support.http_node import ORDERS, Client, HttpNode, error_of, http_node

KEY_1 = "1700000000000-one"
MSGPACK_NAMES = {"Content_Type": "application/msgpack"}


@pytest.fixture
async def node() -> AsyncIterator[HttpNode]:
    async with http_node() as made:
        yield made


@pytest.fixture
async def call(node: HttpNode) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession() as session:
        client = Client(session, node.url)
        assert (await client("POST", "/v1/tables", ORDERS))[0] == 201
        yield client


# ---------------------------------------------------------------------------------------- rows


async def test_a_row_is_put_read_changed_and_deleted(call: Client) -> None:
    row = "/v1/tables/orders/rows/alice/-12"
    status, written = await call("PUT", row, {"total": 990, "blob": {"$bytes": "AP8="}, "big": 2**62 + 1})
    assert status == 200
    assert await call("GET", row) == (
        200,
        {
            "key": ["alice", -12],
            "version": written["version"],
            "columns": {"total": 990, "blob": {"$bytes": "AP8="}, "big": 2**62 + 1},
        },
    )
    changes = {"set": {"state": "paid"}, "delete": ["big", "blob"], "increment": {"total": 10}}
    status, changed = await call("PATCH", row, changes)
    assert status == 200
    assert int(changed["version"]) > int(written["version"])
    assert (await call("GET", row))[1]["columns"] == {"total": 1000, "state": "paid"}
    assert (await call("DELETE", row))[0] == 200
    error_of(await call("GET", row), 404, "row_not_found")


async def test_key_segments_of_every_type_and_character(call: Client, node: HttpNode) -> None:
    await call("POST", "/v1/tables", {"name": "files", "key": [["name", "str"], ["hash", "bytes"]]})
    name = "a/b c%/ü\x00\r\n.."
    path = f"/v1/tables/files/rows/{quote(name, safe='')}/_wA"
    assert (await call("PUT", path, {"x": 1}))[0] == 200
    assert (await call("GET", path))[1]["key"] == [name, {"$bytes": "/wA="}]
    (key,) = node.service.rows
    assert node.service.tables["files"].key.decode(key) == (name, b"\xff\x00")
    assert (await call("PUT", "/v1/tables/files/rows//", {}))[0] == 200, "empty text and empty bytes are keys"


@pytest.mark.parametrize(
    ("path", "field", "said"),
    [
        ("alice", "key", "1 key columns, the table's key has 2"),
        ("alice/1/2", "key", "3 key columns"),
        ("alice/x", "order", "not a decimal integer"),
        ("alice/1.0", "order", "not a decimal integer"),
        ("alice/99999999999999999999", "order", "64 bits"),
        ("a" * 1025 + "/1", "customer", "over the limit of 1024"),
        ("%ff/1", "customer", "UTF-8"),
        ("%ED%A0%80/1", "customer", "UTF-8"),
    ],
)
async def test_a_wrong_key_is_named(call: Client, path: str, field: str, said: str) -> None:
    error = error_of(await call("GET", f"/v1/tables/orders/rows/{path}"), 400, "invalid_request")
    assert error["detail"]["field"] == field
    assert said in error["message"]


async def test_conditions_and_the_row_they_were_judged_on(call: Client) -> None:
    row = "/v1/tables/orders/rows/alice/1"
    error_of(await call("PUT", row + "?if_exists=true", {"x": 1}), 409, "conflict")
    status, first = await call("PUT", row + "?if_absent=true", {"x": 1})
    assert status == 200
    error = error_of(await call("PUT", row + "?if_absent=true", {"x": 2}), 409, "conflict")
    assert error["current"] == {"version": first["version"], "columns": {"x": 1}}
    assert error["outcome_unknown"] is False
    assert (await call("PATCH", f"{row}?if_version={first['version']}", {"set": {"x": 3}}))[0] == 200
    error_of(await call("DELETE", f"{row}?if_version={first['version']}"), 409, "conflict")
    assert (await call("DELETE", row + "?if_exists=true"))[0] == 200


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("if_version=x", "if_version"),
        ("if_version=-1", "if_version"),
        ("if_absent=yes", "if_absent"),
        ("if_absent=true&if_exists=true", "if_exists"),
        ("if_absent=true&if_absent=true", "if_absent"),
        ("when=now", "when"),
    ],
)
async def test_a_wrong_condition_is_named(call: Client, query: str, field: str) -> None:
    error = error_of(await call("PUT", f"/v1/tables/orders/rows/a/1?{query}", {}), 400, "invalid_request")
    assert error["detail"]["field"] == field


async def test_an_idempotency_key_writes_once(call: Client, node: HttpNode) -> None:
    row = "/v1/tables/orders/rows/alice/1"
    first = await call("PATCH", row, {"increment": {"n": 1}}, Idempotency_Key=KEY_1)
    again = await call("PATCH", row, {"increment": {"n": 1}}, Idempotency_Key=KEY_1)
    assert first == again
    assert (await call("GET", row))[1]["columns"] == {"n": 1}
    await call("PATCH", row, {"increment": {"n": 1}}, Idempotency_Key="018bcfe5-6800-7000-8000-000000000001")
    await call("PATCH", row, {"increment": {"n": 1}})
    assert (await call("GET", row))[1]["columns"] == {"n": 3}
    registered = [group[4] for group in node.service.groups if group[1] == OP_WRITE]
    assert registered[0] == registered[2] == 1_700_000_000_000 << 16, "both forms carry the time"
    attempts = [group[6][0][6] for group in node.service.groups if group[1] == OP_WRITE]
    assert attempts == [2, 2, 2, 1]


@pytest.mark.parametrize(
    "key",
    [
        "",
        "abc",
        "17000000000-seconds",
        "1700000000000-",
        "1700000000000-a b",
        "1700000000000-" + "x" * 128,
        "018bcfe5-6800-4000-8000-000000000001",
    ],
)
async def test_a_wrong_idempotency_key_names_both_forms(call: Client, node: HttpNode, key: str) -> None:
    answer = await call("PUT", "/v1/tables/orders/rows/a/1", {}, Idempotency_Key=key)
    error = error_of(answer, 400, "invalid_request")
    assert "<unix milliseconds>-<token>" in error["message"]
    assert "UUIDv7" in error["message"]
    assert node.service.groups == []


async def test_msgpack_by_content_type_and_by_accept(call: Client) -> None:
    row = "/v1/tables/orders/rows/alice/1"
    status, written = await call(
        "PUT", row, packb({"raw": b"\x00\xff", "nan": float("inf")}), **MSGPACK_NAMES
    )
    assert status == 200
    assert type(written["version"]) is int
    status, read = await call("GET", row, Accept="application/msgpack")
    assert read == {
        "key": ["alice", 1],
        "version": written["version"],
        "columns": {"raw": b"\x00\xff", "nan": float("inf")},
    }
    assert (await call("GET", row))[1]["columns"] == {
        "raw": {"$bytes": "AP8="},
        "nan": {"$float": "Infinity"},
    }
    changed = await call("PATCH", row, {"set": {"a": 1}}, Accept="text/html, application/msgpack;q=0.9")
    assert type(changed[1]["version"]) is int
    in_json = await call("PATCH", row, packb({"delete": ["a"]}), **MSGPACK_NAMES, Accept="application/json")
    assert type(in_json[1]["version"]) is str


# ------------------------------------------------------------------------------------ bad bodies


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
async def test_a_wrong_content_type_is_415(call: Client, kind: str) -> None:
    answer = await call("PUT", "/v1/tables/orders/rows/a/1", b"{}", Content_Type=kind)
    assert "application/msgpack" in error_of(answer, 415, "invalid_request")["message"]


async def test_a_compressed_body_is_415(call: Client) -> None:
    answer = await call("PUT", "/v1/tables/orders/rows/a/1", b"{}", Content_Encoding="identity")
    error_of(answer, 415, "invalid_request")


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"",
        b"[1]",
        b'{"a": NaN}',
        b'{"a": 1, "a": 2}',
        b"\xff",
        b'{"a": 9223372036854775808}',
        b"[" * 100000,
        b'{"a": ' + b"[" * 600 + b"]" * 600 + b"}",
        b'{"a": {"$bytes": "!"}}',
        b'{"a": "\\ud800"}',
        b'{"a": ' + b"[" * 20 + b"]" * 20 + b"}",
    ],
)
async def test_bad_json_is_400_and_nothing_is_written(call: Client, node: HttpNode, body: bytes) -> None:
    error_of(await call("PUT", "/v1/tables/orders/rows/a/1", body), 400, "invalid_request")
    assert node.service.groups == []


@pytest.mark.parametrize(
    "body",
    [
        b"\xc1",
        b"\x81\xa1a",
        b"\xdd\xff\xff\xff\xff",  # an array that claims four billion elements
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\x0f\xff\xff\xff" * 50_000,
        b"\x91" * 200_000,
        b"\x81\xa1a\xc7\x01\x05\x00",  # an ext type
        b"\x81\xa1a\xcf" + b"\xff" * 8,  # beyond int64
        b"\xa1a",
    ],
)
async def test_bad_msgpack_and_bombs_are_400(call: Client, node: HttpNode, body: bytes) -> None:
    answer = await call("PUT", "/v1/tables/orders/rows/a/1", body, **MSGPACK_NAMES)
    error_of(answer, 400, "invalid_request")
    assert node.service.groups == []


async def test_a_body_over_the_limit_is_413_and_names_it() -> None:
    async with (
        http_node(limits=replace(DEFAULT_LIMITS, body_bytes=1000)) as node,
        aiohttp.ClientSession() as session,
    ):
        call = Client(session, node.url)
        await call("POST", "/v1/tables", ORDERS)
        error = error_of(await call("PUT", "/v1/tables/orders/rows/a/1", b" " * 1001), 413, "invalid_request")
        assert "1000" in error["message"]
        assert error["detail"]["limit"] == 1000

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(11):
                yield b" " * 100

        url = node.url + "/v1/tables/orders/rows/a/1"
        async with session.put(url, data=chunks(), headers={"Content-Type": "application/json"}) as response:
            assert response.status == 413
        assert node.service.groups == []


async def test_unknown_fields_are_named(call: Client) -> None:
    answer = await call("PATCH", "/v1/tables/orders/rows/a/1", {"set": {}, "unset": []})
    assert error_of(answer, 400, "invalid_request")["detail"]["field"] == "unset"
    answer = await call("POST", "/v1/tables", {**ORDERS, "replicas": 3})
    assert error_of(answer, 400, "invalid_request")["detail"]["field"] == "replicas"
    answer = await call("POST", "/v1/tables", {"name": "x"})
    assert error_of(answer, 400, "invalid_request")["detail"]["field"] == "key"
    answer = await call("GET", "/v1/tables?page=2")
    assert error_of(answer, 400, "invalid_request")["detail"]["field"] == "page"


async def test_unknown_paths_and_methods_are_json(call: Client) -> None:
    assert "/v1/nothing" in error_of(await call("GET", "/v1/nothing"), 404, "invalid_request")["message"]
    error = error_of(await call("POST", "/v1/tables/orders/rows/a/1", {}), 405, "invalid_request")
    assert error["detail"]["limit"] == ["DELETE", "GET", "HEAD", "PATCH", "PUT"]
    error_of(await call("GET", "/v1/tables/none/rows/a/1"), 404, "table_not_found")


# ---------------------------------------------------------------------------------------- scans


async def test_scans_page_over_tablets_in_both_directions(call: Client) -> None:
    await call(
        "POST", "/v1/tables", {"name": "t", "key": [["p", "int"], ["q", "str"]], "split_at": [3, 6, 7]}
    )
    keys = [[p, q] for p in range(9) for q in ("a", "b\x00", "c")]
    for p, q in keys:
        await call("PUT", f"/v1/tables/t/rows/{p}/{quote(str(q))}", {"p": p})
    for limit in (1, 4, 1000):
        assert await _all(call, f"limit={limit}") == keys
        assert await _all(call, f"limit={limit}&reverse=true") == keys[::-1]
    assert await _all(call, f"limit=2&prefix={quote('[4]')}") == [k for k in keys if k[0] == 4]
    bounds = f"start={quote('[2,' + chr(34) + 'c' + chr(34) + ']')}&end={quote('[7]')}"
    assert await _all(call, f"limit=2&{bounds}") == keys[8:21]
    assert await _all(call, f"limit=2&reverse=true&{bounds}") == keys[8:21][::-1]
    assert await _all(call, f"start={quote('[7]')}&end={quote('[2]')}") == []


async def _all(call: Client, query: str) -> list[Any]:
    found: list[Any] = []
    after = ""
    for _ in range(200):
        status, page = await call("GET", f"/v1/tables/t/rows?{query}{after}")
        assert status == 200, page
        found.extend(row["key"] for row in page["rows"])
        if page["next"] is None:
            return found
        after = f"&after={page['next']}"
    raise AssertionError("the scan does not end")


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=5001", "limit"),
        ("limit=x", "limit"),
        ("limit=00000000051001", "limit"),
        ("start=alice", "body"),
        ("start=3", "start"),
        ("start=%5B3%5D", "customer"),
        ("start=%5B%5D&start_after=%5B%5D", "start_after"),
        ("end=%5B%5D&end_at=%5B%5D", "end_at"),
        ("after=%21", "after"),
        ("after=cg&reverse=false", "after"),
        ("after=" + seal("page", [1, False, 5]), "after"),
        ("reverse=1", "reverse"),
        ("offset=3", "offset"),
    ],
)
async def test_a_wrong_scan_is_named(call: Client, query: str, field: str) -> None:
    error = error_of(await call("GET", f"/v1/tables/orders/rows?{query}"), 400, "invalid_request")
    assert error["detail"]["field"] == field


async def test_a_bug_leaves_a_write_unknown(
    call: Client, node: HttpNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(node.service, "flush", broken)
    path = "/v1/tables/orders/rows/a/1"
    assert error_of(await call("PUT", path, {}), 500, "outcome_unknown")["outcome_unknown"] is True
    assert error_of(await call("GET", path), 500, "error")["outcome_unknown"] is False
    assert "a bug" in caplog.text


# ------------------------------------------------------------------------------ tables, operators


async def test_tables_are_created_listed_described_and_dropped(call: Client) -> None:
    split = {"name": "files", "key": [["hash", "bytes"]], "split_at": [{"$bytes": "gA=="}]}
    status, created = await call("POST", "/v1/tables", split)
    assert status == 201
    assert created["tablets"][1]["start"] == {"$bytes": "gAAB"}
    assert await call("GET", "/v1/tables/files?cached=true") == (200, created)
    assert await call("GET", "/v1/tables/files") == (200, {**created, "record_version": 0})
    listed = (await call("GET", "/v1/tables"))[1]["tables"]
    assert [table["name"] for table in listed] == ["files", "orders"]
    assert (await call("DELETE", "/v1/tables/files")) == (200, {"dropped": "files"})
    error_of(await call("DELETE", "/v1/tables/files"), 404, "table_not_found")
    error_of(await call("POST", "/v1/tables", {**ORDERS, "key": [["id", "int"]]}), 409, "table_exists")


async def test_a_list_of_tables_is_read_anew_unless_an_older_one_will_do(
    call: Client, node: HttpNode
) -> None:
    for query, count in (("", 1), ("?cached=true", 1), ("?cached=false", 2)):
        assert (await call("GET", f"/v1/tables{query}"))[0] == 200
        assert node.service.tables_reads_count == count
    error_of(await call("GET", "/v1/tables?cached=yes"), 400, "invalid_request")


async def test_a_table_operation_that_names_what_it_is_meant_for_touches_nothing_else(call: Client) -> None:
    files = {"name": "files", "key": [["hash", "bytes"]]}
    error_of(await call("POST", "/v1/tables", {**files, "if_record_version": 0}), 409, "conflict")
    status, first = await call("POST", "/v1/tables", {**files, "if_record_version": -1})
    assert status == 201
    error_of(await call("DELETE", f"/v1/tables/files?id={first['id'] + 1}"), 404, "table_not_found")
    assert (await call("DELETE", f"/v1/tables/files?id={first['id']}"))[0] == 200
    error = error_of(await call("GET", "/v1/tables/files"), 404, "table_not_found")
    assert error["detail"]["record_version"] == 2
    error = error_of(await call("POST", "/v1/tables", {**files, "if_record_version": -1}), 409, "conflict")
    assert error["detail"]["record_version"] == 2
    assert (await call("POST", "/v1/tables", {**files, "if_record_version": 2}))[0] == 201


@pytest.mark.parametrize("version", [-2, True, "2", 2.0, 2**63])
async def test_impossible_fences_are_refused(call: Client, version: Any) -> None:
    body = {**ORDERS, "name": "other", "if_record_version": version}
    error_of(await call("POST", "/v1/tables", body), 400, "invalid_request")
    if not isinstance(version, bool | float):
        error_of(await call("DELETE", f"/v1/tables/orders?id={version}x"), 400, "invalid_request")


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "a/b"},
        {"name": 5},
        {"key": []},
        {"key": [["a", "float"]]},
        {"key": [["a", "int"]] * 2},
        {"key": [[str(number), "int"] for number in range(5)]},
        {"split_at": "m"},
        {"split_at": ["m", "a"]},
        {"split_at": [5]},
    ],
)
async def test_impossible_tables_are_refused(call: Client, changes: dict[str, Any]) -> None:
    error_of(await call("POST", "/v1/tables", {**ORDERS, "name": "other", **changes}), 400, "invalid_request")


async def test_operators_endpoints(call: Client, node: HttpNode) -> None:
    assert await call("GET", "/health") == (200, {"healthy": True, "node": "n1"})
    assert (await call("GET", "/ready"))[0] == 200
    node.service.is_ready = (False, "two tablets without a coordinator")
    assert await call("GET", "/ready") == (
        503,
        {"ready": False, "node": "n1", "reason": "two tablets without a coordinator"},
    )
    assert await call("GET", "/v1/status") == (200, {"node": "n1", "copy": {"$bytes": "AQ=="}})
    routing = (await call("GET", "/v1/routing", Accept="application/msgpack"))[1]
    assert routing["tables"]["orders"]["tablets"][0]["start"] == b""
    assert (await call("POST", "/admin/v1/recover", {"tablet": 3, "copy": "n2"})) == (200, {"done": True})
    assert node.service.recoveries == [{"tablet": 3, "copy": "n2"}]


async def test_metrics_count_and_forget(call: Client, node: HttpNode) -> None:
    row = "/v1/tables/orders/rows/alice/1"
    await call("PUT", row, {"x": 1})
    await call("PUT", row + "?if_absent=true", {"x": 1})
    node.metrics.tablet(4, 3, {"n2": 5, "n3": 0})
    node.metrics.tablet(4, 2, {"n2": 1})
    node.metrics.engine_commit(17, 0.0002)
    node.metrics.loop_lag(0.001)
    node.metrics.queue("pending", 12)
    node.metrics.peer_link("n2", True)
    for _ in range(2):
        node.metrics.expiry(4, 1.5)
        node.metrics.collector(7, 30, 2.5)
    async with call.session.get(node.url + "/metrics") as response:
        assert response.content_type == "text/plain"
        text = await response.text()
    for line in (
        'ackord_operations_total{op="write",outcome="ok"} 1.0',
        'ackord_operations_total{op="write",outcome="conflict"} 1.0',
        'ackord_in_sync_members{tablet="4"} 2.0',
        'ackord_replica_lag_entries{member="n2",tablet="4"} 1.0',
        'ackord_queue_size{queue="pending"} 12.0',
        'ackord_peer_link_up{peer="n2"} 1.0',
        "ackord_rows_expired_total 8.0",
        "ackord_expiry_lag_seconds 1.5",
        "ackord_versions_removed_total 14.0",
        "ackord_collector_waiting_keys 30.0",
        "ackord_collector_lag_seconds 2.5",
        "ackord_engine_commit_entries_sum 17.0",
    ):
        assert line in text
    assert 'member="n3"' not in text
    node.metrics.forget_tablet(4)
    assert b'tablet="4"' not in node.metrics.render()
    assert Metrics().registry is not node.metrics.registry
