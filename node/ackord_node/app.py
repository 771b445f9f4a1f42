"""Wires one node from cluster.yaml: the only place that knows which adapter stands behind which port."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import secrets
import signal
import sys
from typing import Any

import aiohttp
from aiohttp import web

from ackord.wire.frames import unpackb
from ackord.wire.messages import MSGPACK_CONTENT_TYPE
from ackord_node.adapters.clock import SystemClock
from ackord_node.adapters.coordination_zookeeper import ZooKeeperCoordination
from ackord_node.adapters.engine_rocksdb import RocksEngine
from ackord_node.adapters.processor import ProcessorWaits
from ackord_node.adapters.transport_http import HttpPeerTransport
from ackord_node.config import ClusterConfig, NodeConfig
from ackord_node.core.types import LogLimits, Timing
from ackord_node.ports import EngineCorrupt, EngineError, EngineForeign, EngineLocked
from ackord_node.runtime.engine_thread import EngineThread
from ackord_node.runtime.identity import IdentityError, check_folder, check_readable, mark_suspect, read_facts
from ackord_node.runtime.node import Node
from ackord_node.runtime.recovery import INVENTORY_PATH
from ackord_node.runtime.settings import NodeSettings
from ackord_node.runtime.status import LOCAL_STATUS_PATH
from ackord_node.server.app_factory import build_app, make_runner
from ackord_node.server.bodies import answer
from ackord_node.server.metrics import Metrics

log = logging.getLogger("ackord.app")

MIB = 1024 * 1024
EXIT_REFUSED = 2  # this node must not start as it is: the message says why
EXIT_CRASHED = 70  # the disk failed: nothing is retried (rule R14)
SWITCH_INTERVAL_S = 0.0002  # else the engine's thread, back from a sync, waits 5 ms for a busy event loop
PEER_BODY_BYTES_MAX = 64 * MIB


def timing_of(config: ClusterConfig) -> Timing:
    r = config.replication
    return Timing(
        lease=r.lease_ms / 1000,
        drift_max=r.clock_drift_max_ppm / 1_000_000,
        confirm_timeout=r.confirm_timeout_ms / 1000,
    )


def crash(reason: str) -> None:
    """Ends the process at once: what is not on disk must not be answered for."""
    log.critical("%s", reason)
    logging.shutdown()
    os._exit(EXIT_CRASHED)


def crash_void(engine: RocksEngine, reason: str) -> None:
    """Ends the process after marking its store as void, so that the next start begins an empty one."""
    try:
        engine.mark_void()
    finally:
        crash(reason)


def open_engine(config: NodeConfig) -> RocksEngine:
    engine = RocksEngine(
        config.data,
        reserve_bytes=config.settings.disk_reserve_mib * MIB,
        block_cache_bytes=config.settings.block_cache_mib * MIB,
    )
    try:
        _open_checked(engine)
    except EngineCorrupt as error:
        engine.close()
        aside = engine.set_aside()
        log.error(
            "the store is void (rule R14): %s. It is kept as %s; peers refill an empty one", error, aside
        )
        _open_checked(engine)
    return engine


def _open_checked(engine: RocksEngine) -> None:
    """EngineCorrupt also if damage shows only once the store is written to."""
    engine.open()
    check_readable(engine)
    if engine.suspect:
        mark_suspect(engine)


class App:
    """One node process from its start to its end."""

    def __init__(self, config: ClusterConfig, name: str) -> None:
        self._config = config
        self._node_config = config.node(name)
        self._name = name
        self._session: aiohttp.ClientSession | None = None

    async def run(self) -> int:
        """Serves until SIGTERM or SIGINT; the process's exit code."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        try:
            engine = open_engine(self._node_config)
        except (EngineLocked, EngineForeign) as error:
            log.critical("cannot open the data folder %s: %s", self._node_config.data, error)
            return EXIT_REFUSED
        except EngineError as error:  # a full or failing disk: another start may find it well
            log.critical("cannot open the data folder %s: %s", self._node_config.data, error)
            return EXIT_CRASHED
        try:
            return await self._serve(engine, stop)
        except (IdentityError, OSError) as error:
            log.critical("node %s does not start: %s", self._name, error)
            with contextlib.suppress(EngineError):
                engine.close()
            return EXIT_REFUSED

    async def _serve(self, engine: RocksEngine, stop: asyncio.Event) -> int:
        facts = read_facts(engine)
        check_folder(facts, self._config.cluster, self._name, str(self._node_config.data))
        metrics = Metrics(ProcessorWaits().seconds)
        clock = SystemClock()
        peers = {n: str(c.address) for n, c in self._config.nodes.items() if n != self._name}
        transport = HttpPeerTransport(self._name, self._config.cluster, peers, self._config.digest())
        coordination = ZooKeeperCoordination(
            [str(host) for host in self._config.coordination.hosts],
            self._config.coordination.root,
            self._config.replication.session_timeout_ms,
            clock,
        )
        node = Node(
            self._settings(),
            clock,
            engine,
            coordination,
            transport,
            metrics,
            facts,
            lambda reason, is_void: crash_void(engine, reason) if is_void else crash(reason),
            self._ask_peer,
            EngineThread(lambda: ProcessorWaits().seconds),
            secrets.randbits,
        )
        metrics.look = node.reporter.report_metrics
        app = build_app(node, transport, metrics)
        _add_peer_pages(app, node)
        runner = make_runner(app)
        await runner.setup()
        address = self._node_config.address
        await web.TCPSite(runner, address.host, address.port, reuse_address=True).start()
        log.info("node %s of cluster %s listens on %s", self._name, self._config.cluster, address)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as self._session:
            await self._live(node, runner, stop)
        return 0

    async def _live(self, node: Node, runner: web.AppRunner, stop: asyncio.Event) -> None:
        starting = asyncio.create_task(node.start(), name="start")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                gc.collect()
                gc.freeze()
                log.info("node %s serves", node.name)
                await stopping
                log.info("node %s hands its tablets over and stops", node.name)
                await node.leave()
        finally:
            for task in (starting, stopping):
                task.cancel()
            await asyncio.gather(starting, stopping, return_exceptions=True)
            for site in list(runner.sites):
                await site.stop()
            await node.transport.close()
            await runner.cleanup()
            await node.close()
        log.info("node %s has stopped", node.name)

    def _settings(self) -> NodeSettings:
        config = self._config
        return NodeSettings(
            name=self._name,
            cluster=config.cluster,
            addresses={n: c.address.url for n, c in config.nodes.items()},
            replicas_count=config.replication.replicas,
            min_in_sync=config.replication.min_in_sync,
            timing=timing_of(config),
            log_limits=LogLimits(),
            limits=config.effective_limits(),
        )

    async def _ask_peer(self, node: str, path: str) -> Any:
        """A page of a peer; OSError or ValueError if it does not answer it."""
        assert self._session is not None
        url = self._config.node(node).address.url + path
        try:
            async with self._session.get(url, headers={"Accept": MSGPACK_CONTENT_TYPE}) as response:
                body = await _read_all(response.content, PEER_BODY_BYTES_MAX)
        except aiohttp.ClientError as error:
            raise OSError(f"{node}: {error}") from error
        if response.status != 200:
            raise ValueError(f"{node} answered {response.status} to {path}")
        return unpackb(body)


async def _read_all(content: aiohttp.StreamReader, bytes_max: int) -> bytes:
    """To the end of the body; ValueError if it is longer than ``bytes_max``."""
    body = bytearray()
    while data := await content.readany():
        body += data
        if len(body) > bytes_max:
            raise ValueError(f"an answer over {bytes_max} bytes")
    return bytes(body)


def _add_peer_pages(app: web.Application, node: Node) -> None:
    """What nodes ask of each other beside the streams."""

    async def local_status(request: web.Request) -> web.StreamResponse:
        return answer(request, node.reporter.local())

    async def inventory(request: web.Request) -> web.StreamResponse:
        return answer(request, node.recovery.inventory())

    app.router.add_get(LOCAL_STATUS_PATH, local_status)
    app.router.add_get(INVENTORY_PATH, inventory)


def run(config: ClusterConfig, name: str) -> int:
    """Runs node ``name`` until it is told to stop; the exit code."""
    logging.basicConfig(
        level=config.node(name).settings.log_level.upper(),
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("aiozk.connection").setLevel(
        logging.CRITICAL
    )  # tracebacks of what the session tells in a line
    gc.set_threshold(50_000, 20, 50)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        import uvloop
    except ImportError:  # not on every platform; asyncio's own loop is slower, not different
        return asyncio.run(App(config, name).run())
    return uvloop.run(App(config, name).run())
