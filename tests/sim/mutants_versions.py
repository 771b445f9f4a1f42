"""Mutants of rule R20: the tablet's clock, by which rows expire and versions are kept."""

from __future__ import annotations

from tests.sim.mutant import WRITES, Mutant, mutant

EXPIRY = "ackord_node.core.expiry"
JUDGING = "ackord_node.core.judging"
VERSION_READS = "ackord_node.runtime.version_reads"
READS = "ackord_node.core.reads"
UNIT_EXPIRY = "unit/test_core_expiry.py::test_"
UNIT_VERSION_READS = "unit/test_version_reads.py::test_"
SCENARIO_VERSIONS = "scenario/test_versions.py::test_"

MUTANTS: list[Mutant] = [
    mutant(
        "R20",
        "read_shows_what_a_pending_clock_hides",
        UNIT_EXPIRY + "a_read_waits_for_a_reading_that_hides_its_row",
        (READS, "Reads.get_shown", " or self.is_expiring(row)", ""),
    ),
    mutant(
        "R20",
        "scan_shows_what_a_pending_clock_hides",
        UNIT_EXPIRY + "a_range_waits_for_a_reading_of_the_clock",
        ("ackord_node.core.replica", "Replica.has_pending_in", "clock.at_end > clock.at_commit or ", ""),
    ),
    mutant(
        "R20",
        "write_judged_on_expired_rows",
        UNIT_EXPIRY + "a_write_is_judged_by_the_reading_at_the_logs_end",
        (READS, "Reads.newest_row", "clock.hides(row, clock.at_end)", "False"),
    ),
    mutant(
        "R20",
        "clock_of_the_coordinator_alone",
        SCENARIO_VERSIONS + "a_coordinator_whose_wall_clock_is_ahead_expires_nothing",
        (
            EXPIRY,
            "Expiry._read_clock",
            "reading = min(reading, p.wall_ms if p is not None else 0)",
            "pass",
        ),
    ),
    mutant(
        "R20",
        "clock_without_those_that_do_not_tell",
        SCENARIO_VERSIONS + "the_clock_stands_still_while_a_member_does_not_tell_its_own",
        (
            EXPIRY,
            "Expiry._read_clock",
            "p.wall_ms if p is not None else 0",
            "(p.wall_ms if p is not None else 0) or reading",
        ),
    ),
    mutant(
        "R20",
        "clock_without_a_cap",
        SCENARIO_VERSIONS + "a_jump_of_all_wall_clocks_expires_nothing_within_an_epoch",
        (
            EXPIRY,
            "Expiry._read_clock",
            "reading = min(reading, first + int((now - since) * 1000) + CLOCK_AHEAD_MS)",
            "pass",
        ),
    ),
    mutant(
        "R20",
        "expired_rows_are_not_swept",
        SCENARIO_VERSIONS + "a_row_is_gone_on_every_replica_and_swept_from_every_disk",
        (EXPIRY, "Expiry.rows_read", "if clock.hides(row, clock_ms):", "if False:"),
    ),
    mutant(
        "R20",
        "expired_rows_are_shown",
        UNIT_EXPIRY + "a_row_is_shown_until_the_clock_has_reached_its_expiry",
        (READS, "Reads.shown", "clock.hides(row, clock.at_commit)", "False"),
    ),
    mutant(
        "R20",
        "clock_not_in_the_stored_copy",
        "unit/test_table_options.py::test_a_table_without_options_is_stored_as_it_always_was",
        ("ackord_node.core.copy_meta", "CopyMeta.decode", "raw[13] if len(raw) > 13 else 0", "0"),
    ),
    mutant(
        "R20",
        "write_below_a_version_that_was_read",
        SCENARIO_VERSIONS + "no_write_gets_a_version_that_was_read_as_of",
        (
            "ackord_node.core.coordinator",
            "Coordinator.advance_version",
            "if version > s.last_version",
            "if False",
        ),
    ),
    mutant(
        "R20",
        "versions_removed_by_a_clock_that_may_go_back",
        "unit/test_collector.py::test_nothing_is_removed_by_a_reading_of_the_clock_that_is_not_durable_here",
        (
            "ackord_node.runtime.collector",
            "Collector._step",
            "state.clock.durable, self._position",
            "state.clock.at_end, self._position",
        ),
    ),
    mutant(
        "R20",
        "versions_below_the_clock",
        SCENARIO_VERSIONS
        + "a_row_that_is_written_after_a_takeover_lives_its_time_though_the_wall_clock_is_behind",
        (WRITES, "WritePath._new_draft", ", s.clock.at_end << 16", ""),
    ),
    mutant(
        "R20",
        "merge_from_a_base_that_is_not_kept",
        SCENARIO_VERSIONS + "a_collected_base_is_an_error_and_not_a_wrong_merge",
        (JUDGING, "Judge._base", "if s.retention.kept(found, s.clock.at_end):", "if True:"),
    ),
    mutant(
        "R20",
        "merge_from_no_version_of_the_row",
        SCENARIO_VERSIONS + "a_merge_is_from_a_version_of_its_row",
        (JUDGING, "Judge._base", "if found.version != version:", "if False:"),
    ),
    mutant(
        "R20",
        "merge_from_a_base_that_has_expired",
        SCENARIO_VERSIONS + "a_base_that_has_expired_is_an_error",
        (
            JUDGING,
            "Judge._base",
            "if found.row is None or not s.clock.hides(found.row, s.clock.at_end):",
            "if True:",
        ),
    ),
    mutant(
        "R20",
        "as_of_beside_a_pending_clock",
        UNIT_VERSION_READS + "a_read_as_of_a_version_waits_for_a_pending_reading_of_the_clock",
        (
            VERSION_READS,
            "VersionReads._when_settled",
            "as_of > s.commit_version or (is_member and s.clock.at_end > s.clock.at_commit)",
            "as_of > s.commit_version",
        ),
    ),
    mutant(
        "R20",
        "as_of_what_is_not_committed",
        UNIT_VERSION_READS + "a_read_as_of_a_version_waits_until_that_is_committed",
        (
            VERSION_READS,
            "VersionReads._when_settled",
            "is_pending = as_of > s.commit_version or (",
            "is_pending = (",
        ),
        (
            VERSION_READS,
            "VersionReads._when_settled",
            "if as_of is not None and as_of > s.commit_version:",
            "if False:",
        ),
    ),
]
