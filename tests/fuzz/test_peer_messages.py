"""A peer is trusted not to lie, so what its messages claim is believed; but a message that no node can have sent is
refused before any state sees it, and no message of whatever fields ends the process."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest

from ackord_node.core import effects as e
from ackord_node.core import messages as m
from tests.fuzz.mutation import Mutator
from tests.fuzz.peer_cases import Facts, PeerCases, valid_messages
from tests.support.core_cluster import Cluster, Node
from tests.support.core_script import formed

TAKEN = 1200


def cluster_of(role: str, seed: int) -> tuple[Cluster, Node, Node]:
    """A cluster, the node that hears the messages and the one that they seem to come from."""
    c = formed(seed)
    member, other = [node for node in c.nodes.values() if node is not c.leader()][:2]
    return (c, c.leader(), member) if role == "leader" else (c, member, c.leader() if seed % 2 else other)


def facts_of(host: Node) -> Facts:
    s = host.core.state
    return Facts(s.tablet, s.promised, s.copy_id, s.incarnation, s.log.end, s.log.epoch_at(s.log.end) or 0)


@pytest.mark.parametrize("role", ["leader", "member"])
def test_no_message_ends_a_step_with_an_error(role: str) -> None:
    """Refused by the check, or taken; a step that raises would end the process of a node. Each message comes to a
    cluster that believed none before: two that contradict each other can only come from a node that lies."""
    cases = PeerCases(Mutator(random.Random(role)))
    refused = taken = 0
    c, host, sender = cluster_of(role, 0)
    while taken < TAKEN:
        facts = facts_of(host)
        message = cases.next(facts)
        try:
            m.check(message)
        except ValueError:
            refused += 1
            continue
        taken += 1
        try:
            host.core.step(e.Received(sender.name, sender.core.state.incarnation, message), host.clock())
        except Exception as error:
            raise AssertionError(f"{role}: {str(message)[:300]} raised {error!r}") from error
        if (
            facts_of(host) != facts
            or host.core.state.filling
            or (host.core.coordinator is None) != (role != "leader")
        ):
            c, host, sender = cluster_of(role, taken)
    assert refused > TAKEN
    assert c.nodes


def test_the_messages_that_nodes_send_pass_the_check() -> None:
    sent: list[list[Any]] = []
    c = formed(3)
    before = c.drop

    def note(source: str, target: str, message: list[Any]) -> bool:
        sent.append(copy.deepcopy(message))
        return before(source, target, message)

    c.drop = note
    for _ in range(30):
        c.put_done()
    leader = c.leader()
    member = next(h for h in c.nodes.values() if h is not leader)
    c.step(leader, e.HandOver(member.name))
    c.run_until(lambda: c.service.descriptor.coordinator == member.name, 10, "handed over")
    c.run_until(c.is_well, 20, "all is well")
    assert {message[0] for message in sent} >= {m.APPEND, m.CONFIRM, m.BEACON, m.BEACON_CONFIRM, m.HANDOVER}
    for message in sent:
        assert m.check(message) is message
    for message in valid_messages(Facts(7, 3, 2, 22, 4, 3)):
        assert m.check(message) is message


@pytest.mark.parametrize("message", valid_messages(Facts(7, 3, 2, 22, 4, 3)), ids=lambda x: f"kind{x[0]}")
def test_a_field_of_another_type_is_refused(message: list[Any]) -> None:
    """Bool is no int, an int is within 63 bits and not negative, a time is finite, and nothing else is either."""
    for at in range(len(message)):
        wrongs: tuple[Any, ...] = (True, "1", b"\x01", [None], {}, -2, 2**63, float("nan"), float("inf"))
        for wrong in wrongs:
            changed = [*message[:at], wrong, *message[at + 1 :]]
            if (
                type(wrong) is type(message[at])
                and message[at] != wrong
                and not isinstance(wrong, int | float)
            ):
                continue  # another value of the right type, judged elsewhere
            with pytest.raises(ValueError, match="peer message"):
                m.check(changed)
    most = len(m.FIELDS[message[0]]) + 1
    for count in (most - m.OPTIONAL.get(message[0], 0) - 1, most + 1):
        with pytest.raises(ValueError, match="peer message"):
            m.check((message * 2)[:count])


def test_records_that_do_not_run_on_from_the_prefix_are_refused() -> None:
    append = valid_messages(Facts(7, 3, 2, 22, 4, 3))[0]
    for changed in (
        [*append[:3], append[3] + 1, *append[4:]],
        [*append[:6], append[6][1:], append[7]],
        [*append[:6], [append[6][0], append[6][2]], append[7]],
        [*append[:6], [append[6][0], append[6][0]], append[7]],
        [*append[:6], [b""], append[7]],
        [*append[:6], [append[6][0][:20]], append[7]],
    ):
        with pytest.raises(ValueError, match="run on"):
            m.check(changed)
