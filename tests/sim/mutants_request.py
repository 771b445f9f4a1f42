"""Exactly once, outcomes, identity (R16 to R18)."""

from __future__ import annotations

from tests.sim.mutant import (
    ADMIN,
    CATALOGUE,
    COMMITTER,
    HOST,
    REPLICA,
    REQUESTS,
    SCENARIO_FEEDING,
    SCENARIO_REQUESTS,
    STATE,
    UNIT_ADMIN,
    UNIT_CATALOGUE,
    UNIT_REPLICA,
    UNIT_RUNTIME,
    UNIT_TAKEOVER,
    UNIT_WRITES,
    WRITES,
    mutant,
)

MUTANTS = [
    # ----------------------------------------------------------------------------------------- R16
    mutant(
        "R16",
        "table_not_consulted",
        SCENARIO_REQUESTS + "the_request_table_is_consulted_after_a_takeover",
        (WRITES, "WritePath._answer_known", "result = record.results.get(seq)", "result = None"),
    ),
    mutant(
        "R16",
        "retry_in_progress_runs_again",
        SCENARIO_REQUESTS + "a_retry_of_what_is_in_progress_waits_for_it",
        (WRITES, "WritePath._answer_known", "progress = known.get(seq)", "progress = None"),
    ),
    mutant(
        "R16",
        "tail_not_in_progress",
        SCENARIO_REQUESTS + "the_tail_that_a_takeover_found_is_in_progress",
        (WRITES, "WritePath.__init__", "if entry.index > state.commit:", "if False:"),
    ),
    mutant(
        "R16",
        "below_the_floor_runs_again",
        SCENARIO_REQUESTS + "a_request_below_the_floor_is_stale",
        (WRITES, "WritePath._answer_known", "if seq < record.floor:", "if False:"),
    ),
    mutant(
        "R16",
        "floor_falls",
        "property/test_requests.py::test_every_result_at_or_above_the_floor_is_kept_until_its_client_is_collected",
        (REQUESTS, "ClientRecord.prune", "if seq >= floor", "if seq > floor"),
    ),
    mutant(
        "R16",
        "collected_executes",
        SCENARIO_REQUESTS + "a_collected_client_is_refused_with_outcome_unknown_and_never_executed",
        (WRITES, "WritePath._client_refusal", "group.registered <= s.requests.collected_below", "False"),
    ),
    mutant(
        "R16",
        "collecting_executes",
        UNIT_WRITES + "a_client_that_is_being_collected_waits",
        (
            WRITES,
            "WritePath._client_refusal",
            "elif record.last_version < self._collecting_below:",
            "elif False:",
        ),
    ),
    mutant(
        "R16",
        "registered_in_the_future",
        UNIT_WRITES + "a_registration_ahead_of_the_clock_is_refused",
        (WRITES, "WritePath._client_refusal", "if group.registered > (wall_ms + ahead) << 16:", "if False:"),
    ),
    mutant(
        "R16",
        "collection_forgets_its_mark",
        "property/test_requests.py::test_every_result_at_or_above_the_floor_is_kept_until_its_client_is_collected",
        (
            REQUESTS,
            "RequestTable._collect",
            "self.collected_below = max(self.collected_below, record.registered)",
            "pass",
        ),
    ),
    mutant(
        "R16",
        "collected_come_back",
        UNIT_REPLICA + "a_refused_batch_is_taken_again_whole",
        (
            STATE,
            "TabletState.unstored",
            "for _, client, _ in batch.requests:",
            "for client in self.requests.clients:",
        ),
    ),
    mutant(
        "R16",
        "results_not_stored_with_the_rows",
        SCENARIO_REQUESTS + "a_retry_after_every_node_restarted_gets_the_first_result",
        (
            STATE,
            "TabletState._take_applied",
            "for client, record in self.requests.take_dirty()",
            "for client, record in []",
        ),
    ),
    mutant(
        "R16",
        "refusal_not_recorded",
        SCENARIO_REQUESTS + "a_refusal_is_recorded_once_an_earlier_attempt_may_be_under_way",
        (WRITES, "WritePath._refused", "if known is None or op[6] <= 1 or error.retriable:", "if True:"),
    ),
    mutant(
        "R16",
        "requests_not_applied",
        SCENARIO_REQUESTS + "the_request_table_is_consulted_after_a_takeover",
        (REQUESTS, "RequestTable.apply", "if client:", "if False:"),
    ),
    mutant(
        "R16",
        "sdk_runs_again_under_a_new_id",
        "unit/test_routing.py::test_a_refused_id_is_renewed_only_if_no_attempt_can_have_happened[client_collected]",
        ("ackord.routing", "after_failure", "Next(retry=not unknown_before,", "Next(retry=True,"),
    ),
    mutant(
        "R16",
        "taken_number_is_recorded_as_a_refusal",
        "scenario/test_row_operations.py::test_a_retry_that_meets_a_taken_number_gets_the_next_one",
        (WRITES, "WritePath._refused", " or error.retriable", ""),
    ),
    # ----------------------------------------------------------------------------------------- R17
    mutant(
        "R17",
        "appended_is_said_not_done",
        UNIT_WRITES + "an_epochs_end_leaves_what_was_appended_in_doubt",
        (WRITES, "WritePath.end", "OutcomeUnknown(", "Unavailable("),
    ),
    mutant(
        "R17",
        "sdk_takes_unknown_for_not_done",
        "unit/test_routing.py::test_what_the_caller_of_a_write_is_told[last1-True-OutcomeUnknown]",
        ("ackord.routing", "final_error", "if not unknown or settles(error)", "if True or settles(error)"),
    ),
    mutant(
        "R17",
        "forwarded_again",
        "unit/test_forwarding.py::test_a_request_is_forwarded_once_only",
        (
            "ackord_node.server.forward",
            "is_forwarded",
            "return FORWARDED_HEADER in request.headers",
            "return False",
        ),
    ),
    mutant(
        "R17",
        "lost_answer_of_a_forwarded_write_is_said_not_done",
        "unit/test_forwarding.py::test_a_forwarded_write_whose_answer_is_lost_is_unknown",
        ("ackord_node.server.forward", "Forwarder.forward", "OutcomeUnknown(", "Unavailable("),
    ),
    mutant(
        "R17",
        "table_that_was_created_and_dropped_is_said_not_created",
        UNIT_RUNTIME + "a_create_does_not_wait_for_a_table_that_is_dropped_meanwhile",
        (CATALOGUE, "Catalogue._wait_served", "OutcomeUnknown if is_new else Unavailable", "Unavailable"),
    ),
    mutant(
        "R17",
        "create_is_fenced_anew_after_a_lost_attempt",
        UNIT_ADMIN + "a_create_that_succeeded_and_was_dropped_by_somebody_is_not_done_again",
        (ADMIN, "_was_perhaps_created", "or not attempts.may_have_happened", "or True"),
    ),
    mutant(
        "R17",
        "table_of_others_hides_a_lost_create",
        UNIT_ADMIN + "another_table_of_the_name_tells_what_became_of_a_lost_create",
        (ADMIN, "_was_perhaps_created", "now > record.version + 1", "False"),
    ),
    # ----------------------------------------------------------------------------------------- R18
    mutant(
        "R18",
        "late_create_is_not_fenced",
        UNIT_CATALOGUE + "a_create_from_another_version_of_the_record_creates_nothing",
        (CATALOGUE, "Catalogue._standing", "record.version != if_record_version", "False"),
    ),
    mutant(
        "R18",
        "create_sends_no_fence",
        "sim/test_late_table_operations.py::test_a_late_attempt_of_a_create_does_not_bring_the_table_back",
        (ADMIN, "Admin.create", '"if_record_version": record.version', '"if_record_version": None'),
    ),
    mutant(
        "R18",
        "late_drop_is_not_fenced",
        "sim/test_late_table_operations.py::test_a_late_attempt_of_a_drop_does_not_drop_the_next_table_of_that_name",
        (CATALOGUE, "Catalogue.drop", "table_id != definition.id", "False"),
    ),
    mutant(
        "R18",
        "record_published_over_any_version",
        "contract/test_coordination.py::test_a_late_change_of_an_earlier_table_does_not_touch_a_later_one[memory]",
        (
            "ackord_node.adapters.coordination_memory",
            "MemoryCoordination.create_table",
            "(-1 if stands is None else stands.version) == version",
            "stands is None or not stands.data",
        ),
    ),
    mutant(
        "R18",
        "tables_listed_as_this_node_knows_them",
        "sim/test_late_table_operations.py::test_other_clients_see_a_table_operation_as_soon_as_it_was_acknowledged",
        (CATALOGUE, "Catalogue.read_again", "await self._read_once_more(is_ours)", "pass"),
    ),
    mutant(
        "R18",
        "drop_mark_ignored",
        SCENARIO_FEEDING + "a_dropped_tablet_is_served_and_confirmed_no_more",
        (REPLICA, "Replica._descriptor_seen", "if d.dropped:", "if False:"),
    ),
    mutant(
        "R18",
        "drop_mark_not_promised",
        UNIT_TAKEOVER + "the_mark_of_a_drop_is_promised_durably",
        (REPLICA, "Replica._dropped", "if descriptor.epoch > s.promised:", "if False:"),
    ),
    mutant(
        "R18",
        "drop_does_not_wait_for_members",
        UNIT_RUNTIME + "a_drop_marks_waits_for_a_member_and_for_every_lease",
        (CATALOGUE, "Catalogue._stop", "await self._wait_stopped(tablet, before, epoch)", "pass"),
    ),
    mutant(
        "R18",
        "drop_does_not_wait_for_leases",
        UNIT_RUNTIME + "a_drop_marks_waits_for_a_member_and_for_every_lease",
        (CATALOGUE, "Catalogue.drop", "await asyncio.sleep(self._timing.promise)", "pass"),
    ),
    mutant(
        "R18",
        "stored_after_it_was_forgotten",
        UNIT_RUNTIME + "nothing_is_stored_after_the_tablet_was_forgotten",
        (COMMITTER, "Committer.forget", "self._dirty.pop(tablet, None)", "pass"),
    ),
    mutant(
        "R18",
        "closed_host_stores",
        UNIT_RUNTIME + "a_closed_host_stores_nothing_more",
        (HOST, "TabletHost.take_batch", "None if self._is_closed else ", ""),
    ),
    mutant(
        "R18",
        "forgotten_without_a_mark",
        UNIT_RUNTIME + "a_tablets_data_goes_only_when_it_was_dropped[damaged-False]",
        (
            "ackord_node.runtime.node",
            "Node.tablet_changed",
            's.stopped_reason == "dropped"',
            "s.stopped_reason is not None",
        ),
    ),
    mutant(
        "R18",
        "message_for_another_tablet",
        UNIT_RUNTIME + "a_message_reaches_the_tablet_that_it_names",
        (
            "ackord_node.runtime.node",
            "Node.messages_received",
            "hosts.get(message[1])",
            "next(iter(hosts.values()), None)",
        ),
    ),
]
