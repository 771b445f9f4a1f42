"""The contract of a PeerTransport, and what each adapter promises beyond it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import uvloop

from ackord.wire.frames import FrameDecoder, encode_frame
from ackord_node.adapters.peer_queue import BULK_FRAME_BYTES, PeerQueue
from ackord_node.adapters.transport_http import PEER_PATH, PEER_WIRE_VERSION
from tests.support.transports import CLUSTER_ID, HttpRig, MemoryRig, Rig, eventually

URGENT_COUNT_MAX = 50
BULK_BYTES_MAX = 1024 * 1024


@pytest.fixture(params=["memory", "http"])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    made: Rig = (MemoryRig if request.param == "memory" else HttpRig)(URGENT_COUNT_MAX, BULK_BYTES_MAX)
    yield made
    await made.close()


@pytest.fixture
async def http() -> AsyncIterator[HttpRig]:
    made = HttpRig(URGENT_COUNT_MAX, BULK_BYTES_MAX)
    yield made
    await made.close()


# ------------------------------------------------------------------------------- both adapters


async def test_links_come_up_and_carry_messages_both_ways(rig: Rig) -> None:
    one, heard_one = await rig.start("n1", incarnation=11)
    two, heard_two = await rig.start("n2", incarnation=22)
    await eventually(lambda: one.is_up("n2") and two.is_up("n1"))
    assert one.send("n2", ["hello", 1, b"\x00\xff", None, {"a": [True, 1.5]}])
    assert two.send("n1", ["back", 2**63 - 1])
    await eventually(lambda: bool(heard_one.batches and heard_two.batches))
    assert heard_two.batches == [("n1", 11, [["hello", 1, b"\x00\xff", None, {"a": [True, 1.5]}]])]
    assert heard_one.batches == [("n2", 22, [["back", 2**63 - 1]])]
    assert [link for link in heard_two.links if link[0] == "up"] == [("up", "n1")]


async def test_a_turn_leaves_together_urgent_first_and_each_in_order(rig: Rig) -> None:
    one, _ = await rig.start("n1")
    _, heard = await rig.start("n2")
    await eventually(lambda: one.is_up("n2"))
    for number in range(20):
        assert one.send("n2", ["bulk", number])
        assert one.send("n2", ["urgent", number], urgent=True)
    assert one.queued_bytes("n2") > 0
    await eventually(lambda: len(heard.messages("n1")) == 40)
    assert heard.messages("n1") == [["urgent", n] for n in range(20)] + [["bulk", n] for n in range(20)]
    assert len(heard.batches) <= 2
    assert one.queued_bytes("n2") == 0


async def test_a_full_queue_drops_and_says_so_and_urgent_has_its_own(rig: Rig) -> None:
    one, _ = await rig.start("n1")
    _, heard = await rig.start("n2")
    await eventually(lambda: one.is_up("n2"))
    block = b"x" * (BULK_BYTES_MAX // 4)
    taken = [one.send("n2", ["bulk", number, block]) for number in range(8)]
    assert taken[:3] == [True] * 3
    assert not all(taken)
    assert one.queued_bytes("n2") <= BULK_BYTES_MAX
    urgent = [one.send("n2", ["urgent", number], urgent=True) for number in range(URGENT_COUNT_MAX + 5)]
    assert urgent == [True] * URGENT_COUNT_MAX + [False] * 5
    await eventually(lambda: len(heard.messages("n1")) == taken.count(True) + URGENT_COUNT_MAX)
    assert one.send("n2", ["again", block]), "there is room again"
    await eventually(lambda: heard.messages("n1")[-1] == ["again", block])


async def test_a_message_cannot_be_changed_after_it_was_sent(rig: Rig) -> None:
    one, _ = await rig.start("n1")
    _, heard = await rig.start("n2")
    await eventually(lambda: one.is_up("n2"))
    message = ["append", [1, 2]]
    one.send("n2", message)
    message[1] = "changed"
    await eventually(lambda: bool(heard.batches))
    assert heard.messages("n1") == [["append", [1, 2]]]


async def test_nobody_there_is_refused_and_send_says_no(rig: Rig) -> None:
    one, heard = await rig.start("n1")
    if isinstance(rig, HttpRig):
        await eventually(lambda: heard.links == [("refused", "n2")])
        await asyncio.sleep(0.3)  # several attempts later
    assert heard.links == ([("refused", "n2")] if isinstance(rig, HttpRig) else [])
    assert not one.is_up("n2")
    assert not one.send("n2", ["x"])
    assert not one.send("nobody", ["x"])
    assert one.queued_bytes("n2") == 0
    assert one.queued_bytes("nobody") == 0


async def test_the_end_of_a_peer_is_reported_once_and_its_return_too(rig: Rig) -> None:
    one, heard = await rig.start("n1")
    await rig.start("n2", incarnation=1)
    await eventually(lambda: one.is_up("n2"))
    before = len(heard.links)
    await rig.stop("n2")
    await eventually(lambda: heard.links[-1:] == [("refused", "n2")])
    assert not one.send("n2", ["lost"])
    two, heard_two = await rig.start("n2", incarnation=2)
    await eventually(lambda: one.is_up("n2") and two.is_up("n1"), within_s=2.0)
    assert heard.links[before:] in (
        [("refused", "n2"), ("up", "n2")],
        [("down", "n2"), ("refused", "n2"), ("up", "n2")],
    )
    one.send("n2", ["kept"])
    two.send("n1", ["new"])
    await eventually(lambda: bool(heard_two.batches) and bool(heard.batches))
    assert heard_two.messages("n1") == [["kept"]]
    assert heard.batches[-1] == ("n2", 2, [["new"]]), "the incarnation is the new one's"


async def test_a_message_that_the_runtime_refuses_ends_the_link(rig: Rig) -> None:
    one, heard_one = await rig.start("n1")
    _, heard = await rig.start("n2")
    await eventually(lambda: one.is_up("n2"))
    heard.bad = ["bad"]
    one.send("n2", ["bad"])
    await eventually(lambda: ("down", "n2") in heard_one.links)
    await eventually(lambda: one.is_up("n2"))
    one.send("n2", ["good"])
    await eventually(lambda: bool(heard.batches))
    assert heard.messages("n1") == [["good"]]


async def test_nothing_is_reported_after_close(rig: Rig) -> None:
    one, heard = await rig.start("n1")
    two, _ = await rig.start("n2")
    await eventually(lambda: one.is_up("n2") and two.is_up("n1"))
    reported = len(heard.links)
    await one.close()
    two.send("n1", ["late"])
    await asyncio.sleep(0.05)
    assert not one.send("n2", ["x"])
    assert len(heard.links) == reported
    assert not heard.batches


# --------------------------------------------------------------------------------- memory only


async def test_memory_faults_work_one_way() -> None:
    rig = MemoryRig(URGENT_COUNT_MAX, BULK_BYTES_MAX)
    one, heard_one = await rig.start("n1")
    two, heard_two = await rig.start("n2")
    rig.network.cut("n1", "n2")
    assert one.send("n2", ["lost"])
    assert two.send("n1", ["kept"])
    await asyncio.sleep(0)
    assert heard_two.batches == []
    assert heard_one.messages("n2") == [["kept"]]
    rig.network.heal("n1", "n2")
    rig.network.drop = lambda source, target, message: bool(message[0] == "drop")
    one.send("n2", ["drop"])
    one.send("n2", ["pass"])
    await asyncio.sleep(0)
    assert heard_two.messages("n1") == [["pass"]]
    rig.network.delay("n1", "n2", 0.02)
    one.send("n2", ["late"])
    await asyncio.sleep(0)
    assert heard_two.messages("n1") == [["pass"]]
    await eventually(lambda: heard_two.messages("n1") == [["pass"], ["late"]])
    rig.network.disconnect("n1", "n2")
    assert not one.is_up("n2")
    assert two.is_up("n1")
    assert heard_one.links[-1] == ("down", "n2")
    rig.network.heal("n1", "n2")
    assert one.is_up("n2")
    assert heard_one.links[-1] == ("up", "n2")
    await rig.close()


# ----------------------------------------------------------------------------------- http only


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"config_digest": "other"}, "cluster.yaml of 'n2' and 'n1' differ"),
        ({"cluster": "staging"}, "another cluster: this is 'demo', not 'staging'"),
        ({"cluster_id": "cluster-id-2"}, "another cluster of the same name 'demo'"),
    ],
)
async def test_http_refuses_who_does_not_belong_here_and_logs_it_once(
    http: HttpRig, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], said: str
) -> None:
    caplog.set_level(logging.WARNING, "ackord.peers")
    _, heard = await http.start("n1")
    two, heard_two = await http.start("n2", **changes)
    await asyncio.sleep(0.4)  # several attempts
    assert not two.is_up("n1")
    assert heard.batches == []
    assert "up" not in dict(heard_two.links)
    refused = [
        record.message for record in caplog.records if "refused a stream of node 'n2'" in record.message
    ]
    assert len(refused) == 1
    assert said in refused[0]


@pytest.mark.parametrize(
    ("hello", "said"),
    [
        (["demo"], "not a hello"),
        ([99, "demo", CLUSTER_ID, "n2", "n1", 1, "digest-1"], "wrong wire version 99"),
        ([PEER_WIRE_VERSION, "demo", CLUSTER_ID, "n9", "n1", 1, "digest-1"], "unknown node 'n9'"),
        ([PEER_WIRE_VERSION, "demo", CLUSTER_ID, "n2", "n3", 1, "digest-1"], "wrong node: this is 'n1'"),
        ([PEER_WIRE_VERSION, "demo", CLUSTER_ID, "n2", "n1", "1", "digest-1"], "incarnation"),
        ([PEER_WIRE_VERSION, "demo", CLUSTER_ID, "n2", "n1"], "malformed"),
        ([PEER_WIRE_VERSION, "demo", 7, "n2", "n1", 1, "digest-1"], "malformed"),
        ({"not": "a list"}, "not a hello"),
    ],
)
async def test_http_refuses_a_wrong_hello(http: HttpRig, hello: object, said: str) -> None:
    await http.start("n1")
    url = f"http://{http.addresses['n1']}{PEER_PATH}"
    async with aiohttp.ClientSession() as session, session.post(url, data=encode_frame(hello)) as response:
        (answer,) = FrameDecoder(1 << 20).feed(await response.read())
    assert answer[0] == -1
    assert said in answer[2]


async def test_http_refuses_while_the_cluster_id_is_unknown_and_then_links(http: HttpRig) -> None:
    one, heard = await http.start("n1", cluster_id=None)
    two, _ = await http.start("n2")
    await asyncio.sleep(0.1)
    assert not two.is_up("n1")
    assert heard.links == []
    one.set_cluster_id(CLUSTER_ID)
    await eventually(lambda: one.is_up("n2") and two.is_up("n1"), within_s=2.0)


def test_http_links_come_up_on_the_event_loop_of_a_real_node() -> None:
    """The other tests run on asyncio's own loop, a node on uvloop, whose transports are of another kind."""

    async def converse() -> None:
        http = HttpRig(100, BULK_BYTES_MAX)
        one, _ = await http.start("n1")
        _, heard = await http.start("n2")
        await eventually(lambda: one.is_up("n2"))
        for number in range(15):
            assert one.send("n2", [number, b"x" * 65_000])
        await eventually(lambda: len(heard.messages("n1")) == 15)
        assert [message[0] for message in heard.messages("n1")] == list(range(15))
        await http.close()

    uvloop.run(converse())


async def test_http_urgent_does_not_wait_behind_bulk(http: HttpRig) -> None:
    """A beacon that is sent behind 1 MiB of bulk arrives before most of it."""
    one, _ = await http.start("n1")
    _, heard = await http.start("n2")
    await eventually(lambda: one.is_up("n2"))
    for number in range(15):
        assert one.send("n2", [number, b"x" * 65_000])
    await asyncio.sleep(0)
    assert one.send("n2", ["beacon"], urgent=True)
    await eventually(lambda: len(heard.messages("n1")) == 16)
    at = heard.messages("n1").index(["beacon"])
    assert at * 65_000 <= 2 * BULK_FRAME_BYTES


async def test_http_a_peer_that_does_not_read_slows_the_sender_down(http: HttpRig) -> None:
    """Backpressure: what a silent peer does not take stays in the bounded queue of the sender."""

    async def never_read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer = encode_frame([PEER_WIRE_VERSION, "n2", 5])
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ackord-stream\r\n\r\n"
        writer.write(head + answer)
        await over.wait()
        writer.close()

    over = asyncio.Event()

    host, port = http.addresses["n2"].split(":")
    server = await asyncio.start_server(never_read, host, int(port), limit=65_536)
    one, _ = await http.start("n1")
    await eventually(lambda: one.is_up("n2"))
    sent = 0
    while one.send("n2", [sent, b"x" * 100_000]) or one.queued_bytes("n2") == 0:
        sent += 1
        await asyncio.sleep(0)
        assert sent < 200, "nothing held the sender back"
    assert one.queued_bytes("n2") <= BULK_BYTES_MAX
    assert one.send("n2", ["beacon"], urgent=True)
    await http.close()
    over.set()
    server.close()
    await server.wait_closed()


async def test_http_a_garbled_stream_ends_and_harms_nobody(http: HttpRig) -> None:
    one, heard = await http.start("n1")
    url = f"http://{http.addresses['n1']}{PEER_PATH}"
    hello = encode_frame([PEER_WIRE_VERSION, "demo", CLUSTER_ID, "n2", "n1", 1, "digest-1"])
    garbage = [b"\xff\xff\xff\xff", b"\x00\x00\x00\x01\xc1", encode_frame({"no": "list"}), encode_frame(5)]
    async with aiohttp.ClientSession() as session:
        for bad in garbage:
            async with session.post(url, data=hello + encode_frame([["good"]]) + bad) as response:
                try:
                    await response.read()
                except aiohttp.ClientError:
                    pass
    await http.start("n2")
    await eventually(lambda: one.is_up("n2"))
    assert {tuple(message) for message in heard.messages("n2")} == {("good",)}


async def test_http_a_newer_stream_of_a_peer_takes_the_place_of_the_old(http: HttpRig) -> None:
    await http.start("n1")
    two, heard_two = await http.start("n2")
    await eventually(lambda: two.is_up("n1"))
    url = f"http://{http.addresses['n1']}{PEER_PATH}"
    hello = encode_frame([PEER_WIRE_VERSION, "demo", CLUSTER_ID, "n2", "n1", 2, "digest-1"])
    async with aiohttp.ClientSession() as session, session.post(url, data=hello) as response:
        await response.content.readany()
    await eventually(lambda: ("down", "n1") in heard_two.links)


async def test_http_a_link_to_an_earlier_run_of_a_peer_is_given_up_once_a_later_one_says_hello(
    http: HttpRig,
) -> None:
    """A machine that lost its power sends no end of its connections: what it was sent would be lost until the kernel
    tries again, minutes later."""

    async def vanished(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(writer)
        writer.write(head + encode_frame([PEER_WIRE_VERSION, "n2", 5]))
        await over.wait()
        writer.close()

    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ackord-stream\r\n\r\n"
    accepted: list[asyncio.StreamWriter] = []
    over = asyncio.Event()
    host, port = http.addresses["n2"].split(":")
    server = await asyncio.start_server(vanished, host, int(port))
    one, heard = await http.start("n1")
    await eventually(lambda: one.is_up("n2"))
    url = f"http://{http.addresses['n1']}{PEER_PATH}"
    async with aiohttp.ClientSession() as session:
        for incarnation, count in ((5, 1), (6, 2)):
            hello = encode_frame([PEER_WIRE_VERSION, "demo", CLUSTER_ID, "n2", "n1", incarnation, "digest-1"])
            async with session.post(url, data=hello) as response:
                await response.content.readany()
            await asyncio.sleep(0.05)
            await eventually(lambda count=count: len(accepted) == count and one.is_up("n2"))  # type: ignore[misc]
    assert heard.links == [("up", "n2"), ("down", "n2"), ("up", "n2")]
    await http.close()
    over.set()
    server.close()
    await server.wait_closed()


# --------------------------------------------------------------------------------------- queue


def test_a_bulk_frame_is_bounded_and_a_big_message_still_leaves() -> None:
    queue = PeerQueue()
    decoder = FrameDecoder(1 << 30)
    big = b"\xc6" + (1 << 20).to_bytes(4, "big") + b"x" * (1 << 20)
    small = b"\xc6" + (100_000).to_bytes(4, "big") + b"y" * 100_000
    for item in (small, small, small, big, small):
        assert queue.push_bulk(item)
    assert queue.push_urgent(b"\x01")
    frames = []
    while queue:
        frames.append([len(frame) for frame in decoder.feed(queue.take())])
    assert frames == [[1, 2], [1], [1], [1]]
    assert queue.queued_bytes == 0
    assert queue.take() == b""


@pytest.mark.parametrize("count", [1, 15, 16, 65_535, 65_536])
def test_a_frame_is_a_msgpack_array_of_any_count(count: int) -> None:
    queue = PeerQueue(urgent_count_max=count)
    for _ in range(count):
        assert queue.push_urgent(b"\x07")
    assert not queue.push_urgent(b"\x07")
    received: list[int] = []
    decoder = FrameDecoder(1 << 20)
    while queue:
        for frame in decoder.feed(queue.take()):
            received.extend(frame)
    assert received == [7] * count
