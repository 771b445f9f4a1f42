"""One beacon for all tablets of a node pair: what it must mean for each of them (R2, R3, R5, R6, R7, R7b, R13)."""

from __future__ import annotations

from tests.sim.mutant import COORDINATOR, FOLLOWER, PEER_BEACONS, Mutant, mutant
from tests.sim.mutant import UNIT_PEER_BEACONS as UNIT


def confirmed(rule: str, name: str, test: str, old: str, new: str = "") -> Mutant:
    return mutant(rule, name, UNIT + test, (PEER_BEACONS, "PeerBeacons.confirmed", old, new))


def obeyed(rule: str, name: str, test: str, old: str, new: str = "") -> Mutant:
    return mutant(rule, name, UNIT + test, (FOLLOWER, "Follower.shared_beacon", old, new))


def listed(rule: str, name: str, test: str, old: str, new: str = "") -> Mutant:
    return mutant(rule, name, UNIT + test, (COORDINATOR, "Coordinator.shared_with", old, new))


UNLISTED = "a_copy_that_is_suspect_or_being_filled_or_stopped_or_leaves_has_left"
ENROLLED = "a_tablet_is_listed_once_this_run_of_the_peer_has_confirmed_its_own_beacon"

MUTANTS = [
    mutant(
        "R5",
        "shared_authority_from_receipt",
        UNIT + "it_is_a_beacon_of_each_tablet_that_it_lists",
        (
            COORDINATOR,
            "Coordinator.shared_confirm",
            "sent_at + self._s.config.timing.lease",
            "now + self._s.config.timing.lease",
        ),
    ),
    confirmed(
        "R5",
        "shared_counts_for_what_was_left",
        "a_member_that_promised_a_later_epoch_has_left",
        "x.since > version or tablet in gone or",
        "x.since > version or",
    ),
    confirmed(
        "R5",
        "shared_counts_for_what_was_listed_later",
        "a_confirmation_counts_for_what_was_listed_when_it_was_sent",
        "x.since > version or",
    ),
    mutant(
        "R5",
        "shared_without_the_list",
        UNIT + "a_member_that_missed_a_change_confirms_nothing_and_is_told_it",
        (PEER_BEACONS, "PeerBeacons._take", "elif base != heard.version:", "elif False:"),
    ),
    mutant(
        "R5",
        "shared_list_of_an_ended_run",
        UNIT + "a_run_of_the_coordinator_that_ended_lists_nothing",
        (PEER_BEACONS, "PeerBeacons.beacon", " or heard.incarnation != incarnation", ""),
    ),
    confirmed(
        "R5",
        "shared_confirmation_for_an_ended_run",
        "a_confirmation_for_another_run_of_the_coordinator_counts_for_nothing",
        " or to != self._incarnation",
    ),
    mutant(
        "R6",
        "shared_lease_from_receipt",
        UNIT + "its_leases_count_from_the_request_and_are_waited_out",
        (FOLLOWER, "Follower.shared_beacon", "request + seconds", "now + seconds"),
    ),
    obeyed(
        "R6",
        "shared_lease_of_an_earlier_epoch",
        "a_lease_that_was_asked_for_in_an_earlier_epoch_counts_not",
        " and request >= self._request_floor",
    ),
    mutant(
        "R6",
        "shared_lease_of_an_earlier_run",
        UNIT + "a_lease_for_an_earlier_run_counts_not",
        (PEER_BEACONS, "PeerBeacons.beacon", "common, others = 0.0, []", "others = []"),
    ),
    mutant(
        "R6",
        "shared_lease_of_an_earlier_run_told_alone",
        UNIT + "a_lease_for_an_earlier_run_counts_not_where_it_is_told_for_the_tablet_alone",
        (PEER_BEACONS, "PeerBeacons.beacon", "common, others = 0.0, []", "common = 0.0"),
    ),
    mutant(
        "R6",
        "shared_lease_of_the_longest",
        UNIT + "shorter_leases_are_told_one_by_one",
        (PEER_BEACONS, "PeerBeacons._grants", "common = x.seconds", "pass"),
        (PEER_BEACONS, "PeerBeacons._grants", "if seconds < common:", "if seconds < common / 2:"),
    ),
    mutant(
        "R6",
        "shared_lease_of_another_request",
        UNIT + "shorter_leases_are_told_one_by_one",
        (PEER_BEACONS, "PeerBeacons._grants", "x.seconds if x.request == request else 0.0", "x.seconds"),
    ),
    mutant(
        "R6",
        "shared_lease_where_none_was_told",
        UNIT + "a_member_takes_what_is_told_for_the_tablet",
        (PEER_BEACONS, "PeerBeacons.beacon", "lengths.get(tablet, common)", "common"),
    ),
    obeyed(
        "R7",
        "shared_without_a_promise",
        "it_is_a_beacon_of_each_tablet_that_it_lists",
        "self._promise(now)",
        "pass",
    ),
    obeyed(
        "R7",
        "shared_of_an_epoch_left_behind",
        "a_member_that_obeys_the_same_node_in_a_later_epoch_has_left",
        "s.promised != epoch or s.promised_durable != epoch",
        "False",
    ),
    obeyed(
        "R2",
        "shared_while_taking_over",
        "a_member_that_tries_to_take_over_has_left",
        "s.barred_below > epoch or ",
    ),
    obeyed(
        "R3",
        "shared_by_another_copy",
        "a_member_with_another_copy_has_left",
        " or s.copy_id != copy_id",
    ),
    obeyed(
        "R3",
        "shared_before_the_promise_is_stored",
        "a_member_whose_promise_is_not_on_disk_has_left",
        " or s.promised_durable != epoch",
    ),
    confirmed(
        "R3",
        "shared_counts_for_another_copy",
        "a_confirmation_of_another_copy_counts_for_nothing",
        " or p.copy_id != x.member.copy_id",
    ),
    obeyed(
        "R3", "shared_without_a_leader", "a_member_that_obeys_nobody_has_left", "self.leader != source or "
    ),
    obeyed("R13", "shared_by_a_suspect_copy", UNLISTED, " or s.suspect"),
    obeyed("R10", "shared_by_a_copy_being_filled", UNLISTED, " or s.filling"),
    obeyed("R14", "shared_by_a_stopped_copy", UNLISTED, "s.stopped_reason is not None or "),
    obeyed("R7b", "shared_by_one_that_leaves", UNLISTED, "s.is_leaving or "),
    listed("R13", "shared_by_a_run_that_showed_nothing", ENROLLED, "not p.enrolled or "),
    mutant(
        "R13",
        "shared_by_the_next_run",
        UNIT + ENROLLED,
        ("ackord_node.core.progress", "Progress.became", "self.enrolled = 0", "pass"),
    ),
    confirmed(
        "R13",
        "shared_confirmation_of_another_run",
        "a_confirmation_of_another_run_counts_for_nothing",
        "p.enrolled != incarnation or ",
    ),
    listed(
        "R7b",
        "shared_after_reads_ended",
        "a_coordinator_that_ended_reads_is_off_the_list",
        " or self.membership.has_ended_reads",
    ),
    mutant(
        "R12",
        "shared_hides_the_commit_point",
        UNIT + "a_commit_point_that_came_to_rest_is_told_by_a_beacon_of_the_tablets_own",
        (COORDINATOR, "Coordinator._beacon", " or (is_still and p.beaconed != self._s.commit)", ""),
    ),
]
