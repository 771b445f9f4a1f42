"""The benchmark's machinery: what it draws, how it measures, and what it makes of the samples."""

from __future__ import annotations

import asyncio
import os
import time
from array import array
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from bench import goals, measuring, plan, plots, report, systems
from bench.measuring import Sample
from bench.results import ACKORD, Results
from bench.run import Run
from bench.systems.base import BenchError, Pool, TableSpec, cpu_s, parents
from bench.workloads import (
    DRAWN_COUNT,
    Calls,
    Outcome,
    Work,
    paced,
    run_work,
    uniform,
    zipfian,
    zipfian_ranks,
)
from tests.support.memory_system import MemoryClient, MemorySystem

TABLE = TableSpec(1_000, 10)
SAMPLE = Sample(1000.0, 1.0, 2.0, 3.0, 4.0, 10.0, 20.0, 0.01, 0.0, 2000)


def rows() -> dict[int, bytes]:
    return dict.fromkeys(range(TABLE.rows_count), b"old")


# ------------------------------------------------------------------------------------------- draws


def test_every_system_gets_the_same_keys() -> None:
    for draw in (uniform, zipfian, zipfian_ranks):
        first, second, other = draw(1_000, 7), draw(1_000, 7), draw(1_000, 8)
        drawn = [first() for _ in range(200)]
        assert drawn == [second() for _ in range(200)] != [other() for _ in range(200)]
        assert set(drawn) <= set(range(1_000))


def test_zipfian_ranks_have_the_frequencies_of_the_law() -> None:
    draw = zipfian_ranks(100, 7)
    found = Counter(draw() for _ in range(DRAWN_COUNT))
    total = sum(1 / rank**0.99 for rank in range(1, 101))
    for rank in (1, 2, 10):
        expected = DRAWN_COUNT / rank**0.99 / total
        assert found[rank - 1] == pytest.approx(expected, rel=0.1)


def test_popular_keys_are_scattered() -> None:
    """The most popular tenth of the ranks would lie in the first tablet if rank were key."""
    draw = zipfian(1_000, 7)
    popular = [key for key, _ in Counter(draw() for _ in range(DRAWN_COUNT)).most_common(100)]
    assert len({key // 100 for key in popular}) == 10


# ------------------------------------------------------------------------------------------- calls


@pytest.mark.parametrize("kind", plan.KINDS)
async def test_every_work_runs(kind: str) -> None:
    client = MemoryClient(rows())
    work = Work(kind, TABLE, callers=3)
    outcome = await run_work(client, Calls(client, work, 0, 1), work, 0.05)
    assert len(outcome.latencies) > 3
    assert outcome.elapsed_s >= 0.05
    changed = sum(value != b"old" for value in client.rows.values())
    assert bool(changed) == (kind not in ("get", "scan", "ycsb-c"))


@pytest.mark.parametrize(("kind", "percent"), [("ycsb-a", 50), ("ycsb-b", 5), ("ycsb-f", 50)])
async def test_mixes_have_their_share_of_writes(kind: str, percent: int) -> None:
    writes = 0

    class Counting(MemoryClient):
        async def put(self, key: int, value: bytes) -> None:
            nonlocal writes
            writes += 1

    call = Calls(Counting(rows()), Work(kind, TABLE, 1), 0, 1).of(kind)
    for _ in range(4_000):
        await call()
    assert writes / 40 == pytest.approx(percent, abs=3)


async def test_inserted_rows_are_new_in_every_process_and_run_and_read_again() -> None:
    clients = [MemoryClient(rows()) for _ in range(4)]
    for at, client in enumerate(clients):
        call = Calls(client, Work("ycsb-d", TABLE, 1), number=at % 2, run=1 + at // 2).of("ycsb-d")
        for _ in range(2_000):
            await call()
    inserted = [set(client.rows) - set(rows()) for client in clients]
    assert all(50 < len(found) < 150 for found in inserted)
    assert len(set().union(*inserted)) == sum(map(len, inserted))


async def test_a_lost_compare_and_set_is_done_again_and_counted() -> None:
    client = MemoryClient(rows(), loses_every=4)
    work = Work("rmw", TABLE, 1)
    calls = Calls(client, work, 0, 1)
    for _ in range(30):
        await calls.of("rmw")()
    assert calls.conflicts_count == 9  # of 39 attempts each fourth


async def test_missing_rows_end_the_run() -> None:
    work = Work("get", TABLE, 1)
    empty = MemoryClient({})
    for kind in ("get", "scan"):
        with pytest.raises(BenchError, match="not"):
            await Calls(empty, work, 0, 1).of(kind)()
    with pytest.raises(BenchError, match="no workload"):
        Calls(empty, work, 0, 1).of("nothing")


# ------------------------------------------------------------------------------------------- loops


async def test_a_stall_shows_in_every_paced_call_that_it_delayed() -> None:
    stalled = False

    async def call() -> None:
        nonlocal stalled
        if not stalled:
            stalled = True
            time.sleep(0.1)  # noqa: ASYNC251 - the whole process stalls, as in a long collection of garbage

    latencies = sorted(await paced(call, rate=500, seconds=0.3))
    assert len(latencies) == 150
    assert sum(latency > 0.02 for latency in latencies) >= 35, "those that were due during the stall"


async def test_paced_calls_overlap_and_failures_come_out() -> None:
    under_way, most = 0, 0

    async def slow() -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.05)
        under_way -= 1

    await paced(slow, rate=200, seconds=0.2)
    assert most > 5

    async def fail() -> None:
        raise BenchError("no")

    with pytest.raises(BenchError, match="no"):
        await paced(fail, rate=100, seconds=0.1)


async def test_a_pool_gives_each_connection_to_one_call_at_a_time() -> None:
    pool = Pool(["a", "b"])
    held = [await pool.take(), await pool.take()]
    assert sorted(held) == ["a", "b"]
    third = asyncio.create_task(pool.take())
    given_up = asyncio.create_task(pool.take())
    await asyncio.sleep(0)
    given_up.cancel()
    pool.give("b")
    assert await third == "b"
    pool.give("a")
    assert await pool.take() == "a"


# ----------------------------------------------------------------------------------------- figures


def test_percentiles_and_medians() -> None:
    ordered = array("d", range(1, 1001))
    assert [measuring.percentile(ordered, share) for share in (0.5, 0.99, 0.999, 1.0)] == [
        500,
        990,
        999,
        1000,
    ]
    assert measuring.percentile(array("d", [5.0]), 0.999) == 5.0
    found = measuring.median([replace(SAMPLE, rows_per_s=rate, p50_ms=-rate) for rate in (3.0, 1.0, 2.0)])
    assert (found.rows_per_s, found.p50_ms, found.calls_count) == (2.0, -2.0, 2000)


def test_a_summary_adds_processes_up_and_counts_rows() -> None:
    outcomes = [
        Outcome(array("d", [0.001] * 10), 2.0, 0.5, 1),
        Outcome(array("d", [0.003] * 10), 2.0, 0.5, 0),
    ]
    found = measuring.summary(outcomes, rows_per_call=100, server_cpu_s=3.0, idle_cpu_s=0.1)
    assert found.rows_per_s == 1000
    assert (found.p50_ms, found.p99_ms) == (1.0, 3.0)
    assert found.client_cpu_us == pytest.approx(500)
    assert found.server_cpu_us == pytest.approx(1500)
    assert found.idle_cpu_share == pytest.approx(0.05)
    assert found.conflicts_share == pytest.approx(0.05)


def test_cpu_of_children_counts() -> None:
    tree = parents()
    assert tree[os.getpid()] == os.getppid()
    own = cpu_s([os.getpid()], {})
    assert own > 0
    assert cpu_s([1], {os.getpid(): 1}) == pytest.approx(own + cpu_s([1], {}), abs=0.5)


def made_results() -> Results:
    results = Results(
        systems={ACKORD: {"version": "1"}, "etcd": {"version": "2"}, "Redis": {"version": "3"}},
        machine={
            "date": "today",
            "processor": "a chip",
            "cores_count": 2,
            "ram_gib": 4,
            "kernel": "6",
            "file_system": "ext4",
            "python": "3.11",
            "load_average": 0.1,
            "fdatasync_ms": 0.3,
            "round_trip_ms": 0.2,
        },
        options={"rounds": 1, "seconds": 1.0},
        disk={ACKORD: {"after loading": 1 << 20}},
    )
    for work in plan.usual():
        for name, rate in ((ACKORD, 5_000.0), ("etcd", 500.0), ("Redis", 1_000.0)):
            results.add(work.name, name, replace(SAMPLE, rows_per_s=rate, p50_ms=1000 / rate))
    return results


def test_goals_compare_with_the_best_peer() -> None:
    results = made_results()
    found = {figure.goal: figure for figure in goals.figures(results)}
    puts = found["puts/s, 256 callers: at least 5 x"]
    assert (puts.other, puts.ratio, puts.is_reached) == ("Redis 1,000/s", 5.0, True)
    lone = found["put, 1 caller, p50: at most 1.0 x"]
    assert lone.ratio == pytest.approx(0.2)
    assert lone.is_reached
    many = found["1 million rows against 10 thousand: at least 0.85 of the rate"]
    assert (many.ratio, many.is_reached) == (1.0, True)
    paced_goal = "p99 at half of the maximum write load: at most 1.0 x"
    assert found[paced_goal].is_reached is None
    for name, p99_ms in ((ACKORD, 3.0), ("etcd", 4.0), ("Redis", 2.0)):
        work = plan.half_load(results.rate_max(name))
        results.add(work.name, name, replace(SAMPLE, p99_ms=p99_ms))
    found = {figure.goal: figure for figure in goals.figures(results)}
    assert (found[paced_goal].ratio, found[paced_goal].is_reached) == (1.5, False)
    assert results.rate_max(ACKORD) == 5_000, "paced runs are no maximum"


def test_a_goal_without_peers_is_not_measured() -> None:
    results = Results()
    results.add(Work("put", plan.SMALL, 256).name, ACKORD, SAMPLE)
    assert {figure.verdict for figure in goals.figures(results)} == {"not measured"}


def test_results_survive_a_file(tmp_path: Path) -> None:
    results = made_results()
    results.failures.append("etcd: something")
    results.save(tmp_path / "run.json")
    assert Results.load(tmp_path / "run.json") == results


def test_the_page_and_the_pictures(tmp_path: Path) -> None:
    results = made_results()
    pictures = plots.draw_all(results, tmp_path)
    assert [path.name for path in pictures] == ["rates.svg", "mixes.svg", "latency.svg", "cpu.svg"]
    assert all(path.stat().st_size > 1000 for path in pictures)
    page = report.page(results, pictures)
    assert "| puts/s, 256 callers: at least 5 x | 5,000/s | Redis 1,000/s | 5.00 | reached |" in page
    assert "| put, 256, 10k rows of 100 B | 5,000 | 10.00 | 5.00 |" in page
    assert plots.draw_all(Results(), tmp_path) == []


# --------------------------------------------------------------------------------------- whole runs


def test_names_of_peers() -> None:
    assert systems.parse_peers("none") == []
    assert systems.parse_peers("all") == ["etcd", "zookeeper", "postgresql", "redis"]
    assert systems.parse_peers("redis, etcd") == ["redis", "etcd"]
    with pytest.raises(BenchError, match="mysql"):
        systems.parse_peers("redis,mysql")


def test_a_default_run_stays_under_half_an_hour() -> None:
    cells = plan.usual()
    assert len({work.name for work in cells}) == len(cells)
    seconds_of_a_cell = 2.0 * 1.25 + 1.0  # with warm-up, connecting and parting
    minutes = (len(cells) + 1) * 5 * 3 * seconds_of_a_cell / 60
    assert 15 < minutes < 25


def test_a_run_of_two_systems_and_one_that_fails() -> None:
    """Worker processes and all: one process, two processes, a paced run, the client's cache."""
    made = [MemorySystem(ACKORD), MemorySystem("good"), MemorySystem("bad", fails=True)]
    cells = [Work("put", plan.SMALL, 4), Work("scan", plan.SMALL, 2, processes=2)]
    # Longer, and half of what memory can do would be more calls than one driver may fall behind with.
    with Run(made, seconds=0.025, rounds=1) as run:
        run.start()
        assert all(system.is_running for system in made)
        run.measure(cells)
        run.half_load()
        run.cached()
        run.finish()
    assert not any(system.is_running for system in made)
    results = run.results
    for work in cells:
        assert set(results.samples[work.name]) == {ACKORD, "good"}
        found = results.medians(work.name)["good"]
        assert found.rows_per_s > 0
        assert found.client_cpu_us > 0
        assert found.p50_ms <= found.p99_ms <= found.p999_ms <= found.max_ms
    paced_cell = plan.half_load(1.0).name
    assert set(results.samples[paced_cell]) == {ACKORD, "good"}
    assert set(results.samples[plan.CACHED.name]) == {ACKORD}
    assert results.medians(plan.CACHED.name)[ACKORD].calls_count > 1_000
    assert len(results.failures) == len(cells)
    assert all("nobody there" in failure for failure in results.failures)
