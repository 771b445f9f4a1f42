"""Nodes that must not start, or must wait: each says why, what was found, and what to do."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

import ackord
from tests.support.cluster import RealCluster, RealNode, launch_node
from tests.support.ports import HOST, free_port
from tests.support.zookeeper import ZooKeeperServer

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("cluster")]

EXIT_REFUSED = 2


@pytest.fixture(scope="module")
def zookeeper() -> Iterator[ZooKeeperServer]:
    with ZooKeeperServer() as zookeeper:
        yield zookeeper


@pytest.fixture(scope="module")
def single(zookeeper: ZooKeeperServer) -> Iterator[RealCluster]:
    """One node, which holds a row; at the end it must still start on its data."""
    root = f"zookeeper://{zookeeper.address}/{uuid.uuid4().hex}"
    with RealCluster(1, zookeeper=zookeeper, settings={"coordination": root}) as cluster:
        asyncio.run(_write_a_row(cluster))
        yield cluster
        cluster.start()
        asyncio.run(_read_the_row(cluster))


async def _write_a_row(cluster: RealCluster) -> None:
    async with ackord.connect(cluster.urls) as store:
        await store.create_table("kept", {"n": int})
        await store.table("kept").put(1, {"n": 1})


async def _read_the_row(cluster: RealCluster) -> None:
    async with ackord.connect(cluster.urls) as store:
        row = await store.table("kept").get(1)
        assert row is not None and row["n"] == 1


@pytest.fixture
def cluster(single: RealCluster) -> RealCluster:
    """It runs."""
    single.start()
    return single


@pytest.fixture
def stopped(single: RealCluster) -> RealCluster:
    assert all(code == 0 for code in single.stop().values())
    return single


def changed(of: RealCluster, folder: Path, node: str = "n1", /, **settings: Any) -> Path:
    """A cluster.yaml like the cluster's, with one node on the same data folder, a port of its own and changes."""
    path = folder / "cluster.yaml"
    data = settings.pop("data", str(of["n1"].data))
    entry = {"address": f"{HOST}:{settings.pop('port', free_port())}", "data": data}
    path.write_text(yaml.safe_dump({**of.settings, **settings, "nodes": {node: entry}}))
    return path


def run_to_end(config: Path, node: str = "n1") -> tuple[int, str]:
    """(exit code, what it said) of a node that should end by itself."""
    log = config.parent / "run.log"
    process = launch_node(config, node, log)
    try:
        code = process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise AssertionError(f"the node did not end:\n{log.read_text()}") from None
    return code, log.read_text()


def test_the_folder_of_another_node(stopped: RealCluster, tmp_path: Path) -> None:
    code, said = run_to_end(changed(stopped, tmp_path, "n9"), "n9")
    assert code == EXIT_REFUSED
    assert "belongs to node 'n1', but this is node 'n9'" in said
    assert "Traceback" not in said


def test_the_folder_of_another_cluster(stopped: RealCluster, tmp_path: Path) -> None:
    code, said = run_to_end(changed(stopped, tmp_path, cluster="elsewhere"))
    assert code == EXIT_REFUSED
    assert "belongs to cluster 'test', but cluster.yaml says 'elsewhere'" in said
    assert "Traceback" not in said


def test_the_folder_of_another_cluster_of_the_same_name(
    stopped: RealCluster, zookeeper: ZooKeeperServer, tmp_path: Path
) -> None:
    root = f"zookeeper://{zookeeper.address}/{uuid.uuid4().hex}"
    with RealCluster(1, zookeeper=zookeeper, settings={"coordination": root}):
        code, said = run_to_end(changed(stopped, tmp_path, coordination=root))
    assert code == EXIT_REFUSED
    assert "another cluster of the same name" in said
    assert "Traceback" not in said


def test_the_path_of_another_cluster_in_zookeeper(cluster: RealCluster, tmp_path: Path) -> None:
    code, said = run_to_end(changed(cluster, tmp_path, cluster="elsewhere", data=str(tmp_path / "new")))
    assert code == EXIT_REFUSED
    assert "holds cluster 'test', cluster.yaml says 'elsewhere'" in said
    assert "Traceback" not in said


def test_an_emptied_zookeeper_is_not_taken_for_a_new_cluster(
    stopped: RealCluster, zookeeper: ZooKeeperServer, tmp_path: Path
) -> None:
    port = free_port()
    root = f"zookeeper://{zookeeper.address}/{uuid.uuid4().hex}"
    config = changed(stopped, tmp_path, coordination=root, port=port)
    process = launch_node(config, "n1", tmp_path / "n1.log")
    node = RealNode("n1", port, tmp_path, stopped["n1"].data)
    try:
        node.wait_log("ackord recover")
        ready = node.ask("/ready")
        assert not ready["ready"] and "emptied" in ready["reason"]
        assert node.ask("/health")["healthy"]
        assert node.ask("/v1/tables/kept/rows/1")["error"]["code"] in ("table_not_found", "unavailable")
    finally:
        process.terminate()
        assert process.wait(10) == 0


def test_two_processes_on_one_folder(cluster: RealCluster, tmp_path: Path) -> None:
    code, said = run_to_end(changed(cluster, tmp_path))
    assert code == EXIT_REFUSED
    assert f"is open in another process (pid {cluster['n1'].pid})" in said
    assert "Traceback" not in said
    asyncio.run(_read_the_row(cluster))


def test_a_port_that_is_taken(stopped: RealCluster, tmp_path: Path) -> None:
    with closing(socket.create_server((HOST, 0))) as taken:
        port = taken.getsockname()[1]
        code, said = run_to_end(changed(stopped, tmp_path, port=port))
    assert code == EXIT_REFUSED
    assert "address already in use" in said and str(port) in said
    assert "Traceback" not in said


def test_a_wrong_cluster_yaml(cluster: RealCluster, tmp_path: Path) -> None:
    code, said = run_to_end(changed(cluster, tmp_path, replication={"replicas": 1, "min_in_synk": 1}))
    assert code == EXIT_REFUSED
    assert "cluster.yaml:" in said and "min_in_synk" in said and "min_in_sync" in said
    assert "Traceback" not in said


def test_a_node_that_is_not_in_cluster_yaml(cluster: RealCluster, tmp_path: Path) -> None:
    code, said = run_to_end(changed(cluster, tmp_path), "n7")
    assert code == EXIT_REFUSED
    assert "there is no node 'n7'; the nodes are n1" in said


def test_zookeeper_unreachable_at_start() -> None:
    """It waits and says so, is healthy but not ready, ends when told to, and starts once ZooKeeper is there."""
    cluster = RealCluster(1)
    node = cluster["n1"]
    try:
        node.start()
        node.wait_log("which cannot be reached", 20)
        ready = node.ask("/ready")
        assert not ready["ready"] and "coordination service" in ready["reason"]
        assert node.ask("/health")["healthy"]
        node.stop()
        assert node.wait_exit(10) == 0
        node.start()
        cluster.start()
        asyncio.run(_write_a_row(cluster))
        asyncio.run(_read_the_row(cluster))
    finally:
        cluster.close()
