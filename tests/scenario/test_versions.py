"""Versions, expiry (rule R20) and merges through takeovers, jumping clocks and lost disks, in virtual time."""

from __future__ import annotations

import random
from typing import Any

import pytest

from ackord.errors import Conflict, InvalidRequest, OutcomeUnknown, Unavailable, VersionCollected
from ackord.wire.extras import encode_extras
from ackord.wire.messages import (
    COND_IF_ABSENT,
    COND_MERGE,
    COND_NONE,
    KIND_PUT,
    KIND_UPDATE,
    row_columns,
    row_version,
)
from ackord.wire.options import TableOptions
from ackord.wire.values import decode_columns, encode_columns, encode_update
from ackord_node.core import effects as e
from ackord_node.core import messages as m
from ackord_node.core.expiry import CLOCK_AHEAD_MS
from tests.support.core_cluster import Cluster, Node
from tests.support.core_script import drops, flows, formed, lead, well

KEY = b"k\x00\x01"


class Call:
    """One write, retried under its id on whoever coordinates, until its version or a definite error is known."""

    def __init__(
        self,
        c: Cluster,
        client: bytes,
        seq: int,
        kind: int,
        body: bytes,
        cond: int = COND_NONE,
        value: Any = None,
    ) -> None:
        self._c = c
        self._op: list[Any] = [seq, kind, KEY, body, cond, value, 0]
        self._client = client
        self._registered = c.wall_ms() << 16
        self.result: Any = None
        self.answers: list[Any] = []
        self._send()

    @property
    def is_done(self) -> bool:
        return self.result is not None

    def _send(self) -> None:
        if self.is_done:
            return
        c = self._c
        self._op[6] += 1
        group = e.WriteGroup(self, self._client, self._registered, 1, [list(self._op)])
        node = c.nodes[c.likely_coordinator()]
        c.at_node(node, lambda: c.write(node, group), c.delay())
        c.at(0.3, self._send)

    def replied(self, indices: list[int] | None, results: list[Any]) -> None:
        (result,) = results
        self.answers.append(result)
        is_open = isinstance(result, list) and result[0] in (Unavailable.code, OutcomeUnknown.code)
        if not is_open and not self.is_done:
            self.result = result


def write(c: Cluster, client: bytes, seq: int, *rest: Any) -> Any:
    call = Call(c, client, seq, *rest)
    c.run_until(lambda: call.is_done, 10, "the write is decided")
    return call.result


def put(c: Cluster, seq: int, columns: dict[str, Any], ttl: float | None = None) -> int:
    version = write(c, b"putter", seq, KIND_PUT, encode_extras(encode_columns(columns), ttl))
    assert isinstance(version, int), version
    return version


def row_at(node: Node) -> dict[str, Any] | None:
    row = node.core.reads.committed_row(KEY)
    return None if row is None else decode_columns(row_columns(row))


def clocks(c: Cluster) -> list[int]:
    return [node.core.state.clock.at_commit for node in c.nodes.values() if node.is_up]


# -------------------------------------------------------------------------------------- versions


def test_every_replica_tells_each_version_over_takeovers_and_a_lost_disk() -> None:
    c = formed(options=TableOptions(keep_versions=4))
    versions = [put(c, seq, {"n": seq}) for seq in range(1, 4)]
    c.crash("n1")
    c.run_until(lambda: c.coordinator() is not None, 10)
    versions += [put(c, seq, {"n": seq}) for seq in range(4, 7)]
    c.lose_disk("n1")
    c.start("n1")
    c.run_until(c.is_well, 30)
    for node in c.nodes.values():
        reads = node.core.reads
        for seq, version in enumerate(versions, 1):
            if seq < 3:
                with pytest.raises(VersionCollected):
                    reads.row_as_of(KEY, version)
                continue
            row = reads.row_as_of(KEY, version)
            assert row is not None and decode_columns(row_columns(row)) == {"n": seq}
        found, _, is_last = reads.history(KEY, 1 << 62, 10)
        assert ([version for version, _ in found], is_last) == (versions[:1:-1], True)
    well(c)


def test_what_is_committed_and_not_applied_is_part_of_the_history() -> None:
    c = formed(options=TableOptions(keep_versions=9))
    versions = [put(c, 1, {"n": 1})]
    for node in c.nodes.values():
        node.disk_is_busy = False
    leader = c.leader()
    versions += [put(c, seq, {"n": seq}) for seq in range(2, 6)]
    s = leader.core.state
    assert s.applied < s.commit or len(leader.disk.now.history) >= 4
    for as_of, seq in zip(versions, range(1, 6), strict=True):
        row = leader.core.reads.row_as_of(KEY, as_of)
        assert row is not None and decode_columns(row_columns(row)) == {"n": seq}
        assert leader.core.reads.row_as_of(KEY, as_of - 1) != row
    well(c)


def test_no_write_gets_a_version_that_was_read_as_of() -> None:
    c = formed(options=TableOptions(keep_versions=2))
    version = put(c, 1, {"n": 1})
    ahead = version + (5_000 << 16)
    c.step(c.leader(), e.AdvanceVersion(ahead))
    c.run_until(lambda: all(node.core.state.commit_version >= ahead for node in c.nodes.values()), 2)
    lead(c, "n2")
    assert put(c, 2, {"n": 2}) > ahead
    for node in c.nodes.values():
        row = node.core.reads.row_as_of(KEY, ahead)
        assert row is not None and row_version(row) == version
    well(c)


# ---------------------------------------------------------------------------------------- expiry


def test_a_row_is_gone_on_every_replica_and_swept_from_every_disk() -> None:
    c = formed()
    put(c, 1, {"n": 1}, ttl=3.0)
    c.run(1.0)
    assert all(row_at(node) == {"n": 1} for node in c.nodes.values())
    c.run(5.0)
    assert all(row_at(node) is None for node in c.nodes.values())
    c.run_until(lambda: all(KEY not in node.disk.now.rows for node in c.nodes.values()), 5, "it is swept")
    assert write(c, b"other", 1, KIND_PUT, encode_columns({"n": 2}), COND_IF_ABSENT) > 0
    well(c)


def test_rows_expire_after_a_takeover_and_a_restart_of_all() -> None:
    c = formed(options=TableOptions(ttl=4.0))
    put(c, 1, {"n": 1})
    c.run(1.0)
    c.crash("n1")
    c.run_until(lambda: c.coordinator() is not None, 10)
    c.start("n1")
    c.run(6.0)
    assert all(row_at(node) is None for node in c.nodes.values())
    put(c, 2, {"n": 2})
    for name in list(c.nodes):
        c.crash(name)
    c.start()
    c.run_until(c.is_well, 20)
    assert all(node.disk.meta.clock_ms for node in c.nodes.values())
    c.run_until(lambda: all(KEY not in node.disk.now.rows for node in c.nodes.values()), 20, "it is swept")
    well(c)


def test_a_row_that_is_written_after_a_takeover_lives_its_time_though_the_wall_clock_is_behind() -> None:
    """Its version, from which its time counts, is not below the tablet's clock."""
    c = formed(options=TableOptions(ttl=4.0))
    put(c, 1, {"n": 1})
    c.run_until(lambda: row_at(c.leader()) is None, 10)
    for node in c.nodes.values():
        node.wall_skew_ms -= 60_000
    lead(c, "n2")
    put(c, 2, {"n": 2})
    assert row_at(c.leader()) == {"n": 2}
    c.run(3.0)
    assert all(row_at(node) == {"n": 2} for node in c.nodes.values())
    well(c)


def test_it_is_told_how_many_rows_expired_and_how_late() -> None:
    """A member whose wall clock lags holds the tablet's clock back: that shows."""
    c = formed(options=TableOptions(ttl=4.0))
    put(c, 1, {"n": 1})
    leader, coordinator = c.leader(), c.leader().core.coordinator
    assert coordinator is not None
    expiry = coordinator.expiry
    c.run(2.0)
    assert expiry.lag_s(leader.clock()) == 0
    c.nodes["n2"].wall_skew_ms -= 20_000
    c.run(14.0)
    assert 11 < expiry.lag_s(leader.clock()) < 13
    assert leader.core.state.upkeep.take_counts() == (0, 0)
    c.nodes["n2"].wall_skew_ms += 20_000
    c.run(4.0)
    assert expiry.lag_s(leader.clock()) == 0
    assert leader.core.state.upkeep.take_counts() == (1, 0)
    assert leader.core.state.upkeep.take_counts() == (0, 0)
    well(c)


@pytest.mark.parametrize("who", ["n1", "n2"])
def test_a_jump_of_one_wall_clock_expires_nothing(who: str) -> None:
    """The coordinator's or a member's."""
    c = formed(options=TableOptions(ttl=60.0))
    put(c, 1, {"n": 1})
    c.run(3.0)
    c.nodes[who].wall_skew_ms += 10_000_000
    c.run(20.0)
    assert all(row_at(node) == {"n": 1} for node in c.nodes.values())
    c.run(50.0)
    assert all(row_at(node) is None for node in c.nodes.values())
    well(c)


def test_a_coordinator_whose_wall_clock_is_ahead_expires_nothing() -> None:
    """The first reading of an epoch has nothing before it that bounds it but the clocks of the members."""
    c = formed()
    put(c, 1, {"n": 1}, ttl=60.0)
    c.nodes["n2"].wall_skew_ms += 10_000_000
    c.crash("n1")
    c.run_until(lambda: c.coordinator() is not None, 10)
    assert c.leader().name == "n2"
    c.run(8.0)
    assert row_at(c.leader()) == {"n": 1}
    well(c)


def test_a_jump_of_all_wall_clocks_expires_nothing_within_an_epoch() -> None:
    c = formed()
    put(c, 1, {"n": 1}, ttl=1.0)
    c.run(4.0)  # the epoch has read the clock by now
    assert row_at(c.leader()) is None
    put(c, 2, {"n": 2}, ttl=60.0)
    before = clocks(c)[0]
    begun = c.now
    for node in c.nodes.values():
        node.wall_skew_ms += 10_000_000
    put(c, 3, {"n": 3}, ttl=1.0)
    c.run(20.0)
    assert max(clocks(c)) <= before + (c.now - begun) * 1000 + 5_000 + CLOCK_AHEAD_MS
    assert all(row_at(node) is not None for node in c.nodes.values()), "it was written at the new time"


def test_the_clock_stands_still_while_a_member_does_not_tell_its_own() -> None:
    """A member of the release before confirms beacons without it."""
    c = formed(options=TableOptions(ttl=2.0))
    before = c.hold

    def shorten(a: str, b: str, message: list[Any]) -> bool:
        if message[0] == m.BEACON_CONFIRM and a == "n3" and len(message) > 8:
            del message[8:]
        return before(a, b, message)

    c.hold = shorten
    c.run(1.0)
    put(c, 1, {"n": 1})
    stood = clocks(c)
    c.run(8.0)
    assert clocks(c) == stood and row_at(c.leader()) == {"n": 1}
    c.hold = before
    c.run_until(lambda: row_at(c.leader()) is None, 5, "it goes on once all tell")
    well(c)


def test_a_read_at_a_member_waits_for_a_reading_of_the_clock_that_hides_its_row() -> None:
    """What was gone at one replica must not come back at another (rule R12)."""
    c = formed()
    put(c, 1, {"n": 1}, ttl=2.0)
    c.run(0.5)
    drops(c, m.COMMIT, target="n2")
    drops(c, m.BEACON, target="n2")
    member = c.nodes["n2"]
    c.run_until(lambda: row_at(c.leader()) is None, 6, "gone at the coordinator")
    assert member.core.state.clock.at_commit < c.leader().core.state.clock.at_commit
    rows: list[Any] = []

    class Asker:
        def replied(self, indices: list[int] | None, results: list[Any]) -> None:
            rows.extend(results)

    answer = member.core.get_many(Asker(), [KEY], member.clock())
    assert answer is None or answer == ([None], [0]), "no lease, or it waits"
    assert member.core.has_pending_in(b"", None)
    flows(c)
    c.run_until(lambda: row_at(member) is None, 5)
    well(c)


# ---------------------------------------------------------------------------------------- merges


def test_a_retry_after_a_merge_gets_the_first_version() -> None:
    c = formed(options=TableOptions(keep_versions=5, merge={"n": "sum"}))
    base = put(c, 1, {"n": 1})
    put(c, 2, {"n": 2})
    body = encode_columns({"n": 11})
    first = write(c, b"merger", 1, KIND_PUT, body, COND_MERGE, base)
    again = write(c, b"merger", 1, KIND_PUT, body, COND_MERGE, base)
    assert isinstance(first, int) and again == first
    lead(c, "n3")
    assert write(c, b"merger", 1, KIND_PUT, body, COND_MERGE, base) == first
    assert row_at(c.leader()) == {"n": 12}
    well(c)


def test_a_conflict_without_a_rule_names_the_columns_and_changes_nothing() -> None:
    c = formed(options=TableOptions(keep_versions=5))
    base = put(c, 1, {"a": 1, "b": 1, "c": 1})
    put(c, 2, {"a": 2, "b": 1, "c": 1})
    error = write(c, b"merger", 1, KIND_PUT, encode_columns({"a": 3, "b": 2, "c": 1}), COND_MERGE, base)
    assert error[0] == Conflict.code and error[2]["columns"] == ["a"]
    assert decode_columns(row_columns(error[3])) == {"a": 2, "b": 1, "c": 1}
    version = write(c, b"merger", 2, KIND_UPDATE, encode_update({"b": 2}, ["c"]), COND_MERGE, base)
    assert isinstance(version, int) and row_at(c.leader()) == {"a": 2, "b": 2}
    well(c)


@pytest.mark.parametrize("seed", range(4))
def test_no_sides_update_is_lost_under_takeovers(seed: int) -> None:
    """Many add to a sum and a set from bases that are stale, with retries, while coordinators die: each counts once."""
    c = formed(seed + 1, options=TableOptions(keep_versions=400, merge={"n": "sum", "s": "union"}))
    base = put(c, 1, {"n": 0, "s": []})
    rng = random.Random(seed)
    calls: list[Call] = []

    def one(number: int) -> None:
        if number % 2:
            calls.append(
                Call(c, b"m%d" % number, 1, KIND_UPDATE, encode_update(increment={"n": 1}), COND_MERGE, base)
            )
            return
        body = encode_columns({"n": 1, "s": [number]})
        calls.append(Call(c, b"m%d" % number, 1, KIND_PUT, body, COND_MERGE, base))

    for number in range(60):
        c.at(rng.uniform(0.0, 12.0), lambda number=number: one(number))  # type: ignore[misc]
    for at in (2.0, 7.0):
        c.run(at - c.now if c.now < at else 1.0)
        victim = c.service.descriptor.coordinator or "n1"
        c.crash(victim)
        c.run(3.0)
        c.start(victim)
    c.run_until(lambda: len(calls) == 60 and all(call.is_done for call in calls), 60, "all are decided")
    assert all(isinstance(call.result, int) for call in calls), [call.result for call in calls]
    assert len({call.result for call in calls}) == 60
    assert row_at(c.leader()) == {"n": 60, "s": list(range(0, 60, 2))}
    well(c)


def test_a_merge_is_from_a_version_of_its_row() -> None:
    """Another number may be one that a replica that lags still takes for an older version."""
    c = formed(options=TableOptions(keep_versions=5, merge={"n": "sum"}))
    base = put(c, 1, {"n": 1})
    put(c, 2, {"n": 2})
    error = write(c, b"merger", 1, KIND_PUT, encode_columns({"n": 5}), COND_MERGE, base + 1)
    assert error[0] == InvalidRequest.code
    error = write(c, b"merger", 2, KIND_PUT, encode_columns({"n": 5}), COND_MERGE, base + (50_000 << 16))
    assert error[0] == VersionCollected.code
    assert row_at(c.leader()) == {"n": 2}
    well(c)


def test_a_base_that_has_expired_is_an_error() -> None:
    """It may have been forgotten elsewhere; what it held is not to come back."""
    c = formed(options=TableOptions(keep_versions=5, merge={"n": "sum"}))
    base = put(c, 1, {"n": 7}, ttl=2.0)
    c.run_until(lambda: row_at(c.leader()) is None, 10)
    put(c, 2, {"n": 2})
    error = write(c, b"merger", 1, KIND_PUT, encode_columns({"n": 8}), COND_MERGE, base)
    assert error[0] == VersionCollected.code
    assert row_at(c.leader()) == {"n": 2}
    well(c)


def test_a_collected_base_is_an_error_and_not_a_wrong_merge() -> None:
    c = formed(options=TableOptions(keep_versions=2, merge={"n": "sum"}))
    base = put(c, 1, {"n": 1})
    for seq in (2, 3):
        put(c, seq, {"n": seq})
    error = write(c, b"merger", 1, KIND_PUT, encode_columns({"n": 5}), COND_MERGE, base)
    assert error[0] == VersionCollected.code
    assert row_at(c.leader()) == {"n": 3}
    well(c)
