"""Which disks may be damaged without asking more of the system than it promises.

Ackord keeps what it acknowledged as long as an intact copy is left in every in-sync set that stands or may come to
stand. So a node's disk may be lost, flipped or rolled back only while that remains so; see ``Damage``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ackord_node.core.copy_meta import CopyMeta
from ackord_node.core.types import Descriptor, Member
from tests.sim.disk import SimDisk, stored_state
from tests.sim.stored import Damaged

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster, SimNode


@dataclass(frozen=True, slots=True)
class StoredCopyId:
    copy_id: int
    is_usable: bool


class Damage:
    """Of each in-sync set every member's copy is intact, lost (it can never lead: its copy_id is gone, or it knows
    that it is suspect) or hidden (damaged, and nobody knows it yet, so it may even lead).

    A set may shrink to any part of it that has the minimum and somebody who leads. Data is safe as long as no such
    part is without an intact copy: ``intact >= 1 and (hidden == 0 or hidden + lost < minimum)``.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._hidden: set[tuple[str, int, int]] = set()  # (node, tablet, copy_id)

    def mark(self, node: SimNode) -> None:
        """Every copy that the node holds now is damaged in a way that nobody knows, until it is renewed."""
        for tablet, copy in self.copies_of(node).items():
            self._hidden.add((node.name, tablet, copy.copy_id))

    def is_marked(self, node: SimNode) -> bool:
        copies = self.copies_of(node)
        return any((node.name, tablet, copy.copy_id) in self._hidden for tablet, copy in copies.items())

    def may_damage(self, node: SimNode, is_hidden: bool) -> bool:
        """Whether this node's disk may be damaged now, given what was damaged before."""
        copies = {name: self.copies_of(n) for name, n in self._cluster.nodes.items()}
        for tablet, in_sync in self.sets():
            intact = hidden = lost = 0
            for member in sorted(in_sync):
                found = copies.get(member.node, {}).get(tablet)
                if found is None or found.copy_id != member.copy_id or not found.is_usable:
                    lost += 1
                elif member.node == node.name:
                    hidden, lost = hidden + is_hidden, lost + (not is_hidden)
                elif (member.node, tablet, member.copy_id) in self._hidden:
                    hidden += 1
                else:
                    intact += 1
            minimum = min(self._cluster.knobs.min_in_sync, len(in_sync))
            if in_sync and (not intact or (hidden and hidden + lost >= minimum)):
                return False
        return True

    def sets(self) -> list[tuple[int, frozenset[Member]]]:
        """The in-sync sets that stand, and those that may come to stand."""
        found: list[tuple[int, frozenset[Member]]] = []
        service = self._cluster.service
        for tablet, (data, _) in sorted(service.descriptors.items()):
            descriptor = Descriptor.decode(data)
            if not descriptor.dropped:
                found.append((tablet, descriptor.in_sync))
        for tablet, data in service.under_way():
            descriptor = Descriptor.decode(data)
            if not descriptor.dropped:
                found.append((tablet, descriptor.in_sync))
        for node in self._cluster.nodes.values():
            for tablet, host in node.hosts().items():
                coordinator = host.replica.coordinator
                if coordinator is not None and coordinator.membership.proposed is not None:
                    found.append((tablet, coordinator.membership.proposed))
        return found

    def copies_of(self, node: SimNode) -> dict[int, StoredCopyId]:
        """The copies on the node's disk now, or in its memory if those are newer."""
        found = _stored(node.disk)
        for tablet, host in node.hosts().items():
            s = host.replica.state
            is_usable = not s.suspect and not s.filling and s.stopped_reason is None
            stored = found.get(tablet)
            if stored is None or stored.copy_id != s.copy_id:
                is_usable = False  # not on disk yet
            found[tablet] = StoredCopyId(s.copy_id, is_usable)
        return found


def _stored(disk: SimDisk) -> dict[int, StoredCopyId]:
    if disk.is_void or disk.is_manifest_damaged:
        return {}
    state, is_damaged = stored_state(disk)
    found = {}
    for tablet, copy in sorted(state.copies.items()):
        if copy.meta is None or copy.meta.__class__ is Damaged:
            continue
        meta = CopyMeta.decode(copy.meta)
        is_usable = not (meta.suspect or meta.filling or disk.is_suspect or is_damaged)
        found[tablet] = StoredCopyId(meta.copy_id, is_usable)
    return found
