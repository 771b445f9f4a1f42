"""What a node tells of itself and of the cluster: routing table, readiness, status."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ackord.wire.messages import WIRE_VERSION
from ackord_node.runtime.tablet_host import TabletHost

if TYPE_CHECKING:
    from ackord_node.runtime.node import Node

LOCAL_STATUS_PATH = "/peer/v1/status"
ASK_TIMEOUT_S = 1.0
SHARE_S = 0.01  # who asks for the same node's state within this time shares the answer


class Reporter:
    def __init__(self, node: Node, ask_peer: Callable[[str, str], Coroutine[Any, Any, Any]]) -> None:
        self._node = node
        self._ask_peer = ask_peer
        self._routing: tuple[int, dict[str, Any]] | None = None
        self._asked: dict[str, asyncio.Future[dict[str, Any] | None]] = {}  # of nodes about to be asked

    def routing(self) -> dict[str, Any]:
        """The body of ``GET /v1/routing``."""
        node = self._node
        version = node.catalogue.version
        if self._routing is None or self._routing[0] != version:
            self._routing = (version, self._make_routing(version))
        return {**self._routing[1], "now_version": node.now_version(), "cluster_id": node.cluster_id}

    def _make_routing(self, version: int) -> dict[str, Any]:
        node = self._node
        tables = {}
        for name, definition in node.catalogue.tables.items():
            tablets = []
            for tablet in definition.tablets:
                known = node.catalogue.descriptors.get(tablet.id)
                descriptor = known[0] if known is not None else None
                tablets.append(
                    {
                        **tablet.to_wire(),
                        "coordinator": descriptor.coordinator if descriptor else None,
                        "in_sync": sorted(m.node for m in descriptor.in_sync) if descriptor else [],
                        "epoch": descriptor.epoch if descriptor else 0,
                    }
                )
            tables[name] = {"id": definition.id, "key": definition.key.to_wire(), "tablets": tablets}
            if options := definition.options.to_wire():
                tables[name]["options"] = options
        return {
            "wire": WIRE_VERSION,
            "cluster": node.cluster,
            "version": version,
            "nodes": node.settings.addresses,
            "limits": asdict(node.limits),
            "tables": tables,
        }

    def ready(self) -> tuple[bool, str]:
        """Whether every tablet is served by somebody and this node is in sync where it holds a replica."""
        node = self._node
        if node.refusal is not None:
            return False, node.refusal
        if node.is_stopping:
            return False, "stopping"
        for name, definition in node.catalogue.tables.items():
            for tablet in definition.tablets:
                known = node.catalogue.descriptors.get(tablet.id)
                if known is None or known[0].coordinator is None:
                    return False, f"table {name}: tablet {tablet.id:x} has no coordinator yet"
                if node.name in known[0].replicas and known[0].member_of(node.name) is None:
                    return False, f"table {name}: the copy of tablet {tablet.id:x} is catching up"
        return True, ""

    # ------------------------------------------------------------------------------- status

    def local(self) -> dict[str, Any]:
        """What this node alone knows."""
        node = self._node
        is_ready, reason = self.ready()
        return {
            "node": node.name,
            "incarnation": node.incarnation,
            "ready": is_ready,
            "reason": reason,
            "disk_reason": node.health.reason,
            "disk_bytes": node.engine.disk_bytes(),
            "free_bytes": node.engine.free_bytes(),
            "loop_lag_max_ms": round(node.health.lag_max_s * 1000, 1),
            "session_timeout_ms": node.coordination.session_timeout_ms,
            "copies": {str(tablet): self.copy(host) for tablet, host in sorted(node.hosts.items())},
            "unopened": sorted(node.metas.keys() - node.hosts.keys()),
        }

    def copy(self, host: TabletHost) -> dict[str, Any]:
        replica, s = host.replica, host.replica.state
        found: dict[str, Any] = {
            "copy_id": s.copy_id,
            "promised": s.promised,
            "log_end": s.log.end,
            "last_epoch": s.log.epoch_at(s.log.end) or 0,
            "commit": s.commit,
            "applied": s.applied,
            "last_version": s.last_version,
            "in_sync": s.is_in_sync,
            "suspect": s.suspect,
            "filling": s.filling,
            "role": "coordinator"
            if replica.coordinator is not None
            else "member"
            if s.is_in_sync
            else "learner",
        }
        holders = s.holders
        if holders.told_count or any(holders.counts):
            holds, rows = holders.counts
            found["holders"] = {
                "clients": holds,
                "rows": rows,
                "told": holders.told_count,
                "lapsed": holders.lapsed_count,
                "waits": holders.bound is not None,
            }
        if replica.coordinator is not None:
            found["lag"] = {p.node: s.log.end - p.confirmed for p in replica.coordinator.progress.values()}
        return found

    def report_metrics(self) -> None:
        """Gauges of the tablets that this node coordinates."""
        pending = 0
        for host in self._node.hosts.values():
            c, end = host.replica.coordinator, host.replica.state.log.end
            if c is not None:
                pending += c.writes.pending_count
                lag = {p.node: end - p.confirmed for p in c.progress.values()}
                self._node.observer.tablet(host.tablet, len(c.membership.in_sync), lag)
        self._report_upkeep()
        self._node.observer.queue("pending_writes", pending)
        peers = [name for name in self._node.settings.addresses if name != self._node.name]
        self._node.observer.queue("peer_bytes", sum(self._node.transport.queued_bytes(p) for p in peers))

    def _report_upkeep(self) -> None:
        """What all tablets of this node remove in the background, and how far they are behind."""
        now = self._node.clock.now()
        rows_count = versions_count = keys_count = 0
        expiry_lag_s = collector_lag_s = 0.0
        for host in self._node.hosts.values():
            upkeep, c = host.replica.state.upkeep, host.replica.coordinator
            counts = upkeep.take_counts()
            rows_count += counts[0]
            versions_count += counts[1]
            keys_count += len(upkeep.keys_waiting)
            collector_lag_s = max(collector_lag_s, upkeep.waiting_s(now))
            if c is not None:
                expiry_lag_s = max(expiry_lag_s, c.expiry.lag_s(now))
        self._node.observer.expiry(rows_count, expiry_lag_s)
        self._node.observer.collector(versions_count, keys_count, collector_lag_s)

    async def status(self) -> dict[str, Any]:
        """The body of ``GET /v1/status``: every node is asked what it alone knows."""
        node = self._node
        names = sorted(node.settings.addresses)
        answers = await asyncio.gather(*(self._of(name) for name in names))
        known = dict(zip(names, answers, strict=True))
        nodes = {}
        for name in names:
            local = known[name]
            nodes[name] = {"address": node.settings.addresses[name], "up": local is not None}
            if local is not None:
                nodes[name].update({k: v for k, v in local.items() if k not in ("copies", "node")})
        return {
            "cluster": node.cluster,
            "cluster_id": node.cluster_id,
            "answered_by": node.name,
            "coordination_up": node.coordination_is_up,
            "nodes": nodes,
            "tables": self._tables(known),
        }

    async def has_stopped(self, name: str, tablet: int, epoch: int) -> bool:
        """Whether the node's copy of a dropped tablet obeys the mark, or is gone. One that a node which is starting has
        not opened yet may still be opened as it was before the mark."""
        local = await self._shared(name)
        if local is None:
            return False
        copy = local["copies"].get(str(tablet))
        if copy is None:
            return tablet not in local.get("unopened", ())
        return bool(copy["promised"] >= epoch)

    async def _shared(self, name: str) -> dict[str, Any] | None:
        """As ``_of``, asked once for all who want it at about the same time, and after the last of them did."""
        answer = self._asked.get(name)
        if answer is None:
            answer = self._asked[name] = asyncio.get_running_loop().create_future()
            self._node.spawn(self._ask_soon(name, answer))
        return await asyncio.shield(answer)

    async def _ask_soon(self, name: str, answer: asyncio.Future[dict[str, Any] | None]) -> None:
        await asyncio.sleep(SHARE_S)
        del self._asked[name]
        answer.set_result(await self._of(name))

    async def _of(self, name: str) -> dict[str, Any] | None:
        if name == self._node.name:
            return self.local()
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                found = await self._ask_peer(name, LOCAL_STATUS_PATH)
        except (OSError, TimeoutError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def _tables(self, known: dict[str, dict[str, Any] | None]) -> dict[str, Any]:
        node = self._node
        tables = {}
        for name, definition in sorted(node.catalogue.tables.items()):
            tablets = []
            for tablet in definition.tablets:
                seen = node.catalogue.descriptors.get(tablet.id)
                mark = str(tablet.id)
                copies = {n: a["copies"][mark] for n, a in known.items() if a and mark in a["copies"]}
                lag: dict[str, int] = next((c["lag"] for c in copies.values() if "lag" in c), {})
                tablets.append(
                    {
                        "id": tablet.id,
                        "start": tablet.start,
                        "end": tablet.end,
                        "epoch": seen[0].epoch if seen else 0,
                        "coordinator": seen[0].coordinator if seen else None,
                        "in_sync": sorted(m.node for m in seen[0].in_sync) if seen else [],
                        "replicas": list(seen[0].replicas) if seen else [],
                        "min_in_sync": seen[0].min_in_sync if seen else 0,
                        "lag": lag,
                        "copies": copies,
                    }
                )
            tables[name] = {"id": definition.id, "key": definition.key.to_wire(), "tablets": tablets}
        return tables
