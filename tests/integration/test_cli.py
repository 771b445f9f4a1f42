"""The ``ackord`` command against a real cluster: tables, rows, loading, status while nodes die, both recoveries."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ackord.cli import main
from tests.support.cluster import RealCluster

pytestmark = pytest.mark.integration

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RealCluster]:
    with RealCluster() as cluster:
        yield cluster


@pytest.fixture
def ackord(
    cluster: RealCluster, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    """Runs one command in the folder of cluster.yaml: (exit code, stdout, stderr)."""
    monkeypatch.delenv("ACKORD_NODES", raising=False)
    monkeypatch.chdir(cluster.folder)

    def run(*words: str) -> tuple[int, str, str]:
        code = main(words)
        return code, *capfd.readouterr()

    return run


def wait_healthy(ackord: Command, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        code, out, err = ackord("status")
        if code == 0:
            return
        assert time.monotonic() < deadline, out + err
        time.sleep(0.2)


def dump(ackord: Command, table: str) -> list[str]:
    code, out, _ = ackord("scan", table, "--json")
    assert code == 0
    return out.splitlines()


def test_a_table_from_its_creation_to_its_end(ackord: Command) -> None:
    words = ["table", "create", "orders", "--key", "customer:str", "--key", "order:int", "--split-at", '"m"']
    assert ackord(*words)[0] == 0
    code, version, _ = ackord("put", "orders", "alice", "-1", "--set", "total=990", "--if-absent")
    assert code == 0
    code, out, _ = ackord("get", "orders", "alice", "-1", "--json")
    assert json.loads(out) == {"key": ["alice", -1], "version": version.strip(), "columns": {"total": 990}}
    assert ackord("put", "orders", "alice", "-1", "--json", "{}", "--if-absent")[0] == 1
    assert ackord("delete", "orders", "alice", "-1", "--if-version", version.strip())[0] == 0
    assert ackord("get", "orders", "alice", "-1")[0] == 1
    wait_healthy(ackord)
    assert ackord("table", "drop", "orders", "--yes")[0] == 0
    assert ackord("get", "orders", "alice", "-1")[0] == 2


def test_loading_twice_changes_nothing(ackord: Command, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id,name,n\n" + "".join(f"{k},name {k},{k * k}\n" for k in range(3000)))
    words = [
        "load",
        "loaded",
        str(path),
        "--type",
        "n:int",
        "--create",
        "--key",
        "id:int",
        "--split-at",
        "[1000, 2000]",
    ]
    code, out, _ = ackord(*words)
    assert code == 0
    assert "3,000 written, 0 were there already" in out
    before = dump(ackord, "loaded")
    assert json.loads(before[7])["columns"] == {"name": "name 7", "n": 49}
    code, out, _ = ackord(*words)
    assert code == 0
    assert "0 written, 3,000 were there already" in out
    assert dump(ackord, "loaded") == before


def test_status_and_force_when_in_sync_copies_are_lost(ackord: Command, cluster: RealCluster) -> None:
    assert ackord("table", "create", "kept", "--key", "id:int")[0] == 0
    assert ackord("put", "kept", "1", "--set", "n=1")[0] == 0
    wait_healthy(ackord)
    assert "All is healthy" in ackord("status")[1]

    cluster["n1"].kill()
    cluster["n2"].kill()
    code, out, _ = ackord("status")
    assert code == 1
    assert "n1 does not answer" in out
    tablet = next(t["id"] for t in json.loads(ackord("status", "--json")[1])["tables"]["kept"]["tablets"])
    for name in ("n1", "n2"):
        cluster[name].wait_exit()
        cluster[name].wipe()  # their disks are lost for good

    code, out, _ = ackord("recover", "inspect", hex(tablet))
    assert code == 0
    assert "n3" in out
    assert "Not reachable: n1, n2" in out
    code, _, err = ackord("recover", "force", hex(tablet), "--node", "n2", "--accept-loss")
    assert code == 2
    assert "n3" in err
    code, _, err = ackord("recover", "force", hex(tablet), "--node", "n3")
    assert code == 1
    assert "may be lost" in err
    for known in json.loads(ackord("status", "--json")[1])["tables"].values():
        for one in known["tablets"]:
            code, out, err = ackord("recover", "force", hex(one["id"]), "--node", "n3", "--accept-loss")
            assert code == 0, err
            assert "May be lost" in out
    cluster["n1"].start()
    cluster["n2"].start()
    wait_healthy(ackord, 60)
    assert json.loads(ackord("get", "kept", "1", "--json")[1])["columns"] == {"n": 1}


def test_rebuild_after_zookeeper_was_wiped(ackord: Command, cluster: RealCluster) -> None:
    if not any(
        json.loads(line)["name"] == "kept" for line in ackord("table", "list", "--json")[1].splitlines()
    ):
        assert ackord("table", "create", "kept", "--key", "id:int")[0] == 0
    assert ackord("put", "kept", "2", "--set", "n=2")[0] == 0
    wait_healthy(ackord)
    before = dump(ackord, "kept")
    assert ackord("recover", "rebuild")[0] == 2  # nothing is lost: nothing to rebuild
    cluster.stop()
    cluster.zookeeper.wipe()
    cluster.zookeeper.start()
    for node in cluster.nodes.values():
        node.start()
        node.wait_log("ackord recover rebuild")
    code, out, _ = ackord("status")
    assert code == 1
    assert "ackord recover rebuild" in out
    assert ackord("recover", "rebuild", "--without", "n9")[0] == 2
    code, out, err = ackord("recover", "rebuild")
    assert code == 0, err
    assert "kept" in out
    wait_healthy(ackord, 60)
    assert dump(ackord, "kept") == before


def test_conditions_updates_numbers_and_counts(ackord: Command) -> None:
    assert ackord("table", "create", "events", "--key", "who:str", "--key", "n:auto")[0] == 0
    numbers = []
    for total in range(5):
        code, version, _ = ackord("put", "events", "alice", "auto", "--set", f"total={total}")
        assert code == 0
        numbers.append(version.strip())
    first = ("events", "alice", numbers[0])
    code, _, err = ackord("update", *first, "--set", "a=1", "--where", "total > 3")
    assert (code, "the condition does not hold" in err) == (1, True)
    words = ["--increment", "total=0.5", "--append", 'tags="x"', "--append", "more=[1,2]", "--set", "s=true"]
    code, _, err = ackord("update", *first, *words)
    assert code == 2 and "stays exact" in err
    words[1] = "total=10"
    code, out, _ = ackord(
        "update", *first, *words, "--where", "total == 0 and key('who') == 'alice'", "--returning", "new"
    )
    assert code == 0
    assert json.loads(out)["columns"] == {"s": True, "total": 10, "tags": ["x"], "more": [1, 2]}
    assert ackord("count", "events", "--where", "1 <= total < 4 or 'x' in tags")[1] == "4\n"
    assert ackord("count", "events", "--prefix", "bob")[1] == "0\n"
    code, out, _ = ackord("scan", "events", "--where", "not exists(tags)", "--column", "total", "--json")
    assert [json.loads(line)["columns"] for line in out.splitlines()] == [{"total": n} for n in range(1, 5)]
    assert json.loads(ackord("get", *first, "--column", "s", "--json")[1])["columns"] == {"s": True}
    assert ackord("delete", *first, "--where", "total == 11")[0] == 1
    assert ackord("delete", *first, "--where", "total == 10 and starts_with(key('who'), 'al')")[0] == 0
    for wrong in ("total", "total =", "f(x) == 1", "total is 1", "x.y == 1", "key('nobody') == 1", "(" * 300):
        code, out, err = ackord("scan", "events", "--where", wrong)
        assert (code, out, len(err.splitlines())) == (2, "", 1), wrong
    assert ackord("update", *first)[0] == 2
