"""One minute of chaos on real processes: what `make chaos` does for longer (``python -m tests.chaos``)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos import sandbox
from tests.support.cluster import REPO

pytestmark = pytest.mark.chaos

MINUTES = float(os.environ.get("ACKORD_CHAOS_MINUTES", "1"))
START_AND_JUDGE_S = 300.0


@pytest.mark.timeout(MINUTES * 60 + START_AND_JUDGE_S)
def test_chaos(tmp_path: Path) -> None:
    reason = sandbox.why_not()
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "tests.chaos", f"--minutes={MINUTES:g}", f"--folder={folder}"]
    seed = os.environ.get("ACKORD_CHAOS_SEED")
    if seed:
        command.append(f"--seed={seed}")
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    print(done.stdout, done.stderr, sep="\n")
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-4000:]}"
    report = json.loads((folder / "report.json").read_text())
    assert report["verdict"] == "passed" and report["problems"] == []
    assert report["bands"], "no fault came"
    assert report["operations_count"] > 500 and report["pulse_acknowledged"] > 100
    assert sorted(report["works"]) == ["lists", "merges", "transfers", "versions"]
    assert (folder / "picture.png").stat().st_size > 10_000
