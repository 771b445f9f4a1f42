"""One node: its tablets' cores, the links to its peers, its disk and the coordination service, put together.

This is the ``Service`` that the HTTP faces speak to, and the listener of the peer transport and of the
coordination service. Nothing in the data path waits for the coordination service.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from ackord.errors import InvalidRequest, Unavailable
from ackord.wire.frames import packb, unpackb
from ackord.wire.messages import OP_WRITE, WHOLE_GROUP, TableDefinition, error_to_wire
from ackord.wire.options import DEFAULT_OPTIONS, TableOptions
from ackord_node.core import effects as e
from ackord_node.core import messages as m
from ackord_node.core.copy_meta import CopyMeta
from ackord_node.core.log import RecordCorrupt
from ackord_node.core.replica import Replica
from ackord_node.core.state import CoreConfig, StoredCopy
from ackord_node.core.types import Descriptor
from ackord_node.ports import Clock, Coordination, CoordinationError, Engine, EngineCorrupt, PeerTransport
from ackord_node.runtime.catalogue import Catalogue, TableRecord
from ackord_node.runtime.clockwork import Clockwork
from ackord_node.runtime.committer import Committer
from ackord_node.runtime.courier import Courier
from ackord_node.runtime.engine_rows import EngineRows
from ackord_node.runtime.engine_thread import EngineWorker
from ackord_node.runtime.health import Health
from ackord_node.runtime.identity import CoordinationEmptied, Facts, join_cluster, load_copy
from ackord_node.runtime.observer import Observer
from ackord_node.runtime.reading import take_read
from ackord_node.runtime.recovery import Recovery
from ackord_node.runtime.relapses import Relapses
from ackord_node.runtime.service import Respond
from ackord_node.runtime.settings import NodeSettings
from ackord_node.runtime.status import Reporter
from ackord_node.runtime.tablet_host import TabletHost
from ackord_node.runtime.turn import Turn

log = logging.getLogger("ackord.node")

STOP_WAIT_S = 6.0  # a planned stop waits so long for its hand-overs
LONE_STOP_WAIT_S = 0.5  # with nobody left to take over: time for what is under way
WAIT_LOG_S = 5.0
CATALOGUE_RETRY_S = 0.5


class Node:
    def __init__(
        self,
        settings: NodeSettings,
        clock: Clock,
        engine: Engine,
        coordination: Coordination,
        transport: PeerTransport,
        observer: Observer,
        facts: Facts,
        crash: Callable[[str, bool], None],
        ask_peer: Callable[[str, str], Coroutine[Any, Any, Any]],
        worker: EngineWorker,
        randbits: Callable[[int], int],
    ) -> None:
        """``worker`` is where commits run, ``randbits(count)`` the only randomness."""
        self.settings = settings
        self.name = settings.name
        self.cluster = settings.cluster
        self.cluster_id = facts.cluster_id or ""
        self.limits = settings.limits
        self._randbits = randbits
        self.incarnation = randbits(62) | 1
        self.clock = clock
        self.engine = engine
        self.coordination = coordination
        self.observer = observer
        self.transport = transport
        self._courier = Courier(transport)
        self.crash = crash
        self.committer = Committer(engine, worker, clock, observer, crash)
        self.catalogue = Catalogue(
            coordination,
            clock,
            settings.limits,
            settings.timing,
            sorted(settings.addresses),
            settings.replicas_count,
            settings.min_in_sync,
        )
        self.catalogue.on_refresh = self._tables_known
        self.hosts: dict[int, TabletHost] = {}
        self.relapses = Relapses(lambda: {t: host.replica for t, host in self.hosts.items()}, clock, crash)
        self.health = Health(
            engine, self.committer, clock, observer, settings.timing.confirm_timeout, self._disk_changed
        )
        self._clockwork = Clockwork(self)
        self.wake = self._clockwork.wake
        self.reporter = Reporter(self, ask_peer)
        self.catalogue.has_stopped = self.reporter.has_stopped
        self.recovery = Recovery(self, ask_peer)
        self.is_stopping = False
        self.refusal: str | None = "starting"  # why nothing is served
        self.foreign_reason: str | None = None  # the coordination service is not this cluster's (any more)
        self._facts = facts
        self._core_config = CoreConfig(settings.timing, settings.log_limits, settings.limits)
        self.metas: dict[int, bytes] = {}  # of the copies that were stored when this run began, and still are
        self.turn = Turn()
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._coordination_up = False
        self._coordination_event = asyncio.Event()
        self._refresh_wanted = asyncio.Event()
        self._tables_read = asyncio.Event()
        self._peers_up: set[str] = set()
        self._peers_stopping: set[str] = set()
        self._last_version = 0
        self._tables_stored: bytes = b""
        self.table_id_max = facts.table_id_max  # of all that ever stood, as far as this node saw (R18)

    # ------------------------------------------------------------------------ start and stop

    async def start(self) -> None:
        """Joins the cluster; waits, and says so, while the coordination service cannot be reached. Raises
        IdentityError if this node must not start."""
        self.metas = self.engine.metas()
        await self.coordination.start(self)
        self.spawn(self.health.run())
        self.cluster_id = await self._join()
        facts = {"cluster": self.cluster, "node": self.name, "cluster_id": self.cluster_id}
        self.committer.put_node({name: value.encode() for name, value in facts.items()})
        await self._register()
        self.transport.set_cluster_id(self.cluster_id)
        await self.transport.start(self, self.incarnation)
        for tablet in sorted(self.metas):
            self.coordination.follow(tablet)
        self.spawn(self._keep_catalogue())
        self.spawn(self._clockwork.run(self._peers_up))
        self.refusal = "starting: reading which tables there are"
        await self._tables_read.wait()  # before that, "there is no such table" would be a lie
        self.refusal = None

    async def _join(self) -> str:
        while True:
            try:
                async with asyncio.timeout(WAIT_LOG_S):
                    await self._coordination_event.wait()
                    return await join_cluster(self.coordination, self._facts, self.cluster, self._randbits)
            except TimeoutError:
                self.refusal = "waiting for the coordination service, which cannot be reached"
                log.warning("%s", self.refusal)
            except CoordinationError as error:
                self.refusal = f"waiting for the coordination service: {error}"
                await asyncio.sleep(0.2)
            except CoordinationEmptied as error:
                if self.refusal != str(error):
                    log.error("%s", error)
                self.refusal = str(error)
                await asyncio.sleep(0.5)  # `ackord recover rebuild` makes it whole again

    async def _register(self) -> None:
        data = packb({"incarnation": self.incarnation, "address": self.settings.addresses[self.name]})
        while True:
            try:
                return await self.coordination.register_node(self.name, data)
            except CoordinationError as error:
                self.refusal = f"waiting for the coordination service: {error}"
                await asyncio.sleep(0.2)

    async def leave(self) -> None:
        """Hands every tablet over and leaves the in-sync sets, within a bounded time (R7b): no call fails."""
        self.is_stopping = True
        self.catalogue.leave()
        for peer in sorted(self._peers_up):
            self.transport.send(peer, [m.STOPPING, 0, 0], urgent=True)
        for host in list(self.hosts.values()):
            host.feed(e.Leave())
        begun = self.clock.now()
        while self.clock.now() - begun < STOP_WAIT_S:
            if all(h.replica.has_left or h.replica.state.stopped_reason for h in self.hosts.values()):
                return
            if not self._peers_up - self._peers_stopping and self.clock.now() - begun > LONE_STOP_WAIT_S:
                return  # the whole cluster stops: there is nobody to hand over to
            await asyncio.sleep(0.02)
        log.warning("stopping although not every tablet could be handed over within %.0f s", STOP_WAIT_S)

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for host in self.hosts.values():
            host.close()
        await self.transport.close()
        await self.coordination.close()
        await self.committer.close()
        self.engine.close()

    # ------------------------------------------------------------------------- surroundings

    @property
    def coordination_is_up(self) -> bool:
        return self._coordination_up

    def send(self, node: str, message: m.Message, urgent: bool) -> None:
        self._courier.send(node, message, urgent)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task of the node failed", exc_info=task.exception())
            self.crash(f"a task of the node failed: {task.exception()!r}", False)  # half a node serves nobody

    def lock_owner(self) -> bytes:
        return packb([self.name, self.incarnation])

    def tablet_changed(self, host: TabletHost) -> None:
        s = host.replica.state
        self._clockwork.beacons.role_changed(host.tablet, host.replica.coordinator)
        if s.descriptor is not None:
            self.catalogue.descriptor_seen(host.tablet, s.descriptor, s.descriptor_version)
        if host.replica.coordinator is None:
            self.observer.forget_tablet(host.tablet)
        if s.stopped_reason == "dropped":
            self._forget(host)

    def _forget(self, host: TabletHost) -> None:
        """Rule R18: the drop mark was seen, so the local data goes."""
        if self.hosts.pop(host.tablet, None) is not None:
            log.info("tablet %x was dropped: its data is deleted", host.tablet)
            host.close()
            self._clockwork.forget(host)
            self.metas.pop(host.tablet, None)
            self.committer.forget(host.tablet)
            self.coordination.unfollow(host.tablet)

    # ------------------------------------------------------------------- coordination service

    def descriptor_changed(self, tablet: int, data: bytes | None, version: int) -> None:
        if data is None:
            return
        try:
            descriptor = Descriptor.decode(data)
        except ValueError as error:
            log.error("tablet %x: %s", tablet, error)
            return
        if self.catalogue.descriptor_seen(tablet, descriptor, version):
            self._consider(tablet)
        host = self.hosts.get(tablet)
        if host is not None:
            host.feed(e.DescriptorSeen(descriptor, version))
        elif descriptor.dropped and tablet in self.metas:
            del self.metas[tablet]
            self.committer.forget(tablet)

    def lock_changed(self, tablet: int, holder: bytes | None, mine: bool) -> None:
        host = self.hosts.get(tablet)
        if host is not None:
            host.feed(e.LockSeen(unpackb(holder)[0] if holder is not None else None, mine))

    def tables_changed(self) -> None:
        self._refresh_wanted.set()

    def nodes_changed(self) -> None:
        """The registry is for people; the peers' links tell who is there."""

    def session_changed(self, connected: bool) -> None:
        self._coordination_up = connected
        if connected:
            self._coordination_event.set()
            self._refresh_wanted.set()
        else:
            self._coordination_event.clear()
        for host in list(self.hosts.values()):
            host.feed(e.CoordinationSeen(connected))

    async def _keep_catalogue(self) -> None:
        while True:
            self._refresh_wanted.clear()
            try:
                if await self._is_our_service():
                    await self.catalogue.refresh()
                    await self._refresh_wanted.wait()
                    continue
            except CoordinationError as error:
                log.debug("the tables could not be read: %s", error)
            await asyncio.sleep(CATALOGUE_RETRY_S)

    async def _is_our_service(self) -> bool:
        """A service that was emptied or exchanged says nothing of our tables: what is known stays (R18), and
        reads and writes go on."""
        record = await self.coordination.cluster()
        if record is not None and unpackb(record)["id"] == self.cluster_id:
            if self.foreign_reason is not None:
                log.warning("the coordination service holds this cluster again")
            self.foreign_reason = None
            return True
        found = "nothing" if record is None else f"the cluster id {unpackb(record)['id']}"
        reason = f"the coordination service holds {found} where cluster {self.cluster_id} is expected"
        if self.foreign_reason is None:
            log.error(
                "%s: no table, takeover or in-sync change is possible until `ackord recover rebuild`", reason
            )
        self.foreign_reason = reason
        return False

    def _tables_known(self) -> None:
        """Follows every tablet that stands, and keeps the definitions for the day the service is emptied."""
        for definition in self.catalogue.tables.values():
            for tablet in definition.tablets:
                self.coordination.follow(tablet.id)
                self._consider(tablet.id)
        self.table_id_max = max([self.table_id_max] + [t.id for t in self.catalogue.tables.values()])
        stored = packb({name: packb(t.to_wire()) for name, t in sorted(self.catalogue.tables.items())})
        if stored != self._tables_stored:
            self._tables_stored = stored
            self.committer.put_node({"tables": stored, "table_id_max": b"%d" % self.table_id_max})
        self._tables_read.set()

    def _consider(self, tablet: int) -> None:
        """Opens the tablet here if this node is one of its replicas."""
        known = self.catalogue.descriptors.get(tablet)
        definition = self.catalogue.tablet(tablet)
        if known is None or definition is None or tablet in self.hosts or self.is_stopping:
            return
        descriptor, version = known
        if descriptor.dropped or self.name not in descriptor.replicas:
            return
        host = self._open(tablet, definition)
        self.hosts[tablet] = host
        events: list[e.Event] = [
            e.CoordinationSeen(self._coordination_up),
            *(e.PeerUp(peer) for peer in sorted(self._peers_up)),
            e.DescriptorSeen(descriptor, version),
        ]
        for event in events:
            host.feed(event)
        if self.health.reason is not None:
            host.feed(e.DiskSlow(self.health.reason))
        self.coordination.unfollow(tablet)  # so that following tells what stands now once more
        self.coordination.follow(tablet)

    def _open(self, tablet: int, definition: TableDefinition) -> TabletHost:
        data = self.metas.get(tablet)
        is_new = data is None
        damage: str | None = None
        meta = CopyMeta(self._new_copy_id()) if data is None else CopyMeta.decode(data)
        if self.engine.suspect:
            meta.suspect = True
        try:
            copy = load_copy(self.engine, tablet, meta)
        except (RecordCorrupt, EngineCorrupt) as error:
            damage, copy = str(error), StoredCopy(tablet, meta, [], [])
        copy.is_new = is_new
        replica = Replica(
            self.name,
            self.incarnation,
            copy,
            self._core_config,
            EngineRows(self.engine, tablet),
            self._new_copy_id,
            self.clock.now(),
            definition.options,
        )
        replica.state.schema = definition.key
        replica.state.shares_beacons = True
        host = TabletHost(self, replica, definition.key)
        if is_new or meta.suspect:
            replica.state.want_meta()
        if damage is not None:
            host.feed(e.Corrupted(damage))
        return host

    def _new_copy_id(self) -> int:
        return self._randbits(62) | 1

    # ---------------------------------------------------------------------------------- peers

    def messages_received(self, node: str, incarnation: int, messages: Sequence[Any]) -> None:
        hosts = self.hosts
        for message in messages:
            m.check(message)
            host = hosts.get(message[1])
            if host is not None:
                host.feed(e.Received(node, incarnation, message))
            elif message[0] == m.STOPPING:
                self._peers_stopping.add(node)
            else:
                self._clockwork.received(node, incarnation, message)

    def peer_up(self, node: str) -> None:
        self._peers_up.add(node)
        self._peers_stopping.discard(node)
        self._clockwork.beacons.peer_up(node)
        self.observer.peer_link(node, True)
        for host in list(self.hosts.values()):
            host.feed(e.PeerUp(node))

    def peer_down(self, node: str, refused: bool) -> None:
        self._peers_up.discard(node)
        self.observer.peer_link(node, False)
        for host in list(self.hosts.values()):
            host.feed(e.PeerDown(node, refused))

    def _disk_changed(self, reason: str | None) -> None:
        for host in list(self.hosts.values()):
            host.feed(e.DiskWell() if reason is None else e.DiskSlow(reason))

    # -------------------------------------------------------------------------------- service

    def now_version(self) -> int:
        self._last_version = max(self._last_version + 1, self.clock.wall_ms() << 16)
        return self._last_version

    def submit(self, group: list[Any], respond: Respond) -> None:
        rid, op, tablet = group[0], group[1], group[2]
        host = self.hosts.get(tablet)
        if host is None:
            respond([rid, WHOLE_GROUP, self._no_tablet(tablet)])
        elif op == OP_WRITE:
            host.write(group, respond)
            self.turn.add(host)
            self.wake(host)
        elif not take_read(host, group, respond):
            error = InvalidRequest(f"unknown operation {op}", field="op", value=op)
            respond([rid, WHOLE_GROUP, error_to_wire(error)])

    def flush(self) -> None:
        self.turn.end()

    def _no_tablet(self, tablet: int) -> list[Any]:
        detail: dict[str, Any] = {}
        coordinator = self.coordinator_of(tablet)
        if coordinator is not None:
            detail["coordinator"] = coordinator
        reason = self.refusal or f"node {self.name} holds no copy of tablet {tablet:x}"
        return error_to_wire(Unavailable(reason, reason="no_tablet", retry_after_ms=50, **detail))

    def routing(self) -> dict[str, Any]:
        self._check_started()
        return self.reporter.routing()

    async def table(self, name: str) -> TableDefinition:
        self._check_started()
        return await self.catalogue.find(name, self._is_our_service)

    async def describe_table(self, name: str) -> TableRecord:
        self._check_started()
        return await self.catalogue.describe(name, self._is_our_service)

    async def read_tables(self) -> None:
        self._check_started()
        await self.catalogue.read_again(self._is_our_service)

    def coordinator_of(self, tablet: int) -> str | None:
        known = self.catalogue.descriptors.get(tablet)
        return known[0].coordinator if known is not None else None

    def address_of(self, node: str) -> str | None:
        return self.settings.addresses.get(node)

    async def create_table(
        self,
        name: str,
        key: list[list[str]],
        split_at: list[Any],
        options: TableOptions = DEFAULT_OPTIONS,
        if_record_version: int | None = None,
    ) -> TableDefinition:
        self._check_serving()
        return await self.catalogue.create(name, key, split_at, options, if_record_version)

    async def drop_table(self, name: str, table_id: int | None = None) -> None:
        self._check_serving()
        await self.catalogue.drop(name, table_id)

    def _check_started(self) -> None:
        """A node that has not started knows of no table: it must not be asked which there are."""
        if self.refusal is not None:
            raise Unavailable(f"node {self.name}: {self.refusal}", reason="starting", retry_after_ms=200)

    def _check_serving(self) -> None:
        self._check_started()
        if self.foreign_reason is not None:
            raise Unavailable(
                f"node {self.name}: {self.foreign_reason}", reason="foreign", retry_after_ms=1000
            )

    async def status(self) -> dict[str, Any]:
        return await self.reporter.status()

    def ready(self) -> tuple[bool, str]:
        return self.reporter.ready()

    async def recover(self, request: dict[str, Any]) -> dict[str, Any]:
        return await self.recovery.run(request)
