"""Messages between copies as a peer of this cluster may send them, one of each kind and more, and damaged ones."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

from ackord.wire.frames import packb
from ackord_node.core import messages as m
from ackord_node.core.history import history_key
from ackord_node.core.log import Entry
from tests.fuzz.mutation import Mutator


@dataclass(frozen=True, slots=True)
class Facts:
    """What the sender knows of the copy that it writes to."""

    tablet: int
    epoch: int
    copy_id: int
    incarnation: int
    log_end: int
    last_epoch: int
    now: float = 0.0


def valid_messages(f: Facts) -> list[list[Any]]:
    """Of every kind, most of them about what comes next in the log."""
    groups = [[b"c" * 16, 5, 0, [1], [b"\x00k"], [(9).to_bytes(8, "big") + packb({"n": 1})]]]
    first = f.log_end + 1
    version = (1 << 61) + first
    records = [Entry.create(f.tablet, f.epoch, first + k, version + k, groups).record for k in range(3)]
    rows = [[b"\x00k", (9).to_bytes(8, "big") + packb({"n": 1})]]
    header = [f.log_end, f.last_epoch, 1 << 60, 0, f.copy_id]
    versions = [[history_key(b"\x00k", 9, False), rows[0][1]], [history_key(b"\x00k", 8, True), b""]]
    head = [f.tablet, f.epoch]
    found: list[list[Any]] = [
        [m.APPEND, *head, f.log_end, f.last_epoch, f.log_end, records, 0],
        [m.APPEND, *head, f.log_end, f.last_epoch, f.log_end, [], 0],
        [m.CONFIRM, *head, f.copy_id, f.log_end],
        [m.MISMATCH, *head, f.copy_id, f.log_end, 0],
        [m.BEACON, *head, f.now, f.log_end, 0, f.now, 1.0, f.incarnation, 0],
        [m.BEACON_CONFIRM, *head, f.copy_id, f.now, f.now, f.log_end, 7],
        [m.INQUIRE, *head, 5],
        [m.INQUIRE_ANSWER, *head, f.copy_id, f.epoch, f.last_epoch, f.log_end, f.log_end, 0],
        [m.HANDOVER, *head, f.incarnation],
        [m.LEAVE, *head, f.copy_id],
        [m.SNAPSHOT, *head, 77, 0, "rows", rows, header, zlib.crc32(packb(rows))],
        [m.SNAPSHOT, *head, 77, 1, "requests", [], None, zlib.crc32(packb([]))],
        [m.SNAPSHOT, *head, 77, 2, "end", [], None, zlib.crc32(packb([]))],
        [m.SNAPSHOT_TAKEN, *head, f.copy_id, 77, 0],
        [m.FENCED, *head, f.epoch],
        [m.COMMIT, *head, f.log_end],
        [m.STOPPING, 0, 0],
        [m.PEER_BEACON, 0, 0, f.now, 1, 0, [*head, f.copy_id], f.now, 1.0, f.incarnation, [f.tablet, 0.5]],
        [m.PEER_BEACON_CONFIRM, 0, 0, f.incarnation, f.now, 1, f.now, 15, 1_700_000_000_000, [f.tablet]],
        [m.BEACON_CONFIRM, *head, f.copy_id, f.now, f.now, f.log_end, 7, 1_700_000_000_000],
        [
            m.SNAPSHOT,
            *head,
            78,
            0,
            "history",
            versions,
            [*header[:4], 9, f.copy_id],
            zlib.crc32(packb(versions)),
        ],
    ]
    assert {message[0] for message in found} == set(m.FIELDS)
    return found


class PeerCases:
    """Damaged messages; ``next`` never gives one that is valid and true."""

    def __init__(self, mutator: Mutator) -> None:
        self._mutator = mutator

    def next(self, facts: Facts) -> Any:
        chance = self._mutator.chance
        message = chance.choice(valid_messages(facts))
        while True:
            what = chance.random()
            if what < 0.6:  # one field
                changed = list(message)
                at = chance.randrange(len(message))
                changed[at] = self._mutator.value(message[at])
            elif what < 0.9:
                changed = self._mutator.value(message)
            else:
                changed = self._mutator.nasty()
            if repr(changed) != repr(message):
                return changed
