"""What the newer row operations add to exactly once (rule R16): returned rows, numbered keys, conditions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ackord
from ackord.errors import Conflict, InvalidRequest, OutcomeUnknown, Unavailable
from ackord.expressions import Expression, encode_where
from ackord.wire.keys import AUTO, KeySchema
from ackord.wire.limits import DEFAULT_LIMITS, Limits
from ackord.wire.messages import (
    COND_NONE,
    COND_WHERE,
    KIND_DELETE,
    KIND_PUT,
    KIND_PUT_AUTO,
    KIND_UPDATE,
    RETURN_NEW,
    RETURN_OLD,
)
from ackord.wire.values import decode_columns, encode_columns, encode_update
from tests.scenario.test_requests import send
from tests.support.core_clients import Client, Op
from tests.support.core_cluster import Cluster
from tests.support.core_script import BEACON_CONFIRM, CONFIRM, drops, flows, formed, well

SCHEMA = KeySchema((("k", "bytes"), ("n", "auto")))
PREFIX = SCHEMA.encode_auto((b"p", AUTO))


def increment(client: Client, returning: int) -> Op:
    op = client.op(KIND_UPDATE, b"k0", encode_update(increment={"n": 1}, append={"by": [client.seq]}))
    op.returning = returning
    return op


def numbered(client: Client) -> Op:
    return client.op(KIND_PUT_AUTO, PREFIX, encode_columns({"seq": client.seq}))


def where(client: Client, expression: Expression, key: bytes = b"k0") -> Op:
    blob = encode_where(expression, DEFAULT_LIMITS)
    body = encode_update(set={"state": "b"})
    return client.op(KIND_UPDATE, key, body, COND_WHERE, [COND_NONE, None, blob])  # type: ignore[arg-type]


def take_over(c: Cluster) -> str:
    """Ends the coordinator; who follows."""
    c.crash(c.leader().name)
    c.run_until(lambda: c.coordinator() is not None, 6)
    c.run(0.5)
    return c.leader().name


def columns(result: Any) -> Any:
    return None if result[1] is None else decode_columns(result[1][8:])


def test_a_retry_gets_the_row_of_the_first_time() -> None:
    """New and old row, from the same coordinator and from one that took over, whatever happened meanwhile."""
    c = formed()
    client, other = c.clients[0], c.clients[1]
    ops = [increment(client, RETURN_NEW), increment(client, RETURN_OLD), increment(client, RETURN_OLD)]
    client.open = list(ops)
    first = []
    for op in ops:
        attempt = client.send([op], "n1")
        c.run(0.3)
        first.append(attempt.answers[0])
    assert [columns(result)["n"] for result in first] == [1, 1, 2]
    assert isinstance(send(c, other, other.op(KIND_DELETE, b"k0", None)), int)
    for is_after in (False, True):
        node = take_over(c) if is_after else "n1"
        client.open = list(ops)
        for op, result in zip(ops, first, strict=True):
            attempt = client.send([op], node)
            c.run(0.3)
            assert attempt.answers[0] == result
    assert b"k0" not in c.oracle.rows
    well(c)


def test_the_rows_that_a_takeover_found_in_its_tail_answer_retries() -> None:
    c = formed()
    client = c.clients[0]
    seed = increment(client, RETURN_NEW)
    assert columns(send(c, client, seed))["n"] == 1
    op = increment(client, RETURN_OLD)
    drops(c, CONFIRM)
    assert send(c, client, op, seconds=0.1) is None
    c.crash("n1")
    c.run_until(lambda: c.coordinator() is not None, 6)
    send(c, client, op, c.leader().name, seconds=0.1)
    flows(c)
    c.run(3)
    again = send(c, client, op, c.leader().name)
    assert columns(again) == {"n": 1, "by": [0]}
    assert decode_columns(c.oracle.rows[b"k0"][8:])["n"] == 2
    well(c)


def test_a_copy_that_was_filled_by_a_snapshot_answers_retries_with_the_row() -> None:
    c = formed()
    client = c.clients[0]
    op = increment(client, RETURN_NEW)
    first = send(c, client, op)
    records = c.leader().core.state.requests
    assert records.returned_bytes == len(first[1])
    stored = [(name, record.encode()) for name, record in records.clients.items()]
    again = type(records)()
    again.load(stored)
    assert again.returned_bytes == records.returned_bytes
    assert again.clients[client.id].results[op.seq] == first
    well(c)


def test_a_retry_of_a_numbered_put_gets_the_same_number() -> None:
    c = formed(schema=SCHEMA)
    client = c.clients[0]
    first_op, lost = numbered(client), numbered(client)
    client.open = [first_op, lost]
    attempt = client.send([first_op], "n1")
    c.run(0.3)
    first = attempt.answers[0]
    drops(c, CONFIRM)
    client.send([lost], "n1")
    c.run(0.1)
    c.crash("n1")
    c.run_until(lambda: c.coordinator() is not None, 6)
    flows(c)
    c.run(3)
    again = client.send([first_op, lost], c.leader().name)
    c.run(0.5)
    assert again.answers[0] == first < again.answers[1]
    later = send(c, client, numbered(client), c.leader().name)
    assert later > again.answers[1]
    keys = sorted(key for key in c.oracle.rows if key.startswith(PREFIX))
    assert [SCHEMA.decode(key)[1] for key in keys] == [first, again.answers[1], later]
    well(c)


def test_a_number_never_overwrites_a_row_that_was_put_by_hand() -> None:
    c = formed(schema=SCHEMA)
    client = c.clients[0]
    reached = send(c, client, numbered(client))
    state = c.leader().core.state
    ahead = max(state.last_version + 2, ((c.wall_ms() + 10_000) << 16))
    by_hand = SCHEMA.encode((b"p", ahead))
    assert isinstance(send(c, client, client.op(KIND_PUT, by_hand, encode_columns({"by": "hand"}))), int)
    state.last_version = ahead - 1  # the clock has come this far
    op = numbered(client)
    refused = send(c, client, op)
    assert refused[0] == Unavailable.code
    assert refused[2]["reason"] == "number_taken"
    assert decode_columns(c.oracle.rows[by_hand][8:]) == {"by": "hand"}
    c.put_done()
    assert send(c, client, op) > ahead > reached
    well(c)


def taken_next(c: Cluster, client: Client, seconds: float = 0.5) -> Any:
    """The number that the table gives next is put by hand; the answer to that. (The clock has come so far.)"""
    state = c.leader().core.state
    ahead = max(state.last_version + 2, ((c.wall_ms() + 10_000) << 16))
    by_hand = client.op(KIND_PUT, SCHEMA.encode((b"p", ahead)), encode_columns({"by": "hand"}))
    answer = send(c, client, by_hand, seconds=seconds)
    state.last_version = ahead - 1
    return answer


def test_that_a_number_is_taken_is_said_only_once_the_row_is_committed() -> None:
    """Rule R12: the row may never be."""
    c = formed(schema=SCHEMA)
    first, second = c.clients[0], c.clients[1]
    send(c, second, numbered(second))
    drops(c, CONFIRM)
    assert taken_next(c, first, 0.1) is None
    op = numbered(second)
    attempt = second.send([op], "n1")
    c.run(0.1)
    assert attempt.answers == {}
    flows(c)
    c.run_until(lambda: bool(attempt.answers), 3)
    assert attempt.answers[0][2]["reason"] == "number_taken"
    well(c)


def test_that_a_number_is_taken_needs_the_right_to_answer() -> None:
    """Rules R5 and R12."""
    c = formed(schema=SCHEMA)
    client = c.clients[0]
    send(c, client, numbered(client))
    assert isinstance(taken_next(c, client), int)
    c.run(0.3)
    drops(c, BEACON_CONFIRM)
    c.run_until(lambda: not c.leader().core.may_read(c.leader().clock()), 3)
    answer = send(c, client, numbered(client), seconds=0.05)
    assert answer[2]["reason"] == "no_authority"
    well(c)


def test_a_retry_that_meets_a_taken_number_gets_the_next_one() -> None:
    """Rule R16: a refusal that a retry may overcome is not kept as the write's result."""
    c = formed(schema=SCHEMA)
    client = c.clients[0]
    send(c, client, numbered(client))
    assert isinstance(taken_next(c, client), int)
    op = numbered(client)
    op.attempts = 1  # one was sent, and never answered
    op.since[1] = 0
    refused = send(c, client, op)
    assert refused[2]["reason"] == "number_taken"
    c.put_done()
    assert isinstance(send(c, client, op), int)
    well(c)


def test_a_number_needs_a_table_that_gives_them() -> None:
    for schema in (None, KeySchema((("k", "bytes"), ("n", "int")))):
        c = formed(schema=schema)
        client = c.clients[0]
        op = numbered(client)
        client.open = [op]
        attempt = ResultsOnly(c, client, op)
        assert attempt.result[0] == InvalidRequest.code
        well(c)


class ResultsOnly:
    """One attempt whose answer is looked at by nobody else: the walk's clients never send what is invalid."""

    def __init__(self, c: Cluster, client: Client, op: Op) -> None:
        from ackord_node.core.effects import WriteGroup

        op.attempts += 1
        self.result: Any = None
        c.write(c.nodes["n1"], WriteGroup(self, client.id, client.registered, client.floor, [op.wire()]))
        c.run(0.3)

    def replied(self, indices: list[int] | None, results: list[Any]) -> None:
        self.result = results[0]


def test_a_refused_where_is_recorded_on_a_retry_and_never_runs_later() -> None:
    c = formed()
    client, other = c.clients[0], c.clients[1]
    op = where(client, ackord.col("state") == "a")
    op.attempts = 1
    op.since[1] = 0
    refused = send(c, client, op)
    assert refused[0] == Conflict.code and refused[3] is None
    assert isinstance(send(c, other, other.op(KIND_PUT, b"k0", encode_columns({"state": "a"}))), int)
    op.attempts = 0
    late = send(c, client, op)
    assert isinstance(late, list) and late[0] == Conflict.code
    assert decode_columns(c.oracle.rows[b"k0"][8:]) == {"state": "a"}
    holds = where(client, (ackord.col("state") == "a") & ~ackord.col("gone").exists())
    assert isinstance(send(c, client, holds), int)
    well(c)


def test_returned_rows_of_one_client_are_bounded() -> None:
    """What was not acknowledged counts, in the log's tail too; once the floor rises there is room again."""
    c = formed(limits=replace(Limits(), client_returned_bytes=3000))
    client = c.clients[0]
    ops = []
    for number in range(6):
        op = client.op(KIND_PUT, b"k1", encode_columns({"v": "x" * 1000, "n": number}))
        op.returning = RETURN_NEW
        ops.append(op)
    client.open = list(ops)
    attempt = client.send(ops, "n1")
    c.run(0.3)
    kinds = [result[0] if len(result) > 2 else "done" for _, result in sorted(attempt.answers.items())]
    assert kinds == ["done"] * 3 + [Unavailable.code] * 3
    client.open = ops[3:]
    attempt = client.send(ops[3:], "n1")
    c.run(0.3)
    assert [len(result) for _, result in sorted(attempt.answers.items())] == [2, 2, 2]
    well(c)


def test_clients_are_collected_for_the_rows_that_are_kept_for_them() -> None:
    c = formed(limits=replace(Limits(), returned_bytes=5000))
    first = c.clients[0]

    def put(client: Client) -> Op:
        op = client.op(KIND_PUT, b"k1", encode_columns({"v": client.id.decode() + "x" * 1000}))
        op.returning = RETURN_NEW
        return op

    op = put(first)
    assert len(send(c, first, op)) == 2
    for number in range(5, 14):
        client = Client(c, number)
        assert len(send(c, client, put(client))) == 2
        c.run(0.2)
    requests = c.leader().core.state.requests
    assert first.id not in requests.clients
    assert 0 < requests.returned_bytes <= 6200
    assert requests.returned_bytes == sum(r.returned_bytes for r in requests.clients.values())
    again = send(c, first, op)
    assert again[0] == OutcomeUnknown.code and again[2]["reason"] == "client_collected"
    well(c)
