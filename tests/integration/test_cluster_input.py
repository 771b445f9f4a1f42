"""Wrong input to a real node, by every door: a clear error, and the node goes on as if nothing had happened."""

from __future__ import annotations

import asyncio
import io
import math
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import msgpack
import pytest
from yarl import URL

import ackord
from ackord.wire.frames import FrameDecoder, encode_frame, packb
from ackord_node.config import load
from tests.support.cluster import RealCluster
from tests.support.ports import HOST

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("cluster")]

ROWS = "/v1/tables/kept/rows"
MIB = 1024 * 1024
STREAM = "application/x-ackord-stream"
PEER = "/peer/v1/stream"
CLIENT = bytes(range(16))


@pytest.fixture(scope="module")
def running() -> Iterator[RealCluster]:
    with RealCluster() as cluster:
        asyncio.run(_prepare(cluster))
        yield cluster


async def _prepare(cluster: RealCluster) -> None:
    async with ackord.connect(cluster.urls) as store:
        await store.create_table("kept", {"who": str, "n": int})
        await store.create_table("raw", {"b": bytes})
        await store.table("kept").put(("alice", 1), {"kept": True})
    await asyncio.to_thread(cluster.wait_in_sync, "kept")


@pytest.fixture
async def cluster(running: RealCluster) -> AsyncIterator[RealCluster]:
    """The module's cluster; each test must leave it healthy, its processes the same, its logs without a bug."""
    pids = [node.pid for node in running.nodes.values()]
    seen = {node.name: len(node.log()) for node in running.nodes.values()}
    yield running
    assert [node.pid for node in running.nodes.values() if node.is_running] == pids, running.logs()
    await asyncio.to_thread(running.wait_ready, 5)
    async with ackord.connect(running.urls) as store:
        row = await store.table("kept").get(("alice", 1), timeout=2)
        assert row is not None and dict(row) == {"kept": True}
        await store.table("kept").put(("bob", 1), {"still": "writable"}, timeout=2)
    for node in running.nodes.values():
        said = node.log()[seen[node.name] :]
        assert "Traceback" not in said and "a bug" not in said, said[-6000:]


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def table(cluster: RealCluster) -> AsyncIterator[ackord.Table]:
    async with ackord.connect(cluster.urls) as store:
        yield store.table("kept")


# ------------------------------------------------------------------------------- through the SDK

BAD_KEYS: list[tuple[Any, str]] = [
    (("alice",), "2"),
    (("alice", 1, 1), "2"),
    (("alice", "1"), "n"),
    ((1, 1), "who"),
    ((None, 1), "who"),
    ((b"alice", 1), "who"),
    (("alice", True), "n"),
    (("alice", 1.0), "n"),
    (("alice", math.nan), "n"),
    (("alice", 2**63), "n"),
    (("alice", -(2**63) - 1), "n"),
    (("\ud800", 1), "who"),
    (("x" * 1025, 1), "1024"),
]


@pytest.mark.parametrize(("key", "named"), BAD_KEYS, ids=lambda value: ascii(value)[:30])
async def test_wrong_keys(table: ackord.Table, key: Any, named: str) -> None:
    for call in (table.get(key), table.put(key, {}), table.update(key, {}), table.delete(key)):
        with pytest.raises(ackord.InvalidRequest) as error:
            await call
        assert named in error.value.message
        assert len(error.value.message) < 400


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


BAD_COLUMNS: list[Any] = [
    {"big": 2**63},
    {"set": {1, 2}},
    {"object": object()},
    {"complex": 1j},
    {"list": [1, {"in": {2}}]},
    {"map": {1: "int key"}},
    {"lone": "\ud800"},
    {"\udfff": 1},
    {1: "not a name"},
    {"": 1},
    {"x" * 256: 1},
    {"deep": nested(17)},
    {"deep": nested(100_000)},
    {"row": b"x" * (4 * MIB)},
    {f"c{n}": n for n in range(1025)},
    ["no", "map"],
]


@pytest.mark.parametrize("columns", BAD_COLUMNS, ids=lambda value: ascii(list(value))[:30])
async def test_wrong_columns(table: ackord.Table, columns: Any) -> None:
    with pytest.raises(ackord.InvalidRequest) as error:
        await table.put(("bad", 1), columns)
    assert len(error.value.message) < 400
    (result,) = await table.write_many([ackord.Put(("bad", 1), columns)])
    assert isinstance(result, ackord.InvalidRequest)
    assert await table.get(("bad", 1)) is None


async def test_wrong_calls(cluster: RealCluster, table: ackord.Table) -> None:
    keys = [("k", n) for n in range(201)]
    for many in (table.get_many(keys), table.write_many([ackord.Delete(key) for key in keys])):
        with pytest.raises(ackord.InvalidRequest, match="200"):
            await many
    with pytest.raises(ackord.InvalidRequest):
        await table.put(("a", 1), {}, if_absent=True, if_exists=True)
    with pytest.raises(ackord.InvalidRequest):
        await table.update(("alice", 1), increment={"kept": 1})
    await table.put(("full", 1), {"n": 2**63 - 1})
    with pytest.raises(ackord.InvalidRequest, match="64"):
        await table.update(("full", 1), increment={"n": 1})
    async with ackord.connect(cluster.urls) as store:
        with pytest.raises(ackord.TableNotFound, match="nobody"):
            await store.table("nobody").get(1)
        for name in ("", "1x", "a/b", "x" * 65, "ü"):
            with pytest.raises(ackord.InvalidRequest):
                await store.create_table(name, {"n": int})
        for key in ({}, {"n": float}, dict.fromkeys("abcde", int)):
            with pytest.raises(ackord.InvalidRequest):
                await store.create_table("never", key)
        with pytest.raises(ackord.InvalidRequest):
            await store.create_table("never", {"n": int}, split_at=[2, 1])
        assert {made.name for made in await store.list_tables()} == {"kept", "raw"}


# ------------------------------------------------------------------------------ plain HTTP, JSON

JSON = "application/json"
MSGPACK = "application/msgpack"
DEEP_JSON = b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"
BAD_REQUESTS: list[tuple[str, str, str, str | None, bytes | None, int, str]] = [
    # what, method, path, content type, body, status, what the message says
    ("unknown table", "GET", "/v1/tables/nobody/rows/1", None, None, 404, "nobody"),
    ("arity", "GET", ROWS + "/alice", None, None, 400, "2"),
    ("arity", "GET", ROWS + "/alice/1/2", None, None, 400, "2"),
    ("type", "GET", ROWS + "/alice/one", None, None, 400, "decimal"),
    ("64 bits", "GET", ROWS + f"/alice/{2**63}", None, None, 400, "n"),
    ("endless int", "GET", ROWS + "/alice/" + "9" * 5000, None, None, 400, "n"),
    ("surrogate", "GET", ROWS + "/%ED%A0%80/1", None, None, 400, "UTF-8"),
    ("NaN", "GET", ROWS + "/alice/NaN", None, None, 400, "decimal"),
    ("long key", "PUT", ROWS + "/" + "x" * 1025 + "/1", JSON, b"{}", 400, "1024"),
    ("base64", "GET", "/v1/tables/raw/rows/a!", None, None, 400, "base64url"),
    ("no JSON", "PUT", ROWS + "/a/1", JSON, b"{", 400, "JSON"),
    ("empty", "PUT", ROWS + "/a/1", JSON, b"", 400, "JSON"),
    ("no UTF-8", "PUT", ROWS + "/a/1", JSON, b'{"a":"\xff"}', 400, "JSON"),
    ("no object", "PUT", ROWS + "/a/1", JSON, b"[1]", 400, "object"),
    ("NaN literal", "PUT", ROWS + "/a/1", JSON, b'{"a":NaN}', 400, "$float"),
    ("int", "PUT", ROWS + "/a/1", JSON, b'{"a":9223372036854775808}', 400, "64"),
    ("endless int", "PUT", ROWS + "/a/1", JSON, b'{"a":' + b"9" * 100_000 + b"}", 400, ""),
    ("lone surrogate", "PUT", ROWS + "/a/1", JSON, rb'{"a":"\ud800"}', 400, "surrogate"),
    ("deep", "PUT", ROWS + "/a/1", JSON, b'{"a":' + b"[" * 17 + b"]" * 17 + b"}", 400, "16"),
    ("very deep", "PUT", ROWS + "/a/1", JSON, DEEP_JSON, 400, "deep"),
    ("name twice", "PUT", ROWS + "/a/1", JSON, b'{"a":1,"a":2}', 400, "twice"),
    ("bad form", "PUT", ROWS + "/a/1", JSON, b'{"a":{"$bytes":"!"}}', 400, "base64"),
    ("big row", "PUT", ROWS + "/a/1", JSON, b'{"a":"' + b"x" * 4 * MIB + b'"}', 400, str(4 * MIB)),
    ("big body", "PUT", ROWS + "/a/1", JSON, b'{"a":"' + b"x" * 8 * MIB + b'"}', 413, str(8 * MIB)),
    ("content type", "PUT", ROWS + "/a/1", "text/plain", b"{}", 415, "content type"),
    ("no content type", "PUT", ROWS + "/a/1", None, b"{}", 415, "content type"),
    ("no msgpack", "PUT", ROWS + "/a/1", MSGPACK, b"\xc1", 400, "msgpack"),
    ("cut msgpack", "PUT", ROWS + "/a/1", MSGPACK, b"\x81\xa1a", 400, "msgpack"),
    ("more msgpack", "PUT", ROWS + "/a/1", MSGPACK, b"\x80\x80", 400, "msgpack"),
    ("ext", "PUT", ROWS + "/a/1", MSGPACK, msgpack.packb({"a": msgpack.ExtType(1, b"x")}), 400, "msgpack"),
    ("bomb", "PUT", ROWS + "/a/1", MSGPACK, b"\x81\xa1a" + b"\xdd\xff\xff\xff\xff" * 1000, 400, "msgpack"),
    ("deep msgpack", "PUT", ROWS + "/a/1", MSGPACK, b"\x81\xa1a" + b"\x91" * 100_000 + b"\x01", 400, ""),
    ("uint64", "PUT", ROWS + "/a/1", MSGPACK, b"\x81\xa1a\xcf" + b"\xff" * 8, 400, "64"),
    ("unknown field", "PATCH", ROWS + "/a/1", JSON, b'{"sett":{}}', 400, "sett"),
    ("increment", "PATCH", ROWS + "/a/1", JSON, b'{"increment":{"a":"1"}}', 400, "a"),
    ("unknown query", "GET", ROWS + "/a/1?if_verison=1", None, None, 400, "if_verison"),
    ("two conditions", "DELETE", ROWS + "/a/1?if_version=1&if_exists=true", None, None, 400, "exclude"),
    ("if_version", "DELETE", ROWS + "/a/1?if_version=x", None, None, 400, "if_version"),
    ("limit", "GET", ROWS + "?limit=0", None, None, 400, "limit"),
    ("after", "GET", ROWS + "?after=%21", None, None, 400, "after"),
    ("start", "GET", ROWS + "?start=[1]", None, None, 400, "who"),
    (
        "unknown table field",
        "POST",
        "/v1/tables",
        JSON,
        b'{"name":"x","key":[["n","int"]],"x":1}',
        400,
        "'x'",
    ),
    ("key type", "POST", "/v1/tables", JSON, b'{"name":"x","key":[["n","float"]]}', 400, "float"),
    ("same name", "POST", "/v1/tables", JSON, b'{"name":"kept","key":[["n","int"]]}', 409, "kept"),
    ("method", "POST", ROWS + "/a/1", JSON, b"{}", 405, ""),
    ("path", "GET", "/v2/tables", None, None, 404, ""),
    ("stream type", "POST", "/v1/stream", JSON, b"{}", 415, STREAM),
    ("recover", "POST", "/admin/v1/recover", JSON, b'{"action":"explode"}', 400, "explode"),
]


@pytest.mark.parametrize("case", BAD_REQUESTS, ids=lambda case: f"{case[1]} {case[0]}")
async def test_wrong_requests(
    cluster: RealCluster,
    http: aiohttp.ClientSession,
    case: tuple[str, str, str, str | None, bytes | None, int, str],
) -> None:
    _, method, path, kind, body, status, says = case
    headers = {"Content-Type": kind} if kind else {}
    skip = [] if kind else ["Content-Type"]
    url = URL(cluster["n2"].url + path, encoded=True)
    async with http.request(
        method,
        url,
        data=body and io.BytesIO(body),
        headers=headers | {"Accept": JSON},
        skip_auto_headers=skip,
    ) as response:
        answer = await response.json()
        assert response.status == status, answer
    error = answer["error"]
    assert says in error["message"], error
    assert len(error["message"]) < 400
    assert error["outcome_unknown"] is False


# --------------------------------------------------------------------------------------- streams


async def exchange(url: str, path: str, *parts: bytes) -> list[Any]:
    """Sends raw bytes as the body of a stream, each part when the one before was answered; what came back."""
    reader, writer = await asyncio.open_connection(HOST, int(url.rpartition(":")[2]))
    head = f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: {STREAM}\r\nTransfer-Encoding: chunked\r\n\r\n"
    writer.write(head.encode())
    decoder, frames = FrameDecoder(16 * MIB), list[Any]()
    try:
        async with asyncio.timeout(5):
            for number, part in enumerate(parts):
                writer.write(b"%x\r\n%b\r\n" % (len(part), part))
                if number == 0:
                    head_back = await reader.readuntil(b"\r\n\r\n")
                    assert b" 200 " in head_back.split(b"\r\n")[0], head_back
                while len(frames) <= number:
                    size = int(await reader.readline(), 16)
                    if size == 0:
                        return frames
                    frames += decoder.feed(await reader.readexactly(size))
                    await reader.readexactly(2)
    except (ConnectionResetError, BrokenPipeError, asyncio.IncompleteReadError, ValueError):
        pass  # the node ended the connection
    finally:
        writer.close()
    return frames


HELLO = encode_frame([1, None, "test"])
WRONG_FRAMES = {
    "no msgpack": b"\x00\x00\x00\x01\xc1",
    "a bomb": b"\x00\x00\x00\x05\xdd\xff\xff\xff\xff",
    "a nest of bombs": (5000).to_bytes(4, "big") + b"\xdd\xff\xff\xff\xff" * 1000,
    "a deep nest": (100_001).to_bytes(4, "big") + b"\x91" * 100_000 + b"\x01",
    "too long": b"\x7f\xff\xff\xff" + b"x" * 1000,
    "a map": encode_frame({"rid": 1}),
    "no number": encode_frame([["x", 1, 1, [b""]]]),
    "too many groups": encode_frame([[n, 1, 1, [b""]] for n in range(4097)]),
}


@pytest.mark.parametrize("wrong", WRONG_FRAMES.values(), ids=WRONG_FRAMES)
async def test_wrong_frames_end_the_stream_with_a_reason(cluster: RealCluster, wrong: bytes) -> None:
    hello, last = await exchange(cluster["n1"].url, "/v1/stream", HELLO, wrong)
    assert hello[:3] == [1, "test", "n1"]
    assert last[:2] == [-1, ackord.InvalidRequest.code]
    assert 0 < len(last[2]) < 400


@pytest.mark.parametrize(
    ("hello", "error"),
    [
        ([2, None, "sdk"], ackord.InvalidRequest),
        ([0, None, "sdk"], ackord.InvalidRequest),
        ([1, "elsewhere", "sdk"], ackord.Unauthorized),
        (["1"], ackord.InvalidRequest),
        ({}, ackord.InvalidRequest),
    ],
    ids=str,
)
async def test_wrong_hellos(cluster: RealCluster, hello: Any, error: type[ackord.Error]) -> None:
    (answer,) = await exchange(cluster["n1"].url, "/v1/stream", encode_frame(hello))
    assert answer[:2] == [-1, error.code]
    assert 0 < len(answer[2]) < 400


def write(key: Any, body: Any, kind: int = 1, cond: int = 0) -> list[Any]:
    return [1, kind, key, body, cond, None, 1]


GOOD_KEY = b"alice\x00\x01" + (2**63 + 1).to_bytes(8, "big")
BAD_WRITES: dict[str, list[Any]] = {
    "wrong key type": write(b"alice\x00\x01", packb({})),
    "no terminator": write(b"alice", packb({})),
    "no UTF-8": write(b"\xff\x00\x01" + bytes(8), packb({})),
    "long column": write(b"x" * 1025 + b"\x00\x01" + bytes(8), packb({})),
    "no msgpack": write(GOOD_KEY, b"\xc1"),
    "no map": write(GOOD_KEY, packb([1])),
    "cut": write(GOOD_KEY, b"\x81\xa1a"),
    "bomb": write(GOOD_KEY, b"\x81\xa1a" + b"\xdd\xff\xff\xff\xff" * 100),
    "ext": write(GOOD_KEY, msgpack.packb({"a": msgpack.ExtType(1, b"x")})),
    "timestamp": write(GOOD_KEY, b"\x81\xa1a\xd6\xff\x00\x00\x00\x00"),
    "uint64": write(GOOD_KEY, b"\x81\xa1a\xcf" + b"\xff" * 8),
    "int name": write(GOOD_KEY, packb({1: 1})),
    "deep": write(GOOD_KEY, packb({"a": nested(17)})),
    "no body": write(GOOD_KEY, None),
    "kind": write(GOOD_KEY, packb({}), kind=9),
    "condition": write(GOOD_KEY, packb({}), cond=9),
    "if_version without one": write(GOOD_KEY, packb({}), cond=1),
    "update": write(GOOD_KEY, packb([{}]), kind=2),
    "update's increment": write(GOOD_KEY, packb([{}, [], {"kept": "x"}]), kind=2),
}


@pytest.mark.parametrize("op", BAD_WRITES.values(), ids=BAD_WRITES)
async def test_wrong_writes_past_the_sdk(cluster: RealCluster, op: list[Any]) -> None:
    tablet = cluster.tablets("kept")[0]
    now = cluster.routing()["now_version"]
    group = [7, 2, tablet["id"], CLIENT, int(now), 0, [op]]
    url = cluster[tablet["coordinator"]].url
    _, answers = await exchange(url, "/v1/stream", HELLO, encode_frame([group]))
    ((rid, _, results),) = answers
    error = results if type(results[0]) is int else results[0]
    assert rid == 7
    assert error[0] == ackord.InvalidRequest.code, error
    assert 0 < len(error[1]) < 400


# ----------------------------------------------------------------------------------- peer stream


@pytest.mark.parametrize(
    ("place", "value", "error"),
    [
        (0, 99, ackord.InvalidRequest),
        (1, "elsewhere", ackord.Unauthorized),
        (2, "0" * 32, ackord.Unauthorized),
        (3, "n9", ackord.Unauthorized),
        (4, "n3", ackord.InvalidRequest),
        (5, "x", ackord.InvalidRequest),
        (6, "other settings", ackord.InvalidRequest),
    ],
)
async def test_wrong_peers_are_refused(
    cluster: RealCluster, http: aiohttp.ClientSession, place: int, value: Any, error: type[ackord.Error]
) -> None:
    hello = await peer_hello(cluster, http)
    hello[place] = value
    (answer,) = await exchange(cluster["n1"].url, PEER, encode_frame(hello))
    assert answer[:2] == [-1, error.code]
    assert 0 < len(answer[2]) < 400


async def peer_hello(cluster: RealCluster, http: aiohttp.ClientSession) -> list[Any]:
    """What n2 would say to n1."""
    async with http.get(cluster["n1"].url + "/v1/status") as response:
        cluster_id = (await response.json())["cluster_id"]
    return [1, "test", cluster_id, "n2", "n1", 1, load(cluster.config_path).digest()]


WRONG_MESSAGES = {
    "no msgpack": b"\x00\x00\x00\x01\xc1",
    "no array": encode_frame({}),
    "unknown kind": encode_frame([[99, 1, 1]]),
    "no message": encode_frame([1]),
    "empty message": encode_frame([[]]),
    "wrong types": encode_frame([["a", "b", {}]]),
}


@pytest.mark.parametrize("wrong", WRONG_MESSAGES.values(), ids=WRONG_MESSAGES)
async def test_wrong_messages_of_a_peer_end_its_stream(
    cluster: RealCluster, http: aiohttp.ClientSession, wrong: bytes
) -> None:
    hello = encode_frame(await peer_hello(cluster, http))
    seen = len(cluster["n1"].log())
    deadline = time.monotonic() + 15
    while "which sent something wrong" not in cluster["n1"].log()[seen:]:
        assert time.monotonic() < deadline, cluster["n1"].log()[seen:]
        answers = await exchange(cluster["n1"].url, PEER, hello, wrong)
        assert answers[0][:2] == [1, "n1"]
        await asyncio.sleep(
            0.2
        )  # the real n2 may have come back and replaced this stream before it said anything
    await asyncio.to_thread(cluster.wait_in_sync, "kept")
