"""An operator's last resorts (``ackord recover``), each saying what may be lost.

``inspect``: the copies of a tablet that can be reached. ``force``: makes one chosen copy the whole in-sync set, when
the in-sync copies are lost for good. ``rebuild``: writes a wiped coordination service's state anew from what the
nodes know; the copy with the latest (epoch, index) holds every acknowledged write if all in-sync copies answered.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ackord.errors import InvalidRequest, OutcomeUnknown, Unavailable
from ackord.wire.frames import packb, unpackb
from ackord.wire.messages import TableDefinition
from ackord_node.core.copy_meta import CopyMeta
from ackord_node.core.types import Descriptor, Member
from ackord_node.ports import Cas, CoordinationError
from ackord_node.runtime.catalogue import TABLET_BITS
from ackord_node.runtime.identity import CLUSTER_FORMAT, read_facts

if TYPE_CHECKING:
    from ackord_node.runtime.node import Node

log = logging.getLogger("ackord.recovery")

INVENTORY_PATH = "/peer/v1/inventory"
ASK_TIMEOUT_S = 5.0
_FIELDS = {
    "inspect": {"action", "tablet"},
    "force": {"action", "tablet", "node", "accept_loss"},
    "rebuild": {"action", "without"},
}


class Recovery:
    def __init__(self, node: Node, ask_peer: Callable[[str, str], Coroutine[Any, Any, Any]]) -> None:
        self._node = node
        self._ask_peer = ask_peer

    async def run(self, request: dict[str, Any]) -> dict[str, Any]:
        action = request.get("action")
        if action not in _FIELDS:
            raise InvalidRequest(
                f"action must be one of {', '.join(_FIELDS)}, not {action!r}",
                field="action",
                value=str(action),
            )
        unknown = sorted(set(map(str, request)) - _FIELDS[action])
        if unknown:
            raise InvalidRequest(f"unknown field {unknown[0]!r} for action {action}", field=unknown[0])
        try:
            return await self._act(action, request)
        except CoordinationError as error:
            raise OutcomeUnknown(
                f"the coordination service cannot be reached ({error}); nothing is known of what was begun. Look at "
                "`ackord status`, then say it again"
            ) from None

    async def _act(self, action: str, request: dict[str, Any]) -> dict[str, Any]:
        if action == "rebuild":
            return await self._rebuild(self._nodes_named(request.get("without")))
        tablet = request.get("tablet")
        if type(tablet) is not int:
            raise InvalidRequest("tablet must be an integer id, as `ackord status` shows it", field="tablet")
        if action == "inspect":
            return await self._inspect(tablet)
        return await self._force(tablet, request.get("node"), request.get("accept_loss") is True)

    def _nodes_named(self, without: Any) -> list[str]:
        known = self._node.settings.addresses
        names = [] if without is None else without
        if not isinstance(names, list) or any(name not in known for name in names):
            raise InvalidRequest(
                f"without must be a list of nodes of this cluster ({', '.join(sorted(known))})",
                field="without",
                value=str(without)[:100],
            )
        return names

    # ------------------------------------------------------------------------------ inventory

    def inventory(self) -> dict[str, Any]:
        """What this node's folder holds, whether or not the node serves."""
        node = self._node
        facts = read_facts(node.engine)
        copies = {}
        for tablet, data in node.engine.metas().items():
            meta = CopyMeta.decode(data)
            bounds = node.engine.log_bounds(tablet)
            end = max(meta.applied, bounds[1] if bounds is not None else 0)
            copies[str(tablet)] = {
                "copy_id": meta.copy_id,
                "promised": meta.promised,
                "last_epoch": meta.runs[-1][1],
                "log_end": end,
                "applied": meta.applied,
                "last_version": meta.last_version,
                "suspect": meta.suspect,
                "filling": meta.filling,
                "descriptor": meta.descriptor,
                "descriptor_version": meta.descriptor_version,
            }
        return {
            "node": node.name,
            "cluster": facts.cluster,
            "cluster_id": facts.cluster_id,
            "tables": facts.tables,
            "table_id_max": facts.table_id_max,
            "copies": copies,
        }

    async def _inventories(self) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """(what each node that answers holds, the nodes that do not)."""
        names = sorted(self._node.settings.addresses)
        answers = await asyncio.gather(*(self._of(name) for name in names))
        found = {name: a for name, a in zip(names, answers, strict=True) if a is not None}
        return found, [name for name in names if name not in found]

    async def _of(self, name: str) -> dict[str, Any] | None:
        if name == self._node.name:
            return self.inventory()
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                found = await self._ask_peer(name, INVENTORY_PATH)
        except (OSError, TimeoutError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    async def _inspect(self, tablet: int) -> dict[str, Any]:
        found, missing = await self._inventories()
        copies = {}
        for name, inventory in found.items():
            if str(tablet) in inventory["copies"]:
                copy = dict(inventory["copies"][str(tablet)])
                copy.pop("descriptor")
                copies[name] = copy
        return {"tablet": tablet, "copies": copies, "unreachable": missing}

    # ---------------------------------------------------------------------------------- force

    async def _force(self, tablet: int, chosen: Any, accept_loss: bool) -> dict[str, Any]:
        standing = await self._node.coordination.descriptor(tablet)
        if standing is None:
            raise InvalidRequest(f"there is no tablet {tablet}", field="tablet", value=tablet)
        descriptor = Descriptor.decode(standing[0])
        inspected = await self._inspect(tablet)
        copy = inspected["copies"].get(chosen)
        if copy is None or copy["filling"]:
            raise InvalidRequest(
                f"node {chosen!r} offers no complete copy of tablet {tablet}; those that do: "
                f"{', '.join(sorted(n for n, c in inspected['copies'].items() if not c['filling'])) or 'none'}",
                field="node",
                value=str(chosen),
            )
        loss = _loss(descriptor, str(chosen), copy, inspected["copies"])
        if not accept_loss:
            raise InvalidRequest(
                f"this may lose data: {loss}. Say accept_loss=true if that is what you want",
                field="accept_loss",
                loss=loss,
            )
        forced = _only(descriptor, Member(str(chosen), copy["copy_id"]), inspected["copies"])
        outcome = await self._node.coordination.swap_descriptor(tablet, forced.encode(), standing[1])
        if outcome is Cas.UNKNOWN:
            raise OutcomeUnknown(
                "the coordination service did not answer; look at `ackord status`, then try again"
            )
        if outcome is Cas.LOST:
            raise Unavailable("the tablet's descriptor changed meanwhile; look again before forcing it")
        log.warning("tablet %x was forced to the copy of %s: %s", tablet, chosen, loss)
        return {"tablet": tablet, "node": chosen, "epoch": forced.epoch, "may_be_lost": loss}

    # -------------------------------------------------------------------------------- rebuild

    async def _rebuild(self, without: list[str]) -> dict[str, Any]:
        node = self._node
        if await node.coordination.cluster() is not None:
            raise InvalidRequest(
                "the coordination service holds this cluster's state: there is nothing to rebuild",
                field="action",
            )
        found, missing = await self._inventories()
        unexcused = [name for name in missing if name not in without]
        if unexcused:
            raise Unavailable(
                f"nodes that do not answer: {', '.join(unexcused)}. Their copies may hold acknowledged writes: start "
                "them, or name them in without to go on at that risk",
                reason="unreachable",
            )
        ids = {a["cluster_id"] for a in found.values() if a["cluster_id"] is not None}
        if len(ids) != 1:
            raise InvalidRequest(
                f"the nodes' folders name {len(ids)} cluster ids: {sorted(ids)}", field="cluster_id"
            )
        plan = _plan(found)
        for definition in plan.values():
            for tablet in definition.tablets:
                await self._write_descriptor(tablet.id, found)
            await node.coordination.create_table(definition.name, packb(definition.to_wire()), -1)
        highest = max(
            [d.id for d in plan.values()]
            + [int(a["table_id_max"]) for a in found.values()]
            + [int(t) >> TABLET_BITS for a in found.values() for t in a["copies"]],
            default=0,
        )
        while await node.coordination.next_id() < highest:
            pass  # ids that were used are never used again (rule R18)
        record = packb({"format": CLUSTER_FORMAT, "cluster": node.cluster, "id": ids.pop()})
        await node.coordination.create_cluster(record)  # last: nodes may join only what is complete
        log.warning("rebuilt the coordination service's state of %d tables", len(plan))
        return {"tables": sorted(plan), "asked": sorted(found), "without": missing}

    async def _write_descriptor(self, tablet: int, found: dict[str, dict[str, Any]]) -> None:
        copies = {n: a["copies"][str(tablet)] for n, a in found.items() if str(tablet) in a["copies"]}
        seen = [c for c in copies.values() if c["descriptor"] is not None]
        if not seen:
            raise Unavailable(f"no node knows the descriptor of tablet {tablet}", reason="no_descriptor")
        known = [(Descriptor.decode(c["descriptor"]), int(c["descriptor_version"])) for c in seen]
        newest = max(known, key=lambda k: (k[0].epoch, k[1]))[0]
        complete = {n: c for n, c in copies.items() if not c["filling"]}
        if not complete:
            raise Unavailable(f"no node offers a complete copy of tablet {tablet:#x}", reason="no_copy")
        best = max(complete, key=lambda n: (complete[n]["last_epoch"], complete[n]["log_end"], n))
        rebuilt = _only(newest, Member(best, complete[best]["copy_id"]), copies)
        created = await self._node.coordination.create_descriptor(tablet, rebuilt.encode())
        if created is Cas.UNKNOWN:
            raise OutcomeUnknown(f"the new descriptor of tablet {tablet:#x} may not be there; say it again")


def _plan(found: dict[str, dict[str, Any]]) -> dict[str, TableDefinition]:
    """The tables that stand: of one name the one with the highest id, which is the latest."""
    tables: dict[str, TableDefinition] = {}
    for inventory in found.values():
        for name, data in inventory["tables"].items():
            definition = TableDefinition.from_wire(unpackb(data))
            known = tables.get(name)
            if known is None or definition.id > known.id:
                tables[name] = definition
    return tables


def _only(descriptor: Descriptor, member: Member, copies: dict[str, dict[str, Any]]) -> Descriptor:
    """The descriptor in a new epoch with one copy in sync; every other starts anew from it."""
    epoch = max([descriptor.epoch] + [int(c["promised"]) for c in copies.values()]) + 1
    return replace(
        descriptor,
        epoch=epoch,
        coordinator=None,
        incarnation=0,
        in_sync=frozenset({member}),
        recovered=epoch,
    )


def _loss(descriptor: Descriptor, chosen: str, copy: dict[str, Any], copies: dict[str, Any]) -> str:
    """What choosing this copy may lose, in words."""
    position = (copy["last_epoch"], copy["log_end"])
    if Member(chosen, copy["copy_id"]) in descriptor.in_sync and not copy["suspect"]:
        return "nothing that was acknowledged: the chosen copy is in sync"
    later = {n: c for n, c in copies.items() if (c["last_epoch"], c["log_end"]) > position}
    lost = sorted(m.node for m in descriptor.in_sync if m.node != chosen)
    text = (
        f"every acknowledged write after version {copy['last_version']} (entry {copy['log_end']} of epoch "
        f"{copy['last_epoch']}); the in-sync copies were on {', '.join(lost) or 'nobody else'}"
    )
    if later:
        text += f"; {', '.join(sorted(later))} offers a later log"
    return text
