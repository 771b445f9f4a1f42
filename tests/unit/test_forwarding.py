"""Requests that another node must serve, and what happens when it cannot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from urllib.parse import quote

import aiohttp
import pytest

from ackord.wire.limits import DEFAULT_LIMITS
from ackord.wire.messages import KIND_PUT, OP_WRITE
from tests.support.http_node import ORDERS, Client, HttpNode, error_of, http_node
from tests.support.ports import free_port

KEY_1 = "1700000000000-one"


@pytest.fixture
async def pair() -> AsyncIterator[tuple[HttpNode, HttpNode]]:
    """n1 serves nothing of the tablets that n2 coordinates; both see the same rows."""
    rows: dict[bytes, bytes] = {}
    async with http_node("n1", rows) as one, http_node("n2", rows) as two:
        for node in (one, two):
            await node.service.create_table("orders", ORDERS["key"], ["m"])
            node.service.addresses = {"n1": one.url, "n2": two.url}
        yield one, two


async def test_what_another_node_serves_is_forwarded(pair: tuple[HttpNode, HttpNode]) -> None:
    one, two = pair
    one.service.not_here = {1: "n2"}
    row = f"/v1/tables/orders/rows/{quote('a/ü', safe='')}/1"
    async with aiohttp.ClientSession() as session:
        call = Client(session, one.url)
        written = await call("PATCH", row + "?if_absent=true", {"increment": {"n": 1}}, Idempotency_Key=KEY_1)
        assert written[0] == 200
        again = await call("PATCH", row + "?if_absent=true", {"increment": {"n": 1}}, Idempotency_Key=KEY_1)
        assert again == written
        status, read = await call("GET", row, Accept="application/msgpack")
        assert (status, read["columns"]) == (200, {"n": 1})
        error_of(await call("PUT", row + "?if_absent=true", {}), 409, "conflict")
        keys = {group[3] for group in two.service.groups if group[1] == OP_WRITE}
        assert len(keys) == 2, "the key of the caller, and one made for the write that had none"
        assert [group[6][0][1] for group in two.service.groups if group[1] == OP_WRITE][-1] == KIND_PUT


async def test_a_request_is_forwarded_once_only(pair: tuple[HttpNode, HttpNode]) -> None:
    one, two = pair
    one.service.not_here, two.service.not_here = {1: "n2"}, {1: "n1"}
    async with aiohttp.ClientSession() as session:
        error = error_of(
            await Client(session, one.url)("PUT", "/v1/tables/orders/rows/a/1", {}), 503, "unavailable"
        )
    assert error["detail"]["reason"] == "not_coordinator"
    assert error["outcome_unknown"] is False
    assert len(one.service.groups) == len(two.service.groups) == 1


async def test_a_scan_goes_on_where_this_node_cannot(pair: tuple[HttpNode, HttpNode]) -> None:
    one, two = pair
    async with aiohttp.ClientSession() as session:
        call = Client(session, two.url)
        for customer in ("a", "b", "x", "y"):
            await call("PUT", f"/v1/tables/orders/rows/{customer}/1", {})
        call = Client(session, one.url)
        for here, reverse, pages in (
            (2, "", [["a", "b"], ["x", "y"]]),
            (1, "", [["a", "b", "x", "y"]]),
            (1, "&reverse=true", [["y", "x"], ["b", "a"]]),
            (2, "&reverse=true", [["y", "x", "b", "a"]]),
        ):
            one.service.not_here = {here: "n2"}
            found, after = [], ""
            while True:
                status, page = await call("GET", f"/v1/tables/orders/rows?limit=10{reverse}{after}")
                assert status == 200
                found.append([row["key"][0] for row in page["rows"]])
                if page["next"] is None:
                    break
                after = f"&after={page['next']}"
            assert found == pages


async def test_a_forwarded_scan_begins_where_this_node_ended(pair: tuple[HttpNode, HttpNode]) -> None:
    """The first tablet is empty and served here only, the second there only: one request answers."""
    one, two = pair
    async with aiohttp.ClientSession() as session:
        await Client(session, two.url)("PUT", "/v1/tables/orders/rows/x/1", {})
        one.service.not_here, two.service.not_here = {2: "n2"}, {1: "n1"}
        status, page = await Client(session, one.url)("GET", "/v1/tables/orders/rows?limit=10")
    assert status == 200, page
    assert [row["key"] for row in page["rows"]] == [["x", 1]]
    assert page["next"] is None


async def test_a_node_that_is_not_there_is_certainly_not_done(pair: tuple[HttpNode, HttpNode]) -> None:
    one, _ = pair
    one.service.not_here = {1: "n2"}
    one.service.addresses["n2"] = f"http://127.0.0.1:{free_port()}"
    async with aiohttp.ClientSession() as session:
        error = error_of(
            await Client(session, one.url)("PUT", "/v1/tables/orders/rows/a/1", {}), 503, "unavailable"
        )
    assert error["detail"]["reason"] == "forward"
    assert error["retriable"] is True


async def test_a_forwarded_write_whose_answer_is_lost_is_unknown(pair: tuple[HttpNode, HttpNode]) -> None:
    one, _ = pair
    one.service.not_here = {1: "n2"}
    port = free_port()
    one.service.addresses["n2"] = f"http://127.0.0.1:{port}"

    async def take_and_die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(take_and_die, "127.0.0.1", port)
    async with aiohttp.ClientSession() as session:
        call = Client(session, one.url)
        error = error_of(
            await call("PATCH", "/v1/tables/orders/rows/a/1", {"set": {}}), 504, "outcome_unknown"
        )
        assert error["outcome_unknown"] is True
        error_of(await call("GET", "/v1/tables/orders/rows/a/1"), 503, "unavailable")
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_a_node_that_takes_a_write_and_is_gone_leaves_it_unknown(
    pair: tuple[HttpNode, HttpNode], method: str
) -> None:
    """The HTTP client tries such methods once more by itself, and finds nobody: the first attempt counts."""
    one, _ = pair
    one.service.not_here = {1: "n2"}
    port = free_port()
    one.service.addresses["n2"] = f"http://127.0.0.1:{port}"

    async def take_and_vanish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        server.close()
        writer.close()

    server = await asyncio.start_server(take_and_vanish, "127.0.0.1", port)
    async with aiohttp.ClientSession() as session:
        body: dict[str, int] | None = {} if method == "PUT" else None
        answer = await Client(session, one.url)(method, "/v1/tables/orders/rows/a/1", body)
    assert error_of(answer, 504, "outcome_unknown")["outcome_unknown"] is True


async def test_a_forwarded_scan_passes_an_empty_tablet(pair: tuple[HttpNode, HttpNode]) -> None:
    """The first tablet is served there only, and empty; the second here only: the token leads on."""
    one, two = pair
    async with aiohttp.ClientSession() as session:
        call = Client(session, one.url)
        await call("PUT", "/v1/tables/orders/rows/x/1", {})
        one.service.not_here, two.service.not_here = {1: "n2"}, {2: "n1"}
        status, page = await call("GET", "/v1/tables/orders/rows?limit=10")
        assert (status, page["rows"]) == (200, []) and page["next"] is not None
        status, page = await call("GET", f"/v1/tables/orders/rows?limit=10&after={page['next']}")
    assert [row["key"] for row in page["rows"]] == [["x", 1]]


async def test_a_write_that_is_never_decided_is_unknown_and_a_read_unavailable() -> None:
    limits = replace(DEFAULT_LIMITS, request_wait_ms=1)
    async with http_node(limits=limits) as node, aiohttp.ClientSession() as session:
        await node.service.create_table("orders", ORDERS["key"], [])
        node.service.hold = True
        call = Client(session, node.url)
        wrote, read = await asyncio.gather(
            call("PUT", "/v1/tables/orders/rows/a/1", {}), call("GET", "/v1/tables/orders/rows/a/1")
        )
        error_of(wrote, 504, "outcome_unknown")
        error_of(read, 503, "unavailable")
        node.service.release()
