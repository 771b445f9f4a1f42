"""One beacon for all tablets of a node pair, condition by condition (R2, R5, R6, R7, R7b, R13)."""

from __future__ import annotations

from typing import Any

from ackord.wire.limits import Limits
from ackord_node.core import effects as e
from ackord_node.core import messages as m
from ackord_node.core.copy_meta import CopyMeta
from ackord_node.core.holders import longest_hold
from ackord_node.core.membership import Drain
from ackord_node.core.peer_beacons import PeerBeacons
from tests.support.core_hand import ALL_WELL, TABLET, TIMING, Hand, serving

SHARES = ALL_WELL | m.FLAG_SHARES
N1, N2 = 11, 22  # the runs of the nodes
LEASE = TIMING.lease


class Pair:
    """n1 coordinates epoch 4, n2 obeys it; their beacons travel when told."""

    def __init__(self, is_enrolled: bool = True) -> None:
        self.n1 = serving()
        self.n2 = Hand("n2", CopyMeta(2, promised=4))
        self.n2.now = self.n1.now
        self.n2.do(e.PeerUp("n1"))
        self.n2.append(4, 0, 0, 0, [])
        self.n2.beacon(4, 0, 0)
        self.n2.store()
        self.sent: list[tuple[str, str, Any]] = []
        self.woken: list[int] = []
        self.coordinators = self._beacons("n1", N1, {TABLET: self.n1.r})
        self.members = self._beacons("n2", N2, {TABLET: self.n2.r})
        self.coordinators.role_changed(TABLET, self.n1.c)
        if is_enrolled:
            self.n1.promise("n2", "n3", flags=SHARES)
        self.n1.forget()
        self.wait(0.1)

    def _beacons(self, name: str, incarnation: int, replicas: dict[int, Any]) -> PeerBeacons:
        peers = [node for node in ("n1", "n2", "n3") if node != name]
        return PeerBeacons(
            incarnation,
            TIMING,
            peers,
            replicas.get,
            lambda peer, message: self.sent.append((name, peer, message)),
            self.woken.append,
        )

    @property
    def now(self) -> float:
        return self.n1.now

    def wait(self, seconds: float) -> None:
        self.n1.now += seconds
        self.n2.now = self.n1.now

    def beacon(self) -> Any:
        """n1's next beacon to n2; None if it sends none."""
        self.coordinators.due = self.now
        self.sent.clear()
        self.coordinators.tick({"n2"}, self.now)
        beacons = [message for _, _, message in self.sent if message[0] == m.PEER_BEACON]
        return m.check(beacons[0]) if beacons else None

    def deliver(self, beacon: Any) -> Any:
        """n2's answer to it, None if it has none."""
        self.sent.clear()
        self.members.beacon("n1", N1, beacon, SHARES, 0, self.now)
        answers = [message for _, _, message in self.sent if message[0] == m.PEER_BEACON_CONFIRM]
        return m.check(answers[0]) if answers else None

    def confirm(self, answer: Any, incarnation: int = N2) -> None:
        self.coordinators.confirmed("n2", incarnation, answer, self.now)

    def round(self) -> Any:
        answer = self.deliver(self.beacon())
        self.confirm(answer)
        return answer

    @property
    def progress(self) -> Any:
        return self.n1.c.progress["n2"]

    def n2_coordinates_next(self) -> None:
        """n2 hears of epoch 5."""
        self.n2.beacon(5, 0, 0, source="n3")


def test_it_is_a_beacon_of_each_tablet_that_it_lists() -> None:
    """Rules R5 and R7: authority counts from the sending, the promise from the receipt."""
    p = Pair()
    sent_at, beacon = p.now, p.beacon()
    p.wait(0.2)
    received_at, answer = p.now, p.deliver(beacon)
    assert p.n2.r.state.promise_until == received_at + TIMING.promise
    p.wait(0.3)
    p.confirm(answer)
    assert p.progress.authority == sent_at + LEASE
    assert (p.progress.heard_at, p.progress.is_shared) == (p.now, True)


def test_its_leases_count_from_the_request_and_are_waited_out() -> None:
    """Rules R6 and R9."""
    p = Pair()
    answer = p.deliver(p.beacon())
    asked_at = p.now
    p.wait(0.1)
    p.n1.promise("n3", flags=SHARES)
    p.confirm(answer)
    granted_until = p.progress.granted_until
    p.wait(0.2)
    p.deliver(p.beacon())
    seconds = asked_at + LEASE - (asked_at + 0.1)
    assert abs(p.n2.r.follower.lease_until - (asked_at + seconds)) < 1e-6
    assert abs(granted_until - (asked_at + 0.1 + seconds * TIMING.scale)) < 1e-6
    assert p.progress.granted_raw >= p.n2.r.follower.lease_until


def test_each_grant_is_told_once() -> None:
    p = Pair()
    p.round()
    assert p.beacon()[8] > 0
    assert p.beacon()[7:9] == [-1.0, 0.0]


def test_a_tablet_is_listed_once_this_run_of_the_peer_has_confirmed_its_own_beacon() -> None:
    """Rule R13: that is what shows where its log ends."""
    p = Pair(is_enrolled=False)
    assert p.beacon() is None
    p.n1.promise("n2")
    assert p.beacon() is None, "a peer that does not share beacons"
    p.n1.promise("n2", flags=SHARES)
    assert p.beacon()[6] == [TABLET, 4, 2]
    p.n1.confirm("n2", 0, incarnation=23)
    assert p.beacon()[6] == [], "the peer was restarted, and nothing of it is known yet"
    p.n1.promise("n2", flags=SHARES, incarnation=23)
    assert p.beacon()[6] == [TABLET, 4, 2]


def test_a_confirmation_of_another_run_counts_for_nothing() -> None:
    """Rule R13: its disk may have rolled back meanwhile."""
    p = Pair()
    answer, authority = p.deliver(p.beacon()), p.progress.authority
    p.wait(0.3)
    p.confirm(answer, incarnation=23)
    p.n1.confirm("n2", 0, incarnation=23)
    p.confirm(answer, incarnation=23)
    assert p.progress.authority == authority
    assert not p.progress.is_shared


def test_a_confirmation_for_another_run_of_the_coordinator_counts_for_nothing() -> None:
    p = Pair()
    answer, authority = p.deliver(p.beacon()), p.progress.authority
    answer[3] = 12
    p.confirm(answer)
    assert p.progress.authority == authority


def test_a_confirmation_of_another_copy_counts_for_nothing() -> None:
    """Rule R3."""
    p = Pair()
    answer = p.deliver(p.beacon())
    p.n1.promise("n2", copy=9, flags=SHARES, sent_at=p.now - 0.5)
    authority = p.progress.authority
    p.confirm(answer)
    assert p.progress.authority == authority


def left_after(change: Any) -> Pair:
    """What n2 leaves, it names, promises nothing for, and takes no lease for."""
    p = Pair()
    p.round()
    p.wait(0.05)
    change(p)
    promised, lease, authority = p.n2.r.state.promise_until, p.n2.r.follower.lease_until, p.progress.authority
    p.wait(0.2)
    answer = p.deliver(p.beacon())
    assert answer[9] == [TABLET]
    assert (p.n2.r.state.promise_until, p.n2.r.follower.lease_until) == (promised, lease)
    p.confirm(answer)
    assert p.progress.authority == authority
    assert not p.progress.is_shared
    assert p.woken[-1:] == [TABLET]
    return p


def test_a_member_that_promised_a_later_epoch_has_left() -> None:
    """Rules R3 and R7; the coordinator is told at once that it was replaced."""

    def change(p: Pair) -> None:
        p.n2_coordinates_next()
        p.n2.store()

    p = left_after(change)
    p.deliver(p.beacon())
    assert ("n2", "n1", [m.FENCED, TABLET, 4, 5]) in p.sent


def test_a_member_that_obeys_the_same_node_in_a_later_epoch_has_left() -> None:
    """The list is of the epoch before, whether or not the later promise is on disk."""

    def change(p: Pair) -> None:
        p.n2.beacon(5, 0, 0, source="n1")

    left_after(change)

    def change_and_store(p: Pair) -> None:
        p.n2.beacon(5, 0, 0, source="n1")
        p.n2.store()

    left_after(change_and_store)


def test_a_member_that_tries_to_take_over_has_left() -> None:
    """Rule R2: it confirms nothing of the old epoch meanwhile."""

    def change(p: Pair) -> None:
        p.n2.r.state.barred_below = 5

    left_after(change)


def test_a_member_with_another_copy_has_left() -> None:
    def change(p: Pair) -> None:
        p.n2.r.state.copy_id = 50

    p = left_after(change)
    p.deliver(p.beacon())
    assert not [message for _, _, message in p.sent if message[0] == m.FENCED]


def test_a_member_whose_promise_is_not_on_disk_has_left() -> None:
    """Rule R3: after a crash it would obey an older epoch again."""

    def change(p: Pair) -> None:
        p.n2.r.state.promised_durable = 3

    left_after(change)


def test_a_member_that_obeys_nobody_has_left() -> None:
    def change(p: Pair) -> None:
        p.n2.r.follower.leader = None

    left_after(change)


def test_a_copy_that_is_suspect_or_being_filled_or_stopped_or_leaves_has_left() -> None:
    """Rules R7b, R13 and R14."""
    for name, value in (
        ("suspect", True),
        ("filling", True),
        ("stopped_reason", "damaged"),
        ("is_leaving", True),
    ):

        def change(p: Pair, name: str = name, value: Any = value) -> None:
            setattr(p.n2.r.state, name, value)

        left_after(change)


def test_a_tablet_that_is_not_there_has_left() -> None:
    p = Pair()
    p.members = p._beacons("n2", N2, {})
    assert p.deliver(p.beacon())[9] == [TABLET]


def test_a_confirmation_counts_for_what_was_listed_when_it_was_sent() -> None:
    """The member did not look at what came later."""
    p = Pair()
    early = p.beacon()
    early_answer = p.deliver(early)
    p.coordinators.role_changed(TABLET, None)
    p.beacon()
    p.coordinators.role_changed(TABLET, p.n1.c)
    p.beacon()
    authority = p.progress.authority
    p.confirm(early_answer)
    assert p.progress.authority == authority
    p.wait(0.1)
    sent_at, answer = p.now, p.deliver(p.beacon())
    p.confirm(answer)
    assert p.progress.authority == (sent_at + LEASE if answer[4] >= 0 else authority)


def test_a_member_that_missed_a_change_confirms_nothing_and_is_told_it() -> None:
    p = Pair()
    p.round()
    p.coordinators.role_changed(TABLET, None)
    missed = p.beacon()
    assert missed[6] == [TABLET, 0, 0]
    p.coordinators._peers["n2"].known = missed[4]  # as if it had come
    p.coordinators.role_changed(TABLET, p.n1.c)
    answer = p.deliver(p.beacon())
    assert (answer[4], answer[5]) == (-1.0, missed[4] - 1)
    authority = p.progress.authority
    p.confirm(answer)
    assert p.progress.authority == authority
    assert p.round()[9] == []


def test_a_beacon_that_comes_twice_is_confirmed_twice() -> None:
    p = Pair()
    p.round()
    p.coordinators.role_changed(TABLET, None)
    p.round()
    p.coordinators.role_changed(TABLET, p.n1.c)
    change = p.beacon()
    first, second = p.deliver(change), p.deliver(change)
    assert first[4:6] == second[4:6] == [p.now, change[4]]
    assert p.n2.r.state.promise_until == p.now + TIMING.promise


def test_a_late_beacon_changes_nothing() -> None:
    p = Pair()
    early = p.beacon()
    p.confirm(p.deliver(early))
    p.coordinators.role_changed(TABLET, None)
    p.round()
    promised = p.n2.r.state.promise_until
    p.wait(0.1)
    assert p.deliver(early) is None
    assert p.n2.r.state.promise_until == promised


def test_a_peer_that_was_restarted_is_told_the_whole_list() -> None:
    p = Pair()
    p.round()
    p.members = p._beacons("n2", N2, {TABLET: p.n2.r})
    answer = p.deliver(p.beacon())
    assert (answer[4], answer[5]) == (-1.0, 0)
    p.confirm(answer)
    assert p.round()[9] == []


def test_a_run_of_the_coordinator_that_ended_lists_nothing() -> None:
    p = Pair()
    p.round()
    promised = p.n2.r.state.promise_until
    p.wait(0.1)
    p.members.beacon("n1", 12, [m.PEER_BEACON, 0, 0, p.now, 1, 0, [], -1.0, 0.0, 0, []], SHARES, 0, p.now)
    assert p.sent[-1][2][3] == 12
    assert p.n2.r.state.promise_until == promised


def test_a_coordinator_that_ended_reads_is_off_the_list() -> None:
    """Rule R7b: it ends its beacons before the successor's promise is released."""
    p = Pair()
    p.round()
    p.n1.c.membership.drain = Drain.TAIL
    beacon = p.beacon()
    assert beacon[6] == [TABLET, 0, 0]
    promised = p.n2.r.state.promise_until
    p.wait(0.1)
    p.deliver(beacon)
    assert p.n2.r.state.promise_until == promised


def test_a_coordinator_that_drains_grants_nothing() -> None:
    """Rule R7b."""
    p = Pair()
    p.n1.c.membership.drain = Drain.LEASES
    p.round()
    assert p.beacon()[8] == 0.0


def test_a_lease_that_was_asked_for_in_an_earlier_epoch_counts_not() -> None:
    """Rule R6."""
    p = Pair()
    p.round()
    p.wait(0.1)
    p.n2.r.follower._request_floor = p.now
    before = p.n2.r.follower.lease_until
    assert p.deliver(p.beacon())[9] == []
    assert p.n2.r.follower.lease_until == before


def test_a_lease_for_an_earlier_run_counts_not() -> None:
    """Rule R6: the list may be held by then, but another run had asked."""
    p = Pair()
    p.round()
    beacon = p.beacon()
    assert beacon[8] > 0
    beacon[9] = 21
    before = p.n2.r.follower.lease_until
    p.deliver(beacon)
    assert p.n2.r.follower.lease_until == before


def test_a_lease_for_an_earlier_run_counts_not_where_it_is_told_for_the_tablet_alone() -> None:
    """Rule R6: the clock of a machine that was restarted begins anew, so what its earlier run asked for by the clock of
    then may lie hours ahead."""
    p = Pair()
    p.round()
    beacon = p.beacon()
    before = p.n2.r.follower.lease_until
    beacon[7:] = [p.now + 9000, 0.5, 21, [TABLET, 0.4]]
    p.deliver(m.check(beacon))
    assert p.n2.r.follower.lease_until == before
    beacon[9] = N2
    p.deliver(beacon)
    assert p.n2.r.follower.lease_until == p.now + 9000.4, "or it would show nothing"


def test_shorter_leases_are_told_one_by_one() -> None:
    """Rule R6: no tablet gets more than its own authority allowed."""
    p = Pair()
    p.round()
    out = p.coordinators._peers["n2"]
    listed = out.tablets[TABLET]
    for tablet, seconds in ((8, 0.9), (9, 0.2), (10, 0.0)):
        out.tablets[tablet] = type(listed)(
            listed.coordinator, listed.progress, listed.member, 1, listed.request, seconds
        )
    out.tablets[11] = type(listed)(
        listed.coordinator, listed.progress, listed.member, 1, listed.request - 1, 1.0
    )
    listed.seconds = 1.0
    request, seconds, others = PeerBeacons._grants(out)
    assert (request, seconds, others) == (listed.request, 0.9, [9, 0.2, 10, 0.0, 11, 0.0])


def test_a_member_takes_what_is_told_for_the_tablet() -> None:
    p = Pair()
    p.round()
    beacon = p.beacon()
    beacon[10] = [TABLET, 0.0]
    before = p.n2.r.follower.lease_until
    p.deliver(beacon)
    assert p.n2.r.follower.lease_until == before


def test_a_tablets_own_beacons_rest_while_the_pairs_are_confirmed() -> None:
    p = Pair()
    p.n1.wait(1.0)
    assert p.n1.sent(m.BEACON, "n2"), "not confirmed yet"
    p.n2.now = p.n1.now
    p.round()
    p.n1.forget()
    p.woken.clear()
    p.n1.tick(TIMING.beacon_interval)
    assert not p.n1.sent(m.BEACON, "n2")
    assert p.n1.sent(m.BEACON, "n3")
    p.wait(TIMING.silence + 0.01)
    p.beacon()
    assert p.woken == [TABLET], "silence"
    p.n1.tick()
    assert p.n1.sent(m.BEACON, "n2")


def test_a_member_whose_every_confirmation_waits_for_clients_is_not_behind() -> None:
    """Rule R19: the beacons of a node pair do not say that it waits, and need not: it waits for a third of its time."""
    p = Pair()
    p.round()
    wait_s = longest_hold(TIMING, Limits(cache_lease_ms=10_000)) * TIMING.scale
    p.n1.write(seq=1)
    for seq in range(2, 9):
        p.n1.write(seq=seq)
        p.n1.store()
        p.n1.confirm("n3", p.n1.r.state.log.end)
        for _ in range(2):
            p.wait(wait_s / 2)
            p.round()
            p.n1.promise("n3")
            p.n1.tick()
            assert not p.progress.revoking
        p.n1.confirm("n2", seq - 1)
    assert p.n1.r.state.commit == seq - 1
    for _ in range(4):
        p.wait(TIMING.confirm_timeout / 3)
        p.round()
        p.n1.tick()
    assert p.progress.revoking, "it answers, and confirms nothing more"


def test_a_node_that_stood_still_takes_no_peer_for_silent() -> None:
    """Else it would send a beacon for each of its tablets whenever it comes late, with their answers unread."""
    p = Pair()
    p.round()
    p.woken.clear()
    p.wait(5.0)
    p.coordinators.tick({"n2"}, p.now)
    assert (p.progress.is_shared, p.woken) == (True, [])
    p.wait(TIMING.beacon_interval)
    p.coordinators.tick({"n2"}, p.now)
    assert (p.progress.is_shared, p.woken) == (False, [TABLET]), "no answer lay there"


def test_a_commit_point_that_came_to_rest_is_told_by_a_beacon_of_the_tablets_own() -> None:
    """Rule R12: the message that told it may be lost."""
    p = Pair()
    p.round()
    p.n1.tick(TIMING.beacon_interval)
    p.n1.write()
    p.n1.store()
    for node in ("n2", "n3"):
        p.n1.confirm(node, 1)
    assert p.n1.r.state.commit == 1
    p.n1.forget()
    for _ in range(4):
        p.n1.tick(TIMING.beacon_interval)
        assert not p.n1.sent(m.BEACON, "n2"), "it moved lately"
    p.n1.tick(TIMING.beacon_interval)
    assert [x[4] for x in p.n1.sent(m.BEACON, "n2")] == [1]


def test_a_tablet_at_rest_is_asked_rarely() -> None:
    p = Pair()
    p.n1.do(e.Announce())
    p.round()
    p.n1.promise("n3", flags=SHARES)
    p.n1.c.progress["n3"].is_shared = True
    for _ in range(3):
        p.n1.tick(TIMING.beacon_interval)
    assert p.n1.r.wake_at == p.now + TIMING.idle_interval
    p.n1.r.state.lock_holder = None
    assert p.n1.r.wake_at <= p.now + TIMING.beacon_interval
    p.n1.r.state.lock_holder = "n1"
    p.progress.flags &= ~m.FLAG_FIT
    assert p.n1.r.wake_at <= p.now + TIMING.beacon_interval
    p.progress.flags = SHARES
    p.n1.write()
    assert p.n1.r.wake_at <= p.now + TIMING.beacon_interval


def test_a_process_that_stood_still_takes_nobody_for_silent() -> None:
    """Where ticks are rare, their lateness says nothing: the node says that it stood still."""
    p = Pair()
    p.round()
    p.n1.tick(0.1)
    p.progress.is_shared = False
    p.wait(0.45)
    p.progress.heard_at = p.now - 5
    p.n1.r.state.paused_at = p.now
    p.n1.tick()
    assert not p.progress.revoking
    p.progress.heard_at = p.now - 5
    p.n1.tick(0.1)
    assert p.progress.revoking


def test_an_answer_that_confirms_nothing_counts_for_nothing() -> None:
    """The peer holds the tablet in another version of the list, and did not look at it."""
    p = Pair()
    p.round()
    answer = p.deliver(p.beacon())
    answer[4] = -1.0
    heard_at = p.progress.heard_at
    p.wait(0.1)
    p.confirm(answer)
    assert p.progress.heard_at == heard_at
    assert p.coordinators.due <= p.now, "it is told at once what it lacks"


def test_an_answer_to_what_was_never_sent_counts_for_nothing() -> None:
    p = Pair()
    answer, authority = p.deliver(p.beacon()), p.progress.authority
    answer[5] = 9
    p.confirm(answer)
    assert p.progress.authority == authority
    p.coordinators.confirmed("n9", N2, answer, p.now)
    assert p.n1.c.shared_with("n9") is None


def test_a_late_answer_does_not_bring_an_older_request_back() -> None:
    p = Pair()
    early = p.deliver(p.beacon())
    p.wait(0.1)
    late = p.deliver(p.beacon())
    p.confirm(late)
    p.confirm(early)
    assert p.beacon()[7] == late[6]
    listed = p.coordinators._peers["n2"].tablets[TABLET]
    assert listed.request == late[6]


def test_a_peer_whose_machine_was_restarted_is_granted_leases_again() -> None:
    """Its clock counts from the machine's start: what its earlier run asked for lies far ahead of it."""
    p = Pair()
    early = p.deliver(p.beacon())
    early[6] = 1_000_000.0
    p.confirm(early)
    assert p.beacon()[7] == early[6]
    p.n1.confirm("n2", 0, incarnation=23)
    p.n1.promise("n2", flags=SHARES, incarnation=23)
    late = p.deliver(p.beacon())
    p.confirm(late, incarnation=23)
    beacon = p.beacon()
    assert (beacon[7], beacon[9]) == (late[6], 23)
    assert beacon[8] > 0


def test_a_coordinator_that_stepped_down_is_confirmed_nothing() -> None:
    p = Pair()
    answer, authority = p.deliver(p.beacon()), p.progress.authority
    p.coordinators.role_changed(TABLET, None)
    p.confirm(answer)
    assert p.progress.authority == authority


def test_what_was_left_is_told_once() -> None:
    p = Pair()
    p.round()
    p.n2_coordinates_next()
    p.woken.clear()
    p.round()
    p.round()
    assert p.woken == [TABLET]


def test_a_change_of_flags_has_every_tablet_asked() -> None:
    p = Pair()
    p.round()
    p.woken.clear()
    p.round()
    assert p.woken == []
    answer = p.deliver(p.beacon())
    answer[7] = SHARES & ~m.FLAG_FIT
    p.confirm(answer)
    assert p.woken == [TABLET]
    assert p.progress.flags == SHARES & ~m.FLAG_FIT


def test_the_journal_is_bounded() -> None:
    """A peer that lags further than it reaches is told the whole list."""
    p = Pair()
    p.round()
    for _ in range(100):
        p.coordinators.role_changed(TABLET, None)
        p.beacon()
        p.coordinators.role_changed(TABLET, p.n1.c)
        p.beacon()
    assert len(p.coordinators._peers["n2"].journal) <= 1 + 64
    beacon = p.beacon()
    assert (beacon[5], beacon[6]) == (0, [TABLET, 4, 2])
    assert p.deliver(beacon)[9] == []
