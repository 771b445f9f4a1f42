"""Clients that keep rows (rule R19): none of them answers with what is no longer so, and none holds anything up for
longer than its short lease."""

from __future__ import annotations

from ackord.wire.extras import encode_extras
from ackord.wire.limits import Limits
from ackord.wire.messages import KIND_PUT
from ackord.wire.values import encode_columns
from ackord_node.core import effects as e
from ackord_node.core.types import Timing
from tests.support.core_cluster import Cluster
from tests.support.core_keepers import Keeper
from tests.support.core_script import CONFIRM, drops, flows, formed, well
from tests.support.core_transactions import Tx, account

KEY = b"k1"
LONGEST = 0.3  # of a lease, by the default limits
LONG_LEASES = Limits(cache_lease_ms=1000)
LONG = Timing(balance_delay=1e9, confirm_timeout=3.0)  # which allows them


def kept(c: Cluster, *names: str, drift: float = 0.0, key: bytes = KEY) -> Keeper:
    """A client that keeps the row, which it read at each of these nodes in turn."""
    keeper = Keeper(c, drift=drift)
    for name in names:
        for _ in range(3):  # the node records first that it lets clients keep rows
            keeper.ask(name, key)
            c.run(0.05)
        found = keeper.found(key)
        assert found is not None and found.lease.node == name
    return keeper


def frozen(c: Cluster, *names: str, drift: float = 0.0) -> Keeper:
    """The same, but it answers nobody any more, although it goes on reading what it keeps."""
    keeper = kept(c, *names, drift=drift)
    for stream in keeper.streams.values():
        stream.is_cut = True
    return keeper


def test_a_row_is_kept_until_it_is_written_and_the_write_waits_for_that() -> None:
    c = formed()
    c.put_done(KEY)
    for name in c.nodes:
        keeper = kept(c, name)
        begun = c.now
        c.put_done(KEY)
        assert c.now - begun < 0.1, "the client answers at once"
        assert keeper.told_count == 1 and not keeper.keeps(KEY)
        c.keepers.remove(keeper)
    well(c)


def test_a_row_that_is_used_is_kept_for_longer_than_one_lease() -> None:
    c = formed()
    c.put_done(KEY)
    keeper = kept(c, "n2")
    until = c.now + 5 * LONGEST
    while c.now < until:
        assert keeper.get(KEY)
        c.run(0.02)
    c.put_done(KEY)
    assert not keeper.keeps(KEY)
    well(c)


def test_that_there_is_no_row_is_kept_too() -> None:
    c = formed()
    keeper = kept(c, "n3")
    assert keeper.get(KEY)
    c.put_done(KEY)
    assert not keeper.keeps(KEY)
    well(c)


def test_a_member_confirms_no_write_of_a_row_that_somebody_may_still_answer() -> None:
    c = formed()
    c.put_done(KEY)
    keeper = frozen(c, "n3")
    begun = c.now
    c.put_done(KEY)
    assert 0.1 < c.now - begun < LONGEST + 0.1
    assert not keeper.keeps(KEY)
    well(c)


def test_a_write_does_not_count_on_the_coordinators_own_disk_while_a_client_may_answer() -> None:
    c = formed(nodes=1, min_in_sync=1)
    c.put_done(KEY)
    keeper = frozen(c, "n1")
    begun = c.now
    c.put_done(KEY)
    assert 0.1 < c.now - begun < LONGEST + 0.1
    assert not keeper.keeps(KEY)
    well(c)


def test_a_row_that_a_pending_write_touches_is_granted_to_nobody() -> None:
    c = formed()
    c.put_done(KEY)
    keeper = kept(c, "n1")
    drops(c, CONFIRM)
    op = c.put(KEY, node="n1")
    c.run(0.02)
    assert not keeper.keeps(KEY)
    other = Keeper(c, 1)  # which was told nothing of it
    for name in ("n1", "n2"):
        for who in (keeper, other):
            who.ask(name, KEY, b"k2")
    c.run(0.05)
    for who in (keeper, other):
        assert not who.keeps(KEY) and who.keeps(b"k2")
    flows(c)
    c.run_until(lambda: op.is_done, 3)
    well(c)


def test_a_client_is_granted_no_more_than_the_replica_has_itself() -> None:
    """A member that is granted no lease any more is removed once its last has run out, and its clients then, too."""
    c = formed(timing=LONG, limits=LONG_LEASES)
    c.put_done(KEY)
    keeper = kept(c, "n3")
    n3 = c.nodes["n3"]
    c.step(n3, e.DiskSlow("the disk is slow"))
    c.run(0.35)  # what was granted before that is known has come
    c.run(n3.core.follower.lease_until - n3.clock() - 0.1)
    keeper.ask("n3", KEY)
    c.run(0.01)
    assert keeper.keeps(KEY)
    keeper.streams["n3"].is_cut = True
    op = c.put(KEY)
    c.run_until(lambda: op.is_done, 3, "n3 confirms or is removed")
    c.run_until(lambda: "n3" not in c.in_sync(), 3, "n3 is removed")
    c.step(n3, e.DiskWell())
    well(c)


def test_a_coordinators_clients_are_granted_no_more_than_its_authority() -> None:
    c = formed(timing=LONG, limits=LONG_LEASES)
    c.put_done(KEY)
    keeper = kept(c, "n1")
    n1 = c.nodes["n1"]
    c.cut("n1")
    coordinator = n1.core.coordinator
    assert coordinator is not None
    c.service.end_session(n1, n1.session)
    c.service.disconnect(n1)
    c.run(coordinator.authority() - n1.clock() - 0.1)
    keeper.ask("n1", KEY)
    c.run(0.01)
    assert keeper.keeps(KEY)
    keeper.streams["n1"].is_cut = True
    op = c.put(KEY)
    c.run_until(lambda: op.is_done, 9, "somebody else coordinates")
    assert c.leader().name != "n1"
    well(c)


def test_a_lease_is_waited_out_as_long_as_the_slowest_clock_may_take() -> None:
    timing = Timing(balance_delay=1e9, drift_max=0.1)
    c = formed(timing=timing, nodes=2, min_in_sync=2)
    for node in c.nodes.values():
        node.drift, node.offset = 0.099, node.clock() - c.now * 1.099
    c.put_done(KEY)
    keeper = frozen(c, "n2", drift=-0.099)
    c.put_done(KEY)
    assert not keeper.keeps(KEY)
    well(c)


def test_a_lease_counts_from_when_the_client_asked() -> None:
    c = formed(nodes=2, min_in_sync=2)
    c.put_done(KEY)
    keeper = kept(c, "n2")
    stream = keeper.streams["n2"]
    c.run(LONGEST + 0.1)
    stream.extra_delay = 0.2
    keeper.ask("n2", KEY)
    c.run_until(lambda: keeper.keeps(KEY), 1)
    stream.is_cut = True
    begun = c.now
    c.put_done(KEY)
    assert c.now - begun < 0.2
    well(c)


def test_a_member_that_was_restarted_waits_for_the_clients_of_its_earlier_run() -> None:
    c = formed(nodes=2, min_in_sync=2, delay_max=0.001, disk_delay_max=0.001)
    c.put_done(KEY)
    keeper = frozen(c, "n2")
    c.crash("n2")
    c.start("n2")
    begun = c.now
    c.put_done(KEY)
    assert 0.2 < c.now - begun < LONGEST + 0.2
    assert not keeper.keeps(KEY)
    well(c)


def test_nothing_is_granted_before_a_later_run_could_know_of_it() -> None:
    c = formed(nodes=2, min_in_sync=2, delay_max=0.001, disk_delay_max=0.001)
    c.put_done(KEY)
    c.run(0.5)
    n2 = c.nodes["n2"]
    n2.disk_is_stuck = True
    keeper = Keeper(c)
    for _ in range(5):
        keeper.ask("n2", KEY)
        c.run(0.01)
    assert not keeper.keeps(KEY)
    c.crash("n2")
    c.start("n2")
    assert n2.core.state.holders.bound is None, "tables whose rows nobody keeps wait for nothing"
    c.put_done(KEY)
    well(c)


def test_what_was_granted_before_a_lease_lapsed_is_not_kept_under_a_later_one() -> None:
    c = formed()
    c.put_done(KEY)
    keeper = kept(c, "n3")
    keeper.freeze()
    c.run(LONGEST + 0.05)
    c.put_done(KEY)
    keeper.thaw()
    keeper.ask("n3", b"k2")
    c.run(0.05)
    assert keeper.keeps(b"k2") and not keeper.keeps(KEY)
    keeper.caching.used(next(iter(keeper.caching._leases.values())), keeper.clock())
    c.run(0.05)
    assert not keeper.keeps(KEY)
    well(c)


def test_a_lease_that_lapsed_is_not_extended() -> None:
    c = formed()
    c.put_done(KEY)
    keeper = kept(c, "n3")
    found = keeper.found(KEY)
    assert found is not None
    c.run(LONGEST + 0.05)
    c.put_done(KEY)
    assert keeper.told_count == 0
    keeper.caching._keep(found.lease)
    c.run(0.05)
    assert not keeper.keeps(KEY)
    well(c)


def test_holds_have_another_number_after_a_restart() -> None:
    """The client's stream ended with the process, but what it was granted by the new one says nothing of old rows."""
    c = formed(nodes=2, min_in_sync=2, delay_max=0.001, disk_delay_max=0.001)
    c.put_done(KEY)
    keeper = kept(c, "n1")
    first = keeper.found(KEY)
    assert first is not None
    for name in ("n1", "n2"):
        c.crash(name)
    c.start()
    c.run_until(c.is_well, 20)
    for _ in range(3):
        keeper.ask("n1", b"k2")
        c.run(0.05)
    second = keeper.found(b"k2")
    assert second is not None and second.lease.number != first.lease.number
    well(c)


def test_a_client_that_is_frozen_expels_nobody_and_delays_each_write_by_one_lease_at_most() -> None:
    c = formed()
    c.put_done(KEY)
    keeper = kept(c, "n3")
    longest = 0.0
    for _ in range(12):
        keeper.ask("n3", KEY, b"k2", b"k3")
        c.run(0.02)
        for stream in keeper.streams.values():
            stream.is_cut = True
        for key in (KEY, b"k2", b"k3"):
            begun = c.now
            c.put_done(key)
            longest = max(longest, c.now - begun)
        keeper.streams.clear()
    assert longest < LONGEST + 0.1
    assert c.in_sync() == ["n1", "n2", "n3"] and not c.notes.count("is to leave")
    well(c)


def test_who_owes_an_answer_is_not_granted_more_time_for_it() -> None:
    c = formed()
    c.put_done(KEY)
    keeper = kept(c, "n3")
    answered = keeper.caching._answer
    keeper.caching._answer = lambda: None  # type: ignore[method-assign]
    keeper.caching._due.clear()
    op = c.put(KEY)
    begun = c.now
    while not op.is_done:
        keeper.ask("n3", b"k2")
        c.run(0.02)
        assert c.now - begun < LONGEST + 0.1
    keeper.caching._answer = answered  # type: ignore[method-assign]
    well(c)


def test_a_coordinator_that_hands_over_grants_no_more() -> None:
    c = formed()
    c.put_done(KEY)
    keeper = kept(c, "n1")
    c.step(c.leader(), e.HandOver("n2"))

    def ask() -> None:
        keeper.get(KEY)
        keeper.ask("n1", KEY)
        c.at(0.02, ask)

    ask()
    c.run_until(lambda: c.service.descriptor.coordinator == "n2", 5)
    c.put_done(KEY)
    c.keepers.clear()
    well(c)


def test_a_member_that_leaves_waits_for_its_clients_first() -> None:
    c = formed()
    c.put_done(KEY)
    frozen(c, "n3")
    c.step(c.nodes["n3"], e.Leave())
    c.run_until(lambda: "n3" not in c.in_sync(), 5)
    c.put_done(KEY)
    c.crash("n3")
    well(c)


def test_clients_of_the_old_coordinator_are_over_when_a_new_one_commits() -> None:
    c = formed()
    c.put_done(KEY)
    keeper = frozen(c, "n1", "n2", "n3")
    c.crash("n1")
    c.put_done(KEY)
    assert c.leader().name != "n1" and not keeper.keeps(KEY)
    well(c)


def test_a_stream_that_is_cut_is_waited_out_by_both_ends() -> None:
    c = formed()
    c.put_done(KEY)
    keeper = kept(c, "n3")
    keeper.reconnect("n3")
    keeper.ask("n3", b"k2")
    c.run(0.02)
    op = c.put(KEY)
    c.run_until(lambda: op.is_done, LONGEST + 0.1)
    assert not keeper.keeps(KEY)
    well(c)


def test_an_answer_that_comes_after_what_revokes_it_is_not_kept() -> None:
    c = formed()
    c.put_done(KEY)
    keeper = kept(c, "n3")
    stream = keeper.streams["n3"]
    stream.is_ordered, stream.extra_delay = False, 0.1
    keeper.ask("n3", KEY)
    c.run(0.02)
    stream.extra_delay = 0.0
    c.put_done(KEY)
    assert keeper.told_count == 1
    c.run(0.15)
    assert not keeper.keeps(KEY)
    well(c)


def test_all_rows_of_a_transaction_are_told() -> None:
    c = formed()
    key = account(2)
    keeper = kept(c, "n3", key=key)
    tx = Tx(c, b"a", 1)
    tx.put(account(1), {"n": 1})
    tx.put(key, {"n": 2})
    tx.done()
    assert keeper.told_count == 1 and not keeper.keeps(key)
    well(c)


def test_a_row_is_kept_until_it_expires_and_no_longer() -> None:
    """Rule R20: a reading of the clock hides it, which names no key."""
    c = formed()
    key = account(1)
    tx = Tx(c, b"a", 1)
    tx.write(KIND_PUT, key, encode_extras(encode_columns({"n": 1}), 2.0))
    tx.done()
    c.run(0.2)
    row = c.oracle.rows[key]
    keepers = {name: kept(c, name, key=key) for name in c.nodes}
    for name, keeper in keepers.items():
        keeper.ask(name, key)
    c.run(0.05)
    assert all(keeper.keeps(key) for keeper in keepers.values())
    c.keepers.clear()  # which compare with the row as written
    clocks = [node.core.state.clock for node in c.nodes.values()]

    def is_pending() -> bool:
        for keeper in keepers.values():
            keeper.get(key)
        return any(clock.hides(row, clock.at_end) for clock in clocks)

    c.run_until(is_pending, 5)
    for keeper in keepers.values():
        assert keeper.keeps(key)
        keeper.streams[min(keeper.streams)].is_cut = True
    waited = c.run_until(lambda: any(clock.hides(row, clock.at_commit) for clock in clocks), 1)
    assert 0.05 < waited < LONGEST + 0.1
    assert not any(keeper.keeps(key) for keeper in keepers.values())
    c.keepers.clear()
    well(c)


def test_a_row_that_a_pending_reading_of_the_clock_hides_is_granted_to_nobody() -> None:
    c = formed()
    key = account(1)
    tx = Tx(c, b"a", 1)
    tx.write(KIND_PUT, key, encode_extras(encode_columns({"n": 1}), 1.0))
    tx.done()
    keeper = kept(c, "n1", key=key)
    row = c.oracle.rows[key]
    drops(c, CONFIRM)
    coordinator = c.nodes["n1"].core.state
    c.run_until(lambda: coordinator.clock.hides(row, coordinator.clock.at_end), 5)
    c.run(0.02)
    assert not keeper.keeps(key)
    other = Keeper(c, 1)
    other.ask("n1", key, KEY)
    c.run(0.05)
    assert other.keeps(KEY) and not other.keeps(key)
    flows(c)
    c.keepers.clear()
    well(c)
