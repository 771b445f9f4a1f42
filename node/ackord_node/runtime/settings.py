"""What the runtime needs to know of cluster.yaml."""

from __future__ import annotations

from dataclasses import dataclass

from ackord.wire.limits import Limits
from ackord_node.core.types import LogLimits, Timing


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """What must agree in the whole cluster, and who this node is."""

    name: str
    cluster: str
    addresses: dict[str, str]  # node -> "http://host:port"
    replicas_count: int
    min_in_sync: int
    timing: Timing
    log_limits: LogLimits
    limits: Limits
