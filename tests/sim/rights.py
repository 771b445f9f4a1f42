"""Who may answer reads rests on what others have given: looked at in the nodes themselves, by true time.

A coordinator's authority ends before the promise of every member that it counts (rules R5, R7), and a member's lease
before the coordinator stops waiting for it (R6, R9). Clients would show that only if they read in that moment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ackord_node.core.coordinator import Coordinator
from ackord_node.core.follower import NO_LEASE
from tests.sim.cluster_oracle import Violation
from tests.sim.kernel import Process

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster, SimNode

ROUNDING_S: Final = 1e-6


class Rights:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.checked_count = 0

    def check(self) -> None:
        """Of all tablets, after messages that gave rights came to a node."""
        for node in self._cluster.nodes.values():
            for tablet, host in node.hosts().items():
                c = host.replica.coordinator
                if c is not None and c.is_active and not c.membership.has_ended_reads:
                    self._check(node, tablet, c)

    def _check(self, node: SimNode, tablet: int, c: Coordinator) -> None:
        if c.membership.descriptor.is_newborn:
            return  # it has no authority
        for member in sorted(c.membership.required):
            p, other = c.progress.get(member.node), self._cluster.nodes[member.node]
            host = other.hosts().get(tablet)
            if p is None or host is None or not member.copy_id == p.copy_id == host.replica.state.copy_id:
                continue
            s, follower = host.replica.state, host.replica.follower
            authority = self._true(node.process, p.authority)
            if authority <= self._cluster.world.now:
                continue
            self.checked_count += 1
            promised = self._true(other.process, s.promise_until)
            what = f"tablet {tablet:x}, epoch {c.epoch}: {node.name} coordinates, and"
            if host.replica.coordinator is not None or authority > promised + ROUNDING_S:
                raise Violation(
                    f"{what} counts on {member.node} until {authority:.6f}, which promised until {promised:.6f}"
                )
            if s.promised == c.epoch and follower.lease_until > NO_LEASE:
                lease, granted = (
                    self._true(other.process, follower.lease_until),
                    self._true(node.process, p.granted_until),
                )
                if lease > max(granted + ROUNDING_S, self._cluster.world.now):
                    raise Violation(
                        f"{what} waits for {member.node}'s lease until {granted:.6f}; it ends {lease:.6f}"
                    )

    def _true(self, process: Process | None, local: float) -> float:
        """True time at which the process's clock shows this."""
        assert process is not None
        now = self._cluster.world.now
        return now + (local - process.now()) / process.rate
