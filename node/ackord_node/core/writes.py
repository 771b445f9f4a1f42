"""The coordinator's write path: judge, append, answer when committed.

Rules: R16 (exactly once: new, in progress, done, stale, collected), R12 (negative answers and duplicates wait for
the entries they were judged on, and need the right to answer), R17 (what a refused write says), R4 (answers leave
only once their entry is committed).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from ackord.errors import BY_CODE, Conflict, Error, OutcomeUnknown, Unavailable
from ackord.wire.extras import NO_EXTRAS
from ackord.wire.messages import (
    KIND_PUT_AUTO,
    KIND_TRANSACTION,
    OWN_MARK,
    RETURN_NEW,
    error_to_wire,
    row_expires_ms,
)
from ackord.wire.puts import Puts
from ackord_node.core.cells import plain_row
from ackord_node.core.drafts import (
    Answer,
    Draft,
    Progress,
    Verdicts,
    draft_first_version,
    log_returned,
    log_write,
)
from ackord_node.core.effects import Reply, WriteGroup, Writes
from ackord_node.core.expiry import CLOCK_UNREAD_MS, Expiry
from ackord_node.core.judging import Judge
from ackord_node.core.log import Entry
from ackord_node.core.plain_puts import judge_plain_puts
from ackord_node.core.reads import Reads
from ackord_node.core.requests import result_bytes, returned_rows
from ackord_node.core.rows import check_op, new_key
from ackord_node.core.state import TabletState
from ackord_node.core.transactions import Transactions


class WritePath:
    def __init__(self, state: TabletState, reads: Reads, expiry: Expiry) -> None:
        self._s = state
        self._reads = reads
        self._expiry = expiry
        self._judging = Judge(state, reads)
        self._transactions = Transactions(state, reads, self._judging)
        self._has_cells = state.options.has_cells
        self._in_progress: dict[bytes, Progress] = {}
        self._answers: deque[Answer] = deque()
        self.pending_count = 0
        self.pending_bytes = 0
        self._collecting_below = 0
        for entry in state.log.entries:  # what an earlier coordinator appended is in progress too
            if entry.index > state.commit:
                self._note_entry(entry)

    def _note_entry(self, entry: Entry) -> None:
        """What its writes left is answered from the request table, as the tail is committed by then (rule R8)."""
        for group in entry.groups:
            if group[0] is None:
                self._collecting_below = max(self._collecting_below, group[1])
                continue
            if group[0]:
                known = self._in_progress.setdefault(group[0], Progress())
                known.update(dict.fromkeys(group[3], (entry.index, 0)))

    # ------------------------------------------------------------------------------ judging

    def take(self, event: Writes, epoch: int, may_answer: bool, now: float) -> None:
        """Judges the groups in order of arrival and appends what is to be done, in entries of bounded size.
        ``may_answer``: whether a judgement on the state may be given as an answer (rules R5, R8)."""
        s = self._s
        draft = self._new_draft(event.wall_ms)
        limits = s.config.limits
        wait = limits.request_wait_ms / 1000
        for group in event.groups:
            room = limits.pending_ops_count - self.pending_count
            if len(group.ops) > room or self.pending_bytes > limits.pending_bytes:
                self._refuse(group, self._overloaded())
                continue
            refusal = self._client_refusal(group, event.wall_ms)
            if refusal is not None:
                self._refuse(group, refusal)
                continue
            at = 0
            while at < len(group.ops):
                at = self._judge_group(group, at, draft, may_answer, now + wait)
                if draft.size >= s.config.log.entry_bytes:
                    self._append(draft, epoch)
                    draft = self._new_draft(event.wall_ms)
        if draft.groups:
            self._append(draft, epoch)

    def _new_draft(self, wall_ms: int) -> Draft:
        s = self._s
        draft = Draft(max(s.last_version + 1, wall_ms << 16, s.clock.at_end << 16), [])
        keep_count = s.config.limits.clients_count
        if len(s.requests.clients) > keep_count and not self._collecting_below:
            cutoff = s.requests.cutoff(max(keep_count * 3 // 4, 1))
            self._collecting_below = cutoff
            draft.groups.append([None, cutoff])
        elif s.requests.returned_bytes > s.config.limits.returned_bytes and not self._collecting_below:
            cutoff = s.requests.returned_cutoff(s.config.limits.returned_bytes * 3 // 4)
            self._collecting_below = cutoff
            draft.groups.append([None, cutoff])
        return draft

    def _client_refusal(self, group: WriteGroup, wall_ms: int) -> Error | None:
        """Rule R16, for the client as a whole."""
        s, client = self._s, group.client
        if not client or client in self._in_progress:
            return None
        record = s.requests.clients.get(client)
        if record is None:
            ahead = s.config.limits.registered_ahead_ms
            if group.registered <= s.requests.collected_below:
                return OutcomeUnknown(
                    "this client has been collected: what became of its earlier writes is no longer known",
                    reason="client_collected",
                    clock=s.requests.collected_below + 1,
                )
            if group.registered > (wall_ms + ahead) << 16:
                return Unavailable(  # it would escape collection; some node's clock was ahead when it registered
                    f"registered={group.registered} lies more than {ahead} ms ahead of the coordinator's clock",
                    reason="registered_ahead",
                    value=group.registered,
                    limit=ahead,
                    clock=wall_ms << 16,
                )
        elif record.last_version < self._collecting_below:
            return Unavailable(
                "this client is being collected", reason="client_collecting", retry_after_ms=20
            )
        elif len(record.results) - record.pruned_count > s.config.limits.client_results_count:
            return self._overloaded()
        return None

    def _judge_group(
        self, group: WriteGroup, start: int, draft: Draft, may_answer: bool, expires: float
    ) -> int:
        """Judges operations of the group, from number ``start`` on, into the draft, whose entry will stand at the
        log's end + 1, until the group ends or the entry is full; returns where to go on."""
        s = self._s
        bytes_max, end = s.config.log.entry_bytes, len(group.ops)
        index = s.log.end + 1
        verdicts = Verdicts([group.client, group.registered, group.floor, [], [], []])
        known = self._in_progress.setdefault(group.client, Progress()) if group.client else None
        record = s.requests.clients.get(group.client)
        at = start
        while at < end and (draft.size < bytes_max or at == start):
            if not self._has_cells:
                at = judge_plain_puts(s, group, at, index, draft, known, record, verdicts)
            if at == end or draft.size >= bytes_max:
                break
            op = group.ops[at]
            if known is None or not self._answer_known(at, op, record, known, may_answer, verdicts):
                self._judge(at, op, index, draft, known, may_answer, verdicts)
            at += 1
        if verdicts.logged[3]:
            draft.groups.append(verdicts.logged)
        elif known is not None and not known:
            del self._in_progress[group.client]
        self._answer(group, range(start, at), s.log.end + bool(draft.groups), verdicts, expires)
        return at

    def _judge(
        self,
        at: int,
        op: list[Any],
        index: int,
        draft: Draft,
        known: Progress | None,
        may_answer: bool,
        verdicts: Verdicts,
    ) -> None:
        if op[1] == KIND_TRANSACTION:
            self._judge_transaction(at, op, index, draft, known, may_answer, verdicts)
            return
        limits, schema = self._s.config.limits, self._s.schema
        version, key, returns_row = draft.version, op[2], len(op) > 7
        try:
            extras = NO_EXTRAS
            if op[3] is not None and op[3][:1] == OWN_MARK:
                op, extras = self._judging.split(op, version)
            body = check_op(op, limits, schema)
            if returns_row and known is not None:
                self._check_room_to_return(known, verdicts.logged)
        except Error as error:
            verdicts.at_once(at, error_to_wire(error))
            return
        try:
            if op[1] == KIND_PUT_AUTO:
                key = new_key(op, version, self._reads.newest_row, schema)
            value = self._judging.row(op, body, key, version, extras)
        except Error as error:
            if not self._refused(at, op, error, index, known, may_answer, verdicts):
                return
        else:
            self._expire_later(value, draft)
            result: Any = version
            if returns_row:
                result = [version, value if op[7] == RETURN_NEW else self._reads.newest_row(key)]
                log_returned(verdicts.logged, result[1], op[7] == RETURN_NEW)
                draft.size += result_bytes(result)
            self._s.overlay.pending[key] = (index, value)
            log_write(verdicts.logged, op[0], key, value)
            draft.size += len(key) + (len(value) if value is not None else 0)
            if known is not None:
                known[op[0]] = (index, result)
                known.returned_bytes += result_bytes(result)
            verdicts.later(at, result)
        draft.version += 1
        draft.size += 24

    def _judge_transaction(
        self,
        at: int,
        op: list[Any],
        index: int,
        draft: Draft,
        known: Progress | None,
        may_answer: bool,
        verdicts: Verdicts,
    ) -> None:
        """All of its rows or none, at one version."""
        try:
            parts = self._transactions.check(op, draft.version)
        except Error as error:
            verdicts.at_once(at, error_to_wire(error))
            return
        try:
            rows = self._transactions.judge(op, parts, draft.version, index)
        except Error as error:
            if not self._refused(at, op, error, index, known, may_answer, verdicts):
                return
        else:
            if not rows:
                self._answer_read_only(at, draft, may_answer, verdicts)
                return
            for row in rows.values():
                self._expire_later(row, draft)
            log_write(verdicts.logged, op[0], list(rows), list(rows.values()))
            size = sum(len(key) + len(row or b"") for key, row in rows.items())
            draft.size += size
            verdicts.size += size
            if known is not None:
                known[op[0]] = (index, draft.version)
            verdicts.later(at, draft.version)
        draft.version += 1
        draft.size += 24

    def _answer_read_only(self, at: int, draft: Draft, may_answer: bool, verdicts: Verdicts) -> None:
        """What a transaction read is as it read it, and it writes nothing: the answer is a read, and no record."""
        if not may_answer:
            verdicts.at_once(at, error_to_wire(no_right_to_answer()))
            return
        has_writes = verdicts.logged[3] or any(group[0] is not None for group in draft.groups)
        verdicts.later(at, draft.version - 1 if has_writes else self._s.last_version)

    def _refused(
        self,
        at: int,
        op: list[Any],
        error: Error,
        index: int,
        known: Progress | None,
        may_answer: bool,
        verdicts: Verdicts,
    ) -> bool:
        """A judgement on the state: answered, or recorded too, and then True. One that is retriable decides nothing:
        the next attempt is judged anew."""
        if known is None or op[6] <= 1 or error.retriable:
            if may_answer:
                verdicts.later(at, self._negative(op, error))
            else:
                verdicts.at_once(at, error_to_wire(no_right_to_answer()))
            return False
        # An earlier attempt may still be under way: the refusal is recorded, so that it cannot run later.
        log_write(verdicts.logged, op[0], None, error.code)
        known[op[0]] = (index, -error.code)
        verdicts.later(at, self._negative(op, error))
        return True

    def _expire_later(self, row: bytes | None, draft: Draft) -> None:
        """Rule R20: the first row that expires starts the tablet's clock."""
        if row is None:
            return
        self._expiry.wrote(row)
        if row_expires_ms(row) and not self._has_clock(draft):
            draft.groups.insert(0, [None, 0, CLOCK_UNREAD_MS])

    def _has_clock(self, draft: Draft) -> bool:
        return bool(self._s.clock.at_end) or any(g[0] is None and len(g) > 2 for g in draft.groups)

    def _check_room_to_return(self, known: Progress, logged: list[Any]) -> None:
        """Rows that retries may ask for are kept until the client says that it has them; Unavailable if they are
        too many already."""
        record = self._s.requests.clients.get(logged[0])
        held, most = known.returned_bytes, self._s.config.limits.client_returned_bytes
        if record is not None and held + record.returned_bytes > most:
            held += sum(result_bytes(r) for seq, r in record.results.items() if seq >= logged[2])
        if held > most:
            raise Unavailable(
                f"this client's unacknowledged results hold {held} bytes of returned rows, over the limit of {most}",
                reason="overloaded",
                limit=most,
                retry_after_ms=50,
            )

    def _answer_known(
        self,
        at: int,
        op: list[Any],
        record: Any,
        known: Progress,
        may_answer: bool,
        verdicts: Verdicts,
    ) -> bool:
        """Rule R16: a sequence number that was seen before is not executed again. True if that is so."""
        seq = op[0]
        progress = known.get(seq)
        result = progress[1] if progress is not None else None
        if result is None and record is not None:
            if seq < record.floor:
                verdicts.at_once(
                    at,
                    error_to_wire(
                        OutcomeUnknown(
                            f"sequence {seq} is below the client's acknowledged floor {record.floor}",
                            reason="stale",
                        )
                    ),
                )
                return True
            result = record.results.get(seq)
        if result is None:
            return False
        if not may_answer:
            verdicts.at_once(
                at,
                error_to_wire(
                    OutcomeUnknown(
                        "an earlier attempt is recorded, and the coordinator may not answer from its state now",
                        reason="no_authority",
                    )
                ),
            )
        elif type(result) is not int or result >= 0:
            verdicts.later(at, result)
        else:
            error = BY_CODE.get(-result, Error)("the first attempt of this write was refused", repeated=True)
            verdicts.later(at, self._negative(op, error))
        return True

    def _negative(self, op: list[Any], error: Error) -> list[Any]:
        if not isinstance(error, Conflict):
            return error_to_wire(error)
        if op[1] == KIND_TRANSACTION:
            return error_to_wire(error, self._transactions.refused_row(op, error))
        return error_to_wire(error, self._reads.newest_row(op[2]))

    def append_own(self, groups: list[Any], epoch: int, version: int = 0) -> None:
        """An entry that no client asked for, perhaps from ``version`` on."""
        s = self._s
        entry = Entry.create(s.tablet, epoch, s.log.end + 1, max(s.last_version + 1, version), groups)
        s.append(entry)

    def _append(self, draft: Draft, epoch: int) -> None:
        s = self._s
        entry = Entry.create(s.tablet, epoch, s.log.end + 1, draft_first_version(draft), draft.groups)
        s.append(entry)

    # ---------------------------------------------------------------------------- answering

    def _answer(self, group: WriteGroup, ops: range, index: int, verdicts: Verdicts, expires: float) -> None:
        s = self._s
        if s.options.has_cells:
            verdicts.now_results = [_without_cells(result) for result in verdicts.now_results]
            verdicts.later_results = [_without_cells(result) for result in verdicts.later_results]
        is_all = len(ops) == len(group.ops)
        if verdicts.now_indices:
            whole = is_all and not verdicts.later_indices
            s.out.append(Reply(group.request, None if whole else verdicts.now_indices, verdicts.now_results))
        if verdicts.later_indices:
            whole = is_all and not verdicts.now_indices
            size = verdicts.size + _bodies_size(group.ops, ops)
            if len(verdicts.logged) > 6:
                size += sum(len(row) for _, row in returned_rows(verdicts.logged) if row is not None)
            self._answers.append(
                Answer(
                    index,
                    group.request,
                    None if whole else verdicts.later_indices,
                    verdicts.later_results,
                    size,
                    expires,
                )
            )
            self.pending_count += len(verdicts.later_results)
            self.pending_bytes += size

    def _refuse(self, group: WriteGroup, error: Error) -> None:
        refusal = error_to_wire(error)
        self._s.out.append(Reply(group.request, None, [refusal] * len(group.ops)))

    def refuse_all(self, event: Writes, error: Error) -> None:
        for group in event.groups:
            self._refuse(group, error)

    def _overloaded(self) -> Unavailable:
        limits = self._s.config.limits
        return Unavailable(
            f"{self.pending_count} writes of this tablet are undecided (limit {limits.pending_ops_count}), "
            f"{self.pending_bytes} bytes (limit {limits.pending_bytes})",
            reason="overloaded",
            retry_after_ms=50,
        )

    def advance(self, committed: list[Entry]) -> None:
        """Entries were committed: gives the answers that waited for them."""
        for entry in committed:
            for group in entry.groups:
                if group[0] is None:
                    self._collecting_below = 0 if group[1] else self._collecting_below
                elif group[0]:
                    self._forget(group[0], group[3], entry.index)
        answers, commit = self._answers, self._s.commit
        while answers and answers[0].index <= commit:
            answer = answers.popleft()
            self.pending_count -= len(answer.results)
            self.pending_bytes -= answer.size
            self._s.out.append(Reply(answer.request, answer.indices, answer.results))

    def _forget(self, client: bytes, seqs: list[int], index: int) -> None:
        known = self._in_progress.get(client)
        if known is None:
            return
        for seq in seqs:
            found = known.get(seq)
            if found is not None and found[0] <= index:
                del known[seq]
                if type(found[1]) is not int:
                    known.returned_bytes -= result_bytes(found[1])
        if not known:
            del self._in_progress[client]

    def expire(self, now: float) -> None:
        """Answers what has waited too long; the writes stay in the log and may still be committed."""
        answers = self._answers
        while answers and answers[0].expires <= now:
            answer = answers.popleft()
            self.pending_count -= len(answer.results)
            self.pending_bytes -= answer.size
            unknown = error_to_wire(
                OutcomeUnknown("not every in-sync copy has confirmed the write yet", reason="undecided")
            )
            self._s.out.append(Reply(answer.request, answer.indices, [unknown] * len(answer.results)))

    def end(self) -> None:
        """The epoch ended: what is not committed here may be committed by the next coordinator (rule R17)."""
        unknown = error_to_wire(
            OutcomeUnknown(
                "the tablet's coordinator changed while the write was under way", reason="epoch_ended"
            )
        )
        while self._answers:
            answer = self._answers.popleft()
            self._s.out.append(Reply(answer.request, answer.indices, [unknown] * len(answer.results)))
        self.pending_count = self.pending_bytes = 0


def no_right_to_answer() -> Unavailable:
    """A judgement on the state is a read: it needs authority (rule R5) and a committed tail (rule R8)."""
    return Unavailable(
        "the coordinator may not answer from its state now", reason="no_authority", retry_after_ms=20
    )


def _bodies_size(ops: Sequence[list[Any]], part: range) -> int:
    if isinstance(ops, Puts):
        return sum(map(len, ops.bodies[part.start : part.stop]))
    return sum(len(ops[at][3] or b"") for at in part)


def _without_cells(result: Any) -> Any:
    """A result whose row is as readers see it: ``[version, row]``, or an error that ends with the current row."""
    if type(result) is list and type(result[-1]) is bytes:
        return [*result[:-1], plain_row(result[-1])]
    return result
