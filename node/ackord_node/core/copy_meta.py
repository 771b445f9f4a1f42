"""What a copy knows about itself on disk: one record per tablet, written in the same batch as what it says.

Rules: R3 (``promised`` is durable before anything of its epoch is answered), R13 (``suspect``), R18
(``dropped``, and the copy's last seen descriptor, from which a wiped coordination service is rebuilt).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ackord.wire.frames import packb, unpackb

META_FORMAT = 1
META_FORMAT_OLDEST = 1
_FIELDS_COUNTS = (13, 14, 15)  # the last ones only once they say something


@dataclass(slots=True)
class CopyMeta:
    """``runs`` are the (first index, epoch) pairs of the stored log, see ``Log.runs``; ``filling`` marks a copy
    whose snapshot is not complete, which holds nothing that counts. ``recovered`` is the forced recovery (its
    epoch) that this copy already starts from."""

    copy_id: int
    promised: int = 0
    applied: int = 0
    trimmed: int = 0
    runs: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)])
    last_version: int = 0
    collected_below: int = 0
    suspect: bool = False
    filling: bool = False
    descriptor: bytes | None = None
    descriptor_version: int = -1
    recovered: int = 0
    clock_ms: int = 0  # of the tablet at ``applied`` (rule R20); written only once it runs
    hold_ms: int = 0  # the longest lease that a client may have been granted here (rule R19)

    def encode(self) -> bytes:
        return packb(
            [
                META_FORMAT,
                self.copy_id,
                self.promised,
                self.applied,
                self.trimmed,
                [list(run) for run in self.runs],
                self.last_version,
                self.collected_below,
                self.suspect,
                self.filling,
                self.descriptor,
                self.descriptor_version,
                self.recovered,
            ]
            + [self.clock_ms] * bool(self.clock_ms or self.hold_ms)
            + [self.hold_ms] * bool(self.hold_ms)
        )

    @classmethod
    def decode(cls, data: bytes) -> CopyMeta:
        """Raises ValueError if the record is of a format that this program does not read."""
        raw: Any = unpackb(data)
        found = raw[0] if isinstance(raw, list) and raw else type(raw).__name__
        if type(found) is not int or not META_FORMAT_OLDEST <= found <= META_FORMAT:
            raise ValueError(
                f"copy metadata of format {found!r}; this program reads {META_FORMAT_OLDEST} to {META_FORMAT}"
            )
        if len(raw) not in _FIELDS_COUNTS or type(raw[5]) is not list:
            raise ValueError(f"copy metadata whose fields are not those of format {found}")
        (
            _,
            copy_id,
            promised,
            applied,
            trimmed,
            runs,
            last,
            collected,
            suspect,
            filling,
            descriptor,
            version,
            rec,
        ) = raw[:13]
        return cls(
            copy_id,
            promised,
            applied,
            trimmed,
            _runs(runs),
            last,
            collected,
            suspect,
            filling,
            descriptor,
            version,
            rec,
            raw[13] if len(raw) > 13 else 0,
            raw[14] if len(raw) > 14 else 0,
        )


def _runs(raw: list[Any]) -> list[tuple[int, int]]:
    try:
        return [(index, epoch) for index, epoch in raw]
    except TypeError as error:
        raise ValueError(f"copy metadata whose runs are not pairs: {error}") from None
