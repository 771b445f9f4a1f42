"""The benchmark against a real cluster, beside a system without servers: so that it cannot rot."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import report
from bench.results import ACKORD
from bench.run import Run
from bench.systems.ackord import Ackord
from bench.systems.base import TableSpec, disk_bytes
from bench.workloads import Work
from tests.support.memory_system import MemorySystem

pytestmark = pytest.mark.integration
TABLE = TableSpec(300, 100)


def test_works_on_a_real_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    system = Ackord(tmp_path / "ackord")
    cells = [Work(kind, TABLE, 4) for kind in ("put", "get", "rmw", "batch", "scan", "ycsb-d")]
    with Run([system, MemorySystem("memory")], seconds=0.2, rounds=1) as run:
        run.start()
        run.load([TABLE])
        run.measure(cells)
        run.finish()
        assert set(system.pids()) == {"n1", "n2", "n3", "zookeeper"}
        assert disk_bytes(system.folders()) > TABLE.rows_count * TABLE.value_bytes * 3
    results = run.results
    assert results.failures == []
    for work in cells:
        assert set(results.samples[work.name]) == {ACKORD, "memory"}
        assert results.medians(work.name)[ACKORD].server_cpu_us > 0
    assert results.disk[ACKORD]["after loading"] > 0
    report.print_all(results)
    assert "put, 4, 300 rows of 100 B" in capsys.readouterr().out
