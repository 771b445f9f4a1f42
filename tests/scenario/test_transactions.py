"""Transactions through conflicts, retries and takeovers, in virtual time (rules R12, R16, R17)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ackord.errors import Conflict, InvalidRequest, OutcomeUnknown, Unavailable
from ackord.wire.extras import encode_extras
from ackord.wire.keys import KeySchema
from ackord.wire.limits import Limits
from ackord.wire.messages import (
    COND_IF_ABSENT,
    COND_IF_VERSION,
    COND_MERGE,
    KIND_DELETE,
    KIND_PUT,
    KIND_PUT_AUTO,
    KIND_UPDATE,
    is_error,
    row_columns,
    row_expires_ms,
    row_version,
)
from ackord.wire.options import TableOptions
from ackord.wire.values import decode_columns, encode_columns, encode_update
from ackord_node.core import effects as e
from tests.support.core_cluster import Cluster
from tests.support.core_script import APPEND, BEACON_CONFIRM, CONFIRM, drops, flows, formed, well
from tests.support.core_transactions import Tx, account, committed_rows, may_answer, opened, total, transfer


def rows_of(c: Cluster) -> dict[bytes, Any]:
    return {key: decode_columns(row_columns(row)) for key, row in c.oracle.rows.items()}


def test_all_rows_of_a_transaction_share_its_version_and_its_entry() -> None:
    c = formed()
    tx = Tx(c, b"a", 1)
    tx.put(account(1), {"n": 1})
    tx.put(account(2), {"n": 2})
    tx.write(KIND_UPDATE, account(1), encode_update(increment={"n": 5}))
    version = tx.done()
    assert rows_of(c) == {account(1): {"n": 6}, account(2): {"n": 2}}
    assert {row_version(row) for row in c.oracle.rows.values()} == {version}
    entry = c.oracle.truth[-1]
    assert [group[4] for group in entry.groups] == [[[account(1), account(2)]]]
    assert entry.version == entry.last_version == version
    well(c)


def test_a_row_that_changed_since_it_was_read_is_a_conflict() -> None:
    c = formed()
    opened(c)
    slow, fast = Tx(c, b"slow", 1), Tx(c, b"fast", 1)
    transfer(c, slow, c.nodes["n2"], 0, 1, 10)
    transfer(c, fast, c.nodes["n3"], 1, 2, 5)
    assert isinstance(fast.done(), int)
    refused = slow.done()
    assert refused[0] == Conflict.code
    assert (refused[2]["condition"], refused[2]["reads"], refused[2]["ranges"]) == ("transaction", [1], [])
    assert rows_of(c) == {account(0): {"n": 100}, account(1): {"n": 95}, account(2): {"n": 105}}
    well(c)


def test_a_phantom_in_a_range_is_a_conflict_and_one_beside_it_is_none() -> None:
    c = formed()
    opened(c)
    first, second = Tx(c, b"a", 1), Tx(c, b"b", 1)
    for tx in (first, second):
        tx.scan(c.nodes["n2"], account(0), account(5))
        tx.put(account(9) + tx.request[0], {"n": 0})
    other = Tx(c, b"c", 1)
    other.put(account(7), {"n": 0})  # beside the range
    assert isinstance(other.done(), int)
    assert isinstance(first.done(), int)
    phantom = Tx(c, b"d", 1)
    phantom.put(account(3), {"n": 0})
    assert isinstance(phantom.done(), int)
    refused = second.done()
    assert refused[0] == Conflict.code
    assert (refused[2]["reads"], refused[2]["ranges"]) == ([], [0])
    well(c)


def test_a_deletion_and_an_overwrite_inside_of_a_range_are_conflicts() -> None:
    for kind, body in ((KIND_DELETE, None), (KIND_PUT, encode_columns({"n": 100}))):
        c = formed()
        opened(c)
        reader, writer = Tx(c, b"a", 1), Tx(c, b"b", 1)
        reader.scan(c.nodes["n2"])
        reader.put(account(8), {"n": 0})
        writer.write(kind, account(1), body)
        assert isinstance(writer.done(), int)
        reader.done()
        assert reader.is_conflict
        well(c)


def test_nothing_is_done_if_one_condition_does_not_hold() -> None:
    c = formed()
    opened(c)
    tx = Tx(c, b"a", 1)
    tx.put(account(0), {"n": 1})
    tx.put(account(1), {"n": 2}, COND_IF_ABSENT)
    refused = tx.done()
    assert refused[0] == Conflict.code
    assert (refused[2]["write"], refused[2]["condition"]) == (1, "if_absent")
    assert decode_columns(row_columns(refused[3])) == {"n": 100}
    assert total(c) == 300
    leader = c.leader().core
    assert leader.reads.newest_row(account(0)) == c.oracle.rows[account(0)], "nothing of it is pending"
    well(c)


def test_conditions_see_what_the_transaction_wrote_before() -> None:
    c = formed()
    tx = Tx(c, b"a", 1)
    tx.put(account(0), {"n": 1}, COND_IF_ABSENT)
    tx.write(KIND_DELETE, account(0), None)
    tx.put(account(0), {"n": 2}, COND_IF_ABSENT)
    assert isinstance(tx.done(), int)
    again = Tx(c, b"a", 2)
    again.write(KIND_DELETE, account(0), None)
    again.put(account(0), {"n": 3}, COND_IF_VERSION, tx.result)
    assert again.done()[2]["write"] == 1
    assert rows_of(c) == {account(0): {"n": 2}}
    well(c)


def test_a_retry_of_a_committed_transaction_gets_the_first_version() -> None:
    c = formed()
    opened(c)
    tx = Tx(c, b"a", 1)
    transfer(c, tx, c.nodes["n2"], 0, 1, 10)
    version = tx.done()
    tx.result = None
    assert tx.done() == version, "what it read has changed, by itself; it is not judged again"
    assert rows_of(c)[account(0)] == {"n": 90}
    well(c)


def test_a_retry_after_a_takeover_gets_the_first_version() -> None:
    c = formed()
    opened(c)
    tx = Tx(c, b"a", 1)
    transfer(c, tx, c.nodes["n2"], 0, 1, 10)
    version = tx.done()
    c.crash("n1")
    c.run_until(lambda: c.coordinator() is not None, 6)
    tx.result = None
    assert tx.done() == version
    assert rows_of(c)[account(0)] == {"n": 90}
    well(c)


def test_a_prepared_transaction_is_committed_whole_by_the_next_coordinator() -> None:
    """Appended everywhere, confirmed nowhere: the takeover keeps the tail, and the retry finds its result."""
    c = formed()
    opened(c)
    tx = Tx(c, b"a", 1)
    transfer(c, tx, c.nodes["n2"], 0, 1, 10)
    drops(c, CONFIRM)
    tx.send("n1")
    c.run(0.1)
    assert not tx.is_done
    c.crash("n1")
    flows(c)
    version = tx.done()
    assert isinstance(version, int)
    assert rows_of(c)[account(0)] == {"n": 90} and rows_of(c)[account(1)] == {"n": 110}
    assert total(c) == 300
    well(c)


def test_a_transaction_that_reached_nobody_is_judged_anew() -> None:
    """The old coordinator appended it and died; what the next one knows decides."""
    c = formed()
    opened(c)
    tx = Tx(c, b"a", 1)
    transfer(c, tx, c.nodes["n2"], 0, 1, 10)
    drops(c, APPEND)
    tx.send("n1")
    c.run(0.05)
    c.crash("n1")
    flows(c)
    c.run_until(lambda: c.coordinator() is not None, 10)
    other = Tx(c, b"b", 1)
    other.put(account(0), {"n": 100})
    assert isinstance(other.done(), int)
    assert tx.done()[0] == Conflict.code
    assert total(c) == 300
    well(c)


def test_a_refused_transaction_does_not_run_when_its_first_attempt_comes_late() -> None:
    c = formed()
    opened(c)
    blocker = Tx(c, b"b", 1)
    blocker.put(account(5), {"n": 0})
    assert isinstance(blocker.done(), int)
    tx = Tx(c, b"a", 1)
    tx.put(account(0), {"n": 1})
    tx.put(account(5), {"n": 2}, COND_IF_ABSENT)
    tx.attempts = 1  # the first is on its way
    assert tx.done()[0] == Conflict.code
    gone = Tx(c, b"b", 2)
    gone.write(KIND_DELETE, account(5), None)
    assert isinstance(gone.done(), int)
    tx.result, tx.attempts = None, 0
    late = tx.done()
    assert late[0] == Conflict.code and late[2]["repeated"] is True
    assert total(c) == 300
    well(c)


def test_a_conflict_with_a_pending_write_waits_for_it() -> None:
    """Rule R12: what stands in the way is not committed; it may never be."""
    c = formed()
    opened(c)
    tx = Tx(c, b"a", 1)
    transfer(c, tx, c.nodes["n2"], 0, 1, 10)
    drops(c, CONFIRM)
    other = Tx(c, b"b", 1)
    other.put(account(0), {"n": 100})
    other.send("n1")
    c.run(0.02)
    tx.send("n1")
    c.run(0.1)
    assert not tx.answers
    flows(c)
    c.run_until(lambda: tx.is_done, 3)
    assert tx.is_conflict
    well(c)


def test_a_read_only_transaction_leaves_no_record_and_waits_like_a_read() -> None:
    c = formed()
    opened(c)
    tx = Tx(c, b"a", 1)
    tx.scan(c.nodes["n2"])
    tx.get(c.nodes["n3"], account(9))
    end = c.leader().core.state.log.end
    version = tx.done()
    assert version == row_version(c.oracle.rows[account(0)])
    assert c.leader().core.state.log.end == end
    stale = Tx(c, b"a", 2)
    stale.scan(c.nodes["n2"])
    drops(c, CONFIRM)
    other = Tx(c, b"b", 1)
    other.put(account(7), {"n": 0})
    other.send("n1")
    c.run(0.02)
    stale.send("n1")
    waiting = Tx(c, b"c", 1)
    waiting.reads = [[account(0), version]]
    waiting.send("n1")
    c.run(0.1)
    assert not stale.answers and not waiting.answers
    flows(c)
    c.run_until(lambda: stale.is_done and waiting.is_done, 3)
    assert stale.is_conflict
    assert waiting.result == other.result
    well(c)


def test_a_coordinator_without_authority_answers_no_read_only_transaction() -> None:
    c = formed()
    opened(c)
    c.run(0.3)
    reader, loser = Tx(c, b"a", 1), Tx(c, b"b", 1)
    reader.scan(c.nodes["n2"])
    loser.reads = [[account(0), 1]]
    loser.put(account(0), {"n": 0})
    drops(c, BEACON_CONFIRM)
    c.run_until(lambda: not c.leader().core.may_read(c.leader().clock()), 3)
    for tx in (reader, loser):
        tx.send("n1")
        c.run(0.05)
        assert is_error(tx.answers[0])
        assert tx.answers[0][0] == Unavailable.code
        assert tx.answers[0][2]["reason"] == "no_authority"
    well(c)


def test_a_transaction_that_was_appended_is_unknown_when_the_epoch_ends() -> None:
    c = formed()
    opened(c)
    tx = Tx(c, b"a", 1)
    transfer(c, tx, c.nodes["n2"], 0, 1, 10)
    drops(c, APPEND)
    tx.send("n1")
    c.run(0.05)
    c.cut("n1")
    c.service.end_session(c.nodes["n1"], c.nodes["n1"].session)
    c.service.disconnect(c.nodes["n1"])
    c.run_until(lambda: c.service.descriptor.coordinator != "n1", 6)
    c.mend()
    c.run_until(lambda: bool(tx.answers), 3)
    assert tx.answers[0][0] == OutcomeUnknown.code
    flows(c)
    assert isinstance(tx.done(), int)
    assert total(c) == 300
    well(c)


def test_an_entry_is_never_split_inside_of_a_transaction() -> None:
    c = formed(log=replace(Cluster(1).profile.log, entry_bytes=64))
    group = [Tx(c, b"a", seq) for seq in (1, 2, 3)]
    for tx in group:
        for number in range(6):
            tx.put(account(number), {"n": 0, "pad": "x" * 60})
        c.oracle.transactions[tx.request] = (tx.reads, tx.ranges, tx.writes)
        tx.attempts = 1
    answers: dict[int, Any] = {}

    class Together:
        def replied(self, indices: list[int] | None, results: list[Any]) -> None:
            answers.update(zip(range(3) if indices is None else indices, results, strict=True))

    end = c.leader().core.state.log.end
    writes = e.WriteGroup(Together(), b"a", c.wall_ms() << 16, 1, [tx.op() for tx in group])
    c.write(c.leader(), writes)
    c.run_until(lambda: len(answers) == 3, 3)
    entries = [entry for entry in c.oracle.truth if entry.index > end]
    assert [[len(keys) for keys in entry.groups[0][4]] for entry in entries] == [[6], [6], [6]]
    assert [entry.version for entry in entries] == [answers[at] for at in range(3)]
    well(c)


def test_every_reader_sees_all_of_a_transaction_or_nothing() -> None:
    c = formed()
    opened(c)
    seen = set()
    tx = Tx(c, b"a", 1)
    transfer(c, tx, c.nodes["n2"], 0, 1, 10)
    tx.send("n1")
    for _ in range(400):
        c.run(0.0002)
        for node in c.nodes.values():
            if may_answer(node, b"p", b"q"):
                rows = [decode_columns(row_columns(row))["n"] for _, row in committed_rows(node, b"p", b"q")]
                seen.add(tuple(rows))
    assert seen == {(100, 100, 100), (90, 110, 100)}
    well(c)


def test_a_lost_copy_is_refilled_with_whole_transactions() -> None:
    c = formed(options=TableOptions(keep_versions=3))
    opened(c)
    c.crash("n3")
    c.run_until(lambda: c.in_sync() == ["n1", "n2"], 10)
    versions = []
    for seq in range(1, 5):
        tx = Tx(c, b"a", seq)
        transfer(c, tx, c.nodes["n2"], seq % 3, (seq + 1) % 3, seq)
        versions.append(tx.done())
    c.lose_disk("n3")
    c.start("n3")
    c.run_until(c.is_well, 30)
    for name in ("n2", "n3"):
        reads = c.nodes[name].core.reads
        for version in versions[-2:]:
            rows = [reads.row_as_of(account(number), version) for number in range(3)]
            assert sum(decode_columns(row_columns(row))["n"] for row in rows if row is not None) == 300
    well(c)


def test_what_writes_of_a_table_with_history_can_do_they_can_do_inside() -> None:
    """A merge from a base, rows that expire, a numbered row."""
    schema = KeySchema((("p", "bytes"), ("n", "auto")))
    c = formed(options=TableOptions(keep_versions=5, merge={"n": "sum"}), schema=schema)
    key = schema.encode((b"p", 5))
    first = Tx(c, b"a", 1)
    first.write(KIND_PUT, key, encode_columns({"n": 10}))
    base = first.done()
    second = Tx(c, b"a", 2)
    second.write(KIND_UPDATE, key, encode_update(increment={"n": 7}))
    second.done()
    third = Tx(c, b"a", 3)
    third.write(KIND_PUT, key, encode_columns({"n": 11}), COND_MERGE, base)
    third.write(KIND_PUT, schema.encode((b"p", 6)), encode_extras(encode_columns({"n": 0}), 1.0))
    assert isinstance(third.done(), int)
    assert rows_of(c)[key] == {"n": 18}
    c.run_until(lambda: schema.encode((b"p", 6)) not in c.oracle.rows, 20, "it is swept")

    fourth = Tx(c, b"a", 4)
    fourth.write(KIND_PUT_AUTO, schema.encode_prefix((b"p",)), encode_columns({"n": 1}))
    c.oracle.transactions[fourth.request] = None

    def replayed(request: Any, keys: list[bytes], rows: Any, version: int, index: int) -> None:
        assert keys == [schema.encode((b"p", version))]
        for key, row in zip(keys, rows, strict=True):
            c.oracle._take(key, row, index)

    c.oracle._replay_transaction = replayed  # type: ignore[method-assign]
    assert isinstance(fourth.done(), int)
    fifth = Tx(c, b"a", 5)
    for _ in range(2):
        fifth.write(KIND_PUT_AUTO, schema.encode_prefix((b"p",)), encode_columns({"n": 1}))
    refused = fifth.done()
    assert refused[0] == InvalidRequest.code and "one row of each prefix" in refused[1]


def test_an_update_leaves_the_expiry_that_the_same_transaction_or_entry_gave() -> None:
    """Also where that row is the first of the tablet to expire, so that the clock does not run yet."""
    c = formed()
    ttl = encode_extras(encode_columns({"n": 0}), 5.0)
    tx = Tx(c, b"a", 1)
    tx.write(KIND_PUT, account(0), ttl)
    tx.write(KIND_UPDATE, account(0), encode_update(increment={"n": 1}))
    tx.done()
    assert row_expires_ms(c.oracle.rows[account(0)])
    d = formed()
    answers: list[Any] = []

    class Both:
        def replied(self, indices: list[int] | None, results: list[Any]) -> None:
            answers.extend(results)

    ops = [
        [1, KIND_PUT, account(0), ttl, 0, None, 1],
        [2, KIND_UPDATE, account(0), encode_update(increment={"n": 1}), 0, None, 1],
    ]
    d.write(d.leader(), e.WriteGroup(Both(), b"a", d.wall_ms() << 16, 1, ops))
    d.run_until(lambda: len(answers) == 2, 3)
    assert row_expires_ms(d.oracle.rows[account(0)])


def test_the_rows_that_a_transaction_leaves_are_bounded() -> None:
    c = formed(limits=replace(Limits(), transaction_bytes=2_000))
    for number in range(2):
        tx = Tx(c, b"a", number + 1)
        tx.put(account(number), {"n": 0, "pad": "x" * 1200})
        assert isinstance(tx.done(), int)
    tx = Tx(c, b"a", 3)
    for number in range(2):
        tx.write(KIND_UPDATE, account(number), encode_update(increment={"n": 1}))
    refused = tx.done()
    assert refused[0] == InvalidRequest.code
    assert refused[2]["field"] == "transaction_bytes"
    assert total(c) == 0
    well(c)


def test_an_expired_row_is_absent_for_what_was_read() -> None:
    """Hidden at the log's end: whoever read it alive conflicts, whoever read it as absent does not."""
    c = formed()
    tx = Tx(c, b"a", 1)
    tx.write(KIND_PUT, account(0), encode_extras(encode_columns({"n": 0}), 0.5))
    tx.done()
    alive = Tx(c, b"b", 1)
    alive.scan(c.nodes["n2"])
    alive.put(account(1), {"n": 0})
    assert alive.ranges[0][2]
    c.run_until(lambda: c.leader().core.reads.newest_row(account(0)) is None, 20, "it expires")
    gone = Tx(c, b"b", 2)
    gone.reads = [[account(0), None]]
    gone.ranges = [[b"p", b"q", []]]
    assert c.leader().core.reads.newest_range(b"p", b"q", 10, 1 << 20) == []
    alive.done()
    assert alive.is_conflict
    assert isinstance(gone.done(), int)
    well_without_writes(c)


def well_without_writes(c: Cluster) -> None:
    flows(c)
    c.run_until(c.is_well, 30, "all is well")
    c.check_end()
