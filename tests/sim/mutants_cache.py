"""Clients that keep rows (R19): at the node, in the roles of a replica, and in the client."""

from __future__ import annotations

from tests.sim.mutant import COORDINATOR, FOLLOWER, MEMBERSHIP, STATE, UNIT_COORDINATOR, UNIT_MEMBERS, mutant

HOLDERS = "ackord_node.core.holders"
HOLDING = "ackord_node.core.holding"
CACHE = "ackord.cache"
CACHING = "ackord.caching"
SCENARIO = "scenario/test_cache.py::test_"
UNIT = "unit/test_core_holders.py::test_"
UNIT_CLIENT = "unit/test_cache.py::test_"

MUTANTS = [
    mutant(
        "R19",
        "holders_are_not_told",
        SCENARIO + "a_row_is_kept_until_it_is_written_and_the_write_waits_for_that",
        (STATE, "TabletState.append", "if self.holders.by_key:", "if False:"),
    ),
    mutant(
        "R19",
        "member_waits_for_no_holder",
        SCENARIO + "a_member_confirms_no_write_of_a_row_that_somebody_may_still_answer",
        (FOLLOWER, "Follower._answer", "if s.holders.bound is not None:", "if False:"),
    ),
    mutant(
        "R19",
        "own_copy_waits_for_no_holder",
        SCENARIO + "a_write_does_not_count_on_the_coordinators_own_disk_while_a_client_may_answer",
        (
            COORDINATOR,
            "Coordinator._try_commit",
            "s.durable if s.holders.bound is None else min(s.durable, s.holders.bound)",
            "s.durable",
        ),
    ),
    mutant(
        "R19",
        "pending_rows_are_granted",
        SCENARIO + "a_row_that_a_pending_write_touches_is_granted_to_nobody",
        (HOLDING, "Holding.hold", "if key not in pending and", "if"),
    ),
    mutant(
        "R19",
        "told_rows_are_granted_again",
        UNIT + "who_was_told_of_an_entry_that_was_cut_must_answer_before_it_is_granted_the_key_again",
        (HOLDERS, "Holders.hold", "if key in hold.telling:", "if False:"),
    ),
    mutant(
        "R19",
        "hold_outlasts_the_lease",
        SCENARIO + "a_client_is_granted_no_more_than_the_replica_has_itself",
        (HOLDING, "Holding._right_until", "return replica.follower.lease_until", "return now + 9"),
    ),
    mutant(
        "R19",
        "hold_outlasts_the_authority",
        SCENARIO + "a_coordinators_clients_are_granted_no_more_than_its_authority",
        (HOLDING, "Holding._right_until", "return c.authority() if", "return now + 9 if"),
    ),
    mutant(
        "R19",
        "hold_waited_out_unscaled",
        SCENARIO + "a_lease_is_waited_out_as_long_as_the_slowest_clock_may_take",
        (HOLDERS, "Holders.grant", "seconds * self._scale", "seconds"),
    ),
    mutant(
        "R19",
        "restart_forgets_holders",
        SCENARIO + "a_member_that_was_restarted_waits_for_the_clients_of_its_earlier_run",
        (HOLDERS, "Holders.restarted", "if hold_ms:", "if False:"),
    ),
    mutant(
        "R19",
        "suspect_copy_forgets_holders",
        UNIT + "a_suspect_copy_may_have_lost_its_record_and_waits_anyway",
        (
            STATE,
            "TabletState.__init__",
            "max(self.hold_ms, longest_ms(self.holders) * meta.suspect)",
            "self.hold_ms",
        ),
    ),
    mutant(
        "R19",
        "granted_before_recorded",
        SCENARIO + "nothing_is_granted_before_a_later_run_could_know_of_it",
        (HOLDING, "Holding.is_recorded", "s.hold_ms_durable", "s.hold_ms"),
    ),
    mutant(
        "R19",
        "lapsed_hold_is_extended",
        UNIT + "a_lease_that_lapsed_is_not_extended_but_begun_anew",
        (HOLDERS, "Holders.renew", " or hold.until <= now", ""),
        (HOLDERS, "Holders.grant", "hold.until <= now", "False"),
    ),
    mutant(
        "R19",
        "lapsed_hold_goes_on_under_its_number",
        SCENARIO + "what_was_granted_before_a_lease_lapsed_is_not_kept_under_a_later_one",
        (
            HOLDERS,
            "Holders.grant",
            "(self._first_number + self._made_count) & NUMBER_MASK",
            "self._first_number",
        ),
    ),
    mutant(
        "R19",
        "runs_share_the_numbers_of_holds",
        SCENARIO + "holds_have_another_number_after_a_restart",
        (HOLDERS, "Holders.__init__", "incarnation << NUMBER_BITS", "0"),
    ),
    mutant(
        "R19",
        "drain_leaves_own_holders",
        UNIT_MEMBERS + "a_hand_over_waits_for_the_coordinators_own_clients",
        (MEMBERSHIP, "Membership._drive_drain", " or s.holders.latest > now", ""),
    ),
    mutant(
        "R19",
        "drain_goes_on_granting_holds",
        SCENARIO + "a_coordinator_that_hands_over_grants_no_more",
        (HOLDING, "Holding._right_until", "if c.membership.drain is Drain.NO", "if True"),
    ),
    mutant(
        "R19",
        "leaves_its_holders",
        SCENARIO + "a_member_that_leaves_waits_for_its_clients_first",
        (FOLLOWER, "Follower.tick", "due and s.holders.latest <= now", "due"),
    ),
    mutant(
        "R19",
        "joins_beside_the_coordinators_holders",
        UNIT_MEMBERS
        + "nobody_joins_without_a_promise_that_covers_the_leases_of_the_coordinators_own_clients",
        (MEMBERSHIP, "Membership._learner", "max(outstanding, s.holders.latest_raw)", "outstanding"),
    ),
    mutant(
        "R19",
        "earlier_answer_counts_for_a_later_message",
        UNIT + "an_answer_to_an_earlier_message_does_not_stand_for_a_later_one",
        (HOLDERS, "Holders.answered", "hold.telling.get(key) == first", "key in hold.telling"),
    ),
    mutant(
        "R19",
        "answer_of_another_hold_counts",
        UNIT + "an_answer_of_another_hold_or_holder_counts_for_nothing",
        (HOLDERS, "Holders.answered", " or hold.number != number", ""),
    ),
    mutant(
        "R19",
        "answer_clears_every_message_about_an_index",
        UNIT + "who_was_told_of_an_entry_that_was_cut_must_answer_before_it_is_granted_the_key_again",
        (HOLDERS, "Holders.answered", ".pop((hold.number, first), None)", ".clear()"),
    ),
    mutant(
        "R19",
        "answers_free_the_whole_bound",
        UNIT + "an_entry_waits_for_every_holder_of_every_key_that_it_touches",
        (HOLDERS, "Holders._moved", "if not wait", "if len(wait) < 2"),
    ),
    mutant(
        "R19",
        "only_single_rows_are_told",
        SCENARIO + "all_rows_of_a_transaction_are_told",
        (
            HOLDERS,
            "Holders._touched",
            "for key, _ in entry.changes() if key in held",
            "for g in entry.groups if g[0] is not None for key in g[4] if type(key) is bytes and key in held",
        ),
    ),
    mutant(
        "R19",
        "expiry_tells_nobody",
        SCENARIO + "a_row_is_kept_until_it_expires_and_no_longer",
        (HOLDERS, "Holders._touched", "entry.clock_ms if self._expires else 0", "0"),
    ),
    mutant(
        "R19",
        "expiring_rows_are_granted",
        UNIT + "no_row_is_kept_that_a_pending_reading_of_the_clock_hides",
        (HOLDING, "Holding.keeps", "not expires_ms or expires_ms > s.clock.at_end", "True"),
    ),
    mutant(
        "R19",
        "who_owes_an_answer_is_extended",
        SCENARIO + "who_owes_an_answer_is_not_granted_more_time_for_it",
        (HOLDERS, "Holders.grant", "if hold is not None and hold.told:", "if False:"),
    ),
    mutant(
        "R19",
        "long_leases",
        UNIT + "a_client_that_is_frozen_expels_no_member",
        (HOLDERS, "longest_hold", "timing.confirm_timeout / 3", "timing.lease"),
    ),
    mutant(
        "R19",
        "waiting_for_clients_is_slowness",
        UNIT_COORDINATOR + "a_member_that_waits_for_clients_is_not_slow",
        (COORDINATOR, "Coordinator.beacon_confirm", "flags & m.FLAG_HOLDERS and", "False and"),
    ),
    mutant(
        "R19",
        "client_keeps_what_it_was_told",
        SCENARIO + "a_row_is_kept_until_it_is_written_and_the_write_waits_for_that",
        (CACHE, "RowCache.told", "self._drop(kept)", "pass"),
    ),
    mutant(
        "R19",
        "client_counts_from_the_answer",
        SCENARIO + "a_lease_counts_from_when_the_client_asked",
        (CACHING, "Caching._extend", "until = sent_at + seconds", "until = now + seconds"),
    ),
    mutant(
        "R19",
        "client_keeps_late_answers",
        SCENARIO + "an_answer_that_comes_after_what_revokes_it_is_not_kept",
        (CACHE, "RowCache.keep", "as_of < self._floors.get(encoded, (0, 0.0))[0]", "False"),
    ),
    mutant(
        "R19",
        "client_forgets_floors_early",
        UNIT_CLIENT + "floors_that_are_too_many_become_one_for_all",
        (CACHE, "RowCache._forget_floors", "self._floor = max(self._floor, version)", "pass"),
    ),
    mutant(
        "R19",
        "client_has_one_lease_for_all_numbers",
        UNIT_CLIENT + "another_number_is_another_lease",
        (CACHING, "Caching.granted", "lease is None or lease.number != number", "lease is None"),
    ),
    mutant(
        "R19",
        "client_does_not_look_again",
        UNIT_CLIENT + "nothing_is_answered_after_the_lease_without_looking",
        (CACHING, "Caching.used", "min(now + CHECK_S, lease.until)", "now + CHECK_S"),
    ),
    mutant(
        "R19",
        "client_answers_after_the_lease",
        UNIT_CLIENT + "a_row_is_found_under_every_form_of_its_key_while_its_lease_stands",
        (CACHE, "RowCache.find", " or kept.lease.until <= now", ""),
    ),
]
