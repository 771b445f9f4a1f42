"""Counts what one write costs, and compares its latency with the model of docs/scaling.md.

    .venv/bin/python -m bench.model

The product's own core runs on virtual time (tests/support/core_cluster.py): messages and bytes between the copies and
synced commits are counted, and latencies are exact for links of a given one-way delay. No clock of this machine and no
load on it matter, so the figures are the same everywhere. CPU is not part of it: that is ``bench.tablets``.
"""

from __future__ import annotations

import statistics
from collections import Counter
from typing import Any

from ackord.wire.frames import packb
from ackord.wire.messages import KIND_PUT
from ackord.wire.values import encode_columns
from ackord_node.core import effects as e
from ackord_node.core import messages as m
from ackord_node.core.types import Timing
from tests.support.core_clients import Client, Op
from tests.support.core_cluster import Cluster, Node, Profile

DISK_S_MAX = 0.0002
DISK_S = (
    DISK_S_MAX + 0.0005 / 2 + 0.001 / 2
)  # of a commit in the virtual cluster, on average: begin, write, tell
WRITES_COUNT = 200
ROW_BYTES = 100
KINDS = {m.APPEND: "APPEND", m.CONFIRM: "CONFIRM", m.COMMIT: "COMMIT"}


class Counted(Cluster):
    """A cluster of cores whose links all take ``delay_s`` one way, and that counts what it sends and stores."""

    def __init__(self, nodes: int, delay_s: float) -> None:
        self.delay_s = delay_s
        self.messages: Counter[str] = Counter()
        self.bytes_count = 0
        self.commits: Counter[str] = Counter()
        lease = 1.0 if delay_s < 0.02 else 3.0
        super().__init__(
            5,
            Profile(
                nodes=nodes,
                clients=0,
                disk_delay_max=DISK_S_MAX,
                timing=Timing(balance_delay=1e9, lease=lease),
            ),
        )

    def delay(self) -> float:
        return self.delay_s

    def _send(self, node: Node, effect: e.Send) -> None:
        name = KINDS.get(effect.message[0])
        if name is not None:
            self.messages[name] += 1
            self.bytes_count += len(packb(effect.message))
        super()._send(node, effect)

    def step(self, node: Node, event: e.Event) -> None:
        if isinstance(event, e.Durable) and event.batch.log:
            self.commits[node.name] += 1
        super().step(node, event)


def decided(cluster: Counted, op: Op) -> float:
    return cluster.run_until(lambda: op.is_done, 10, "the write is decided")


def latencies(cluster: Counted, batch: int) -> list[float]:
    """Of single entries of ``batch`` writes, one after another, from a client's sending to the coordinator's answer."""
    leader = cluster.leader().name
    found = []
    for number in range(WRITES_COUNT):
        client = Client(cluster, 1000 + number)
        row = encode_columns({"v": bytes([number % 256]) * ROW_BYTES})
        ops = [client.op(KIND_PUT, b"k%d" % at, row) for at in range(batch)]
        client.submit(ops, leader)
        found.append(decided(cluster, ops[-1]))
        cluster.run(4 * cluster.delay_s + 0.01)
    return found


def counts(nodes: int, batch: int) -> dict[str, Any]:
    cluster = Counted(nodes, 0.0005)
    cluster.form()
    cluster.messages.clear()
    cluster.commits.clear()
    cluster.bytes_count = 0
    latencies(cluster, batch)
    others = nodes - 1
    return {
        "messages": sum(cluster.messages.values()) / WRITES_COUNT,
        "messages_model": 3 * others,
        "bytes": cluster.bytes_count / WRITES_COUNT,
        "bytes_model": others * (batch * (ROW_BYTES + 22) + 88),
        "commits": sum(cluster.commits.values()) / WRITES_COUNT,
        "commits_model": nodes,
    }


def main() -> None:
    print(
        "An entry of `batch` rows of 100 bytes: messages and bytes between the copies, synced commits; (model)"
    )
    print("| copies | batch | messages | bytes | commits |\n|---|---|---|---|---|")
    for nodes in (2, 3, 5):
        for batch in (1, 16, 256):
            c = counts(nodes, batch)
            print(
                f"| {nodes} | {batch} | {c['messages']:.2f} ({c['messages_model']}) | "
                f"{c['bytes']:,.0f} ({c['bytes_model']:,.0f}) | {c['commits']:.2f} ({c['commits_model']}) |"
            )
    print(
        "\nLatency of a write in ms, from the client's sending to the coordinator's answer; model: 3 d + disk"
    )
    print("| one way d, ms | copies | median | model |\n|---|---|---|---|")
    for delay_s in (0.00005, 0.0005, 0.015):
        for nodes in (3, 5):
            cluster = Counted(nodes, delay_s)
            cluster.form()
            median = statistics.median(latencies(cluster, 1))
            print(
                f"| {delay_s * 1000:g} | {nodes} | {median * 1000:.2f} | {(3 * delay_s + DISK_S) * 1000:.2f} |"
            )


if __name__ == "__main__":
    main()
