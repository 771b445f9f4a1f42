"""The coordination service on ZooKeeper (rules R1 and R18; the lock only elects).

Znodes under ROOT:

    cluster                         the cluster record
    ids                             the last table number given out, counted up by compare-and-set
    nodes/NAME                      ephemeral registration of a node
    tables/NAME                     table definition, empty once it was deleted
    tablets/<16 hex>/descriptor     descriptor; its znode version is the compare-and-set version
    tablets/<16 hex>/lock           ephemeral lock, msgpack [token of the session, owner]

A compare-and-set is sent once: an answer decides it, a lost answer makes it UNKNOWN (rule R1). A lock is
recognised as our own by the session's token in its data, so a create whose answer was lost is found again.
A lock of ours that nobody wants (a cancelled acquire, a late create, a release that could not be sent) is
deleted in the background until it is gone or the session is.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Coroutine
from typing import Any
from urllib.parse import quote, unquote

import msgpack
from aiozk import exc, protocol

from ackord_node.adapters.zookeeper_session import (
    Connect,
    GuardedSession,
    NotSent,
    SentAndLost,
    connect_wire,
)
from ackord_node.adapters.zookeeper_watcher import Seen, ZnodeWatcher
from ackord_node.ports import Cas, Clock, CoordinationError, CoordinationListener, LockAttempt

READ_BATCH = 128
CREATE_TRIES = 3
RETRY_S = 0.1

log = logging.getLogger(__name__)


class ZooKeeperCoordination:
    """Implements the Coordination port; see the port for what each method guarantees."""

    def __init__(
        self,
        hosts: list[str],
        root: str,
        session_timeout_ms: int,
        clock: Clock,
        connect: Connect = connect_wire,
        rng: random.Random | None = None,
    ) -> None:
        """``connect`` and ``rng`` are given by a simulator."""
        self.session_timeout_ms: int | None = None
        self._root = root.rstrip("/")
        self._session = GuardedSession(
            hosts, session_timeout_ms, clock, self, connect, rng or random.SystemRandom()
        )
        self._watcher = ZnodeWatcher(self._session, clock)
        self._listener: CoordinationListener | None = None
        self._usable = asyncio.Event()
        self._set_up: asyncio.Task[None] | None = None
        self._tasks: dict[asyncio.Task[None], None] = {}  # in the order of their start
        self._registration: tuple[str, bytes] | None = None
        self._registering = asyncio.Lock()
        self._followed: set[int] = set()
        self._mine: set[int] = set()  # followed tablets whose lock was last reported as ours
        self._wanted: dict[int, bytes] = {}  # tablets whose lock this session wants -> owner
        self._releasing: dict[int, asyncio.Task[None]] = {}
        self._tables: set[str] = set()  # paths of the tables that are watched
        self._prepared_by = b""  # token of the session that last saw to it that the parents exist

    async def start(self, listener: CoordinationListener) -> None:
        self._listener = listener
        self._watcher.add(f"{self._root}/nodes", self._nodes_seen, is_parent=True)
        self._watcher.add(f"{self._root}/tables", self._tables_seen, is_parent=True)
        self._spawn(self._watcher.run())
        self._session.start()

    async def close(self) -> None:
        self._listener = None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._session.close()

    # ------------------------------------------------------------------------ session's events

    def connected(self) -> None:
        self.session_timeout_ms = self._session.timeout_ms
        self._set_up = self._spawn(self._prepare())

    def disconnected(self) -> None:
        if self._set_up is not None:
            self._set_up.cancel()
        self._watcher.suspend()
        if self._usable.is_set():
            self._usable.clear()
            self._tell(False)

    def session_ended(self) -> None:
        self._wanted.clear()
        for task in self._releasing.values():
            task.cancel()
        self._releasing.clear()
        for tablet in sorted(self._mine):
            self._watcher.touch(self._lock_path(tablet), report_again=True)
            asyncio.get_running_loop().call_soon(self._report_lock, tablet, None, False)

    def watch_fired(self, path: str) -> None:
        self._watcher.touch(path)

    async def _prepare(self) -> None:
        """After each connect: parents exist, the node is registered, everything followed is read again."""
        try:
            if self._prepared_by != self._session.token:
                for path, data in (("nodes", b""), ("tables", b""), ("tablets", b""), ("ids", b"0")):
                    await self._create(f"{self._root}/{path}", data)
                self._prepared_by = self._session.token
            if self._registration is not None:
                await self._publish_registration()
        except CoordinationError as error:
            log.info("ZooKeeper session %x is not usable yet: %s", self._session.session_id, error)
            return  # every such error ends the connection, and the next one starts anew
        self._usable.set()
        self._watcher.resume()
        self._tell(True)

    def _tell(self, connected: bool) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().call_soon(self._listener.session_changed, connected)

    # --------------------------------------------------------------------------------- cluster

    async def cluster(self) -> bytes | None:
        found = await self._read(f"{self._root}/cluster")
        return None if found is None else found.data

    async def create_cluster(self, data: bytes) -> bytes:
        await self._ready()
        if await self._create(f"{self._root}/cluster", data):
            return data
        found = await self._read(f"{self._root}/cluster")
        if found is None:
            raise CoordinationError("the cluster record was deleted while it was being created")
        return found.data

    async def next_id(self) -> int:
        path = f"{self._root}/ids"
        try:
            async with asyncio.timeout(self._session.timeout_s):
                while True:
                    found = await self._read(path)
                    if found is None:
                        raise CoordinationError(f"{path} does not exist: was ZooKeeper emptied?")
                    number = int(found.data) + 1
                    if await self._swap(path, str(number).encode(), found.version) is Cas.WON:
                        return number  # a number whose outcome is unknown is simply never given out
        except TimeoutError as error:
            raise CoordinationError("no table number could be reserved in time") from error

    # ----------------------------------------------------------------------------------- nodes

    async def register_node(self, name: str, data: bytes) -> None:
        self._registration = (name, data)
        await self._ready()
        await self._publish_registration()

    async def nodes(self) -> dict[str, bytes]:
        found = await self._read_children(f"{self._root}/nodes")
        return {name: seen.data for name, seen in found.items()}

    async def _publish_registration(self) -> None:
        """Replaces whatever stands under our name, be it of an older session or older data, by ours. A new
        znode rather than new data, so that the others' watch on the children tells them."""
        async with self._registering:
            assert self._registration is not None
            name, data = self._registration
            path = f"{self._root}/nodes/{_escape(name)}"
            for _ in range(CREATE_TRIES):
                if await self._create(path, data, is_ephemeral=True):
                    return
                (found,) = await self._session.read([protocol.GetDataRequest(path=path, watch=False)])
                if isinstance(found, protocol.GetDataResponse):
                    if found.stat.ephemeral_owner == self._session.session_id and found.data == data:
                        return
                    await self._delete(path)
            raise CoordinationError(f"the registration of node {name} is being replaced by another process")

    def _nodes_seen(self, seen: Seen | None) -> None:
        if self._registration is not None and (
            seen is None or _escape(self._registration[0]) not in seen.children
        ):
            self._spawn(self._register_again())
        if self._listener is not None:
            self._listener.nodes_changed()

    async def _register_again(self) -> None:
        try:
            await self._ready()
            await self._publish_registration()
        except CoordinationError as error:
            log.info("registration is missing and could not be renewed yet: %s", error)
            self._watcher.touch(f"{self._root}/nodes", report_again=True)

    # ---------------------------------------------------------------------------------- tables

    async def tables(self) -> dict[str, tuple[bytes, int]]:
        found = await self._read_children(f"{self._root}/tables")
        return {name: (seen.data, seen.version) for name, seen in found.items() if seen.data}

    async def table(self, name: str) -> tuple[bytes, int] | None:
        found = await self._read(self._table_path(name))
        return None if found is None else (found.data, found.version)

    async def create_table(self, name: str, data: bytes, version: int) -> Cas:
        path = self._table_path(name)
        if version >= 0:
            return await self._swap(path, data, version)
        await self._ready()
        return await self._create_once(path, data)

    async def update_table(self, name: str, data: bytes, version: int) -> Cas:
        return await self._swap(self._table_path(name), data, version)

    async def delete_table(self, name: str, version: int) -> Cas:
        return await self._swap(self._table_path(name), b"", version)  # so that versions go on

    def _table_path(self, name: str) -> str:
        return f"{self._root}/tables/{_escape(name)}"

    def _tables_seen(self, seen: Seen | None) -> None:
        """Children's watches tell of created and deleted tables; each table's own of its new definition."""
        names = set() if seen is None else {f"{self._root}/tables/{child}" for child in seen.children}
        for path in sorted(self._tables - names):
            self._watcher.remove(path)
        for path in sorted(names - self._tables):
            self._watcher.add(path, self._table_seen)
        self._tables = names
        self._table_seen(seen)

    def _table_seen(self, _seen: Seen | None) -> None:
        if self._listener is not None:
            self._listener.tables_changed()

    # ----------------------------------------------------------------------------- descriptors

    async def descriptor(self, tablet: int) -> tuple[bytes, int] | None:
        found = await self._read(self._descriptor_path(tablet))
        return None if found is None else (found.data, found.version)

    async def create_descriptor(self, tablet: int, data: bytes) -> Cas:
        await self._ready()
        return await self._create_once(self._descriptor_path(tablet), data)

    async def swap_descriptor(self, tablet: int, data: bytes, version: int) -> Cas:
        return await self._swap(self._descriptor_path(tablet), data, version)

    def follow(self, tablet: int) -> None:
        if tablet in self._followed:
            return
        self._followed.add(tablet)

        def descriptor_seen(seen: Seen | None) -> None:
            if self._listener is not None:
                data, version = (None, -1) if seen is None else (seen.data, seen.version)
                self._listener.descriptor_changed(tablet, data, version)

        def lock_seen(seen: Seen | None) -> None:
            self._lock_seen(tablet, seen)

        self._watcher.add(self._descriptor_path(tablet), descriptor_seen)
        self._watcher.add(self._lock_path(tablet), lock_seen)

    def unfollow(self, tablet: int) -> None:
        self._followed.discard(tablet)
        self._mine.discard(tablet)
        self._watcher.remove(self._descriptor_path(tablet))
        self._watcher.remove(self._lock_path(tablet))

    def _descriptor_path(self, tablet: int) -> str:
        return f"{self._root}/tablets/{tablet:016x}/descriptor"

    # ----------------------------------------------------------------------------------- locks

    async def acquire_lock(self, tablet: int, owner: bytes) -> LockAttempt:
        await self._ready()
        releasing = self._releasing.pop(tablet, None)
        if releasing is not None:
            releasing.cancel()  # a delete that it has sent already is ordered before our create
        was_wanted = tablet in self._wanted
        try:
            attempt = await self._try_lock(tablet, owner)
        except SentAndLost:
            self._watcher.touch(self._lock_path(tablet), report_again=True)
            return LockAttempt.UNKNOWN
        except BaseException:
            if not was_wanted:
                self._release_soon(tablet)
            raise
        if attempt is LockAttempt.TAKEN:
            self._wanted.pop(tablet, None)
        return attempt

    async def release_lock(self, tablet: int) -> None:
        task = self._release_soon(tablet)
        if self._usable.is_set():
            await asyncio.wait({task}, timeout=self._session.timeout_s / 2)

    async def _try_lock(self, tablet: int, owner: bytes) -> LockAttempt:
        path = self._lock_path(tablet)
        for _ in range(CREATE_TRIES):
            self._wanted[tablet] = owner  # each time: the end of a session in between cleared it
            if await self._create(path, msgpack.packb([self._session.token, owner]), is_ephemeral=True):
                return LockAttempt.HELD
            found = await self._read(path)
            if found is not None:
                _, is_mine = self._holder(found)
                return LockAttempt.HELD if is_mine else LockAttempt.TAKEN
        return LockAttempt.TAKEN  # it changes hands faster than we can try

    def _release_soon(self, tablet: int) -> asyncio.Task[None]:
        self._wanted.pop(tablet, None)
        task = self._releasing.get(tablet)
        if task is None or task.done():
            task = self._releasing[tablet] = self._spawn(self._delete_lock(tablet))
        return task

    async def _delete_lock(self, tablet: int) -> None:
        """Until the lock is not this session's, or the session is not this one any more."""
        path, token = self._lock_path(tablet), self._session.token
        try:
            while self._session.token == token:
                try:
                    await self._ready()
                    found = await self._read(path)
                    if found is None or not self._holder(found)[1]:
                        return
                    await self._delete(path)
                except CoordinationError:
                    await asyncio.sleep(RETRY_S)
        finally:
            if self._releasing.get(tablet) is asyncio.current_task():
                del self._releasing[tablet]

    def _lock_seen(self, tablet: int, seen: Seen | None) -> None:
        owner, is_mine = (None, False) if seen is None else self._holder(seen)
        if is_mine and tablet not in self._wanted:
            self._release_soon(tablet)  # a create that arrived after it was given up
        self._report_lock(tablet, owner, is_mine)

    def _report_lock(self, tablet: int, owner: bytes | None, is_mine: bool) -> None:
        (self._mine.add if is_mine else self._mine.discard)(tablet)
        if self._listener is not None and tablet in self._followed:
            self._listener.lock_changed(tablet, owner, is_mine)

    def _holder(self, seen: Seen) -> tuple[bytes, bool]:
        try:
            token, owner = msgpack.unpackb(seen.data)
        except (ValueError, TypeError):
            return seen.data, False  # not written by us: held by somebody all the same
        return owner, bool(self._session.token) and token == self._session.token

    def _lock_path(self, tablet: int) -> str:
        return f"{self._root}/tablets/{tablet:016x}/lock"

    # ------------------------------------------------------------------------------ primitives

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)
        return task

    async def _ready(self) -> None:
        """Waits a bounded time for a usable session; NotSent if there is none."""
        try:
            async with asyncio.timeout(self._session.timeout_s / 3):
                await self._usable.wait()
        except TimeoutError as error:
            raise NotSent("ZooKeeper cannot be reached") from error

    async def _read(self, path: str) -> Seen | None:
        return (await self._read_all([path]))[0]

    async def _read_all(self, paths: list[str]) -> list[Seen | None]:
        await self._ready()
        found: list[Seen | None] = []
        for first in range(0, len(paths), READ_BATCH):
            batch = paths[first : first + READ_BATCH]
            requests = [protocol.GetDataRequest(path=path, watch=False) for path in batch]
            for answer in await self._session.read(requests):
                if isinstance(answer, protocol.GetDataResponse):
                    found.append(Seen(answer.data or b"", answer.stat.version))
                else:
                    found.append(None)
        return found

    async def _read_children(self, path: str) -> dict[str, Seen]:
        await self._ready()
        (answer,) = await self._session.read([protocol.GetChildren2Request(path=path, watch=False)])
        if not isinstance(answer, protocol.GetChildren2Response):
            return {}
        names = sorted(answer.children)
        found = await self._read_all([f"{path}/{name}" for name in names])
        return {unquote(name): seen for name, seen in zip(names, found, strict=True) if seen is not None}

    async def _create(self, path: str, data: bytes, *, is_ephemeral: bool = False) -> bool:
        """False if it exists. Missing parents are created; if that fails, ``path`` was certainly not."""
        request = protocol.Create2Request(path=path, data=data, acl=[protocol.UNRESTRICTED_ACCESS])
        request.set_flags(ephemeral=is_ephemeral)
        try:
            await self._session.call(request)
        except exc.NodeExists:
            return False
        except exc.NoNode:
            try:
                await self._create(path.rpartition("/")[0], b"")
            except SentAndLost as error:
                raise NotSent(f"the parent of {path} could not be created") from error
            return await self._create(path, data, is_ephemeral=is_ephemeral)
        return True

    async def _create_once(self, path: str, data: bytes) -> Cas:
        try:
            return Cas.WON if await self._create(path, data) else Cas.LOST
        except SentAndLost:
            return Cas.UNKNOWN

    async def _swap(self, path: str, data: bytes, version: int) -> Cas:
        await self._ready()
        return await self._settle(protocol.SetDataRequest(path=path, data=data, version=version))

    async def _settle(self, request: protocol.Request) -> Cas:
        try:
            await self._session.call(request)
        except (exc.BadVersion, exc.NoNode):
            return Cas.LOST
        except SentAndLost:
            return Cas.UNKNOWN
        return Cas.WON

    async def _delete(self, path: str) -> None:
        try:
            await self._session.call(protocol.DeleteRequest(path=path, version=-1))
        except exc.NoNode:
            return


def _escape(name: str) -> str:
    """A name as one znode: no slash, and neither "." nor ".."."""
    return quote(name, safe="").replace(".", "%2E")
