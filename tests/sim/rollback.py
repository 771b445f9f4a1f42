"""A disk that silently is what it was some time ago (a restored image of a virtual machine, a lying controller).

Nothing on such a disk tells of it. Rule R13 notices it by what the others remember: the coordinator knows how far
each member had confirmed, and a new coordinator asks its members for 200 ms. So this holds only if the others are
there to be asked and know more than the rolled back copy; the simulator makes it happen only then, and keeps other
faults away until the copy is whole again (``is_quiet``).
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

from ackord_node.core.copy_meta import CopyMeta
from tests.sim.disk import Image, image_state
from tests.sim.stored import Damaged

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster, SimNode
    from tests.sim.damage import Damage

IMAGE_EVERY_S = 0.4
IMAGES_MAX = 4
QUIET_MAX_S = 40.0


class Rollback:
    def __init__(self, cluster: Cluster, damage: Damage) -> None:
        self.is_quiet = False
        self._cluster = cluster
        self._damage = damage
        self._images: dict[str, list[Image]] = {name: [] for name in cluster.nodes}
        self._network = cluster.network.knobs
        self._since = 0.0

    def keep_images(self) -> None:
        """Takes an image of every disk now and then, to be able to go back to it."""
        for name, node in self._cluster.nodes.items():
            if node.is_up and not self._damage.is_marked(node):
                self._images[name] = [*self._images[name], node.disk.image()][-IMAGES_MAX:]
        self._cluster.world.after(IMAGE_EVERY_S, self.keep_images)

    def happens_to(self, node: SimNode, rng: random.Random) -> bool:
        cluster = self._cluster
        images = self._images[node.name]
        if self.is_quiet or not images or not self._all_is_well():
            return False
        if not self._damage.may_damage(node, is_hidden=True):
            return False
        image = rng.choice(images)
        self._images[node.name] = []
        if not self._would_be_noticed(node, image):
            return False
        node.crash(power_loss=False)
        node.disk.restore(image)
        self._damage.mark(node)
        self.is_quiet = True
        self._since = cluster.world.now
        self._network = cluster.network.knobs
        cluster.network.knobs = replace(
            self._network, loss_rate=0, duplicate_rate=0, late_rate=0, tail_rate=0, break_rate=0
        )
        cluster.world.after(0.1, self._watch, node)
        return True

    def _watch(self, node: SimNode) -> None:
        cluster = self._cluster
        if self._is_whole(node):
            self.is_quiet = False
            cluster.network.knobs = self._network
            cluster.trace.note(f"{node.name} is whole again after its roll back")
            return
        if cluster.world.now - self._since > QUIET_MAX_S:
            raise AssertionError(
                f"{node.name}'s rolled back copies are not whole again after {QUIET_MAX_S} s"
            )
        cluster.world.after(0.1, self._watch, node)

    def _is_whole(self, node: SimNode) -> bool:
        """In sync, as the coordinator sees it, with nothing missing."""
        if not node.is_serving:
            return False
        for other in self._cluster.nodes.values():
            for tablet, host in other.hosts().items():
                c = host.replica.coordinator
                if c is None or node.name not in host.replica.state.replicas:
                    continue
                mine = node.hosts().get(tablet)
                if mine is None or not mine.replica.state.is_in_sync:
                    return False
                if mine.replica.state.log.end < host.replica.state.commit:
                    return False
        for tablet, host in node.hosts().items():
            led = [
                n
                for n in self._cluster.nodes.values()
                if (h := n.hosts().get(tablet)) and h.replica.coordinator
            ]
            if not led and host.replica.state.stopped_reason is None:
                return False
        return True

    def _all_is_well(self) -> bool:
        cluster = self._cluster
        for node in cluster.nodes.values():
            process = node.process
            if not node.is_serving or node.is_leaving or process is None or process.is_paused:
                return False
            if not node.node or not node.node.coordination_is_up or node.worker is None:
                return False
            if node.worker.stalled_until > cluster.world.now or node.disk.fail_next_sync:
                return False
        service = cluster.service
        is_served = not service.is_down and all(service.is_reachable(name) for name in cluster.nodes)
        return is_served and not cluster.network.has_cuts

    def _would_be_noticed(self, node: SimNode, image: Image) -> bool:
        """Of every tablet another in-sync member knows a commit point beyond the image's log."""
        ends = image_ends(image)
        for tablet, host in node.hosts().items():
            s = host.replica.state
            if not s.is_in_sync or s.descriptor is None:
                continue
            found = ends.get(tablet)
            if found is None or found[0] != s.copy_id or found[1] >= s.log.end:
                continue  # it counts no more, or nothing is missing
            others = [m.node for m in s.descriptor.in_sync if m.node != node.name]
            known = [self._cluster.nodes[name].hosts().get(tablet) for name in others]
            if any(h is None or h.replica.state.commit <= found[1] for h in known) or not known:
                return False
        return True


def image_ends(image: Image) -> dict[int, tuple[int, int]]:
    """tablet -> (copy_id, end of its log) of an image."""
    found = {}
    for tablet, copy in image_state(image).copies.items():
        if copy.meta is not None and copy.meta.__class__ is not Damaged:
            meta = CopyMeta.decode(copy.meta)
            bounds = copy.log.bounds()
            found[tablet] = meta.copy_id, max(meta.applied, bounds[1] if bounds is not None else 0)
    return found
