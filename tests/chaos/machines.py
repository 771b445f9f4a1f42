"""The machines of a run: Ackord nodes and ZooKeeper servers, each in a network namespace of its own, each node with
a small disk of its own.

The nodes run a copy of this working tree's code made at the start, so that an edit during a long run does not come
into it with a node's restart.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tests.chaos import preload
from tests.chaos.network import Network
from tests.chaos.sandbox import mount_tmpfs
from tests.support.cluster import LEASE_MS, REPO, SESSION_TIMEOUT_MS, RealCluster, RealNode
from tests.support.zookeeper import ZooKeeperEnsemble, ZooKeeperServer

ZOOKEEPERS = ("z1", "z2", "z3")
DISK_MIB = 384
RESERVE_MIB = 48
POLL_S = 0.25
DECISIVE = ("promised", "last_epoch", "log_end", "commit")


class NotWhole(AssertionError):
    """Some replica is not in sync within the bound."""


class Machines:
    """``folder`` is the run's; everything of the machines is in it."""

    def __init__(self, folder: Path, nodes_count: int) -> None:
        self.folder = folder
        self.names = [f"n{number}" for number in range(1, nodes_count + 1)]
        self.majority_count = nodes_count // 2 + 1
        self.network = Network([*self.names, *ZOOKEEPERS])
        self.disks = {name: folder / "disks" / name for name in self.names}
        places = [(self.network.addresses[name], self.network.wrapper(name)) for name in ZOOKEEPERS]
        self.ensemble = ZooKeeperEnsemble(places=places, folder=folder / "zookeeper")
        servers = ",".join(self.ensemble.addresses)
        (folder / "cluster").mkdir(parents=True)
        self.cluster = RealCluster(
            nodes_count,
            name="chaos",
            zookeeper=self.ensemble.servers[0],
            settings={
                "coordination": f"zookeeper://{servers}/ackord",
                "replication": {
                    "replicas": nodes_count,
                    "min_in_sync": self.majority_count,
                    "lease_ms": LEASE_MS,
                    "session_timeout_ms": SESSION_TIMEOUT_MS,
                },
            },
            node_settings={name: {"disk_reserve_mib": RESERVE_MIB} for name in self.names},
            data={name: self.disks[name] / "data" for name in self.names},
            hosts={name: self.network.addresses[name] for name in self.names},
            wrappers={name: self.network.wrapper(name) for name in self.names},
            folder=folder / "cluster",
        )
        self.controls = {name: preload.Control(folder / "cluster" / f"{name}.control") for name in self.names}

    @property
    def nodes(self) -> list[RealNode]:
        return list(self.cluster.nodes.values())

    @property
    def zookeepers(self) -> dict[str, ZooKeeperServer]:
        return dict(zip(ZOOKEEPERS, self.ensemble.servers, strict=True))

    def start(self) -> None:
        self.network.create()
        for disk in self.disks.values():
            disk.mkdir(parents=True)
            mount_tmpfs(disk, DISK_MIB)
        library, code = preload.build(self.folder / "cluster"), self.folder / "code"
        for part in ("client", "node"):
            shutil.copytree(REPO / part, code / part, ignore=shutil.ignore_patterns("__pycache__"))
        for node in self.nodes:
            paths = f"{code / 'client'}:{code / 'node'}"
            node.environment = {**self.controls[node.name].environment(library), "PYTHONPATH": paths}
        self.ensemble.start()
        self.cluster.start()

    def close(self) -> None:
        self.cluster.close()
        self.ensemble.close()

    def keep_disks(self) -> None:
        """Copies the data folders out of the small file systems, which end with the run."""
        for name, disk in self.disks.items():
            if self.cluster[name].is_running:
                self.cluster[name].end()
            shutil.copytree(disk, self.folder / "kept" / name, symlinks=True)

    # ---------------------------------------------------------------------------------- questions

    def status(self) -> dict[str, Any]:
        """What the cluster says of itself, by any node that answers."""
        reasons = []
        for node in self.nodes:
            try:
                found = node.ask("/v1/status")
            except (OSError, ValueError) as error:
                reasons.append(f"{node.name}: {error}")
                continue
            if "tables" in found:
                assert isinstance(found, dict)
                return found
            reasons.append(f"{node.name}: {found}")
        raise NotWhole(f"no node tells the status: {'; '.join(reasons)}")

    def coordinators(self, tables: Collection[str] | None = None) -> list[str]:
        """The nodes by how many tablets (of these tables) they coordinate, the busiest first; all of them, also if
        nobody answers."""
        counts = dict.fromkeys(self.names, 0)
        try:
            for name, table in self.cluster.routing()["tables"].items():
                for tablet in table["tablets"] if tables is None or name in tables else ():
                    if tablet["coordinator"] in counts:
                        counts[tablet["coordinator"]] += 1
        except AssertionError:
            pass  # nobody answers
        return sorted(self.names, key=lambda name: (-counts[name], name))

    def zookeeper_leader(self) -> str | None:
        for name, server in self.zookeepers.items():
            if b"Mode: leader" in _four_letters(server, b"srvr"):
                return name
        return None

    # ------------------------------------------------------------------------------------- whole

    async def wait_whole(self, timeout_s: float, tables: Collection[str] | None = None) -> float:
        """Until every replica of every tablet (of these tables) is in sync and holds what the others held when this
        began; the seconds that took.

        A descriptor lists a lost copy until somebody misses it. So each copy must itself say that it belongs to the
        in-sync set, in the tablet's epoch, and must have committed what any copy's log held at the first look.
        """
        loop = asyncio.get_running_loop()
        begun, looks_good, why = loop.time(), 0, ""
        ends: dict[int, int] = {}
        while loop.time() - begun < timeout_s:
            try:
                status = await asyncio.to_thread(self.status)
                ends = ends or _log_ends(status)
                self._check_whole(status, ends, tables)
                looks_good += 1
                if looks_good == 2:
                    return loop.time() - begun
            except NotWhole as error:
                looks_good, why = 0, str(error)
            await asyncio.sleep(POLL_S)
        raise NotWhole(f"not whole within {timeout_s:.0f} s: {why}")

    def _check_whole(
        self, status: dict[str, Any], ends: dict[int, int], tables: Collection[str] | None
    ) -> None:
        for name in self.names:
            if not status["nodes"][name]["up"]:
                raise NotWhole(f"{name} does not answer")
        if not status["coordination_up"]:
            raise NotWhole(f"{status['answered_by']} cannot reach ZooKeeper")
        for table, definition in status["tables"].items():
            for tablet in definition["tablets"] if tables is None or table in tables else ():
                self._check_tablet(f"{table}/{tablet['id']:x}", tablet, ends.get(tablet["id"], 0))

    def _check_tablet(self, name: str, tablet: dict[str, Any], end: int) -> None:
        if tablet["in_sync"] != self.names or tablet["coordinator"] is None:
            raise NotWhole(f"{name}: {tablet['in_sync']} under {tablet['coordinator']}")
        for node in self.names:
            copy = tablet["copies"].get(node)
            if copy is None:
                raise NotWhole(f"{name}: no copy on {node}")
            is_member = copy["in_sync"] and not copy["suspect"] and not copy["filling"]
            if not is_member or copy["promised"] != tablet["epoch"] or copy["commit"] < end:
                seen = {field: copy[field] for field in (*DECISIVE, "in_sync", "suspect", "filling")}
                raise NotWhole(f"{name}: {node} is at {seen}, epoch {tablet['epoch']}, wanted {end}")


def _log_ends(status: dict[str, Any]) -> dict[int, int]:
    return {
        tablet["id"]: max((copy["log_end"] for copy in tablet["copies"].values()), default=0)
        for table in status["tables"].values()
        for tablet in table["tablets"]
    }


def _four_letters(server: ZooKeeperServer, word: bytes) -> bytes:
    answer = b""
    try:
        with socket.create_connection((server.settings.host, server.settings.client_port), 1.0) as connection:
            connection.settimeout(1.0)
            connection.sendall(word)
            while chunk := connection.recv(4096):
                answer += chunk
    except OSError:
        pass
    return answer
