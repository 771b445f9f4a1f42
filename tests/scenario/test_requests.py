"""Exactly once, and what a refusal means: rules R12, R16, R17."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ackord.errors import Conflict, OutcomeUnknown, Unavailable
from ackord.wire.limits import Limits
from ackord.wire.messages import COND_IF_ABSENT, KIND_PUT, KIND_UPDATE, row_version
from ackord.wire.values import decode_columns, encode_columns, encode_update
from tests.support.core_clients import Client, Op
from tests.support.core_cluster import Cluster
from tests.support.core_script import APPEND, BEACON_CONFIRM, CONFIRM, drops, flows, formed, well


def increment(client: Client) -> Op:
    return client.op(KIND_UPDATE, b"k0", encode_update(increment={"n": 1}))


def send(c: Cluster, client: Client, op: Op, node: str = "n1", seconds: float = 0.3) -> Any:
    client.open = [op]
    attempt = client.send([op], node)
    c.run(seconds)
    return attempt.answers.get(0)


def counter(c: Cluster) -> Any:
    return decode_columns(c.oracle.rows[b"k0"][8:])["n"]


def test_a_retry_of_what_is_done_gets_the_first_result() -> None:
    c = formed()
    client = c.clients[0]
    op = increment(client)
    first = send(c, client, op)
    assert isinstance(first, int)
    assert send(c, client, op) == first
    assert counter(c) == 1
    well(c)


def test_a_retry_of_what_is_in_progress_waits_for_it() -> None:
    c = formed()
    client = c.clients[0]
    op = increment(client)
    drops(c, CONFIRM)
    assert send(c, client, op, seconds=0.1) is None
    assert send(c, client, op, seconds=0.1) is None
    flows(c)
    c.run_until(lambda: op.is_done, 3)
    c.run(0.5)
    assert counter(c) == 1
    well(c)


def test_the_request_table_is_consulted_after_a_takeover() -> None:
    c = formed()
    client = c.clients[0]
    op = increment(client)
    first = send(c, client, op)
    c.crash("n1")
    c.run_until(lambda: c.coordinator() is not None, 6)
    c.run(0.5)
    assert send(c, client, op, c.leader().name) == first
    assert counter(c) == 1
    well(c)


def test_the_tail_that_a_takeover_found_is_in_progress() -> None:
    """Appended by the old coordinator, not committed: a retry must not append it again."""
    c = formed()
    client = c.clients[0]
    op = increment(client)
    drops(c, CONFIRM)
    send(c, client, op, seconds=0.1)
    c.crash("n1")
    c.run_until(lambda: c.coordinator() is not None, 6)
    send(c, client, op, c.leader().name, seconds=0.1)
    flows(c)
    c.run(3)
    again = send(c, client, op, c.leader().name)
    assert isinstance(again, int)
    assert counter(c) == 1
    well(c)


def test_a_request_below_the_floor_is_stale() -> None:
    c = formed()
    client = c.clients[0]
    ops = [increment(client) for _ in range(3)]
    for op in ops:
        client.open = [op]
        assert isinstance(send(c, client, op), int)
    late = send(c, client, ops[0])
    assert late[0] == OutcomeUnknown.code
    assert late[2]["reason"] == "stale"
    assert counter(c) == 3
    well(c)


def test_a_collected_client_is_refused_with_outcome_unknown_and_never_executed() -> None:
    c = formed(limits=replace(Limits(), clients_count=2))
    old = c.clients[0]
    op = increment(old)
    assert isinstance(send(c, old, op), int)
    for number in range(5, 10):
        client = Client(c, number)
        assert isinstance(send(c, client, increment(client)), int)
    assert old.id not in c.leader().core.state.requests.clients
    again = send(c, old, op)
    assert again[0] == OutcomeUnknown.code
    assert again[2]["reason"] == "client_collected"
    assert counter(c) == 6
    well(c)


def test_a_refusal_is_recorded_once_an_earlier_attempt_may_be_under_way() -> None:
    """The second attempt is refused and answered; the first, late, must not run after that."""
    c = formed()
    client = c.clients[0]
    other = c.clients[1]
    c.put_done(b"k1")
    body = encode_columns({"v": "mine"})
    op = client.op(KIND_PUT, b"k1", body, COND_IF_ABSENT)
    op.attempts = 1
    op.since[1] = 0
    refused = send(c, client, op)
    assert refused[0] == Conflict.code
    assert row_version(refused[3]) == row_version(c.oracle.rows[b"k1"])
    deleted = other.op(3, b"k1", None)
    assert isinstance(send(c, other, deleted), int)
    op.attempts = 0
    late = send(c, client, op)
    assert isinstance(late, list) and late[0] == Conflict.code
    assert b"k1" not in c.oracle.rows
    well(c)


def test_negative_answers_wait_for_what_they_were_judged_on() -> None:
    """Rule R12: the row that stands in the way is not committed; it may never be."""
    c = formed()
    first, second = c.clients[0], c.clients[1]
    drops(c, CONFIRM)
    put = first.op(KIND_PUT, b"k2", encode_columns({"v": 1}))
    send(c, first, put, seconds=0.1)
    refused = second.op(KIND_PUT, b"k2", encode_columns({"v": 2}), COND_IF_ABSENT)
    assert send(c, second, refused, seconds=0.1) is None
    flows(c)
    c.run_until(lambda: refused.is_done, 3)
    assert refused.outcome[0] == Conflict.code
    well(c)


def test_negative_answers_need_the_right_to_answer() -> None:
    """Rules R5 and R12: a coordinator that may have been replaced does not judge by its state."""
    c = formed()
    c.put_done(b"k1")
    c.run(0.3)
    drops(c, BEACON_CONFIRM)
    c.run_until(lambda: not c.leader().core.may_read(c.leader().clock()), 3)
    client = c.clients[0]
    op = client.op(KIND_PUT, b"k1", encode_columns({"v": "no"}), COND_IF_ABSENT)
    answer = send(c, client, op, seconds=0.05)
    assert answer[0] == Unavailable.code
    assert answer[2]["reason"] == "no_authority"
    well(c)


def test_a_write_that_was_appended_is_unknown_when_the_epoch_ends() -> None:
    """Rule R17; and one that was never appended is certainly not done."""
    c = formed()
    drops(c, APPEND)
    op = c.put(node="n1")
    c.run(0.05)
    c.cut("n1")
    c.service.end_session(c.nodes["n1"], c.nodes["n1"].session)
    c.service.disconnect(c.nodes["n1"])
    c.run_until(lambda: c.service.descriptor.coordinator != "n1", 6)
    c.mend()
    c.run_until(lambda: op.last_error is not None, 3)
    assert op.last_error[0] == OutcomeUnknown.code
    other = c.put(node="n1")
    c.run(0.05)
    assert other.last_error[0] == Unavailable.code
    assert other.last_error[2]["reason"] == "not_coordinator"
    well(c)


def test_a_retry_after_every_node_restarted_gets_the_first_result() -> None:
    """The result is stored with the rows, in the same batch."""
    c = formed()
    client = c.clients[0]
    op = increment(client)
    first = send(c, client, op)
    c.put_done()
    c.run(0.5)
    for name in c.nodes:
        c.crash(name)
        assert c.nodes[name].disk.meta.applied > 0
    c.start()
    c.run_until(c.is_well, 20)
    assert send(c, client, op, c.leader().name) == first
    assert counter(c) == 1
    well(c)
