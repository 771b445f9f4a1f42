"""The short way through the coordinator's write path for what most writes are: new puts of whole rows.

Nothing of the state decides such a write, so there is nothing to read, no condition to judge and no answer that could
be negative; what remains is done for a run of them in one loop. Everything else, a retry and an invalid body included,
is left to `WritePath`, which does the same step by step (rule R16: a sequence number that was seen before is not
executed again).
"""

from __future__ import annotations

from itertools import repeat
from typing import Any

from ackord.errors import Error
from ackord.wire.messages import COND_NONE, KIND_PUT, OWN_MARK, VERSION_BYTES, join_row
from ackord.wire.puts import Puts
from ackord.wire.values import are_columns, check_columns
from ackord_node.core.drafts import Draft, Progress, Verdicts
from ackord_node.core.effects import WriteGroup
from ackord_node.core.requests import ClientRecord
from ackord_node.core.state import TabletState

ITEMS = 7  # of an operation that returns no row


def judge_plain_puts(
    state: TabletState,
    group: WriteGroup,
    start: int,
    index: int,
    draft: Draft,
    known: Progress | None,
    record: ClientRecord | None,
    verdicts: Verdicts,
) -> int:
    """Takes the group's operations from number ``start`` on into the draft, until one is something else or the entry
    is full; returns where that is."""
    limits, bytes_max = state.config.limits, state.config.log.entry_bytes
    if state.clock.ttl_ms:
        return start  # they expire
    if isinstance(group.ops, Puts) and not start:
        end = _judge_columns(state, group.ops, index, draft, known, record, verdicts)
        if end:
            return end
    floor = record.floor if record is not None else 0
    results: dict[int, Any] = record.results if record is not None else {}
    pending, ops = state.overlay.pending, group.ops
    _, _, _, seqs, keys, rows = verdicts.logged[:6]
    version, size, at = draft.version, draft.size, start
    while at < len(ops) and size < bytes_max:
        op = ops[at]
        if len(op) != ITEMS or op[1] != KIND_PUT or op[4] != COND_NONE:
            break
        seq, _, key, body = op[:4]
        if body[:1] == OWN_MARK or (known is not None and (seq in known or seq in results or seq < floor)):
            break
        try:
            check_columns(body, limits)
        except Error:
            break
        row = join_row(version, body)
        pending[key] = (index, row)
        seqs.append(seq)
        keys.append(key)
        rows.append(row)
        if known is not None:
            known[seq] = (index, version)
        verdicts.later_indices.append(at)
        verdicts.later_results.append(version)
        size += len(key) + len(row) + 24
        version += 1
        at += 1
    draft.version, draft.size = version, size
    return at


def _judge_columns(
    state: TabletState,
    puts: Puts,
    index: int,
    draft: Draft,
    known: Progress | None,
    record: ClientRecord | None,
    verdicts: Verdicts,
) -> int:
    """All of the puts at once; 0 if one of them is not new, or perhaps not valid, or they are more than fits."""
    seqs, keys, bodies = puts.seqs, puts.keys, puts.bodies
    size = draft.size + sum(map(len, keys)) + sum(map(len, bodies)) + (24 + VERSION_BYTES) * len(seqs)
    if size > state.config.log.entry_bytes:
        return 0
    if known is not None and not known.keys().isdisjoint(seqs):
        return 0
    if record is not None and (seqs[0] < record.floor or not record.results.keys().isdisjoint(seqs)):
        return 0
    if not are_columns(bodies, state.config.limits):
        return 0
    versions = range(draft.version, draft.version + len(seqs))
    rows = list(map(join_row, versions, bodies))
    state.overlay.pending.update(zip(keys, zip(repeat(index), rows), strict=False))
    logged = verdicts.logged
    logged[3].extend(seqs)
    logged[4].extend(keys)
    logged[5].extend(rows)
    if known is not None:
        known.update(zip(seqs, zip(repeat(index), versions), strict=False))
    verdicts.later_indices.extend(range(len(seqs)))
    verdicts.later_results.extend(versions)
    draft.version, draft.size = versions.stop, size
    return len(seqs)
