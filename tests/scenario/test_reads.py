"""Reads of every replica: rules R5, R6, R12."""

from __future__ import annotations

from ackord_node.core import messages as m
from ackord_node.core.types import Timing
from tests.support.core_cluster import Cluster, Profile
from tests.support.core_script import APPEND, CONFIRM, drops, ends, flows, formed, lead, well


def test_a_replica_waits_for_the_pending_write_of_the_key_and_no_other() -> None:
    c = formed()
    c.put_done(b"k1")
    c.run(0.3)
    drops(c, CONFIRM)
    op = c.put(b"k2", node="n1")
    c.run(0.05)
    assert ends(c)["n3"] == 2
    reader = c.read("n3", b"k1", b"k2", b"k3")
    assert set(reader.rows) == {0, 2}, "an absent key that no write touches is answered at once too"
    assert c.read("n1", b"k2").rows == {0: None}, "the coordinator reads at its commit point"
    flows(c)
    c.run_until(lambda: op.is_done, 3)
    c.run_until(lambda: 1 in reader.rows, 0.1, "the commit point follows at once on an idle link")
    assert reader.rows[1] == c.oracle.rows[b"k2"]
    well(c)


def test_a_waiting_read_is_refused_in_bounded_time() -> None:
    c = formed(min_in_sync=2, nodes=2)
    drops(c, CONFIRM)
    c.put(b"k2", node="n1")
    c.run(0.05)
    reader = c.read("n2", b"k2")
    c.run_until(lambda: 0 in reader.rows, 6)
    assert reader.rows[0][2]["reason"] == "no_lease"
    well(c)


def test_a_replica_whose_lease_ran_out_answers_nothing() -> None:
    c = formed()
    c.put_done()
    c.cut("n3")
    c.run(1.1)
    n3 = c.nodes["n3"]
    assert n3.core.get_many(c.read("n1", b"k1"), [b"k1"], n3.clock()) is None
    well(c)


def test_a_lease_counts_from_the_holders_own_request() -> None:
    """Rule R6: a grant that was long on its way is worth that much less."""
    c = formed()
    c.run(0.3)
    n3 = c.nodes["n3"]
    c.hold = lambda a, b, message: message[0] == m.BEACON and b == "n3"
    c.run_until(lambda: n3.core.follower.lease_until < n3.clock(), 3)
    grants = [h for h in c.held if h[3][7] > 0]
    flows(c)
    for source, target, incarnation, message in grants:
        c._deliver(source, target, incarnation, message, 0.0, None)
    drops(c, APPEND)
    c.run(0.002)
    until = max(h[3][6] + h[3][7] for h in grants)
    assert n3.core.follower.lease_until <= max(until, n3.clock())
    well(c)


def test_authority_counts_from_the_beacons_sending() -> None:
    """Rule R5: a confirmation that was long on its way is worth that much less."""
    c = formed()
    c.run(0.3)
    leader = c.leader()
    coordinator = leader.core.coordinator
    assert coordinator is not None
    c.hold = lambda a, b, message: message[0] == m.BEACON_CONFIRM
    c.run(0.6)
    sent = max(h[3][4] for h in c.held)
    c.run(0.3)
    assert c.release_held(lambda a, b, message: message[4] <= sent) > 1
    c.run(0.001)
    assert coordinator.authority() <= sent + c.profile.timing.lease + 1e-6
    c.held.clear()
    well(c)


def test_a_grant_never_outlasts_the_grantors_authority() -> None:
    """Rule R6: another member's last confirmed beacon bounds what the coordinator may give."""
    c = formed()
    c.run(0.3)
    n2, leader = c.nodes["n2"], c.leader()
    drops(c, m.BEACON_CONFIRM, "n3")
    coordinator = leader.core.coordinator
    assert coordinator is not None
    for _ in range(60):
        c.run(0.01)
        if n2.core.may_read(n2.clock()):
            left = n2.core.follower.lease_until - n2.clock()
            assert leader.clock() + left <= coordinator.progress["n3"].authority + 0.02
    well(c)


def test_no_takeover_while_a_slow_clock_still_answers() -> None:
    """Rule R7: n1's clock is the slowest that is allowed, those of its members are the fastest."""
    c = Cluster(1, Profile(timing=Timing(balance_delay=1e9, drift_max=0.1)))
    for name, drift in (("n1", -0.0999), ("n2", 0.0999), ("n3", 0.0999)):
        c.nodes[name].drift = drift
    c.form()
    lead(c, "n1")
    c.run(0.5)
    c.cut("n1")
    old = c.nodes["n1"]
    c.service.end_session(old, old.session)
    c.service.disconnect(old)
    while old.core.may_read(old.clock()):
        assert c.service.descriptor.coordinator == "n1"
        c.run(0.005)
    c.run_until(lambda: c.service.descriptor.coordinator != "n1", 5)
    well(c)
