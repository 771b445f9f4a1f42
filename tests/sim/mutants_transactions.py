"""Transactions of one partition key (R21)."""

from __future__ import annotations

from tests.sim.mutant import WRITES, mutant

TRANSACTIONS = "ackord_node.core.transactions"
SCENARIO = "scenario/test_transactions.py::test_"

MUTANTS = [
    mutant(
        "R21",
        "transaction_rows_not_compared",
        SCENARIO + "a_row_that_changed_since_it_was_read_is_a_conflict",
        (TRANSACTIONS, "Transactions._compare", "changed.append(at)", "pass"),
    ),
    mutant(
        "R21",
        "transaction_ranges_not_compared",
        SCENARIO + "a_phantom_in_a_range_is_a_conflict_and_one_beside_it_is_none",
        (TRANSACTIONS, "Transactions._compare", "if not self._is_as_read(*wanted)", "if False"),
    ),
    mutant(
        "R21",
        "pending_phantoms",
        SCENARIO + "a_read_only_transaction_leaves_no_record_and_waits_like_a_read",
        (
            "ackord_node.core.reads",
            "Reads.newest_range",
            "(s.overlay.unapplied, s.overlay.pending)",
            "(s.overlay.unapplied,)",
        ),
    ),
    mutant(
        "R21",
        "refused_transaction_stays_pending",
        SCENARIO + "nothing_is_done_if_one_condition_does_not_hold",
        (TRANSACTIONS, "Transactions.judge", "in before.items():", "in ():"),
    ),
    mutant(
        "R21",
        "read_only_without_right",
        SCENARIO + "a_coordinator_without_authority_answers_no_read_only_transaction",
        (WRITES, "WritePath._answer_read_only", "if not may_answer:", "if False:"),
    ),
    mutant(
        "R21",
        "transaction_stored_in_part",
        SCENARIO + "every_reader_sees_all_of_a_transaction_or_nothing",
        (
            "ackord_node.core.log",
            "Entry.changes",
            "yield from zip(key, value, strict=True)",
            "yield key[0], value[0]",
        ),
    ),
]
