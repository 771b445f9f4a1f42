"""cluster.yaml: what is read, and that every fault is named with its line and what was expected."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from ackord_node.config import (
    Address,
    ClusterConfig,
    ConfigError,
    Coordination,
    NodeConfig,
    ProcessSettings,
    Replication,
    load,
    parse,
)

ROOT = Path(__file__).resolve().parents[2]

GOOD = """\
cluster: demo
coordination: zookeeper://127.0.0.1:2181/ackord
replication:
  replicas: 3
  min_in_sync: 2
nodes:
  n1: {address: 127.0.0.1:7801, data: .ackord/n1}
  n2: {address: 127.0.0.1:7802, data: .ackord/n2}
  n3: {address: 127.0.0.1:7803, data: .ackord/n3}
"""


def read(text: str) -> ClusterConfig:
    return parse(text, Path("/etc/ackord/cluster.yaml"))


def test_the_cluster_yaml_of_the_repository() -> None:
    config = load(ROOT / "cluster.yaml")
    assert config.cluster == "demo"
    assert config.coordination == Coordination("zookeeper", (Address("127.0.0.1", 2181),), "/ackord")
    assert config.replication == Replication(3, 2, 1000, 3000, 1000, 1000)
    assert config.limits == {}
    assert list(config.nodes) == ["n1", "n2", "n3"]
    assert config.nodes["n2"] == NodeConfig("n2", Address("127.0.0.1", 7802), ROOT / ".ackord" / "n2")
    assert config.nodes["n2"].address.url == "http://127.0.0.1:7802"


def test_every_key_is_read() -> None:
    config = read("""\
cluster: prod-1
coordination: zookeeper://zk1:2181,zk2:2182,[::1]:2183/stores/ackord
replication: {replicas: 2, min_in_sync: 1, lease_ms: 500, session_timeout_ms: 4000,
              confirm_timeout_ms: 700, clock_drift_max_ppm: 200}
limits: {row_bytes: 1_048_576, batch_rows_count: 50}
defaults: {log_level: warning, block_cache_mib: 128}
nodes:
  left: {address: left.example:7801, data: /var/lib/ackord, disk_reserve_mib: 512}
  right: {address: "[fd00::7]:7801", data: store, log_level: debug}
""")
    assert config.coordination.hosts == (Address("zk1", 2181), Address("zk2", 2182), Address("::1", 2183))
    assert config.coordination.root == "/stores/ackord"
    assert dataclasses.astuple(config.replication) == (2, 1, 500, 4000, 700, 200)
    assert config.limits == {"row_bytes": 1_048_576, "batch_rows_count": 50}
    assert config.effective_limits().row_bytes == 1_048_576
    assert config.effective_limits().key_columns_count == 4
    left, right = config.node("left"), config.node("right")
    assert left.data == Path("/var/lib/ackord")
    assert left.settings == ProcessSettings("warning", 128, 512)
    assert right.data == Path("/etc/ackord/store")
    assert right.settings == ProcessSettings("debug", 128, 256)
    assert str(right.address) == "[fd00::7]:7801"


def test_memory_coordination() -> None:
    config = read(GOOD.replace("zookeeper://127.0.0.1:2181/ackord", "memory://"))
    assert config.coordination == Coordination("memory")


def test_two_hosts_may_use_the_same_folder_and_port() -> None:
    config = read(GOOD.replace("127.0.0.1:7802, data: .ackord/n2", "10.0.0.2:7801, data: .ackord/n1"))
    assert config.nodes["n1"].data == config.nodes["n2"].data


def test_unknown_node() -> None:
    with pytest.raises(ConfigError, match=r"there is no node 'n9'; the nodes are n1, n2, n3"):
        read(GOOD).node("n9")


def test_digest_covers_what_must_agree_and_nothing_else() -> None:
    base = read(GOOD).digest()
    same = [
        GOOD.replace("n1: {", "n1: {log_level: debug, "),
        GOOD.replace("127.0.0.1:7801", "127.0.0.1:7901"),
        GOOD + "defaults: {block_cache_mib: 8}\n",
        GOOD + "limits: {key_column_bytes: 1024}\n",
        GOOD.replace("  replicas: 3\n", "").replace("min_in_sync: 2", "lease_ms: 1000"),
    ]
    other = [
        GOOD.replace("cluster: demo", "cluster: other"),
        GOOD.replace("2181/ackord", "2181/elsewhere"),
        GOOD.replace("127.0.0.1:2181", "127.0.0.1:2182"),
        GOOD.replace("min_in_sync: 2", "min_in_sync: 1"),
        GOOD.replace("min_in_sync: 2", "clock_drift_max_ppm: 1"),
        GOOD + "limits: {key_column_bytes: 1025}\n",
    ]
    assert [read(text).digest() for text in same] == [base] * len(same)
    digests = {read(text).digest() for text in other}
    assert len(digests) == len(other)
    assert base not in digests
    swapped = [GOOD.replace("127.0.0.1:2181", hosts) for hosts in ("a:1,b:2", "b:2,a:1")]
    assert read(swapped[0]).digest() == read(swapped[1]).digest()


# (what is changed in GOOD, what it becomes, the line of the fault, what the message must say)
FAULTS: list[tuple[str, str, int, str]] = [
    ("cluster: demo", "cluser: demo", 1, "unknown key cluser; did you mean cluster?"),
    ("cluster: demo", "zzz: 1\ncluster: demo", 1, "unknown key zzz; expected cluster, coordination"),
    ("cluster: demo\n", "", 1, "cluster is missing"),
    ("cluster: demo", "cluster: 7", 1, "cluster is 7, expected a name of letters"),
    ("cluster: demo", "cluster: a b", 1, "cluster is 'a b', expected a name of letters"),
    ("cluster: demo", "cluster:", 1, "cluster is empty, expected a name of letters"),
    ("cluster: demo", "cluster: [demo]", 1, "cluster is a list, expected a name of letters"),
    ("cluster: demo", "cluster: demo\ncluster: two", 2, "cluster is given twice (first in line 1)"),
    ("cluster: demo", "cluster: demo\n[a]: b", 2, "the key is a list, expected a word"),
    ("zookeeper://127.0.0.1:2181/ackord", "etcd://127.0.0.1:2379/a", 2, "etcd:// is not supported"),
    ("zookeeper://127.0.0.1:2181/ackord", "127.0.0.1:2181", 2, "expected zookeeper://host:port[,host"),
    ("zookeeper://127.0.0.1:2181/ackord", "zookeeper://127.0.0.1:2181", 2, "expected zookeeper://host:p"),
    ("zookeeper://127.0.0.1:2181/ackord", "zookeeper://127.0.0.1:2181/", 2, "expected zookeeper://host:p"),
    ("zookeeper://127.0.0.1:2181/ackord", "zookeeper://a:1/../x", 2, "expected zookeeper://host:port"),
    ("zookeeper://127.0.0.1:2181/ackord", "zookeeper:///ackord", 2, "expected zookeeper://host:port"),
    ("zookeeper://127.0.0.1:2181/ackord", "zookeeper://a:1,a:1/x", 2, "names a host twice"),
    ("zookeeper://127.0.0.1:2181/ackord", "memory://x", 2, "expected memory:// with nothing behind it"),
    ("  replicas: 3", "  replicas: three", 4, "replication.replicas is 'three', expected a whole number"),
    ("  replicas: 3", "  replicas: 3.0", 4, "replication.replicas is 3.0, expected a whole number from 1"),
    ("  replicas: 3", "  replicas: true", 4, "replication.replicas is true, expected a whole number"),
    ("  replicas: 3", "  replicas: 0x3", 4, "replication.replicas is 0x3, expected a whole number"),
    ("  replicas: 3", '  replicas: "3"', 4, "replication.replicas is '3', expected a whole number"),
    ("  replicas: 3", "  replicas: 0", 4, "replication.replicas is 0, expected a whole number from 1 to 9"),
    ("  replicas: 3", "  replicas: 4", 4, "replication.replicas is 4, but there are only 3 nodes"),
    ("  min_in_sync: 2", "  min_in_sync: 4", 5, "replication.min_in_sync is 4, more than replication.repl"),
    ("  min_in_sync: 2", "  min_in_sync: 0", 5, "replication.min_in_sync is 0, expected a whole number"),
    ("  min_in_sync: 2", "  min_insync: 2", 5, "unknown key replication.min_insync; did you mean min_in"),
    ("  min_in_sync: 2", "  lease_ms: 99", 5, "replication.lease_ms is 99, expected a whole number from 100"),
    ("  min_in_sync: 2", "  lease_ms: 10001", 5, "replication.lease_ms is 10001, expected a whole number"),
    ("  min_in_sync: 2", "  session_timeout_ms: 999", 5, "expected a whole number from 1000 to 60000"),
    ("  min_in_sync: 2", "  session_timeout_ms: 1:30", 5, "session_timeout_ms is 1:30, expected a whole"),
    ("  min_in_sync: 2", "  confirm_timeout_ms: -1", 5, "confirm_timeout_ms is -1, expected a whole number"),
    ("  min_in_sync: 2", "  clock_drift_max_ppm: 100001", 5, "expected a whole number from 0 to 100000"),
    ("  min_in_sync: 2", "  <<: {lease_ms: 5}", 5, "unknown key replication.<<"),
    ("replication:\n", "replication: 3\nx:\n", 4, "unknown key x"),
    ("replication:\n", "replication: 3\ndefaults:\n", 3, "replication is 3, expected a section"),
    ("nodes:", "limits: {row_byte: 3}\nnodes:", 6, "unknown key limits.row_byte; did you mean row_bytes?"),
    ("nodes:", "limits: {row_bytes: 0}\nnodes:", 6, "limits.row_bytes is 0, expected a whole number from 1"),
    ("nodes:", "limits: 3\nnodes:", 6, "limits is 3, expected a section"),
    ("nodes:", "defaults: {log_level: loud}\nnodes:", 6, "defaults.log_level is 'loud', expected one of"),
    ("nodes:", "defaults: {data: x}\nnodes:", 6, "unknown key defaults.data"),
    ("n1: {address: 127.0.0.1:7801, ", "n1: {", 7, "nodes.n1.address is missing"),
    (", data: .ackord/n1", "", 7, "nodes.n1.data is missing"),
    (".ackord/n1", "5", 7, "nodes.n1.data is 5, expected a folder"),
    (".ackord/n1", '""', 7, "nodes.n1.data is '', expected a folder"),
    ("n2: {", "n2: {adress: x, ", 8, "unknown key nodes.n2.adress; did you mean address?"),
    ("n2: {", "n2: {block_cache_mib: 0, ", 8, "nodes.n2.block_cache_mib is 0, expected a whole number"),
    ("n2:", "n1:", 8, "nodes.n1 is given twice (first in line 7)"),
    ("n2:", "n 2:", 8, "the node name 'n 2' is not a name of letters"),
    ("127.0.0.1:7802", "127.0.0.1:7801", 8, "nodes.n2.address 127.0.0.1:7801 is the address of"),
    ("127.0.0.1:7802", "localhost:7801", 8, "nodes.n2.address localhost:7801 is the address of nodes.n1"),
    ("127.0.0.1:7802", "127.0.0.1", 8, "nodes.n2.address is '127.0.0.1', expected host:port"),
    ("127.0.0.1:7802", "127.0.0.1:0", 8, "expected host:port"),
    ("127.0.0.1:7802", "127.0.0.1:65536", 8, "expected host:port"),
    ("127.0.0.1:7802", "127.0.0.256:7802", 8, "expected host:port"),
    ("127.0.0.1:7802", "http://a:7802", 8, "expected host:port"),
    ("127.0.0.1:7802", "a..b:7802", 8, "expected host:port"),
    ("127.0.0.1:7802", '"[::1::2]:7802"', 8, "expected host:port"),
    (".ackord/n2", ".ackord/n1", 8, "nodes.n2.data is also that of nodes.n1"),
    (".ackord/n2", ".ackord/x/../n1", 8, "nodes.n2.data is also that of nodes.n1"),
    (".ackord/n2", ".ackord/n1/inner", 8, "nodes.n2.data and nodes.n1.data lie inside each other"),
    ("n3: {address: 127.0.0.1:7803, data: .ackord/n3}", "n3: here", 9, "nodes.n3 is 'here', expected a"),
    ("data: .ackord/n3}", "data: .ackord/n3", 10, "is not valid YAML"),
    ("cluster: demo", "cluster: @demo", 1, "is not valid YAML"),
    ("nodes:", "---\nnodes:", 6, "is not valid YAML"),
]


@pytest.mark.parametrize(("old", "new", "line", "message"), FAULTS, ids=[fault[1][:40] for fault in FAULTS])
def test_fault_is_named_with_its_line(old: str, new: str, line: int, message: str) -> None:
    assert GOOD.count(old) == 1, "the test must change exactly one place"
    with pytest.raises(ConfigError) as raised:
        read(GOOD.replace(old, new))
    assert str(raised.value).startswith(f"/etc/ackord/cluster.yaml:{line}: "), str(raised.value)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; expected the keys cluster, coordination and nodes"),
        ("# only a comment\n", "is empty"),
        ("just words\n", ":1: the file is 'just words', expected a section of the form key: value"),
        ("- a\n- b\n", ":1: the file is a list, expected a section"),
        ("cluster: c\ncoordination: memory://\n", "nodes is missing"),
        ("cluster: c\ncoordination: memory://\nnodes: {}\n", ":3: nodes has no node"),
        ("cluster: c\ncoordination: memory://\nnodes: {n: {address: a:1, data: d}}\n", "only 1 nodes"),
        ("a: " + "[" * 5_000, "nested too deeply"),
        ("a: \x07", "is not valid YAML"),
    ],
)
def test_whole_file_faults(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read(text)
    assert message in str(raised.value)


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.yaml: cannot be read: No such file"):
        load(tmp_path / "cluster.yaml")
    with pytest.raises(ConfigError, match=r"cannot be read: Is a directory"):
        load(tmp_path)
    (tmp_path / "cluster.yaml").write_bytes(b"cluster: \xff\n")
    with pytest.raises(ConfigError, match=r"is not UTF-8 text \(byte 9\)"):
        load(tmp_path / "cluster.yaml")
