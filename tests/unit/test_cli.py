"""The ``ackord`` command against fake nodes: words, exit codes, output, loading twice; and what status says."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ackord import InvalidRequest, __version__
from ackord.cli import main
from ackord.cli.connection import DEFAULT_NODES, find_nodes
from ackord.cli.load import same
from ackord.cli.load_input import parse_cell
from ackord.cli.status import as_json_text, examine, render
from ackord.cli.text import parse_key, parse_tablet, shown, shown_range
from ackord.errors import Unavailable
from ackord.wire.keys import KeySchema
from ackord.wire.messages import OP_WRITE
from tests.support.fake_node import FakeCluster, Hold, start_cluster, stop_cluster

Command = Callable[..., Coroutine[Any, Any, tuple[int, str, str]]]


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    cluster = await start_cluster()
    yield cluster
    await stop_cluster(cluster)


@pytest.fixture
def ackord(
    cluster: FakeCluster, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Command:
    """Runs one command: (exit code, stdout, stderr)."""
    monkeypatch.setenv("ACKORD_NODES", ",".join(node.url for node in cluster.nodes.values()))
    monkeypatch.chdir(tmp_path)

    async def run(*words: str) -> tuple[int, str, str]:
        code = await asyncio.to_thread(main, words)
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def orders(cluster: FakeCluster) -> str:
    cluster.create("orders", [["customer", "str"], ["order", "int"]], ["m"])
    return "orders"


def versions(cluster: FakeCluster) -> dict[bytes, bytes]:
    return {key: row for rows in cluster.rows.values() for key, row in rows.items()}


def one_line(text: str) -> bool:
    return text.startswith("ackord: ") and text.count("\n") == 1


# -------------------------------------------------------------------------------- which nodes


def test_nodes_are_those_given_else_of_cluster_yaml_else_the_default(tmp_path: Path) -> None:
    assert find_nodes("a:1,http://b:2", tmp_path)[0] == ["http://a:1", "http://b:2"]
    assert find_nodes(None, tmp_path)[0] == list(DEFAULT_NODES)
    (tmp_path / "cluster.yaml").write_text("nodes:\n  n1: {address: 10.0.0.1:7801, data: x}\nanything: 1\n")
    assert find_nodes(None, tmp_path) == (["http://10.0.0.1:7801"], "./cluster.yaml")


@pytest.mark.parametrize(
    "text", ["", "nodes: []", "nodes: {n1: {data: x}}", "nodes: {n1: [", "nodes: {n1: {address: 5}}"]
)
def test_a_cluster_yaml_without_addresses_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(text)
    with pytest.raises(InvalidRequest, match=r"cluster\.yaml"):
        find_nodes(None, tmp_path)


async def test_no_node_is_one_line_and_says_where_the_addresses_are_from(ackord: Command) -> None:
    for words in (["get", "orders", "a"], ["table", "list"], ["recover", "inspect", "0x10000"]):
        code, out, err = await ackord("--timeout", "0.3", "--nodes", "127.0.0.1:9", *words)
        assert (code, out) == (3, "")
        assert one_line(err)
    code, _, err = await ackord("--timeout", "0.3", "--nodes", "127.0.0.1:9", "status")
    assert code == 1
    assert "--nodes" in err


# --------------------------------------------------------------------------------- the frame


async def test_version_and_help(ackord: Command) -> None:
    assert await ackord("--version") == (0, f"ackord {__version__}\n", "")
    code, out, _ = await ackord("--help")
    assert code == 0
    assert "Exit codes" in out


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["get", "orders"],
        ["get", "orders", "alice", "1", "--jsn"],
        ["put", "orders", "alice", "1"],
        ["put", "orders", "alice", "1", "--json", "{}", "--set", "a=1"],
        ["put", "orders", "alice", "1", "--set", "a=new"],
        ["put", "orders", "alice", "1", "--set", "a=1", "--set", "a=2"],
        ["put", "orders", "alice", "1", "--json", "[]"],
        ["put", "orders", "alice", "1", "--set", "a=1", "--if-absent", "--if-exists"],
        ["put", "orders", "alice", "--set", "a=1"],
        ["put", "orders", "alice", "x", "--set", "a=1"],
        ["put", "orders", "alice", "9223372036854775808", "--set", "a=1"],
        ["get", "orders", "alice", "1", "2"],
        ["get", "no/table", "1"],
        ["get", "absent", "1"],
        ["table", "create", "t", "--key", "a:float"],
        ["table", "create", "t", "--key", "a"],
        ["table", "create", "t", "--key", "a:int", "--split-at", "x"],
        ["table", "create", "t", "--key", "a:int", "--split-at", '"x"'],
        ["recover", "inspect", "orders"],
        ["load", "orders", "absent.csv"],
        ["--timeout", "0", "status"],
        ["scan", "orders", "--where", "total == " + "-" * 700 + "1"],
    ],
)
async def test_what_can_never_succeed_is_one_line_and_code_2(
    ackord: Command, orders: str, words: list[str]
) -> None:
    code, out, err = await ackord(*words)
    assert (code, out) == (2, "")
    assert one_line(err)


async def test_exit_codes_tell_not_done_from_unknown(
    ackord: Command, cluster: FakeCluster, orders: str
) -> None:
    def fails(error: Exception) -> None:
        def script(group: list[Any]) -> None:
            if group[1] == OP_WRITE:
                raise error

        for node in cluster.nodes.values():
            node.script = script

    fails(Unavailable("not now", reason="minimum", retry_after_ms=10_000))  # so that no attempt is under way
    assert (await ackord("--timeout", "0.5", "put", "orders", "a", "1", "--set", "x=1"))[0] == 3
    fails(Hold())
    assert (await ackord("--timeout", "0.5", "put", "orders", "a", "1", "--set", "x=1"))[0] == 4


# --------------------------------------------------------------------------------- tables


async def test_tables_are_created_listed_described_dropped(
    ackord: Command, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        "table",
        "create",
        "t",
        "--key",
        "a:str",
        "--key",
        "b:int",
        "--split-at",
        '"g"',
        "--split-at",
        '["p"]',
    ]
    code, out, _ = await ackord(*words)
    assert code == 0
    assert "3 tablets" in out
    assert cluster.tables["t"].split_at == ["g", "p"]
    assert "a: str, b: int" in (await ackord("table", "list"))[1]
    _, out, _ = await ackord("table", "describe", "t")
    assert '"g" … "p"' in out
    assert "n1 n2 n3" in out
    _, out, _ = await ackord("table", "describe", "t", "--json")
    assert json.loads(out)["key"] == [["a", "str"], ["b", "int"]]

    monkeypatch.setattr("sys.stdin", io.StringIO())  # nobody says yes
    code, _, err = await ackord("table", "drop", "t")
    assert code == 1
    assert "nothing was deleted" in err
    assert "t" in cluster.tables
    assert (await ackord("table", "drop", "t", "--yes"))[0] == 0
    assert "No tables yet" in (await ackord("table", "list"))[1]


# ----------------------------------------------------------------------------------- rows


async def test_a_row_is_put_read_and_deleted(ackord: Command, orders: str) -> None:
    code, version, _ = await ackord("put", "orders", "alice", "-5", "--set", "n=1", "--set", 's="x"')
    assert code == 0
    code, out, _ = await ackord("get", "orders", "alice", "-5", "--json")
    row = {"key": ["alice", -5], "version": version.strip(), "columns": {"n": 1, "s": "x"}}
    assert json.loads(out) == row
    assert '("alice", -5)' in (await ackord("get", "orders", "alice", "-5"))[1]

    for condition in (["--if-absent"], ["--if-version", "1"]):
        code, _, err = await ackord("put", "orders", "alice", "-5", "--json", "{}", *condition)
        assert code == 1
        assert version.strip() in err
        assert one_line(err)
    assert (await ackord("delete", "orders", "alice", "-5", "--if-version", version.strip()))[0] == 0
    code, out, err = await ackord("get", "orders", "alice", "-5")
    assert (code, out) == (1, "")
    assert one_line(err)


async def test_a_key_that_looks_like_an_option_follows_two_dashes(ackord: Command, orders: str) -> None:
    assert (await ackord("put", "orders", "--set", "n=1", "--", "--if-exists", "1"))[0] == 0
    _, out, _ = await ackord("scan", "orders", "--json")
    assert json.loads(out)["key"] == ["--if-exists", 1]


async def test_a_scan_takes_ranges_and_says_when_it_stops(ackord: Command, orders: str) -> None:
    for customer, order in (("alice", 1), ("alice", 2), ("bob", 1), ("zoe", 7)):
        await ackord("put", "orders", customer, str(order), "--set", "n=1")

    async def keys(*words: str) -> list[list[Any]]:
        _, out, _ = await ackord("scan", "orders", "--json", *words)
        return [json.loads(line)["key"] for line in out.splitlines()]

    assert await keys() == [["alice", 1], ["alice", 2], ["bob", 1], ["zoe", 7]]
    assert await keys("--prefix", "alice") == [["alice", 1], ["alice", 2]]
    assert await keys("--reverse", "--limit", "2") == [["zoe", 7], ["bob", 1]]
    assert await keys("--start", "alice", "--start", "2", "--end", "c") == [["alice", 2], ["bob", 1]]
    assert len((await ackord("scan", "orders", "--limit", "2"))[1].splitlines()) == 3  # with the heading


async def test_a_scan_for_people_stops_at_100_rows_and_says_so(
    ackord: Command, orders: str, tmp_path: Path
) -> None:
    await ackord("load", "orders", write_jsonl(tmp_path / "rows.jsonl", 120))
    _, out, err = await ackord("scan", "orders")
    assert len(out.splitlines()) == 101
    assert "only the first 100 rows" in err
    assert len((await ackord("scan", "orders", "--json"))[1].splitlines()) == 120


# ----------------------------------------------------------------------------------- load


def write_jsonl(path: Path, count: int) -> str:
    lines = [
        json.dumps({"customer": f"c{k % 7}", "order": k, "total": k / 2, "tags": ["a", k]})
        for k in range(count)
    ]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


async def test_loading_twice_changes_nothing(
    ackord: Command, cluster: FakeCluster, orders: str, tmp_path: Path
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", 450)
    code, out, _ = await ackord("load", "orders", path)
    assert code == 0
    assert "450 written, 0 were there already" in out
    before = versions(cluster)
    code, out, _ = await ackord("load", "orders", path)
    assert code == 0
    assert "0 written, 450 were there already" in out
    assert versions(cluster) == before


async def test_an_interrupted_load_goes_on_and_other_rows_are_replaced(
    ackord: Command, cluster: FakeCluster, orders: str, tmp_path: Path
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", 300)
    await ackord("put", "orders", "c0", "0", "--json", '{"total": 0, "tags": ["a", 0]}')  # an int, not 0.0
    await ackord("put", "orders", "c1", "1", "--json", '{"tags": ["a", 1], "total": 0.5}')  # in another order
    standing = versions(cluster)
    code, out, _ = await ackord("load", "orders", path)
    assert code == 0
    assert "299 written, 1 were there already" in out
    schema = cluster.tables["orders"].key
    kept = schema.encode(("c1", 1))
    assert versions(cluster)[kept] == standing[kept]
    assert json.loads((await ackord("get", "orders", "c0", "0", "--json"))[1])["columns"]["total"] == 0.0


async def test_a_scan_can_be_loaded(
    ackord: Command, cluster: FakeCluster, orders: str, tmp_path: Path
) -> None:
    await ackord("load", "orders", write_jsonl(tmp_path / "rows.jsonl", 20))
    dump = tmp_path / "dump.jsonl"
    dump.write_text((await ackord("scan", "orders", "--json"))[1])
    code, out, _ = await ackord("load", "orders", str(dump))
    assert code == 0
    assert "20 were there already" in out
    words = ["load", "copy", str(dump), "--create", "--key", "customer:str", "--key", "order:int"]
    assert (await ackord(*words))[0] == 0
    copied = [
        rows
        for tablet, rows in cluster.rows.items()
        if tablet in {t.id for t in cluster.tables["copy"].tablets}
    ]
    assert sum(map(len, copied)) == 20


async def test_bad_json_lines_are_named_and_left_out(ackord: Command, orders: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [
        b'{"customer": "a", "order": 1}',
        b"",
        b"{",
        b'{"customer": "a"}',
        b'{"customer": "a", "order": "1"}',
        b'{"customer": "a", "order": 1, "n": 2}',
        b"[1]",
        b'{"customer": "\xff", "order": 1}',
        b'{"customer": "b", "order": 9223372036854775808}',
        b'{"customer": "b", "order": 1, "n": 9223372036854775808}',
        b'{"customer": "b", "order": 2, "n": NaN}',
        b'{"key": ["c", 3], "columns": {"n": 1}}',
    ]
    path.write_bytes(b"\n".join(lines))
    code, out, err = await ackord("load", "orders", str(path))
    assert code == 1
    assert "2 written" in out
    assert "9 bad lines" in out
    named = [line.split(": ")[1] for line in err.splitlines()]
    assert sorted(named) == sorted(f"line {k}" for k in (3, 4, 5, 6, 7, 8, 9, 10, 11))
    assert "the same key as in line 1" in err
    code, _, err = await ackord("load", "orders", str(path), "--errors-max", "2")
    assert code == 1
    assert "stopped after 2 bad lines" in err


async def test_csv_has_the_types_that_are_given(ackord: Command, orders: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["order", "qty", "customer", "ok", "raw", "any", "zip", "w"])
        rows.writerow([1, 5, "two\nlines", "true", "hex:00ff", '{"a":[1]}', "007", "1e3"])
        rows.writerow([2, "", "b", "", "", "", "", ""])
        rows.writerow([3, "", "b", "yes", "", "", "", ""])
    types = ["--type=qty:int", "--type=ok:bool", "--type=raw:bytes", "--type=any:json", "--type=w:float"]
    code, _, err = await ackord("load", "orders", str(path), *types)
    assert code == 1
    assert err == "rows.csv: line 5: ok: 'yes' is neither true nor false\n"
    _, out, _ = await ackord("scan", "orders", "--json")
    first, second = sorted(
        (json.loads(line) for line in out.splitlines()), key=lambda row: int(row["key"][1])
    )
    assert first["key"] == ["two\nlines", 1]
    assert first["columns"] == {
        "qty": 5,
        "ok": True,
        "raw": {"$bytes": "AP8="},
        "any": {"a": [1]},
        "zip": "007",
        "w": 1000.0,
    }
    assert second["columns"] == {"zip": ""}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("customer\na\n", []),
        ("customer,order,x,x\na,1,2,3\n", []),
        ("customer,order,\na,1,2\n", []),
        ("customer,order\na,1\n", ["--type", "x:int"]),
        ("customer,order\na,1\n", ["--type", "order:int"]),
        ("customer,order\na,1\n", ["--type", "x:number"]),
        ('customer,order\na,1\n"b"x,2\n', []),
    ],
)
async def test_csv_that_cannot_be_read_is_refused(
    ackord: Command, orders: str, tmp_path: Path, text: str, words: list[str]
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    code, _, err = await ackord("load", "orders", str(path), *words)
    assert code == 2
    assert one_line(err)


async def test_stdin_needs_a_format(ackord: Command, orders: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await ackord("load", "orders", "-"))[0] == 2
    source = io.TextIOWrapper(io.BytesIO(b'{"customer": "a", "order": 1, "n": 1}\n'))
    monkeypatch.setattr("sys.stdin", source)
    code, out, _ = await ackord("load", "orders", "-", "--format", "jsonl")
    assert code == 0
    assert "1 written" in out


async def test_a_load_that_the_cluster_refuses_says_how_to_go_on(
    ackord: Command, cluster: FakeCluster, orders: str, tmp_path: Path
) -> None:
    def script(group: list[Any]) -> None:
        if group[1] == OP_WRITE:
            raise Unavailable("too few copies", reason="minimum")

    for node in cluster.nodes.values():
        node.script = script
    code, _, err = await ackord("--timeout", "0.5", "load", "orders", write_jsonl(tmp_path / "r.jsonl", 5))
    assert code == 3
    assert "stopped at line " in err
    assert "run the same command again" in err


# ------------------------------------------------------------------------------ words and values


def test_key_words_have_the_types_of_the_table() -> None:
    schema = KeySchema((("a", "str"), ("b", "int"), ("c", "bytes")))
    assert parse_key(schema, ["1", "-1", "hex:00ff"]) == ("1", -1, b"\x00\xff")
    assert parse_key(schema, ["", "+7", "base64:AP8="]) == ("", 7, b"\x00\xff")
    for words in (
        ["1", "1.0", "hex:"],
        ["1", "1", "00ff"],
        ["1", "1", "hex:0"],
        ["1", "٣", "hex:"],
        ["1", "1"],
    ):
        with pytest.raises(InvalidRequest):
            parse_key(schema, words)


def test_a_tablet_is_named_in_hex_or_decimal() -> None:
    assert parse_tablet("0x10001") == parse_tablet("65537") == 65537
    with pytest.raises(InvalidRequest):
        parse_tablet("1000g")


def test_values_shown_do_not_reach_the_terminal() -> None:
    assert shown("a\x1b[31m\x9b\u202e") == '"a\\u001b[31m\\u009b\\u202e"'
    assert json.loads(shown("\x9b\u202e")) == "\x9b\u202e"


def test_equal_means_stored_alike() -> None:
    nan = float("nan")
    assert same({"a": [1, nan], "b": b"x"}, {"b": b"x", "a": [1, nan]})
    for one, other in (
        (1, 1.0),
        (1, True),
        (0.0, -0.0),
        ("x", b"x"),
        ([1], [1, 2]),
        ({"a": 1}, {"a": 1, "b": None}),
    ):
        assert not same(one, other)
        assert not same({"c": one}, {"c": other})


@pytest.mark.parametrize(
    ("kind", "cell"), [("int", "1.0"), ("int", str(2**63)), ("float", "1_0"), ("float", "inf")]
)
def test_cells_that_are_nearly_numbers_are_refused(kind: str, cell: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_cell("c", kind, cell)


# --------------------------------------------------------------------------------------- status


def node(up: bool = True, **changes: Any) -> dict[str, Any]:
    known = {"incarnation": 1, "ready": True, "reason": "", "disk_reason": None, "disk_bytes": 5 << 20}
    known |= {"free_bytes": 7 << 30, "loop_lag_max_ms": 3.2, "session_timeout_ms": 3000}
    return {"address": "http://127.0.0.1:7801", "up": up} | (known | changes if up else {})


def tablet(number: int, **changes: Any) -> dict[str, Any]:
    plain = {"id": 0x10000 + number, "start": b"", "end": None, "epoch": 3, "coordinator": "n1"}
    plain |= {"in_sync": ["n1", "n2", "n3"], "replicas": ["n1", "n2", "n3"], "min_in_sync": 2}
    return plain | {"lag": {"n2": 0, "n3": 0}, "copies": {"n1": {}, "n2": {}, "n3": {}}} | changes


def cluster_status(
    nodes: dict[str, Any] | None = None, tablets: list[Any] | None = None, **changes: Any
) -> dict[str, Any]:
    all_nodes = {"n1": node(), "n2": node(), "n3": node()} | (nodes or {})
    tables = {"orders": {"id": 1, "key": [["customer", "str"]], "tablets": tablets or [tablet(0)]}}
    status = {
        "cluster": "demo",
        "answered_by": "n1",
        "coordination_up": True,
        "nodes": all_nodes,
        "tables": tables,
    }
    return status | changes


def text_of(status: dict[str, Any], *, terminal: bool = False) -> str:
    out = io.StringIO()
    Console(
        file=out, width=200, force_terminal=terminal, color_system="standard" if terminal else None
    ).print(render(status, list(examine(status))))
    return out.getvalue()


def test_a_healthy_cluster_has_no_findings_and_no_colour_off_a_terminal() -> None:
    status = cluster_status()
    assert list(examine(status)) == []
    text = text_of(status)
    assert "All is healthy." in text
    assert "n1 n2 n3" in text
    assert "0x10000" in text
    assert "\x1b" not in text
    assert "\x1b[32m" in text_of(status, terminal=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nodes": {"n3": node(up=False)}}, "n3 does not answer"),
        ({"nodes": {"n2": node(ready=False, reason="catching up")}}, "n2 is not ready: catching up"),
        ({"nodes": {"n2": node(disk_reason="the disk is full")}}, "n2: the disk is full"),
        ({"coordination_up": False}, "cannot reach ZooKeeper"),
        ({"tablets": [tablet(0, coordinator=None)]}, "no coordinator"),
        ({"tablets": [tablet(0, in_sync=["n1", "n2"])]}, "copy on n3 of tablet 0x10000 is catching up"),
        ({"tablets": [tablet(0, in_sync=["n1", "n2"], copies={"n1": {}})]}, "is missing"),
        (
            {"tablets": [tablet(k, in_sync=["n1", "n2"]) for k in range(5)]},
            "0x10002 and 2 more: as few in sync",
        ),
        (
            {"nodes": {"n1": node(up=False)}, "tablets": [tablet(0, in_sync=["n1"], copies={})]},
            "ackord recover inspect 0x10000",
        ),
    ],
)
def test_a_fault_is_named_and_makes_the_cluster_unhealthy(changes: dict[str, Any], words: str) -> None:
    status = cluster_status(**changes)
    findings = list(examine(status))
    assert any(words in finding.text and finding.is_fault for finding in findings)
    text = text_of(status)
    assert words in text
    assert "All is healthy" not in text
    assert json.loads(as_json_text(status, findings))["healthy"] is False


def test_a_slow_loop_is_worth_a_line_and_no_fault() -> None:
    status = cluster_status({"n2": node(loop_lag_max_ms=900.0)})
    (finding,) = examine(status)
    assert not finding.is_fault
    assert "All is healthy" in text_of(status)


def test_lag_and_ranges() -> None:
    keys = [["customer", "str"]]
    schema = KeySchema((("customer", "str"),))
    assert "n3 12" in text_of(cluster_status(tablets=[tablet(0, lag={"n2": 0, "n3": 12})]))
    assert shown_range(keys, b"", None) == "all"
    assert shown_range(keys, b"", schema.encode("g")) == '… "g"'
    assert shown_range(keys, schema.encode("g"), None) == '"g" …'
