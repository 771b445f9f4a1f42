"""Snapshots of one tablet for members whose log position was trimmed: bounded chunks, one at a time each.

A snapshot is opened between two commits, so that rows, requests and the copy's metadata are of one moment.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ackord_node.core.copy_meta import CopyMeta
from ackord_node.core.effects import Corrupted, Event, SnapshotChunk, SnapshotFailed
from ackord_node.core.replica import Replica
from ackord_node.ports import Engine, EngineCorrupt, EngineError, EngineFailed, SnapshotReader
from ackord_node.runtime.committer import Committer

_SPACES = ("rows", "requests")
_SPACES_WITH_HISTORY = (*_SPACES, "history")  # only of tables that have one


@dataclass(slots=True)
class _Sending:
    reader: SnapshotReader
    header: list[Any]
    space: int = 0
    after: bytes | None = None
    number: int = -1


class Snapshots:
    def __init__(
        self,
        engine: Engine,
        committer: Committer,
        tablet: int,
        replica: Replica,
        feed: Callable[[Event], None],
        crash: Callable[[str, bool], None],
    ) -> None:
        self._engine = engine
        self._committer = committer
        self._tablet = tablet
        self._replica = replica
        self._feed = feed
        self._crash = crash
        self._open: dict[tuple[str, int], _Sending] = {}
        self._wanted: set[tuple[str, int]] = set()

    async def open(self, node: str, snapshot_id: int) -> None:
        self._wanted.add((node, snapshot_id))
        try:
            reader, meta = await self._committer.in_thread(self._take)
        except EngineError as error:
            self._wanted.discard((node, snapshot_id))
            self._failed(node, snapshot_id, error)
            return
        if (node, snapshot_id) not in self._wanted:  # closed meanwhile
            reader.close()
            return
        epoch = meta.runs[bisect_right(meta.runs, (meta.applied, 1 << 62)) - 1][1]
        header = [meta.applied, epoch, meta.last_version, meta.collected_below]
        header += [meta.clock_ms] * bool(meta.clock_ms)
        self._open[(node, snapshot_id)] = _Sending(reader, header)
        self.next_chunk(node, snapshot_id)

    def _take(self) -> tuple[SnapshotReader, CopyMeta]:
        meta = CopyMeta.decode(self._engine.metas()[self._tablet])
        return self._engine.snapshot(self._tablet), meta

    def next_chunk(self, node: str, snapshot_id: int) -> None:
        """Reads the next chunk in a later turn of the loop."""
        asyncio.get_running_loop().call_soon(self._read, node, snapshot_id)

    def _read(self, node: str, snapshot_id: int) -> None:
        sending = self._open.get((node, snapshot_id))
        if sending is None:
            return
        sending.number += 1
        header = sending.header if sending.number == 0 else None
        spaces = _SPACES if self._replica.state.retention is None else _SPACES_WITH_HISTORY
        if sending.space == len(spaces):
            self._feed(SnapshotChunk(node, snapshot_id, sending.number, "end", [], header))
            return
        space = spaces[sending.space]
        bytes_max = self._replica.state.config.log.snapshot_chunk_bytes
        try:
            records, is_last = sending.reader.read(space, sending.after, bytes_max)
        except EngineError as error:
            self._failed(node, snapshot_id, error)
            return
        sending.after = records[-1][0] if records else None
        if is_last:
            sending.space, sending.after = sending.space + 1, None
        self._feed(SnapshotChunk(node, snapshot_id, sending.number, space, records, header))

    def _failed(self, node: str, snapshot_id: int, error: EngineError) -> None:
        if isinstance(error, EngineCorrupt):
            self._feed(Corrupted(str(error)))
        elif isinstance(error, EngineFailed):
            self._crash(f"a read failed (rule R14): {error}", False)
        else:  # the store was closed and opened anew: another one begins
            self._feed(SnapshotFailed(node, snapshot_id))

    def close(self, node: str, snapshot_id: int) -> None:
        self._wanted.discard((node, snapshot_id))
        sending = self._open.pop((node, snapshot_id), None)
        if sending is not None:
            sending.reader.close()

    def close_all(self) -> None:
        for node, snapshot_id in list(self._open):
            self.close(node, snapshot_id)
