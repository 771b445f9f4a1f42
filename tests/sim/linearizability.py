"""Is what clients saw of one row linearizable? Two checkers of one definition.

Each row is a register of its own (linearizability is local: Herlihy and Wing, 1990), so a history is split by key.
The model of a row: absent, or columns with a version; every write that takes effect gives the row (or its absence,
after a delete) a version above all earlier ones. A condition that held is part of a write's effect; a condition
that did not hold is a read of the row that was reported with it. An operation whose outcome is unknown may take
effect at any time after it was asked, or never; the version that it got shows only if a read reports it.

``general_check`` is the definition: search for an order, by Wing and Gong (1993) with the memo of Lowe (2017), over
(what has taken effect, state of the row). It is exponential and knows nothing about versions but the model.

``check_key`` decides the same in nearly linear time. Versions that were reported are a total order that any
linearization must follow, which leaves three questions:

- does this order contradict real time? (a pass over the versions from the end, with the earliest answer so far);
- where did the reads of absence happen? A read never hurts at the first moment at which it fits, and those
  that were asked earlier fit earlier, so they are taken in the order in which they were asked;
- which writes of unknown outcome took effect, unseen or under a version that only reads reported? These are searched
  for with a memo, each only where what follows does not fit without one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from tests.sim.history import DELETE, GET, PUT, SCAN, UPDATE, Op

NODES_COUNT_MAX: Final = 200_000  # states that one search may visit before it gives up
COMPARED_COUNT_MAX: Final = 32  # visited states that another is compared with
WINDOW_OPS_MAX: Final = 24  # operations shown of a contradiction
SHRINK_NODES_MAX: Final = 100_000  # that may be visited to shorten what is shown of a contradiction

Frozen = tuple[tuple[str, Any], ...]  # columns in the order of their names, lists as tuples


def freeze(value: Any) -> Any:
    """A value that can be compared and hashed, and that tells True from 1."""
    if isinstance(value, dict):
        return tuple(sorted((name, freeze(item)) for name, item in value.items()))
    if isinstance(value, list | tuple):
        return tuple(map(freeze, value))
    return ("bool", value) if isinstance(value, bool) else value


class State(NamedTuple):
    """``version`` is the row's, or, not ``exact``, what it is at least (of a write that nobody saw). Absence has the
    version of the delete; 0: there was never a row."""

    version: int
    exact: bool
    columns: Frozen | None


ABSENT: Final = State(0, True, None)


@dataclass(frozen=True, slots=True, eq=False)
class Event:
    """One operation as the checkers see it; ``ended`` is infinite if it may take effect at any time, or never.
    ``version`` of a write: what it returned; of a read: the row's, None for absence."""

    kind: str  # get, put, update, delete
    began: int
    ended: float
    version: int | None = None
    columns: Frozen | None = None  # of a read and a put; what an update sets
    increment: Frozen = ()
    remove: tuple[str, ...] = ()
    if_version: int | None = None
    if_absent: bool = False
    if_exists: bool = False
    op: Op | None = None  # where it comes from
    append: Frozen = ()  # of an update: what is added to lists
    union: Frozen = ()  # and to sorted lists without repetition
    where: tuple[Any, ...] | None = None  # column, comparison, value

    @property
    def is_read(self) -> bool:
        return self.kind == GET

    @property
    def is_optional(self) -> bool:
        return self.ended == math.inf

    @property
    def effect(self) -> tuple[Any, ...]:
        """Writes of the same effect may stand for each other."""
        return (
            self.kind,
            self.columns,
            self.increment,
            self.remove,
            self.if_version,
            self.if_absent,
            self.if_exists,
            self.append,
            self.union,
            self.where,
        )

    @property
    def is_blind(self) -> bool:
        """A write that takes effect on any row, and what was there before does not matter."""
        has_condition = (
            self.if_version is not None or self.if_absent or self.if_exists or self.where is not None
        )
        return self.kind in (PUT, DELETE) and not has_condition

    def __str__(self) -> str:
        if self.op is None:
            return f"{self.effect} version {self.version} [{self.began}, {self.ended}]"
        if self.op.kind == SCAN:
            return f"{self.op}, of this key: {'no row' if self.version is None else self.version}"
        return str(self.op)


@dataclass(frozen=True, slots=True)
class Contradiction:
    """``is_proven`` is False if the search gave up: such a history must be looked at, it is not known to be wrong."""

    reason: str
    window: tuple[Event, ...]
    is_proven: bool = True

    def __str__(self) -> str:
        lines = [self.reason if self.is_proven else f"undecided: {self.reason}"]
        lines += [f"    {event}" for event in self.window[:WINDOW_OPS_MAX]]
        if len(self.window) > WINDOW_OPS_MAX:
            lines.append(f"    ... and {len(self.window) - WINDOW_OPS_MAX} more")
        return "\n".join(lines)


# ---------------------------------------------------------------------------------------- the model


def after_write(state: State, event: Event, version: int | None) -> State | None:
    """The row after the write took effect under ``version`` (None: nobody saw under which); None if it cannot."""
    floor = state.version
    if event.if_version is not None:
        if state.columns is None or event.if_version < floor or (state.exact and event.if_version != floor):
            return None
        floor = event.if_version
    if (event.if_absent and state.columns is not None) or (event.if_exists and state.columns is None):
        return None
    if event.where is not None and not where_holds(event.where, state.columns):
        return None
    if version is not None and version <= floor:
        return None
    columns = _written(state.columns, event)
    return State(floor + 1, False, columns) if version is None else State(version, True, columns)


def _written(before: Frozen | None, event: Event) -> Frozen | None:
    if event.kind == DELETE:
        return None
    if event.kind == PUT:
        return event.columns
    columns = dict(before or ())
    for name in event.remove:
        columns.pop(name, None)
    columns.update(event.columns or ())
    for name, amount in event.increment:
        columns[name] = columns.get(name, 0) + amount
    for name, items in event.append:
        columns[name] = columns.get(name, ()) + items
    for name, items in event.union:
        columns[name] = tuple(sorted({*columns.get(name, ()), *items}))
    return tuple(sorted(columns.items()))


def where_holds(where: Sequence[Any], columns: Frozen | None) -> bool:
    """Of values of one kind, and of a missing column."""
    name, comparison, wanted = where
    seen = dict(columns or ())
    if comparison == "exists":
        return (name in seen) is bool(wanted)
    if comparison == "==":
        return name in seen and bool(seen[name] == wanted)
    return name in seen and bool(seen[name] >= wanted)


def after_read(state: State, event: Event) -> State | None:
    """The row, its version now known, if the read can have seen it."""
    if event.version is None or state.columns is None:
        return state if event.version is None and state.columns is None else None
    if event.columns != state.columns or event.version < state.version:
        return None
    if state.exact and event.version != state.version:
        return None
    return State(event.version, True, state.columns)


def general_check(events: Sequence[Event]) -> bool:
    """Whether the events of one key are linearizable: the definition, exponential in their number."""
    required = sum(1 << number for number, event in enumerate(events) if not event.is_optional)
    seen: set[tuple[int, State]] = set()
    stack = [(0, ABSENT)]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        done, state = node
        if done & required == required:
            return True
        left = [(number, event) for number, event in enumerate(events) if not done >> number & 1]
        first_end = min(event.ended for _, event in left)
        for number, event in left:
            if event.began < first_end:
                after = (
                    after_read(state, event) if event.is_read else after_write(state, event, event.version)
                )
                if after is not None:
                    stack.append((done | 1 << number, after))
    return False


# ----------------------------------------------------------------------------------- the fast search


@dataclass(slots=True)
class _Group:
    """What is known of one reported version: who wrote it (None: somebody of unknown outcome) and who read it."""

    version: int
    write: Event | None = None
    reads: list[Event] = field(default_factory=list)

    @property
    def columns(self) -> Frozen | None:
        return self.reads[0].columns if self.reads else None

    @property
    def first_end(self) -> Event | None:
        return min([*self.reads, *([self.write] if self.write else [])], key=_ended, default=None)

    @property
    def last_read_began(self) -> int:
        return max((read.began for read in self.reads), default=0)


def _ended(event: Event) -> float:
    return event.ended


class _Node(NamedTuple):
    position: int  # groups that took effect
    absences: int  # reads of absence that have a place
    used: int  # bits of the writes of unknown outcome that took effect
    state: State


class _Search:
    """One key's events, sorted out, and the search over what the versions leave open."""

    def __init__(self, events: Iterable[Event]) -> None:
        self.groups: list[_Group] = []
        self.absences: list[Event] = []
        self.optional: list[Event] = []
        self.contradiction = self._sort(events)
        count = len(self.groups)
        # by_end[i]: of all in the groups from i on, the one that was answered first
        self.by_end: list[Event | None] = [None] * (count + 1)
        for position in range(count - 1, -1, -1):
            candidates = [e for e in (self.groups[position].first_end, self.by_end[position + 1]) if e]
            self.by_end[position] = min(candidates, key=_ended, default=None)
        self.absence_ends = [math.inf] * (len(self.absences) + 1)
        for number in range(len(self.absences) - 1, -1, -1):
            self.absence_ends[number] = min(self.absences[number].ended, self.absence_ends[number + 1])
        self.classes: dict[tuple[Any, ...], list[int]] = {}
        for number, event in enumerate(self.optional):
            self.classes.setdefault(event.effect, []).append(number)
        self.reserved = self._reserved()
        self.deepest: _Node = _Node(0, 0, 0, ABSENT)
        self.nodes_count = 0

    # ------------------------------------------------------------------------------ what is given

    def _sort(self, events: Iterable[Event]) -> Contradiction | None:
        groups: dict[int, _Group] = {}
        conditions = set()
        for event in sorted(events, key=lambda event: event.began):
            if event.is_read and event.version is None:
                self.absences.append(event)
            elif event.is_optional:
                if not event.is_read:
                    self.optional.append(event)
            elif event.version is None:
                raise ValueError(f"a write without a version: {event}")
            else:
                group = groups.setdefault(event.version, _Group(event.version))
                found = self._into_group(group, event)
                if found is not None:
                    return found
                if event.if_version is not None:
                    conditions.add(event.if_version)
        for version in conditions:
            groups.setdefault(version, _Group(version))
        self.groups = sorted(groups.values(), key=lambda group: group.version)
        return None

    @staticmethod
    def _into_group(group: _Group, event: Event) -> Contradiction | None:
        if not event.is_read:
            if group.write is not None:
                return Contradiction("two writes were given one version", (group.write, event))
            group.write = event
        elif group.reads and group.reads[0].columns != event.columns:
            return Contradiction("one version was read with two contents", (group.reads[0], event))
        else:
            group.reads.append(event)
        return None

    def _reserved(self) -> int:
        """Bits of the writes of which it is certain under which version they took effect: no other can have left
        what was read under it."""
        bits = 0
        for group in self.groups:
            if group.write is None and group.reads:
                able = [n for effect, n in self.classes.items() if _may_leave(effect, group.columns)]
                if len(able) == 1 and len(able[0]) == 1:
                    bits |= 1 << able[0][0]
        return bits

    def _ends(self, position: int) -> float:
        first = self.by_end[position]
        return math.inf if first is None else first.ended

    def real_time(self) -> Contradiction | None:
        """Versions against real time: nobody may be asked after one with a later version was answered."""
        for position, group in enumerate(self.groups):
            own, later = self.by_end[position], self.by_end[position + 1]
            if group.write is not None and own is not None and group.write.began >= own.ended:
                return self._too_late(group.write, group.version, own)
            if later is not None and group.last_read_began >= later.ended:
                return self._too_late(max(group.reads, key=lambda read: read.began), group.version, later)
        return None

    def _too_late(self, event: Event, version: int, earlier: Event) -> Contradiction:
        what = "read" if event.is_read else "written"
        reason = (
            f"version {version} was {what} by one who was asked after version {earlier.version} was answered"
        )
        if event.is_read:
            reason = "a stale read: " + reason
        of = [group.write for group in self.groups if group.version in (version, earlier.version)]
        window = {id(e): e for e in (*of, earlier, event) if e is not None}
        return Contradiction(reason, tuple(window.values()))

    # ------------------------------------------------------------------------------------- search

    def run(self) -> bool | None:
        """True: linearizable; False: not; None: not decided within the bound."""
        seen: set[_Node] = set()
        least_used: dict[tuple[int, int, State], list[int]] = {}
        root = self._settled(_Node(0, 0, 0, ABSENT))
        stack = [self._after(root)] if not self._is_end(root) else []
        if not stack:
            return True
        while stack:
            node = next(stack[-1], None)
            if node is None:
                stack.pop()
                continue
            node = self._settled(node)
            if self._is_end(node):
                return True
            self.nodes_count += 1
            if self.nodes_count > NODES_COUNT_MAX:
                return None
            visited = least_used.setdefault((node.position, node.absences, node.state), [])
            if node in seen or any(used & node.used == used for used in visited):
                continue  # with more writes left it was of no use, so it is not with fewer
            seen.add(node)
            if len(visited) < COMPARED_COUNT_MAX:
                visited.append(node.used)
            if (node.position, node.absences) > (self.deepest.position, self.deepest.absences):
                self.deepest = node
            stack.append(self._after(node))
        return False

    def _is_end(self, node: _Node) -> bool:
        return node.position == len(self.groups) and node.absences == len(self.absences)

    def _settled(self, node: _Node) -> _Node:
        """With all reads of absence that fit now."""
        if node.state.columns is not None:
            return node
        absences, ends = node.absences, self._ends(node.position)
        while absences < len(self.absences) and self.absences[absences].began < ends:
            absences += 1
        return node._replace(absences=absences)

    def _after(self, node: _Node) -> Iterator[_Node]:
        """Where the search can go, likeliest first."""
        is_reset = False
        if node.position < len(self.groups):
            group = self.groups[node.position]
            nodes = list(self._next_group(node, group))
            yield from nodes
            is_reset = bool(nodes) and self._forgets(group)
        if not is_reset or self._absence_is_waiting(node):
            yield from self._unseen(node)

    def _next_group(self, node: _Node, group: _Group) -> Iterator[_Node]:
        absence_end = self.absence_ends[node.absences]
        if group.last_read_began >= absence_end:
            return
        if group.write is not None:
            if group.write.began < absence_end:
                after = after_write(node.state, group.write, group.version)
                if after is not None and _fits(after, group):
                    yield _Node(node.position + 1, node.absences, node.used, after)
            return
        for number, event in self._usable(node):
            after = after_write(node.state, event, group.version)
            if after is not None and after.columns is not None and _fits(after, group):
                yield _Node(node.position + 1, node.absences, node.used | 1 << number, after)

    def _forgets(self, group: _Group) -> bool:
        """Nothing that happened unseen just before this version can matter after it, given that it fits now."""
        if group.write is not None:
            return group.write.kind != UPDATE or bool(group.reads)
        return bool(group.reads) and sum(_may_leave(effect, group.columns) for effect in self.classes) == 1

    def _absence_is_waiting(self, node: _Node) -> bool:
        waiting = self.absences[node.absences : node.absences + 1]
        return bool(waiting) and waiting[0].began < self._ends(node.position)

    def _unseen(self, node: _Node) -> Iterator[_Node]:
        limit = self.groups[node.position].version if node.position < len(self.groups) else math.inf
        unseen_before = not node.state.exact and node.state.columns is not None
        for number, event in self._usable(node):
            if self.reserved >> number & 1 or (unseen_before and event.is_blind):
                continue  # what came before it, unseen as well, might as well not have happened
            after = after_write(node.state, event, None)
            if after is not None and after.version < limit:
                yield node._replace(used=node.used | 1 << number, state=after)

    def _usable(self, node: _Node) -> Iterator[tuple[int, Event]]:
        """Of each effect the write that was asked first: what fits another of them fits it as well."""
        ends = min(self._ends(node.position), self.absence_ends[node.absences])
        for numbers in self.classes.values():
            for number in numbers:
                if not node.used >> number & 1:
                    if self.optional[number].began < ends:
                        yield number, self.optional[number]
                    break


def _fits(after: State, group: _Group) -> bool:
    return not group.reads or group.columns == after.columns


def _may_leave(effect: tuple[Any, ...], columns: Frozen | None) -> bool:
    """Whether a write of this effect can leave these columns (None: nobody saw them)."""
    kind, written, _, removed = effect[:4]
    if kind == DELETE:
        return False
    if columns is None:
        return True
    if kind == PUT:
        return bool(written == columns)
    seen = dict(columns)
    return all(name in seen and seen[name] == value for name, value in written or ()) and not (
        set(removed) & seen.keys()
    )


def check_key(events: Sequence[Event]) -> Contradiction | None:
    """None if the events of one key are linearizable, else why not."""
    search = _Search(events)
    found = search.contradiction or search.real_time()
    if found is not None:
        return found
    verdict = search.run()
    if verdict is True:
        return None
    if verdict is None:
        reason = f"{len(search.optional)} writes of unknown outcome leave too many possibilities"
        return Contradiction(reason, _window(search, events), is_proven=False)
    needed = _shrunk(events, SHRINK_NODES_MAX // max(search.nodes_count, 1))
    search = _Search(needed)
    search.run()
    return Contradiction(_explain(search), _window(search, needed))


# --------------------------------------------------------------------------------- what is shown of it


def _shrunk(events: Sequence[Event], checks_max: int) -> list[Event]:
    """Without the reads that the contradiction does not need (what is left of it without them is still one)."""
    kept = list(events)
    size = len(kept)
    checks = 0
    while size >= 1 and checks < checks_max:
        at = 0
        while at < len(kept) and checks < checks_max:
            part = [event for event in kept[at : at + size] if event.is_read]
            if part:
                checks += 1
                fewer = _without(kept, part)
                search = _Search(fewer)
                if search.contradiction or search.real_time() or search.run() is False:
                    kept = fewer
                    continue
            at += size
        size //= 2
    return kept


def _without(events: list[Event], removed: list[Event]) -> list[Event]:
    gone = set(map(id, removed))
    return [event for event in events if id(event) not in gone]


def _explain(search: _Search) -> str:
    node = search.deepest
    before = "there was no row" if node.state.columns is None else f"the row was {dict(node.state.columns)!r}"
    where = f"after version {node.state.version}, when {before}"
    if node.position == len(search.groups):
        return f"{where}, there was always a row, but none was read"
    group = search.groups[node.position]
    if any(True for _ in search._next_group(node._replace(absences=len(search.absences)), group)):
        return f"{where}, no row was read, but at no moment of that read was there none"
    if group.write is None:
        return f"{where}, no write can have left version {group.version}, which was read or was a condition"
    return f"{where}, the write of version {group.version} cannot have done what it and its readers report"


def _window(search: _Search, events: Sequence[Event]) -> tuple[Event, ...]:
    """The operations around the place where the search got stuck."""
    node = search.deepest
    near = search.groups[max(node.position - 2, 0) : node.position + 2]
    shown = [e for group in near for e in ([group.write] if group.write else []) + group.reads[:3]]
    shown += search.absences[node.absences : node.absences + 2]
    shown += [e for number, e in enumerate(search.optional) if not node.used >> number & 1][:6]
    chosen = {id(event) for event in shown}
    return tuple(event for event in sorted(events, key=lambda e: e.began) if id(event) in chosen)
