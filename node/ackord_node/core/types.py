"""The words of the protocol as values: descriptor, member, timing. See DESIGN.md, section 1.

Rules held here: R1 (every descriptor change names the version it replaces; see ``Descriptor``) and R7
(the promise outlasts every lease that it protects, whatever the drift within ``rho``; see ``Timing``).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from ackord.wire.frames import packb, unpackb

DESCRIPTOR_FORMAT = 1
DESCRIPTOR_FORMAT_OLDEST = 1


class Member(NamedTuple):
    """One copy of a tablet as the descriptor records it: a node's name and its copy_id."""

    node: str
    copy_id: int


@dataclass(frozen=True, slots=True)
class Descriptor:
    """The tablet's record in the coordination service. ``epoch`` 0 with an empty in-sync set is a tablet
    that has never had a coordinator, so that no entry of it can exist anywhere."""

    tablet: int
    epoch: int
    coordinator: str | None
    incarnation: int
    in_sync: frozenset[Member]
    replicas: tuple[str, ...]  # in order of preference as coordinator
    min_in_sync: int
    start: bytes
    end: bytes | None
    dropped: bool = False
    recovered: int = 0  # the epoch of the last forced recovery: copies of before it start anew

    def encode(self) -> bytes:
        return packb(
            {
                "format": DESCRIPTOR_FORMAT,
                "tablet": self.tablet,
                "epoch": self.epoch,
                "coordinator": self.coordinator,
                "incarnation": self.incarnation,
                "in_sync": [list(m) for m in sorted(self.in_sync)],
                "replicas": list(self.replicas),
                "min_in_sync": self.min_in_sync,
                "start": self.start,
                "end": self.end,
                "dropped": self.dropped,
                "recovered": self.recovered,
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> Descriptor:
        """Raises ValueError if the data is not a descriptor of a format that this program reads."""
        raw: Any = unpackb(data)
        found = raw.get("format") if isinstance(raw, dict) else type(raw).__name__
        if type(found) is not int or not DESCRIPTOR_FORMAT_OLDEST <= found <= DESCRIPTOR_FORMAT:
            raise ValueError(
                f"descriptor format {found!r}; this program reads "
                f"{DESCRIPTOR_FORMAT_OLDEST} to {DESCRIPTOR_FORMAT}"
            )
        try:
            return cls(
                tablet=raw["tablet"],
                epoch=raw["epoch"],
                coordinator=raw["coordinator"],
                incarnation=raw["incarnation"],
                in_sync=frozenset(Member(node, copy_id) for node, copy_id in raw["in_sync"]),
                replicas=tuple(raw["replicas"]),
                min_in_sync=raw["min_in_sync"],
                start=raw["start"],
                end=raw["end"],
                dropped=raw["dropped"],
                recovered=raw.get("recovered", 0),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"a descriptor whose fields are not those of format {found}: {error!r}"
            ) from None

    def with_in_sync(self, members: frozenset[Member]) -> Descriptor:
        return replace(self, in_sync=members)

    def member_of(self, node: str) -> Member | None:
        """The in-sync copy that lives on ``node``, if there is one."""
        return next((m for m in self.in_sync if m.node == node), None)

    @property
    def is_newborn(self) -> bool:
        """No write was ever committed: that needs a set of ``min_in_sync`` (R4), below which a set that once
        reached it never falls again (R2, R11), except by a forced recovery."""
        return len(self.in_sync) < self.min_in_sync and not self.recovered


@dataclass(frozen=True, slots=True)
class Timing:
    """Durations of the protocol, in seconds unless the name says otherwise.

    ``drift_max`` (rho) bounds how far any clock's rate is from real time. A wait for somebody else's
    lease is scaled by (1 + rho) / (1 - rho): the holder's clock may be slow, ours fast.
    """

    lease: float = 1.0  # L
    drift_max: float = 0.01  # rho
    margin: float = 0.05  # scheduling slack added to the promise
    confirm_timeout: float = 1.0  # a member that confirms nothing for so long is removed
    lock_rank_delay: float = 0.15  # a candidate waits rank times this after the lock became free
    unfit_delay: float = 2.0  # a candidate with a slow or full disk lets others go first
    inquiry_timeout: float = 0.2  # R13: how long a new coordinator waits for its members' log ends
    drain_commit_timeout: float = 0.5  # a draining coordinator waits so long for its last entries
    retry_interval: float = 0.25  # lost messages to members and to the coordination service
    rejoin_pause: float = 0.5  # first pause before a removed member may rejoin; doubles up to ...
    rejoin_pause_max: float = 30.0
    rejoin_forget: float = 60.0  # in sync for so long: the pauses start small again
    balance_delay: float = 3.0  # the preferred node was in sync for so long: hand over to it
    # Worked out of these once: they are asked for at every step of every tablet.
    scale: float = field(init=False)
    promise: float = field(init=False)  # G of rule R7
    beacon_interval: float = field(init=False)
    idle_interval: float = field(init=False)  # between two ticks of a tablet for which nothing is due
    silence: float = field(init=False)  # a node that confirmed no beacon for so long gets each tablet's own

    def __post_init__(self) -> None:
        scale = (1 + self.drift_max) / (1 - self.drift_max)
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "promise", self.lease * scale + self.margin)
        object.__setattr__(self, "beacon_interval", self.lease / 4)
        object.__setattr__(self, "idle_interval", 4 * self.lease)
        object.__setattr__(self, "silence", min(self.lease, self.confirm_timeout) / 2)


@dataclass(frozen=True, slots=True)
class LogLimits:
    """How much of a tablet's log is kept, in memory for members and on disk for catch-up; bytes."""

    memory_bytes: int = 2 * 1024 * 1024
    disk_bytes: int = 32 * 1024 * 1024
    append_bytes: int = 256 * 1024  # records in one append message
    inflight_bytes: int = 4 * 1024 * 1024  # appends sent to one member and not confirmed
    entry_bytes: int = 1024 * 1024  # one entry holds writes up to about this size
    snapshot_chunk_bytes: int = 256 * 1024
