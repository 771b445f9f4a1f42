"""Which disks may be damaged without asking more of the system than it promises.

Ackord keeps what it acknowledged as long as an intact copy is left in every in-sync set that stands or may come to
stand. So a node's disk may be lost, flipped or rolled back only while that remains so; see ``Damage``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ackord_node.core.copy_meta import CopyMeta
from ackord_node.core.types import Descriptor
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

    A set may shrink to any part of it that has the minimum and somebody who leads, and grow by the copies outside it,
    whose damage may be hidden too. Data is safe as long as no set that comes about so is without an intact copy:
    ``intact >= 1 and (hidden == 0 or hidden + lost < minimum)``, ``hidden`` counted over all replicas. A newborn tablet
    holds nothing yet, so it needs no intact copy; but its first set must not consist of hidden damage.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._hidden: set[tuple[str, int, int]] = set()  # (node, tablet, copy_id)

    def mark(self, node: SimNode) -> None:
        """Every copy that the node holds now is damaged in a way that nobody knows, until it is renewed."""
        for tablet, copy in self.copies_of(node).items():
            self._hidden.add((node.name, tablet, copy.copy_id))

    def is_marked(self, node: SimNode) -> bool:
        if not any(name == node.name for name, _, _ in self._hidden):
            return False  # without reading its disk, which is what this would cost
        copies = self.copies_of(node)
        return any((node.name, tablet, copy.copy_id) in self._hidden for tablet, copy in copies.items())

    def may_damage(self, node: SimNode, is_hidden: bool) -> bool:
        """Whether this node's disk may be damaged now, given what was damaged before."""
        copies = {name: self.copies_of(n) for name, n in self._cluster.nodes.items()}
        for tablet, found in self.sets():
            hidden = sum(
                self._is_hidden(name, tablet, copies) or (is_hidden and name == node.name)
                for name in found.replicas
                if tablet in copies.get(name, {})
            )
            intact = lost = 0
            for member in found.in_sync:
                copy = copies.get(member.node, {}).get(tablet)
                if copy is None or copy.copy_id != member.copy_id or not copy.is_usable:
                    lost += 1
                elif member.node == node.name:
                    lost += not is_hidden
                elif not self._is_hidden(member.node, tablet, copies):
                    intact += 1
            if found.is_newborn:
                if hidden >= found.min_in_sync:
                    return False
                continue
            minimum = min(found.min_in_sync, len(found.in_sync))
            if not intact or (hidden and hidden + lost >= minimum):
                return False
        return True

    def _is_hidden(self, name: str, tablet: int, copies: dict[str, dict[int, StoredCopyId]]) -> bool:
        copy = copies.get(name, {}).get(tablet)
        return copy is not None and (name, tablet, copy.copy_id) in self._hidden

    def sets(self) -> list[tuple[int, Descriptor]]:
        """The descriptors that stand, and those that may come to stand."""
        service = self._cluster.service
        written = [(tablet, data) for tablet, (data, _) in sorted(service.descriptors.items())]
        found = [(tablet, Descriptor.decode(data)) for tablet, data in [*written, *service.under_way()]]
        for node in self._cluster.nodes.values():
            for tablet, host in node.hosts().items():
                coordinator = host.replica.coordinator
                membership = None if coordinator is None else coordinator.membership
                if membership is not None and membership.proposed is not None:
                    found.append((tablet, membership.descriptor.with_in_sync(membership.proposed)))
        return [(tablet, descriptor) for tablet, descriptor in found if not descriptor.dropped]

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
