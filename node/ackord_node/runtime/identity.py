"""Who this node is and what its data folder holds, checked before anything is served (rule R18).

A folder belongs to one node of one cluster. The cluster id stands in the coordination service and in every folder;
a mismatch, or a service that was emptied, means that nothing may be served.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from ackord.wire.frames import packb, unpackb
from ackord_node.core.copy_meta import CopyMeta
from ackord_node.core.log import Entry, RecordCorrupt
from ackord_node.core.state import StoredCopy
from ackord_node.ports import Batch, Coordination, Engine

log = logging.getLogger("ackord.identity")

CLUSTER_FORMAT = 1
CLUSTER_FORMAT_OLDEST = 1
_READ_LOG_COUNT = 10_000
_READ_LOG_BYTES = 8 * 1024 * 1024


class IdentityError(Exception):
    """This node must not start: what was found, what was expected, and what to do."""


class CoordinationEmptied(IdentityError):
    """The folder belongs to a cluster of which the coordination service knows nothing: `ackord recover`."""


@dataclass(frozen=True, slots=True)
class Facts:
    cluster: str | None
    node: str | None
    cluster_id: str | None
    tables: dict[str, bytes]
    table_id_max: int


def read_facts(engine: Engine) -> Facts:
    raw = engine.node_facts()

    def text(name: str) -> str | None:
        value = raw.get(name)
        return value.decode() if value is not None else None

    tables = unpackb(raw["tables"]) if "tables" in raw else {}
    return Facts(text("cluster"), text("node"), text("cluster_id"), tables, int(text("table_id_max") or "0"))


def check_folder(facts: Facts, cluster: str, node: str, folder: str) -> None:
    """IdentityError if the folder is of another node or cluster."""
    if facts.cluster is not None and facts.cluster != cluster:
        raise IdentityError(
            f"the data folder {folder} belongs to cluster {facts.cluster!r}, but cluster.yaml says {cluster!r}"
        )
    if facts.node is not None and facts.node != node:
        raise IdentityError(
            f"the data folder {folder} belongs to node {facts.node!r}, but this is node {node!r}"
        )


async def join_cluster(
    coordination: Coordination, facts: Facts, cluster: str, randbits: Callable[[int], int]
) -> str:
    """The cluster's id, made now if neither side has one. CoordinationError if the service cannot be asked."""
    record = await coordination.cluster()
    if record is None:
        if facts.cluster_id is not None:
            raise CoordinationEmptied(
                f"the coordination service knows nothing of cluster {cluster!r}, but this node's data folder "
                f"belongs to it (id {facts.cluster_id}): the service was emptied, or cluster.yaml names another "
                "one. If it was emptied, run `ackord recover rebuild`"
            )
        made = packb({"format": CLUSTER_FORMAT, "cluster": cluster, "id": f"{randbits(128):032x}"})
        record = await coordination.create_cluster(made)
    found = unpackb(record)
    if not CLUSTER_FORMAT_OLDEST <= found["format"] <= CLUSTER_FORMAT:
        raise IdentityError(
            f"the cluster record has format {found['format']}, this program reads {CLUSTER_FORMAT}"
        )
    if found["cluster"] != cluster:
        raise IdentityError(
            f"the coordination service's path holds cluster {found['cluster']!r}, cluster.yaml says {cluster!r}"
        )
    if facts.cluster_id is not None and facts.cluster_id != found["id"]:
        raise IdentityError(
            f"this data folder belongs to the cluster with id {facts.cluster_id}, the coordination service holds "
            f"id {found['id']}: another cluster of the same name. Use the right service, or an empty data folder"
        )
    return str(found["id"])


def check_readable(engine: Engine) -> None:
    """EngineCorrupt if what every start needs fails its checksum: such a store is void (rule R14), or the process
    would end at every start."""
    engine.node_facts()
    engine.metas()


def mark_suspect(engine: Engine) -> None:
    """Rule R13: the store lost the end of its log; each copy says so durably before anything is answered."""
    log.error(
        "the store's log was refused and cut at the damage: its copies count only once they are refilled"
    )
    batch = Batch()
    for tablet, data in engine.metas().items():
        meta = CopyMeta.decode(data)
        meta.suspect = True
        batch.meta[tablet] = meta.encode()
    if not batch.is_empty():
        engine.commit(batch)
    engine.clear_suspicion()


def load_copy(engine: Engine, tablet: int, meta: CopyMeta) -> StoredCopy:
    """The copy as stored; RecordCorrupt or EngineCorrupt if its log does not verify (rule R14)."""
    entries: list[Entry] = []
    first = meta.applied + 1
    while True:
        found = engine.read_log(tablet, first, _READ_LOG_COUNT, _READ_LOG_BYTES)
        for index, record in found:
            entry = Entry.decode(tablet, record)
            if entry.index != index or index != first:
                raise RecordCorrupt(
                    f"log of tablet {tablet:x}: entry {entry.index} at {index}, expected {first}"
                )
            entries.append(entry)
            first += 1
        if not found:
            break
    bounds = engine.log_bounds(tablet)
    if bounds is not None and bounds[1] >= first:
        raise RecordCorrupt(
            f"log of tablet {tablet:x}: entry {first} is missing, the log reaches {bounds[1]}"
        )
    return StoredCopy(tablet, meta, entries, engine.requests(tablet))
