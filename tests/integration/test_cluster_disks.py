"""Lost, full, hanging and failing disks, and what an operator's last resorts bring back."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import ackord
from tests.support.cluster import RealCluster
from tests.support.cluster_load import SPLIT_AT, Writers

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("cluster")]

HANDED_OVER_GAP_S = 5.0
EXIT_CRASHED = 70
MIB = 1024 * 1024
DISK_MIB = 160
RESERVE_MIB = 32
NAMES = ("n1", "n2", "n3")
KEY: dict[str, type | str] = {"writer": int, "n": int}


@asynccontextmanager
async def stores_of(cluster: RealCluster) -> AsyncIterator[tuple[ackord.Store, list[ackord.Store]]]:
    """A store, and one per node that reads from this node alone."""
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(ackord.connect(cluster.urls))
        each = [ackord.connect(cluster.urls, reads=f"node:{name}") for name in cluster.nodes]
        yield store, [await stack.enter_async_context(one) for one in each]


async def recover(cluster: RealCluster, asked: str, /, **request: Any) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as session:
        async with session.post(cluster[asked].url + "/admin/v1/recover", json=request) as response:
            return response.status, await response.json()


# ---------------------------------------------------------------------------------- lost disks


@pytest.fixture
def cluster() -> Iterator[RealCluster]:
    with RealCluster() as cluster:
        yield cluster


async def test_emptied_data_folders_are_refilled(cluster: RealCluster) -> None:
    """One under load; then two at once, which the third node's copy heals without an operator."""
    async with stores_of(cluster) as (store, replicas):
        await store.create_table("t", KEY, split_at=SPLIT_AT)
        async with Writers(store.table("t")) as writers:
            await asyncio.sleep(1)
            node = cluster["n2"]
            node.kill()
            await asyncio.to_thread(node.wait_exit)
            node.wipe()
            node.start()
            await asyncio.to_thread(cluster.wait_ready)
            back_s = await asyncio.to_thread(cluster.wait_in_sync, "t")
        print(
            f"emptied folder: in sync {back_s:.1f} s after it was ready, {writers.longest_gap():.2f} s without a write"
        )
        assert writers.failures == []
        await writers.verify(replicas)

        for name in ("n1", "n3"):
            cluster[name].kill()
            await asyncio.to_thread(cluster[name].wait_exit)
            cluster[name].wipe()
        await asyncio.to_thread(cluster.start)
        await asyncio.to_thread(cluster.wait_in_sync, "t")
        await writers.verify(replicas)


async def test_a_wiped_zookeeper_is_rebuilt_from_the_nodes(cluster: RealCluster) -> None:
    async with stores_of(cluster) as (store, replicas):
        await store.create_table("t", KEY, split_at=SPLIT_AT)
        await store.create_table("gone", KEY)
        async with Writers(store.table("t")) as writers:
            await asyncio.sleep(1)
        await store.drop_table("gone")
        tablets = {tablet["id"] for tablet in cluster.tablets("t")}
        await asyncio.to_thread(cluster.stop)
        await asyncio.to_thread(cluster.zookeeper.wipe)
        await asyncio.to_thread(cluster.zookeeper.start)
        await asyncio.to_thread(cluster.start, wait=False)
        for node in cluster.nodes.values():
            await asyncio.to_thread(node.wait_log, "the service was emptied", after=0)
            assert not node.ask("/ready")["ready"]
        with pytest.raises(ackord.Unavailable):
            await store.table("t").put((1, 1), {}, timeout=1)

        status, answer = await recover(cluster, "n2", action="rebuild")
        assert status == 200, answer
        await asyncio.to_thread(cluster.wait_ready)
        await asyncio.to_thread(cluster.wait_in_sync, "t")
        assert [table.name for table in await store.list_tables()] == ["t"]
        assert {tablet["id"] for tablet in cluster.tablets("t")} == tablets
        await writers.verify(replicas)
        await store.create_table("new", KEY)
        assert not tablets & {tablet["id"] for tablet in cluster.tablets("new")}
        async with Writers(store.table("t"), count=4) as more:
            await asyncio.sleep(0.5)
        assert more.failures == []


async def test_force_makes_the_copy_that_is_left_the_tablet(cluster: RealCluster) -> None:
    """n1 was away, then n2 and n3 lost their disks: no in-sync copy is left, and only an operator may go on."""
    async with stores_of(cluster) as (store, _):
        await store.create_table("t", KEY)
        table = store.table("t")
        await asyncio.to_thread(cluster.wait_in_sync, "t")
        await table.put((1, 1), {"was": "kept"})
        cluster["n1"].kill()
        await asyncio.to_thread(cluster["n1"].wait_exit)
        await table.put((1, 2), {"was": "lost"}, timeout=20)
        for name in ("n2", "n3"):
            cluster[name].kill()
            await asyncio.to_thread(cluster[name].wait_exit)
            cluster[name].wipe()
        await asyncio.to_thread(cluster.start, wait=False)
        tablet = await asyncio.to_thread(_tablet_of, cluster)
        await asyncio.sleep(5)  # longer than sessions and promises last
        with pytest.raises(ackord.Unavailable):
            await table.put((1, 3), {}, timeout=1)
        with pytest.raises(ackord.Unavailable):
            await table.get((1, 1), timeout=1)

        status, answer = await recover(cluster, "n1", action="force", tablet=tablet, node="n1")
        assert status == 400 and "acknowledged write after version" in answer["error"]["message"], answer
        status, answer = await recover(
            cluster, "n1", action="force", tablet=tablet, node="n1", accept_loss=True
        )
        assert status == 200, answer
        assert "n2, n3" in answer["may_be_lost"]
        await asyncio.to_thread(cluster.wait_ready)
        await asyncio.to_thread(cluster.wait_in_sync, "t")
        rows = [(row.key, dict(row)) async for row in table.scan()]
        assert rows == [((1, 1), {"was": "kept"})]
        await table.put((1, 2), {"was": "written anew"}, if_absent=True)


def _tablet_of(cluster: RealCluster) -> int:
    deadline = time.monotonic() + 15
    while True:
        try:
            return int(cluster.tablets("t", "n1")[0]["id"])
        except (AssertionError, KeyError):
            assert time.monotonic() < deadline, cluster.logs()
            time.sleep(0.1)


# ---------------------------------------------------------------------------------- full disks


@pytest.fixture
def small_disks() -> Iterator[dict[str, Path]]:
    """A small file system of its own for each node."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small tmpfs")
    folder = Path(tempfile.mkdtemp(prefix="ackord-disks-"))
    mounted: list[Path] = []
    try:
        for name in NAMES:
            place = folder / name
            place.mkdir()
            command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "ackord-test", str(place)]
            if subprocess.run(command, capture_output=True).returncode != 0:
                pytest.skip("a tmpfs cannot be mounted here")
            mounted.append(place)
        yield dict(zip(NAMES, mounted, strict=True))
    finally:
        for place in mounted:
            subprocess.run(["umount", "--lazy", str(place)], check=True)
        shutil.rmtree(folder)


def fill(disk: Path) -> None:
    """Leaves no byte."""
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(MIB))
        except OSError:
            pass
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


async def test_full_disks(small_disks: dict[str, Path]) -> None:
    settings = {name: {"disk_reserve_mib": RESERVE_MIB} for name in NAMES}
    data = {name: disk / "data" for name, disk in small_disks.items()}
    with RealCluster(node_settings=settings, data=data) as cluster:
        async with stores_of(cluster) as (store, replicas):
            await store.create_table("t", KEY, split_at=SPLIT_AT)
            await asyncio.to_thread(cluster.wait_in_sync, "t")
            await asyncio.to_thread(cluster.wait_spread, "t")
            async with Writers(store.table("t"), pace_s=0.03) as writers:
                await asyncio.sleep(1)
                await asyncio.to_thread(fill, small_disks["n2"])
                await asyncio.to_thread(_wait_in_sync_sets, cluster, {"n1", "n3"})
                await asyncio.sleep(1)
                filled_gap = writers.longest_gap()
                (small_disks["n2"] / "filler").unlink()
                await asyncio.to_thread(cluster.wait_in_sync, "t")
                await asyncio.sleep(1)
            print(f"one full disk: {filled_gap:.2f} s without a write")
            assert writers.failures == []
            await writers.verify(replicas)
            await _all_full(small_disks, cluster, store, replicas, writers)
            assert all(node.is_running for node in cluster.nodes.values()), cluster.logs()


async def _all_full(
    disks: dict[str, Path],
    cluster: RealCluster,
    store: ackord.Store,
    replicas: list[ackord.Store],
    writers: Writers,
) -> None:
    table = store.table("t")
    for disk in disks.values():
        await asyncio.to_thread(fill, disk)
    deadline = time.monotonic() + 15
    refused, text = 0, ""
    probe: dict[tuple[int, int], bool] = {}
    while refused < 12:
        key = (len(probe) % 64, -1 - len(probe))
        try:
            await table.put(key, {"probe": True}, timeout=0.5)
            probe[key] = True
            refused, text = 0, ""
        except ackord.Error as error:
            probe[key] = False
            writers.unknown.add(key)
            refused += 1
            text = error.message
        assert time.monotonic() < deadline, "writes are still taken"
    print(f"all disks full: {text}")
    assert "full" in text or "min_in_sync" in text
    for writer, acks in enumerate(writers.acks):
        row = await table.get((writer, acks[0][0]), timeout=3)
        assert row is not None and row.version == acks[0][1]
    for disk in disks.values():
        (disk / "filler").unlink()
    started = time.monotonic()
    await asyncio.gather(*(table.put((writer, -99), {"room": True}, timeout=30) for writer in range(64)))
    print(f"writes go on {time.monotonic() - started:.1f} s after there is room again")
    await asyncio.to_thread(cluster.wait_in_sync, "t")
    writers.unknown |= {key for key, done in probe.items() if done} | {(writer, -99) for writer in range(64)}
    await writers.verify(replicas)
    for replica in replicas:
        for key, done in probe.items():
            assert await replica.table("t").get(key) is not None or not done


def _wait_in_sync_sets(cluster: RealCluster, wanted: set[str]) -> None:
    deadline = time.monotonic() + 15
    while any(set(tablet["in_sync"]) != wanted for tablet in cluster.tablets("t")):
        assert time.monotonic() < deadline, f"{cluster.tablets('t')}\n{cluster.logs()}"
        time.sleep(0.05)


# --------------------------------------------------------------------- hanging and failing fsync

SHIM = """\
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

/* 0: go on; 1: fail. Hangs while the file named by ACKORD_TEST_HANG exists. */
static int trouble(void) {
    const char *hang = getenv("ACKORD_TEST_HANG"), *fail = getenv("ACKORD_TEST_FAIL");
    while (hang && access(hang, F_OK) == 0) usleep(10000);
    if (fail && access(fail, F_OK) == 0) { errno = EIO; return 1; }
    return 0;
}
int fsync(int fd) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fsync");
    return trouble() ? -1 : real(fd);
}
int fdatasync(int fd) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fdatasync");
    return trouble() ? -1 : real(fd);
}
int sync_file_range(int fd, off64_t offset, off64_t count, unsigned int flags) {
    int (*real)(int, off64_t, off64_t, unsigned int) = dlsym(RTLD_NEXT, "sync_file_range");
    return trouble() ? -1 : real(fd, offset, count, flags);
}
"""


@pytest.fixture
def shimmed(tmp_path: Path) -> Iterator[RealCluster]:
    """A cluster whose nodes' fsync hangs or fails while a file ``hang-NAME`` or ``fail-NAME`` is in its folder."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler for the fsync shim")
    source, shim = tmp_path / "shim.c", tmp_path / "shim.so"
    source.write_text(SHIM)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(shim), str(source), "-ldl"], check=True)
    cluster = RealCluster()
    for name, node in cluster.nodes.items():
        node.environment = {
            "LD_PRELOAD": str(shim),
            "ACKORD_TEST_HANG": str(cluster.folder / f"hang-{name}"),
            "ACKORD_TEST_FAIL": str(cluster.folder / f"fail-{name}"),
        }
    with cluster:
        yield cluster


async def test_a_coordinator_whose_fsync_hangs_hands_over(shimmed: RealCluster) -> None:
    async with stores_of(shimmed) as (store, replicas):
        await store.create_table("t", KEY, split_at=SPLIT_AT)
        await asyncio.to_thread(shimmed.wait_in_sync, "t")
        await asyncio.to_thread(shimmed.wait_spread, "t")
        victim = shimmed.busiest("t")
        trigger = shimmed.folder / f"hang-{victim}"
        async with Writers(store.table("t")) as writers:
            await asyncio.sleep(1)
            trigger.touch()
            await asyncio.sleep(7)
            gap = writers.longest_gap()
            still = [t for t in shimmed.tablets("t") if victim in t["in_sync"] or t["coordinator"] == victim]
            trigger.unlink()
            await asyncio.to_thread(shimmed.wait_in_sync, "t")
        print(f"hanging fsync: {gap:.2f} s without a write")
        assert still == []
        assert writers.failures == []
        await writers.verify(replicas)
        assert gap <= HANDED_OVER_GAP_S
        assert shimmed[victim].is_running


async def test_a_failed_fsync_ends_the_process(shimmed: RealCluster) -> None:
    """Rule R14: never retried; what was acknowledged is on the others, and the node comes back whole."""
    async with stores_of(shimmed) as (store, replicas):
        await store.create_table("t", KEY, split_at=SPLIT_AT)
        await asyncio.to_thread(shimmed.wait_in_sync, "t")
        node = shimmed[shimmed.busiest("t")]
        trigger = shimmed.folder / f"fail-{node.name}"
        async with Writers(store.table("t")) as writers:
            await asyncio.sleep(1)
            trigger.touch()
            assert await asyncio.to_thread(node.wait_exit) == EXIT_CRASHED
            trigger.unlink()
            node.start()
            await asyncio.to_thread(shimmed.wait_ready)
            await asyncio.to_thread(shimmed.wait_in_sync, "t")
        assert "never retried" in node.log()
        print(f"failed fsync: {writers.longest_gap():.2f} s without a write")
        assert writers.failures == []
        await writers.verify(replicas)
