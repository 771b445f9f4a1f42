"""Which reader takes a request group; the groups' shapes were checked by the HTTP face."""

from __future__ import annotations

from typing import Any

from ackord.wire.messages import (
    OP_AS_OF,
    OP_CELLS,
    OP_COUNT,
    OP_GET,
    OP_HISTORY,
    OP_HOLD,
    OP_KEEP,
    OP_SCAN,
    OP_SCAN_AS_OF,
    OP_SELECT,
)
from ackord_node.runtime.holds import hold_rows, keep
from ackord_node.runtime.scan import Range
from ackord_node.runtime.service import Respond
from ackord_node.runtime.tablet_host import TabletHost

COUNT_ITEMS = 6  # of a count of what stands now; one as of a version has that, too


def take_read(host: TabletHost, group: list[Any], respond: Respond) -> bool:
    """False if the group is no read."""
    rid, op = group[0], group[1]
    if op == OP_GET:
        host.get(rid, group[3], respond)
    elif op == OP_SCAN:
        host.scan(rid, Range(*group[3:8]), group[8:], respond)
    elif op == OP_SELECT:
        host.select(rid, group[3], group[4:], respond)
    elif op == OP_COUNT and len(group) == COUNT_ITEMS:
        host.count(rid, group[3], group[4], group[5], respond)
    elif op in (OP_AS_OF, OP_HISTORY, OP_CELLS, OP_SCAN_AS_OF, OP_COUNT):
        host.versions.take(group, respond)
    elif op == OP_HOLD:
        hold_rows(host, rid, group[3], respond)
    elif op == OP_KEEP:
        keep(host, rid, group[3], group[4], respond)
    else:
        return False
    return True
