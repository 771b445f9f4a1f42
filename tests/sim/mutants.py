"""Mutants of the core: one rule dropped at a time, as text edits of single methods.

An edit that no longer fits the code fails loudly, so the list stays true. ``command`` line use:

    python -m tests.sim.mutants [NAME ...]     first seeds of the random walk that catch each mutant
"""

from __future__ import annotations
import __future__

import inspect
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ackord_node.core.coordinator import Coordinator
from ackord_node.core.follower import Follower
from ackord_node.core.log import Entry
from ackord_node.core.membership import Membership
from ackord_node.core.reads import Reads
from ackord_node.core.replica import Replica
from ackord_node.core.replication import Replication
from ackord_node.core.requests import RequestTable
from ackord_node.core.state import TabletState
from ackord_node.core.takeover import Takeover
from ackord_node.core.transactions import Transactions
from ackord_node.core.writes import WritePath
from tests.support.core_walk import Walk

Edit = tuple[type[Any], str, str, str]  # class, method, text, its replacement


@dataclass(frozen=True)
class Mutant:
    name: str
    rule: str
    edits: tuple[Edit, ...]


def mutant(name: str, rule: str, *edits: Edit) -> Mutant:
    return Mutant(name, rule, edits)


MUTANTS = [
    mutant("no_authority", "R5", (Coordinator, "authority", "return until", "return FOREVER")),
    mutant(
        "no_takeover_wait",
        "R7",
        (
            Takeover,
            "_try_lock",
            "max(s.promise_until, s.lock_free_since + delay)",
            "s.lock_free_since + delay",
        ),
        (Takeover, "_locked", "or now < s.promise_until", ""),
    ),
    mutant(
        "grants_not_capped",
        "R6",
        (Coordinator, "_grant", "min(timing.lease, self.authority() - now)", "timing.lease"),
    ),
    mutant(
        "no_wait_after_restart",
        "R7",
        (TabletState, "__init__", "now if copy.is_new else now + config.timing.promise", "now"),
    ),
    mutant(
        "confirm_while_barring",
        "R2",
        (Takeover, "_swap", "s.barred_below = self._wanted.epoch", "s.barred_below = 0"),
    ),
    mutant(
        "authority_from_receipt",
        "R5",
        (
            Coordinator,
            "beacon_confirm",
            "sent_at + self._s.config.timing.lease",
            "now + self._s.config.timing.lease",
        ),
    ),
    mutant("lease_from_receipt", "R6", (Follower, "beacon", "request + seconds", "now + seconds")),
    mutant("no_wait_before_removal", "R9", (Membership, "_removal", "or p.granted_until > now", "")),
    mutant(
        "grant_while_revoking",
        "R9",
        (Membership, "may_grant", "and not p.revoking", ""),
        (Membership, "may_grant", "and (self.proposed is None or member in self.proposed)", ""),
    ),
    mutant(
        "required_in_sync_only",
        "R4",
        (
            Membership,
            "required",
            "return self.in_sync if self.proposed is None else self.in_sync | self.proposed",
            "return self.in_sync",
        ),
    ),
    mutant(
        "required_proposed_only",
        "R4",
        (Membership, "required", "self.in_sync | self.proposed", "self.proposed"),
    ),
    mutant(
        "takeover_not_in_sync",
        "R2",
        (Takeover, "_may_try", "return s.me in d.in_sync", "return s.node in d.replicas"),
    ),
    mutant(
        "copy_id_ignored_at_takeover",
        "R2",
        (Takeover, "_may_try", "return s.me in d.in_sync", "return d.member_of(s.node) is not None"),
    ),
    mutant(
        "tail_dropped",
        "R8",
        (
            Replica,
            "_become",
            "self.coordinator = Coordinator(",
            "s.log.end == s.commit or s.cut_log(s.commit + 1); self.coordinator = Coordinator(",
        ),
    ),
    mutant(
        "epoch_check_dropped",
        "R3",
        (Follower, "obey", "if epoch < s.promised or epoch < s.barred_below:", "if False:"),
        (Follower, "obey", "if epoch > s.promised:", "if epoch != s.promised:"),
    ),
    mutant("promise_not_stored", "R3", (TabletState, "meta", "promised=self.promised", "promised=0")),
    mutant(
        "promise_answered_before_stored",
        "R3",
        (Follower, "_epoch_is_durable", "self._s.promised_durable == self._s.promised", "True"),
    ),
    mutant("old_epoch_confirmations", "R3", (Coordinator, "_heard", "or message[2] != self.epoch", "")),
    mutant(
        "dirty_reads",
        "R12",
        (
            Replica,
            "get_many",
            "s.overlay.pending, s.overlay.unapplied, s.rows.get",
            "{}, {**s.overlay.unapplied, **s.overlay.pending}, s.rows.get",
        ),
    ),
    mutant(
        "reads_ignore_overlay",
        "R12",
        (Replica, "get_many", "s.overlay.pending, s.overlay.unapplied, s.rows.get", "{}, {}, s.rows.get"),
    ),
    mutant("read_at_commit_not_end", "R12", (Reads, "wait", "self._s.log.end", "self._s.commit")),
    mutant("serve_before_tail", "R8", (Coordinator, "may_answer", "and self._s.commit >= self.start", "")),
    mutant(
        "join_without_promise",
        "R10",
        (Membership, "_learner", "and p.authority >= max(now, outstanding)", ""),
    ),
    mutant(
        "join_behind", "R10", (Membership, "_learner", "p.confirmed >= max(s.commit, self._start)", "True")
    ),
    mutant(
        "drain_without_wait",
        "R7b",
        (Membership, "_drive_drain", "any(p.granted_until > now for p in self._progress.values())", "False"),
    ),
    mutant(
        "settle_early",
        "R1",
        (
            Membership,
            "descriptor_seen",
            "self._send_swap(now)",
            "self.proposed, self._is_settling = None, False",
        ),
    ),
    mutant(
        "own_disk_not_awaited", "R4", (Coordinator, "_try_commit", "index = s.durable", "index = s.log.end")
    ),
    mutant(
        "member_disk_not_awaited", "R4", (Follower, "_answer", "min(s.durable, self.matched)", "self.matched")
    ),
    mutant(
        "minimum_ignored", "R11", (Membership, "_removal", "len(rest) >= self.descriptor.min_in_sync", "True")
    ),
    mutant(
        "prefix_not_checked",
        "R3",
        (
            Follower,
            "_prefix_matches",
            "return log.epoch_at(index) == epoch",
            "return log.epoch_at(index) is not None",
        ),
    ),
    mutant(
        "commit_beyond_matched",
        "R3",
        (Follower, "_advance", "min(commit, self.matched)", "min(commit, s.log.end)"),
    ),
    mutant(
        "table_not_consulted",
        "R16",
        (WritePath, "_answer_known", "result = record.results.get(seq)", "result = None"),
    ),
    mutant(
        "tail_not_in_progress", "R16", (WritePath, "__init__", "if entry.index > state.commit:", "if False:")
    ),
    mutant(
        "collected_executes",
        "R16",
        (WritePath, "_client_refusal", "group.registered <= s.requests.collected_below", "False"),
    ),
    mutant("negative_without_right", "R12", (WritePath, "_refused", "if may_answer:", "if True:")),
    mutant("negative_not_awaited", "R12", (WritePath, "_answer", "s = self._s", "s = self._s; index = 0")),
    mutant(
        "refusal_not_recorded", "R16", (WritePath, "_refused", "if known is None or op[6] <= 1:", "if True:")
    ),
    mutant("requests_not_applied", "R16", (RequestTable, "apply", "if client:", "if False:")),
    mutant("suspect_confirms", "R13", (Follower, "_answer", "if s.suspect or s.filling:", "if s.filling:")),
    mutant("suspect_asks_nobody", "R13", (Takeover, "_locked", "elif s.suspect:", "elif False:")),
    mutant(
        "rolled_back_stays",
        "R13",
        (Coordinator, "beacon_confirm", "if end < p.confirmed and sent_at > p.confirmed_at:", "if False:"),
        (Coordinator, "mismatch", "self.membership.expel(", "(lambda p, why: None)("),
    ),
    mutant(
        "rolled_back_coordinates",
        "R13",
        (Coordinator, "inquire_answer", "message[7] > self._s.log.end", "False"),
    ),
    # what the simulator found in the first version of the core
    mutant(
        "suspect_ignores_promise",
        "R7",
        (Takeover, "_judge_answers", "if not self._may_try() or now < s.promise_until:", "if False:"),
    ),
    mutant(
        "suspect_asks_for_ever",
        "R13",
        (Takeover, "_judge_answers", "elif now - self._inquiring_since > patience:", "elif False:"),
    ),
    mutant(
        "never_sent_again",
        "R1",
        (
            Takeover,
            "descriptor_seen",
            "now - self._sent_at >= s.config.timing.retry_interval",
            "now - self._asked_at >= s.config.timing.retry_interval / 2",
        ),
    ),
    mutant(
        "tries_again_after_winning",
        "R2",
        (
            Replica,
            "_descriptor_seen",
            "if self.coordinator is None:\n            self.takeover.poll",
            "if True:\n            self.takeover.poll",
        ),
    ),
    mutant(
        "rebuilt_copy_coordinates", "R2", (Replica, "_become", "or s.me not in won.descriptor.in_sync", "")
    ),
    mutant(
        "foreign_tail_stays",
        "R3",
        (Follower, "_cut_foreign_tail", "if epoch is not None and epoch < s.promised:", "if False:"),
    ),
    mutant(
        "runs_counted_twice",
        "R3",
        (TabletState, "_load", "[run for run in meta.runs if run[0] <= meta.applied]", "meta.runs"),
    ),
    mutant(
        "confirms_only_at_rest",
        "R3",
        (
            Follower,
            "_answer",
            "index > self._confirmed or (self._confirm_due and index == self.matched)",
            "self._confirm_due and index == self.matched",
        ),
    ),
    mutant(
        "late_farewell", "R9", (Membership, "leave", "if incarnation == p.granted_incarnation:", "if True:")
    ),
    mutant("late_snapshot", "R13", (Follower, "snapshot", "and header[-1] == s.copy_id", "")),
    mutant(
        "snapshot_before_comparing",
        "R13",
        (Replication, "mismatch", "trimmed if probed > trimmed else 0", "0"),
    ),
    mutant("chunk_asked_twice", "R13", (Replication, "snapshot_taken", "p.snapshot_number = -1", "pass")),
    mutant(
        "collected_come_back",
        "R16",
        (
            TabletState,
            "unstored",
            "for _, client, _ in batch.requests:",
            "for client in self.requests.clients:",
        ),
    ),
    mutant("leaving_coordinator_stays", "R7b", (Membership, "_balance", "if s.is_leaving:", "if False:")),
    mutant(
        "expelled_for_ever",
        "R13",
        (Membership, "_judge_members", "if p.expelled and at_minimum and", "if False and"),
    ),
    mutant("grant_unconfirmed", "R13", (Coordinator, "_grant", "if p.confirmed < self.start:", "if False:")),
    mutant(
        "transaction_rows_not_compared",
        "R21",
        (Transactions, "_compare", "changed.append(at)", "pass"),
    ),
    mutant(
        "transaction_ranges_not_compared",
        "R21",
        (Transactions, "_compare", "if not self._is_as_read(*wanted)", "if False"),
    ),
    mutant(
        "pending_phantoms",
        "R21",
        (Reads, "newest_range", "(s.overlay.unapplied, s.overlay.pending)", "(s.overlay.unapplied,)"),
    ),
    mutant(
        "refused_transaction_stays_pending",
        "R21",
        (Transactions, "judge", "in before.items():", "in ():"),
    ),
    mutant(
        "tx_without_right",
        "R21",
        (WritePath, "_answer_read_only", "if not may_answer:", "if False:"),
    ),
    mutant(
        "transaction_stored_in_part",
        "R21",
        (Entry, "changes", "yield from zip(key, value, strict=True)", "yield key[0], value[0]"),
    ),
]


@contextmanager
def applied(mutant: Mutant) -> Iterator[None]:
    """The core with the mutant's edits."""
    before: list[tuple[type[Any], str, Any]] = []
    sources: dict[tuple[type[Any], str], str] = {}
    for cls, name, old, new in mutant.edits:
        original = inspect.getattr_static(cls, name)
        function: Any = original.fget if isinstance(original, property) else original
        source = sources.get((cls, name)) or textwrap.dedent(inspect.getsource(function))
        if old not in source:
            raise LookupError(f"mutant {mutant.name}: {cls.__name__}.{name} does not contain {old!r}")
        sources[cls, name] = source.replace(old, new)
        before.append((cls, name, original))
    try:
        for (cls, name), source in sources.items():
            namespace = dict(vars(sys.modules[cls.__module__]))
            flags = __future__.annotations.compiler_flag
            exec(
                compile(source, f"<mutant {mutant.name}>", "exec", flags=flags, dont_inherit=True), namespace
            )
            setattr(cls, name, namespace[name])
        yield
    finally:
        for cls, name, original in before:
            setattr(cls, name, original)


def first_seed(mutant: Mutant, first: int, seconds: float) -> tuple[int | None, int, float, str]:
    """(the first seed whose walk catches the mutant, walks, seconds, how)."""
    begin = time.monotonic()
    walks = 0
    with applied(mutant):
        while time.monotonic() - begin < seconds:
            try:
                Walk(first + walks).run()
            except Exception as error:
                return first + walks, walks + 1, time.monotonic() - begin, f"{type(error).__name__} {error}"
            walks += 1
    return None, walks, time.monotonic() - begin, ""


def main() -> None:
    wanted = sys.argv[1:]
    for mutant in MUTANTS:
        if not wanted or mutant.name in wanted:
            seed, walks, seconds, how = first_seed(mutant, 1, 30)
            print(
                f"{mutant.name:32s} {mutant.rule:4s} seed {seed} walks {walks} {seconds:.1f} s {how[:110]!r}",
                flush=True,
            )


if __name__ == "__main__":
    main()
