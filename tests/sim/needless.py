"""Conditions whose absence breaks no promise, each with the reason; ``drop_ifs`` leaves them out."""

from __future__ import annotations

_LEARNER = "core/membership.py:Membership._learner: "
_SHORT_WAY = "core/plain_puts.py:judge_plain_puts: "
_SEEN = "seq in known or seq in results or seq < floor"

NEEDLESS: dict[str, str] = {
    "core/messages.py:check: never if _NUMBERS.get(kind) == len(message) - 1 and _are_natural(message)": "speed: "
    "messages that are numbers throughout are looked at at once",
    _SHORT_WAY + "always if end": "speed: the first of them then goes the long way",
    _SHORT_WAY
    + "always if len(op) != ITEMS or op[1] != KIND_PUT or op[4] != COND_NONE": "speed: all go the long way",
    _SHORT_WAY
    + f"always if body[:1] == OWN_MARK or (known is not None and ({_SEEN}))": "speed: all go the long way",
    _SHORT_WAY
    + f"without `{_SEEN}` in `known is not None and ({_SEEN})`": "speed: those with a request id go the long "
    "way",
    _SHORT_WAY
    + f"without `body[:1] == OWN_MARK` in `body[:1] == OWN_MARK or (known is not None and ({_SEEN}))`": "speed: "
    "what such a body begins with is no msgpack",
    "core/writes.py:WritePath._judge: without `op[3][:1] == OWN_MARK` in "
    "`op[3] is not None and op[3][:1] == OWN_MARK`": "speed: most bodies say nothing beside their columns",
    "core/writes.py:WritePath._check_room_to_return: without `held + record.returned_bytes > most` in "
    "`record is not None and held + record.returned_bytes > most`": "speed: mostly there is room for all that is kept",
    "core/log.py:Entry.changed: never if len(groups) == 1 and groups[0][0] is not None and "
    "_are_plain(groups[0][4])": "speed: most entries hold one group of single rows",
    "core/log.py:Entry.changed: always if self._changed is None": "speed: it is worked out once",
    "core/transactions.py:misfit_of: without `above is not None` in "
    "`above is not None and (end is None or end > above)`": "types: there are bytes after every encoded prefix",
    "core/requests.py:ClientRecord.prune: always if self.returned_bytes": "speed: there is nothing to add up",
    "core/transactions.py:Transactions.check: without `body[:1] == OWN_MARK` in "
    "`body is not None and body[:1] == OWN_MARK`": "speed: most bodies say nothing beside their columns",
    "core/transactions.py:Transactions.judge: always if isinstance(error, Error)": "types: others have no detail",
    "core/replica.py:Replica.get_many: always if self.reads.shown_part is not None": "speed: what is not shown as it "
    "is stored is looked at row by row",
    "core/replica.py:Replica.get_many: always if not unapplied.keys().isdisjoint(keys)": "speed: mostly no key is",
    "core/follower.py:Follower._answer: without `self.leader is None` in "
    "`not self._epoch_is_durable or self.leader is None`": "types: without a leader there is nothing to say",
    _LEARNER + "without `p.copy_id is None` in "
    "`p is None or p.copy_id is None or any((x.node == node for x in rest))`": "types: who never answered has no "
    "promise either",
    "core/coordinator.py:Coordinator.beacon_confirm: always if member not in self.membership.in_sync": "speed: what a "
    "member confirms lets nobody in, and the next tick looks at the rest",
    "core/holders.py:Holders.restarted: always if hold_ms": "speed: without leases there is nothing to wait for",
    "core/holders.py:Holders.appended: never if not by_hold": "speed: nobody is waited for",
    "core/holding.py:Holding.keeps: always if expires_ms": "speed: a row that never expires is told at a reading of "
    "the clock, and need not be",
}
