"""Reads of rows that a client keeps, and what it says of them (rule R19). Its stream is the holder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ackord.wire.messages import WHOLE_GROUP
from ackord_node.core.effects import HolderSaid, HoldsWanted
from ackord_node.runtime.requests import Request
from ackord_node.runtime.service import Respond

if TYPE_CHECKING:
    from ackord_node.runtime.tablet_host import TabletHost


def hold_rows(host: TabletHost, rid: int, keys: list[bytes], respond: Respond) -> None:
    """``get`` of rows of which the client keeps those that come with a grant: none that is answered later, because
    an entry was pending that touches it."""
    holding = host.replica.holding
    if not holding.is_recorded:
        host.feed(HoldsWanted())
    held = holding.hold(respond, keys, host.now())
    is_late = False

    def grant_of(at: int, row: bytes | None) -> list[Any] | None:
        if held is None or is_late or at not in held.places or not holding.keeps(keys[at], row):
            return None
        return held.grant

    def granted(entry: list[Any]) -> None:
        _, indices, rows = entry
        if indices != WHOLE_GROUP:
            places = range(len(keys)) if indices is None else indices
            rows = [
                [row, grant_of(at, row)] if row is None or type(row) is bytes else row
                for at, row in zip(places, rows, strict=True)
            ]
        respond([rid, indices, rows])

    host.get(rid, keys, granted)
    is_late = True


def keep(host: TabletHost, rid: int, number: int, seq: int, respond: Respond) -> None:
    """The client dropped what it was told to, and wants its lease extended."""
    host.feed(HolderSaid(Request(rid, respond), respond, number, seq))
