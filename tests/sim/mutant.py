"""What a mutant is: one rule, or one condition of a rule, dropped, as text edits of single functions.

Each names the test that shows directly what the condition is for, and, where the models of the protocol have it too,
its name there. An edit that no longer fits the code fails loudly, so the list stays true.
"""

from __future__ import annotations

from dataclasses import dataclass

Edit = tuple[str, str, str, str]  # module, function or Class.method, text, its replacement

COORDINATOR = "ackord_node.core.coordinator"
FOLLOWER = "ackord_node.core.follower"
MEMBERSHIP = "ackord_node.core.membership"
TAKEOVER = "ackord_node.core.takeover"
REPLICA = "ackord_node.core.replica"
REPLICATION = "ackord_node.core.replication"
REQUESTS = "ackord_node.core.requests"
STATE = "ackord_node.core.state"
WRITES = "ackord_node.core.writes"
TYPES = "ackord_node.core.types"
PEER_BEACONS = "ackord_node.core.peer_beacons"
HOST = "ackord_node.runtime.tablet_host"
COMMITTER = "ackord_node.runtime.committer"
CATALOGUE = "ackord_node.runtime.catalogue"
ADMIN = "ackord.admin"


@dataclass(frozen=True)
class Mutant:
    rule: str
    name: str
    test: str  # "file::function" below tests/
    edits: tuple[Edit, ...]
    model: str = ""

    @property
    def is_walked(self) -> bool:
        """Whether the random walk runs what it changes."""
        return all(module.startswith(("ackord_node.core.", "ackord.cach")) for module, *_ in self.edits)


def mutant(rule: str, name: str, test: str, *edits: Edit, model: str = "") -> Mutant:
    return Mutant(rule, name, test, edits, model)


SCENARIO_TAKEOVER = "scenario/test_takeover.py::test_"
SCENARIO_MEMBERS = "scenario/test_membership.py::test_"
SCENARIO_READS = "scenario/test_reads.py::test_"
SCENARIO_REQUESTS = "scenario/test_requests.py::test_"
SCENARIO_FEEDING = "scenario/test_catch_up.py::test_"
SCENARIO_DISKS = "scenario/test_disks.py::test_"
UNIT_COORDINATOR = "unit/test_core_coordinator.py::test_"
UNIT_FOLLOWER = "unit/test_core_follower.py::test_"
UNIT_MEMBERS = "unit/test_core_membership.py::test_"
UNIT_TAKEOVER = "unit/test_core_takeover.py::test_"
UNIT_FEEDING = "unit/test_core_replication.py::test_"
UNIT_WRITES = "unit/test_core_writes.py::test_"
UNIT_REPLICA = "unit/test_core_replica.py::test_"
UNIT_PEER_BEACONS = "unit/test_core_peer_beacons.py::test_"
UNIT_RUNTIME = "unit/test_runtime_safety.py::test_"
UNIT_CATALOGUE = "unit/test_catalogue.py::test_"
UNIT_ADMIN = "unit/test_admin.py::test_"
