"""What holds of a replica after every step, whatever happened; tests check it after each."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ackord_node.core.replica import Replica


def check_invariants(replica: Replica) -> None:
    """Raises AssertionError if the state contradicts itself."""
    s, log = replica.state, replica.state.log
    assert s.applied <= s.commit <= log.end, f"applied {s.applied}, commit {s.commit}, end {log.end}"
    assert s.durable <= log.end, f"durable {s.durable} beyond the log's end {log.end}"
    assert s.promised_durable <= s.promised
    assert log.first <= s.applied + 1, "entries that are not applied are in memory"
    assert log.trimmed < log.first
    for entry in log.entries[-8:]:  # older ones were checked when they were the newest
        assert log.get(entry.index) is entry
        assert entry.epoch == log.epoch_at(entry.index)
    pending = {key for x in log.entries if x.index > s.commit for key, _ in x.changes()}
    assert set(s.overlay.pending) == pending, "the overlay holds exactly what is pending"
    unapplied = {key for x in log.entries if s.applied < x.index <= s.commit for key, _ in x.changes()}
    assert set(s.overlay.unapplied) == unapplied, "the overlay holds exactly what is not applied"
    clock = s.clock
    assert clock.durable <= clock.at_store <= clock.at_commit <= clock.at_end, (
        "the tablet's clock runs forward"
    )
    c = replica.coordinator
    if c is None:
        assert replica.follower.matched <= log.end
        return
    assert s.promised == c.epoch, "a coordinator that promised a later epoch has stepped down"
    assert s.me in c.membership.in_sync, "the coordinator is in sync itself"
    for p in c.progress.values():
        assert p.confirmed <= log.end
        assert p.granted_raw <= p.granted_until or p.leaving
    if c.is_active and len(c.membership.in_sync) < c.membership.descriptor.min_in_sync:
        assert c.membership.write_refusal() is not None
