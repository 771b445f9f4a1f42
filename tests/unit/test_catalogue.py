"""Table operations at a node's catalogue: bound to what their callers saw, and answered from the state of the cluster
(R17, R18)."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from ackord.errors import Conflict, TableExists, TableNotFound, Unavailable
from ackord.wire.frames import packb
from ackord.wire.keys import KeySchema
from ackord.wire.messages import TableDefinition
from ackord.wire.options import DEFAULT_OPTIONS
from ackord_node.runtime.catalogue import Catalogue
from tests.support.core_hand import descriptor
from tests.unit.test_runtime_safety import catalogue

KEY = [["k", "bytes"]]


async def ours() -> bool:
    return True


async def stand(found: Catalogue, name: str, version: int = -1) -> TableDefinition:
    """A table that stands, which nobody serves."""
    definition = await found._record(name, KeySchema.from_wire(KEY), [b""], DEFAULT_OPTIONS)
    await found._publish(definition, version)
    return definition


async def test_a_table_that_stood_and_is_dropped_meanwhile_was_certainly_not_created() -> None:
    found, _ = await catalogue()
    definition = await stand(found, "t")
    create = asyncio.create_task(found.create("t", KEY, []))
    await asyncio.sleep(0.02)
    dropped = replace(descriptor(tablet=definition.tablets[0].id), epoch=1, dropped=True)
    found.descriptor_seen(definition.tablets[0].id, dropped, 1)
    with pytest.raises(Unavailable, match="was dropped meanwhile"):
        await asyncio.wait_for(create, 5)


async def test_a_create_from_another_version_of_the_record_creates_nothing() -> None:
    """Rules R17 and R18: the table was created and dropped since the caller looked."""
    found, coordination = await catalogue()
    definition = await stand(found, "t")
    for version in (-1, 3):
        with pytest.raises(TableExists) as exists:
            await found.create("t", [["n", "int"]], [], if_record_version=version)
        assert exists.value.detail["record_version"] == 0
    await found.drop("t")
    last = await coordination.next_id()
    for version in (-1, 0, 1, 3):
        with pytest.raises(Conflict, match="version 2") as raised:
            await asyncio.wait_for(found.create("t", KEY, [], if_record_version=version), 2)
        assert raised.value.detail["record_version"] == 2
    assert await coordination.tables() == {}
    assert await coordination.next_id() == last + 1, "nothing was prepared either"
    with pytest.raises(Conflict):
        await found._publish(definition, 1)  # it went on while the tablets were recorded
    assert await coordination.tables() == {}
    create = asyncio.create_task(found.create("t", KEY, [], if_record_version=2))
    while "t" not in await coordination.tables():
        await asyncio.sleep(0.001)
    create.cancel()


async def test_a_create_from_a_record_under_a_drop_waits_for_the_drop_or_is_refused() -> None:
    found, coordination = await catalogue()
    definition = await stand(found, "t")
    dropping = packb(replace(definition, state="dropping").to_wire())
    await coordination.update_table("t", dropping, 0)
    with pytest.raises(Conflict):
        await found.create("t", KEY, [], if_record_version=0)
    for version in (None, 1):
        with pytest.raises(Unavailable, match="is being dropped"):
            await found.create("t", KEY, [], if_record_version=version)


async def test_a_drop_is_finished_of_a_tablet_that_nobody_ever_served() -> None:
    """The first attempt marked it, and failed at another one: there is no member that could confirm anything."""
    found, coordination = await catalogue()
    definition = await stand(found, "t")
    tablet = definition.tablets[0].id
    await found._mark_dropped(tablet)
    await asyncio.wait_for(found.drop("t"), 5)
    assert await coordination.tables() == {}


async def test_a_drop_of_another_table_of_the_name_drops_nothing() -> None:
    """Rules R17 and R18: the table that was meant was dropped, and another one created."""
    found, coordination = await catalogue()
    first = await stand(found, "t")
    await found.drop("t", first.id)
    with pytest.raises(TableNotFound):
        await found.drop("t", first.id)
    second = await stand(found, "t", 2)
    with pytest.raises(TableNotFound) as raised:
        await found.drop("t", first.id)
    assert raised.value.detail["id"] == second.id
    assert (await found._read_record("t")).table == second
    await found.drop("t", second.id)
    assert await coordination.tables() == {}


async def test_a_table_is_described_as_the_service_has_it_now() -> None:
    found, coordination = await catalogue()

    with pytest.raises(TableNotFound) as never:
        await found.describe("t", ours)
    assert never.value.detail["record_version"] == -1
    first = await stand(found, "t")
    await found.refresh()
    other, _ = await catalogue()
    other._coordination = coordination  # another node
    await other.drop("t")
    second = await stand(other, "t", 2)
    assert found.tables["t"] == first, "this node has not heard of it"
    record = await found.describe("t", ours)
    assert (record.table, record.version) == (second, 3)
    dropping = packb(replace(second, state="dropping").to_wire())
    await coordination.update_table("t", dropping, 3)
    with pytest.raises(TableNotFound) as gone:
        await found.describe("t", ours)
    assert gone.value.detail == {"table": "t", "record_version": 4, "id": second.id, "state": "dropping"}
    await found.read_again(ours)
    assert found.tables == {}
    coordination.set_reachable(False)
    for ask in (found.describe("t", ours), found.read_again(ours)):
        with pytest.raises(Unavailable, match="cannot be known"):
            await ask
