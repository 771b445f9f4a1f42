"""Every limit of the public protocol, in one place, with its unit (the unit is the name's last word).

The whole cluster must agree on them: cluster.yaml's ``limits`` section overrides single fields by name.
Each is checked where the value enters, and the error names the field, the value and the limit.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ackord.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of tables, rows, requests and queues; all are positive ints."""

    # -- tables
    table_name_chars: int = 64
    key_columns_count: int = 4
    tables_count: int = 1_000
    tablets_per_table_count: int = 256

    # -- rows
    key_column_bytes: int = 1_024  # of one key column's value, before encoding
    column_name_bytes: int = 255
    columns_count: int = 1_024  # in one row, and in one write
    cell_bytes: int = 2 * 1024 * 1024  # of one column's value, encoded
    row_bytes: int = 4 * 1024 * 1024  # of all columns, encoded
    value_depth_count: int = 16  # nesting of lists and maps

    # -- requests
    batch_rows_count: int = 200  # rows in one write_many or get_many call
    scan_page_rows_count: int = 5_000
    scan_page_bytes: int = 4 * 1024 * 1024
    expression_nodes_count: int = 256  # operators, columns and constants of one condition or filter
    expression_depth_count: int = 16  # nesting of its operators
    expression_bytes: int = 32 * 1024  # encoded, its constants included
    transaction_rows_count: int = 200  # writes of one transaction
    transaction_reads_count: int = 1_000  # single rows that it read
    transaction_ranges_count: int = 16  # ranges that it read
    transaction_range_rows_count: int = 1_000  # rows in all of them
    transaction_bytes: int = 4 * 1024 * 1024  # of a transaction as sent, of the rows it leaves, of its ranges
    frame_bytes: int = 16 * 1024 * 1024  # one frame of a stream
    frame_groups_count: int = 4_096  # request groups in one frame
    group_ops_count: int = 4_096  # operations in one request group (the SDK batches its concurrent calls)
    body_bytes: int = 8 * 1024 * 1024  # one plain HTTP request body
    streams_count: int = 1_024  # open SDK streams of one node
    stream_inflight_ops_count: int = 65_536  # undecided operations of one SDK stream

    # -- waiting
    pending_ops_count: int = 16_384  # undecided writes of one tablet
    pending_bytes: int = 64 * 1024 * 1024  # their bytes
    waiting_reads_count: int = 16_384  # reads of one tablet that wait for a pending write
    request_wait_ms: int = 30_000  # the longest that a node holds one request undecided

    # -- caching
    cache_lease_ms: int = (
        300  # a client keeps rows so long without asking, and at most confirm_timeout_ms / 3
    )
    cached_rows_count: int = 100_000  # rows of one tablet that one client may keep through one node

    # -- history
    as_of_ahead_ms: int = 60_000  # how far a version to read as of may lie ahead of the coordinator's clock
    history_rows_count: int = 1_000  # versions in one answer of history
    tombstone_keep_ms: int = (
        3_600_000  # a deleted row's versions can be told apart from "never there" so long
    )

    # -- exactly once
    clients_count: int = 4_096  # remembered clients of one tablet
    client_results_count: int = 65_536  # unacknowledged results of one client in one tablet
    client_returned_bytes: int = 8 * 1024 * 1024  # rows among them (of writes with ``returning``)
    returned_bytes: int = 64 * 1024 * 1024  # such rows of all clients of one tablet
    idempotency_key_chars: int = 128
    registered_ahead_ms: int = 600_000  # how far a client's registration may lie ahead of a node's clock


DEFAULT_LIMITS = Limits()


def check_bounds(what: str, bounds: Any) -> None:
    """InvalidRequest unless every field of this dataclass is a positive int."""
    for item in fields(bounds):
        value = getattr(bounds, item.name)
        if type(value) is not int or value < 1:
            shown = ascii(value)[:60]
            raise InvalidRequest(
                f"{what}: {item.name}={shown} is no positive int", field=item.name, value=shown
            )
