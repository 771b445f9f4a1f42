"""Every rule is load bearing: with it dropped, some script or unit test fails.

Each mutant names what catches it soonest; ``python -m tests.sim.mutants`` searches the random walk for more.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.scenario import test_catch_up as catch_up
from tests.scenario import test_membership as membership
from tests.scenario import test_reads as reads
from tests.scenario import test_requests as requests
from tests.scenario import test_takeover as takeover
from tests.scenario import test_transactions as transactions
from tests.sim.mutants import MUTANTS, Mutant, applied
from tests.support.core_walk import small_marks
from tests.unit import test_core_replica as replica

pytestmark = pytest.mark.sim

SCRIPTS: dict[str, Callable[[], None]] = {
    "no_authority": membership.test_a_suspect_copy_does_not_take_over_while_its_promise_runs,
    "no_takeover_wait": membership.test_a_suspect_copy_does_not_take_over_while_its_promise_runs,
    "grants_not_capped": reads.test_a_grant_never_outlasts_the_grantors_authority,
    "no_wait_after_restart": takeover.test_a_restart_waits_as_long_as_the_promise_it_may_have_given,
    "confirm_while_barring": takeover.test_the_old_epoch_is_barred_while_a_copy_tries_to_take_over,
    "authority_from_receipt": reads.test_authority_counts_from_the_beacons_sending,
    "lease_from_receipt": replica.test_a_lease_of_an_earlier_request_counts_for_nothing_in_a_new_epoch,
    "no_wait_before_removal": membership.test_a_late_farewell_of_an_earlier_run_does_not_end_the_lease_of_a_later_one,
    "grant_while_revoking": membership.test_a_member_that_is_to_go_is_granted_no_more,
    "required_in_sync_only": membership.test_a_learner_counts_from_before_its_compare_and_set,
    "required_proposed_only": membership.test_a_member_that_is_to_go_is_granted_no_more,
    "takeover_not_in_sync": membership.test_an_empty_copy_does_not_take_over_for_the_one_that_was_in_sync,
    "copy_id_ignored_at_takeover": membership.test_an_empty_copy_does_not_take_over_for_the_one_that_was_in_sync,
    "tail_dropped": takeover.test_nothing_is_answered_before_the_tail_is_committed,
    "epoch_check_dropped": replica.test_an_older_epoch_is_fenced,
    "promise_not_stored": replica.test_nothing_is_answered_before_the_promise_is_on_disk,
    "promise_answered_before_stored": replica.test_a_cut_while_a_batch_is_under_way_is_not_taken_for_durable,
    "old_epoch_confirmations": takeover.test_late_confirmation_of_an_old_epoch_counts_for_nothing,
    "dirty_reads": reads.test_a_waiting_read_is_refused_in_bounded_time,
    "reads_ignore_overlay": reads.test_a_replica_waits_for_the_pending_write_of_the_key_and_no_other,
    "read_at_commit_not_end": reads.test_a_replica_waits_for_the_pending_write_of_the_key_and_no_other,
    "serve_before_tail": takeover.test_nothing_is_answered_before_the_tail_is_committed,
    "join_without_promise": membership.test_no_member_joins_without_a_promise_that_covers_every_lease,
    "drain_without_wait": takeover.test_draining_waits_for_every_lease_that_was_granted,
    "settle_early": membership.test_a_learner_counts_from_before_its_compare_and_set,
    "own_disk_not_awaited": membership.test_a_write_is_on_the_coordinators_own_disk_before_it_is_acknowledged,
    "member_disk_not_awaited": catch_up.test_a_member_confirms_what_is_on_disk_while_more_arrives,
    "minimum_ignored": reads.test_a_waiting_read_is_refused_in_bounded_time,
    "prefix_not_checked": replica.test_a_prefix_that_differs_is_refused,
    "commit_beyond_matched": replica.test_the_commit_point_moves_only_over_what_was_matched_in_this_epoch,
    "table_not_consulted": requests.test_the_request_table_is_consulted_after_a_takeover,
    "tail_not_in_progress": requests.test_the_tail_that_a_takeover_found_is_in_progress,
    "collected_executes": requests.test_a_collected_client_is_refused_with_outcome_unknown_and_never_executed,
    "negative_without_right": requests.test_negative_answers_need_the_right_to_answer,
    "negative_not_awaited": membership.test_a_member_that_rolled_back_at_the_minimum_is_fed_again,
    "requests_not_applied": replica.test_a_refused_batch_is_taken_again_whole,
    "suspect_confirms": replica.test_a_suspect_copy_confirms_only_once_refilled_and_once_it_knows_its_promise,
    "suspect_asks_nobody": replica.test_a_suspect_candidate_that_gets_no_answers_gives_the_lock_back,
    "rolled_back_stays": membership.test_a_member_that_rolled_back_at_the_minimum_is_fed_again,
    "rolled_back_coordinates": membership.test_a_new_coordinator_whose_disk_rolled_back_resigns,
    "suspect_ignores_promise": replica.test_a_suspect_candidate_that_hears_a_coordinator_keeps_its_promise,
    "suspect_asks_for_ever": replica.test_a_suspect_candidate_that_gets_no_answers_gives_the_lock_back,
    "never_sent_again": takeover.test_an_unknown_takeover_is_settled_only_by_a_changed_version,
    "tries_again_after_winning": takeover.test_an_unknown_takeover_is_settled_only_by_a_changed_version,
    "rebuilt_copy_coordinates": takeover.test_a_copy_that_is_rebuilt_during_its_takeover_does_not_coordinate,
    "foreign_tail_stays": takeover.test_the_tail_that_the_new_coordinator_does_not_have_is_cut,
    "join_behind": membership.test_a_learner_that_lacks_the_tail_is_not_admitted,
    "refusal_not_recorded": requests.test_a_refusal_is_recorded_once_an_earlier_attempt_may_be_under_way,
    "runs_counted_twice": replica.test_runs_of_a_restarted_copy_are_those_of_its_entries,
    "confirms_only_at_rest": catch_up.test_a_member_confirms_what_is_on_disk_while_more_arrives,
    "late_farewell": membership.test_a_late_farewell_of_an_earlier_run_does_not_end_the_lease_of_a_later_one,
    "late_snapshot": catch_up.test_a_late_chunk_of_an_earlier_snapshot_does_not_replace_a_full_copy,
    "snapshot_before_comparing": replica.test_a_snapshot_comes_only_after_the_oldest_comparable_entry_differed,
    "chunk_asked_twice": replica.test_one_chunk_is_asked_for_at_a_time,
    "collected_come_back": replica.test_a_refused_batch_is_taken_again_whole,
    "leaving_coordinator_stays": takeover.test_a_node_that_is_to_stop_and_wins_a_takeover_hands_it_on,
    "expelled_for_ever": membership.test_a_member_that_rolled_back_at_the_minimum_is_fed_again,
    "transaction_rows_not_compared": transactions.test_a_row_that_changed_since_it_was_read_is_a_conflict,
    "transaction_ranges_not_compared": transactions.test_a_phantom_in_a_range_is_a_conflict_and_one_beside_it_is_none,
    "pending_phantoms": transactions.test_a_read_only_transaction_leaves_no_record_and_waits_like_a_read,
    "refused_transaction_stays_pending": transactions.test_nothing_is_done_if_one_condition_does_not_hold,
    "tx_without_right": transactions.test_a_coordinator_without_authority_answers_no_read_only_transaction,
    "transaction_stored_in_part": transactions.test_every_reader_sees_all_of_a_transaction_or_nothing,
    "grant_unconfirmed": membership.test_a_silently_rolled_back_member_gets_no_lease_before_it_is_fed,
}


def test_every_mutant_has_something_that_catches_it() -> None:
    assert {mutant.name for mutant in MUTANTS} == set(SCRIPTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_caught(mutant: Mutant) -> None:
    with applied(mutant), small_marks(), pytest.raises((AssertionError, ValueError)):
        SCRIPTS[mutant.name]()
