"""One replica fed by hand: what it says to each event, without a cluster around it.

``n1``, ``n2`` and ``n3`` hold the copies 1, 2 and 3, and run as incarnations 11, 22 and 33.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from ackord.wire.limits import Limits
from ackord_node.core import effects as e
from ackord_node.core import messages as m
from ackord_node.core.copy_meta import CopyMeta
from ackord_node.core.log import Entry
from ackord_node.core.replica import Replica
from ackord_node.core.state import CoreConfig, StoredCopy
from ackord_node.core.types import Descriptor, LogLimits, Member, Timing
from tests.support.core_disk import VirtualDisk

TABLET = 7
NODES = ("n1", "n2", "n3")
INCARNATIONS = {"n1": 11, "n2": 22, "n3": 33}
COPIES = {"n1": 1, "n2": 2, "n3": 3}
ALL_WELL = m.FLAG_COORDINATION | m.FLAG_FIT | m.FLAG_STAYS
TIMING = Timing(balance_delay=1e9)
WALL_MS = 1000
OTHERS = ("n2", "n3")


def entry(index: int, epoch: int, key: bytes = b"k", client: bytes = b"c", size: int = 3) -> Entry:
    group = [client, 1, 0, [index], [key], [b"r" * size]]
    return Entry.create(TABLET, epoch, index, index * 10, [group])


def entries(count: int, epoch: int = 3, first: int = 1) -> list[Entry]:
    return [entry(index, epoch) for index in range(first, first + count)]


def descriptor(*in_sync: str, epoch: int = 3, min_in_sync: int = 2, **fields: Any) -> Descriptor:
    members = frozenset(Member(node, COPIES[node]) for node in in_sync)
    return replace(Descriptor(TABLET, epoch, None, 0, members, NODES, min_in_sync, b"", None), **fields)


@dataclass
class Asked:
    """The responder of one group of writes or of one read."""

    answers: dict[int, Any] = field(default_factory=dict)


class Hand:
    def __init__(
        self,
        node: str = "n1",
        meta: CopyMeta | None = None,
        tail: list[Entry] | None = None,
        timing: Timing = TIMING,
        log: LogLimits | None = None,
        limits: Limits | None = None,
        is_new: bool = False,
    ) -> None:
        self.now = 10.0
        self.effects: list[e.Effect] = []
        self.config = CoreConfig(timing, log or LogLimits(), limits or Limits())
        self.node = node
        self.disk = VirtualDisk(TABLET, COPIES[node])
        found = meta or CopyMeta(COPIES[node], promised=3)
        copy = StoredCopy(TABLET, found, tail or [], [], is_new)
        made = iter(range(50, 99))
        self.r = Replica(node, INCARNATIONS[node], copy, self.config, self.disk, lambda: next(made), 0.0)

    # ------------------------------------------------------------------------------- events

    def do(self, event: e.Event, at: float | None = None) -> list[e.Effect]:
        self.now = self.now if at is None else at
        out = self.r.step(event, self.now)
        self.r.check_invariants()
        for effect in out:
            if isinstance(effect, e.Reply):
                asked: Any = effect.request
                places = effect.indices if effect.indices is not None else range(len(effect.results))
                asked.answers.update(zip(places, effect.results, strict=True))
        self.effects += out
        return out

    def tick(self, seconds: float = 0.0) -> list[e.Effect]:
        return self.do(e.Tick(), self.now + seconds)

    def wait(self, seconds: float, step: float = 0.1) -> None:
        end = self.now + seconds
        while self.now < end - 1e-9:
            self.tick(min(step, end - self.now))

    def hear(self, source: str, *message: Any, incarnation: int | None = None) -> list[e.Effect]:
        run = INCARNATIONS.get(source, 99) if incarnation is None else incarnation
        return self.do(e.Received(source, run, list(message)))

    def store(self) -> list[e.Effect]:
        """Everything that waits goes to disk."""
        out: list[e.Effect] = []
        while (batch := self.r.take_batch()) is not None:
            self.disk.apply(batch)
            out += self.do(e.Durable(batch))
        return out

    # ------------------------------------------------------------------------------- effects

    def forget(self) -> None:
        self.effects.clear()

    def sent(self, kind: int, to: str | None = None) -> list[Any]:
        """Messages since the last ``forget``."""
        return [
            x.message
            for x in self.effects
            if isinstance(x, e.Send) and x.message[0] == kind and to in (None, x.node)
        ]

    def did(self, kind: type) -> list[Any]:
        return [x for x in self.effects if isinstance(x, kind)]

    def notes(self, text: str) -> int:
        return sum(text in x.text for x in self.did(e.Note))

    # ------------------------------------------------------------------------------- as follower

    def append(self, epoch: int, previous: int, previous_epoch: int, commit: int, tail: list[Entry],
               source: str = "n1", recovered: int = 0) -> list[e.Effect]:  # fmt: skip
        records = [x.record for x in tail]
        return self.hear(
            source, m.APPEND, TABLET, epoch, previous, previous_epoch, commit, records, recovered
        )

    def beacon(self, epoch: int, commit: int, start: int, request: float = -1.0, seconds: float = 0.0,
               source: str = "n1", grantee: int | None = None, recovered: int = 0) -> list[e.Effect]:  # fmt: skip
        to = INCARNATIONS[self.node] if grantee is None else grantee
        return self.hear(
            source, m.BEACON, TABLET, epoch, self.now, commit, start, request, seconds, to, recovered
        )

    def beaconed(self, epoch: int, source: str = "n2") -> None:
        """A coordinator of ``epoch`` is heard, and promised to."""
        self.beacon(epoch, 0, 0, source=source)

    def follower_lease(self, until: float) -> None:
        """As a mistake elsewhere would leave it."""
        self.r.follower.lease_until = until

    def is_suspect(self) -> bool:
        return self.r.state.suspect

    def is_filling(self) -> bool:
        return self.r.state.filling

    def announces(self) -> bool:
        return self.r.has_announcement

    def takeover_stage(self) -> str:
        return self.r.takeover.stage.value

    # ---------------------------------------------------------------------------- as coordinator

    @property
    def c(self) -> Any:
        assert self.r.coordinator is not None
        return self.r.coordinator

    @property
    def epoch(self) -> int:
        return int(self.c.epoch)

    def answer_inquiry(self, node: str, commit: int = 0, end: int = 0, epoch: int | None = None,
                       recovered: int = 0) -> list[e.Effect]:  # fmt: skip
        asked = self.epoch if epoch is None else epoch
        return self.hear(
            node, m.INQUIRE_ANSWER, TABLET, asked, COPIES[node], asked, 0, end, commit, recovered
        )

    def confirm(self, node: str, index: int, copy: int | None = None, incarnation: int | None = None,
                epoch: int | None = None) -> list[e.Effect]:  # fmt: skip
        of, term = copy or COPIES[node], self.epoch if epoch is None else epoch
        return self.hear(node, m.CONFIRM, TABLET, term, of, index, incarnation=incarnation)

    def promise(self, *nodes: str, sent_at: float | None = None, request: float = -1.0, end: int | None = None,
                flags: int = ALL_WELL, copy: int | None = None, incarnation: int | None = None) -> None:  # fmt: skip
        """Confirmations of a beacon."""
        at = self.now if sent_at is None else sent_at
        for node in nodes:
            reach = self.r.state.log.end if end is None else end
            of = COPIES[node] if copy is None else copy
            self.hear(
                node,
                m.BEACON_CONFIRM,
                TABLET,
                self.epoch,
                of,
                at,
                request,
                reach,
                flags,
                incarnation=incarnation,
            )

    def write(self, key: bytes = b"k", client: bytes = b"w", seq: int = 1, kind: int = 1, body: bytes = b"\x80",
              condition: int = 0, value: int | None = None, attempt: int = 1, registered: int = 5,
              floor: int = 0) -> Asked:  # fmt: skip
        asked: Any = Asked()
        op = [seq, kind, key, body, condition, value, attempt]
        self.do(e.Writes([e.WriteGroup(asked, client, registered, floor, [op])], WALL_MS))
        return asked  # type: ignore[no-any-return]

    def swap(self) -> e.Swap:
        """The compare-and-set that was asked for last."""
        return self.did(e.Swap)[-1]  # type: ignore[no-any-return]

    def won(self) -> None:
        self.do(e.SwapDone(self.swap().ticket, e.SwapOutcome.WON))


def candidate(
    known: Descriptor | None = None, version: int = 4, peers: tuple[str, ...] = OTHERS, **options: Any
) -> Hand:
    """n1, which has seen the descriptor and whose promise is over; nobody holds the lock."""
    h = Hand(**options)
    for node in peers:
        h.do(e.PeerUp(node))
    h.do(e.CoordinationSeen(True))
    h.do(e.DescriptorSeen(known or descriptor(*NODES), version))
    h.now += 10
    return h


def coordinator(
    *in_sync: str, min_in_sync: int = 2, settled: bool = True, peers: tuple[str, ...] = OTHERS, **options: Any
) -> Hand:
    """n1 coordinates epoch 4. ``settled``: its epoch is on disk and its members have answered."""
    h = candidate(descriptor(*(in_sync or NODES), min_in_sync=min_in_sync), peers=peers, **options)
    h.do(e.LockSeen("n1", True))
    h.won()
    if settled:
        h.store()
        for node in peers:
            h.answer_inquiry(node)
        assert h.c.is_active
    return h


def serving(*in_sync: str, **options: Any) -> Hand:
    """The same with all members' confirmations: the tail is committed and the coordinator may answer."""
    h = coordinator(*in_sync, **options)
    members = [x.node for x in h.c.membership.in_sync if x.node != "n1"]
    for node in sorted(members):
        h.confirm(node, h.r.state.log.end)
        h.promise(node)
    h.store()
    h.forget()
    return h
