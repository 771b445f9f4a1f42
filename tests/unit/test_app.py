"""How a node process ends that cannot begin."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ackord_node import app, config
from ackord_node.ports import EngineError, EngineFailed, EngineForeign, EngineFull, EngineLocked


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EngineLocked("in use"), app.EXIT_REFUSED),
        (EngineForeign("another format"), app.EXIT_REFUSED),
        (EngineFull("no space left on device"), app.EXIT_CRASHED),
        (EngineFailed("input/output error"), app.EXIT_CRASHED),
    ],
)
async def test_a_disk_that_may_be_well_later_does_not_keep_a_supervisor_from_trying_again(
    error: EngineError, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cluster.yaml"
    settings = {
        "cluster": "c",
        "coordination": "zookeeper://127.0.0.1:1/ackord",
        "replication": {"replicas": 1, "min_in_sync": 1},
        "nodes": {"n1": {"address": "127.0.0.1:1", "data": "n1"}},
    }
    path.write_text(yaml.safe_dump(settings))

    def fail(_: config.NodeConfig) -> None:
        raise error

    monkeypatch.setattr(app, "open_engine", fail)
    assert await app.App(config.load(str(path)), "n1").run() == code
