"""The tree of a simulated ZooKeeper: what its requests mean, and which watches a change fires."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from aiozk import exc, protocol
from aiozk.protocol import WatchEvent
from aiozk.protocol.stat import Stat

EPHEMERAL = 1  # the flag of a create request

WriteRequest = protocol.Create2Request | protocol.SetDataRequest | protocol.DeleteRequest


class Create(NamedTuple):
    path: str
    data: bytes
    owner: int


class Write(NamedTuple):
    path: str
    data: bytes


class Delete(NamedTuple):
    path: str


Change = Create | Write | Delete


class Fired(NamedTuple):
    """What happened to a znode: its data's watches or its children's hear of it."""

    path: str
    type: int
    is_of_children: bool


@dataclass(slots=True)
class Znode:
    data: bytes
    owner: int = 0
    version: int = 0
    child_version: int = 0
    children: dict[str, None] = field(default_factory=dict)

    def stat(self) -> Stat:
        return Stat(version=self.version, child_version=self.child_version, ephemeral_owner=self.owner)


class Tree:
    """Paths and their znodes. The leader judges requests on its own, followers apply what it decided."""

    def __init__(self) -> None:
        self.nodes: dict[str, Znode] = {"": Znode(b"")}

    def judge(self, request: protocol.Request, session_id: int) -> Change | exc.ResponseError:
        """What a write request changes, or why it does not."""
        assert isinstance(request, WriteRequest)
        found = self.nodes.get(request.path)
        if isinstance(request, protocol.Create2Request):
            if found is not None:
                return exc.NodeExists()
            if _parent(request.path) not in self.nodes:
                return exc.NoNode()
            return Create(request.path, request.data, session_id if request.flags & EPHEMERAL else 0)
        if found is None:
            return exc.NoNode()
        if request.version not in (-1, found.version):
            return exc.BadVersion()
        if isinstance(request, protocol.SetDataRequest):
            return Write(request.path, request.data)
        return exc.NotEmpty() if found.children else Delete(request.path)

    def apply(self, changes: Sequence[Change]) -> list[Fired]:
        fired: list[Fired] = []
        for change in changes:
            path = change.path
            parent = self.nodes[_parent(path)]
            if isinstance(change, Write):
                found = self.nodes[path]
                found.data = change.data
                found.version += 1
                fired.append(Fired(path, WatchEvent.DATA_CHANGED, False))
                continue
            parent.child_version += 1
            if isinstance(change, Create):
                self.nodes[path] = Znode(change.data, change.owner)
                parent.children[path.rpartition("/")[2]] = None
                fired.append(Fired(path, WatchEvent.CREATED, False))
            else:
                del self.nodes[path]
                del parent.children[path.rpartition("/")[2]]
                fired += (Fired(path, WatchEvent.DELETED, False), Fired(path, WatchEvent.DELETED, True))
            fired.append(Fired(_parent(path), WatchEvent.CHILDREN_CHANGED, True))
        return fired

    def owned_by(self, session_id: int) -> list[Delete]:
        return [Delete(path) for path, node in self.nodes.items() if node.owner == session_id]

    def answer(self, request: protocol.Request) -> protocol.Response | exc.ResponseError:
        """The answer of a read."""
        assert isinstance(
            request, protocol.GetDataRequest | protocol.GetChildren2Request | protocol.ExistsRequest
        )
        found = self.nodes.get(request.path)
        if found is None:
            return exc.NoNode()
        if isinstance(request, protocol.GetDataRequest):
            return protocol.GetDataResponse(data=found.data, stat=found.stat())
        if isinstance(request, protocol.GetChildren2Request):
            return protocol.GetChildren2Response(children=list(found.children), stat=found.stat())
        return protocol.ExistsResponse(stat=found.stat())

    def written(self, change: Change) -> protocol.Response:
        """The answer of a write that was applied."""
        if isinstance(change, Delete):
            return protocol.DeleteResponse()
        stat = self.nodes[change.path].stat()
        if isinstance(change, Create):
            return protocol.Create2Response(path=change.path, stat=stat)
        return protocol.SetDataResponse(stat=stat)


def _parent(path: str) -> str:
    return path.rpartition("/")[0]
