"""The checker of linearizability is itself checked: known good and bad histories, and three independent deciders of
one definition (permutations, the general search, the fast search by versions) on random small ones."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sim.history import DELETE, GET, PUT, UPDATE
from tests.sim.linearizability import (
    ABSENT,
    Event,
    State,
    after_read,
    after_write,
    check_key,
    freeze,
    general_check,
)

NEVER = math.inf


def put(began: int, ended: float, version: int | None, value: int, **condition: Any) -> Event:
    return Event(PUT, began, ended, version, freeze({"v": value}), **condition)


def add(began: int, ended: float, version: int | None, amount: int = 1, **condition: Any) -> Event:
    return Event(UPDATE, began, ended, version, (), freeze({"n": amount}), **condition)


def delete(began: int, ended: float, version: int | None, **condition: Any) -> Event:
    return Event(DELETE, began, ended, version, (), **condition)


def read(began: int, ended: int, version: int, **columns: int) -> Event:
    return Event(GET, began, ended, version, freeze(columns))


def none(began: int, ended: int) -> Event:
    return Event(GET, began, ended)


GOOD: dict[str, list[Event]] = {
    "nothing": [],
    "absent at first": [none(1, 2)],
    "write then read": [put(1, 2, 10, 1), read(3, 4, 10, v=1)],
    "a read overlaps a write and misses it": [put(1, 4, 10, 1), none(2, 3)],
    "a read overlaps a write and sees it": [put(1, 4, 10, 1), read(2, 3, 10, v=1), read(5, 6, 10, v=1)],
    "a compare-and-set that won, and one that lost": [
        put(1, 2, 10, 1),
        put(3, 8, 11, 2, if_version=10),
        read(4, 7, 11, v=2),
    ],
    "an unknown write is seen": [put(1, NEVER, None, 1), read(5, 6, 10, v=1)],
    "an unknown write takes effect late": [put(1, NEVER, None, 1), none(5, 6), read(7, 8, 10, v=1)],
    "an unknown write never happens": [put(1, NEVER, None, 1), none(5, 6)],
    "an unknown delete explains absence": [put(1, 2, 10, 1), delete(3, NEVER, None), none(5, 6)],
    "unseen write and delete between": [
        put(1, NEVER, None, 7),
        put(2, 3, 10, 1, if_exists=True),
    ],
    "an unknown increment counts": [add(1, 2, 10), add(3, NEVER, None), add(5, 6, 12), read(7, 8, 12, n=3)],
    "an unseen chain of increments": [
        add(1, NEVER, None),
        add(2, NEVER, None),
        add(3, 4, 12),
        read(7, 8, 12, n=3),
    ],
    "an unknown compare-and-set wins": [
        put(1, 2, 10, 1),
        put(3, NEVER, None, 2, if_version=10),
        read(4, 5, 12, v=2),
    ],
    "absence of two deletes": [
        put(1, 2, 10, 1),
        delete(3, 4, 11),
        none(5, 6),
        put(7, 8, 12, 2, if_absent=True),
        delete(9, 12, 13),
        read(10, 11, 12, v=2),
        none(13, 14),
    ],
}

BAD: dict[str, list[Event]] = {
    "stale read": [put(1, 2, 10, 1), put(3, 4, 11, 2), read(5, 6, 10, v=1)],
    "reads go back": [put(1, 8, 10, 1), put(2, 9, 11, 2), read(3, 4, 11, v=2), read(5, 6, 10, v=1)],
    "lost write": [put(1, 2, 10, 1), none(3, 4)],
    "lost update": [
        put(1, 2, 10, 1),
        put(3, 4, 11, 2, if_version=10),
        put(5, 6, 12, 3, if_version=10),
    ],
    "a write that never was": [put(1, 2, 10, 1), read(3, 4, 11, v=2)],
    "two writes of one version": [put(1, 2, 10, 1), put(3, 4, 10, 2)],
    "one version, two contents": [put(1, 2, 10, 1), read(3, 4, 10, v=1), read(5, 6, 10, v=2)],
    "read of uncommitted data that vanished": [
        put(1, 2, 10, 1),
        put(3, NEVER, None, 2),
        read(4, 5, 11, v=2),
        read(6, 7, 10, v=1),
    ],
    "an unknown first write vanished after it was seen": [
        put(1, NEVER, None, 1),
        read(2, 3, 10, v=1),
        none(4, 5),
    ],
    "versions against real time": [put(1, 2, 11, 1), put(3, 4, 10, 2)],
    "version of a read before the write that it sees": [
        put(1, 2, 10, 1),
        put(5, 6, 11, 2),
        read(3, 4, 11, v=2),
    ],
    "double increment": [add(1, 2, 10), read(3, 4, 10, n=2)],
    "an unknown increment counted twice": [add(1, 2, 10), add(3, NEVER, None), read(5, 6, 12, n=3)],
    "lost increment": [add(1, 2, 10), add(3, 4, 11), read(5, 6, 11, n=1)],
    "an acknowledged delete comes back": [put(1, 2, 10, 1), delete(3, 4, 11), read(5, 6, 10, v=1)],
    "absence with no delete": [put(1, 2, 10, 1), none(3, 4), read(5, 6, 10, v=1)],
    "if_absent on a row that is there": [put(1, 2, 10, 1), put(3, 4, 11, 2, if_absent=True)],
    "if_exists where nothing was": [put(1, 2, 10, 1, if_exists=True)],
    "an unknown write before it was asked": [read(1, 2, 10, v=1), put(3, NEVER, None, 1)],
    "an unknown write resurrected under its old version": [
        put(1, NEVER, None, 1),
        read(2, 3, 10, v=1),
        put(4, 5, 11, 2),
        read(6, 7, 12, v=1),
    ],
    "an unknown delete does not work twice": [
        put(1, 2, 10, 1),
        delete(3, NEVER, None),
        none(4, 5),
        put(6, 7, 12, 2),
        none(8, 9),
    ],
    "an unknown write is read after a later one": [
        put(1, NEVER, None, 1),
        put(2, 3, 10, 2),
        read(4, 5, 9, v=1),
    ],
}


@pytest.mark.parametrize("name", GOOD)
def test_known_good(name: str) -> None:
    assert check_key(GOOD[name]) is None
    assert general_check(GOOD[name])
    assert brute_force(GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_known_bad(name: str) -> None:
    found = check_key(BAD[name])
    assert found is not None and found.is_proven and found.window and str(found)
    assert not general_check(BAD[name])
    assert not brute_force(BAD[name])


# ------------------------------------------------------------------------------- three deciders agree


def brute_force(events: Sequence[Event]) -> bool:
    """Every order of every choice of the unknown ones."""
    optional = [event for event in events if event.is_optional]
    required = [event for event in events if not event.is_optional]
    for count in range(len(optional) + 1):
        for chosen in itertools.combinations(optional, count):
            if any(_is_order(order) for order in itertools.permutations([*required, *chosen])):
                return True
    return False


def _is_order(order: Sequence[Event]) -> bool:
    state: State | None = ABSENT
    latest = 0
    for event in order:
        latest = max(latest, event.began)
        if event.ended <= latest:
            return False
        assert state is not None
        state = after_read(state, event) if event.is_read else after_write(state, event, event.version)
        if state is None:
            return False
    return True


def random_history(rng: random.Random, count: int, unknown_rate: float, corrupt: bool) -> list[Event]:
    """What some clients of a correct row would see; ``corrupt`` then bends one event."""
    events: list[Event] = []
    state, version, moment = ABSENT, 10, 0
    waiting: list[list[Any]] = []  # [event, has taken effect]
    while len(events) < count:
        moment += 1
        choice = rng.random()
        if choice < 0.4 and len(waiting) < 3:
            waiting.append([_random_event(rng, moment, state), False])
        elif choice < 0.7 and any(not done for _, done in waiting):
            item = rng.choice([item for item in waiting if not item[1]])
            item[1] = True
            version += rng.randrange(1, 3)
            state, item[0] = _take_effect(state, item[0], version)
        elif waiting:
            item = rng.choice(waiting)
            event = item[0]
            if event.kind != GET and rng.random() < unknown_rate:
                waiting.remove(item)
                events.append(replace(event, ended=NEVER, version=None))
                if not item[1] and rng.random() < 0.5:  # it takes effect now, or never
                    version += 1
                    state, _ = _take_effect(state, event, version)
            elif item[1]:
                waiting.remove(item)
                events.append(replace(event, ended=moment))
    for event, is_done in waiting:
        if is_done and event.kind != GET:
            events.append(replace(event, ended=NEVER, version=None))
    if corrupt:
        at = rng.randrange(len(events))
        events[at] = _bent(rng, events[at], version)
    return sorted(events, key=lambda event: event.began)


def _random_event(rng: random.Random, moment: int, state: State) -> Event:
    kind = rng.choice([GET, GET, GET, PUT, PUT, UPDATE, UPDATE, DELETE])
    if kind == GET:
        return Event(GET, moment, 0)
    condition: dict[str, Any] = rng.choice(
        [{}, {}, {"if_absent": True}, {"if_exists": True}, {"if_version": state.version + rng.randrange(2)}]
    )
    if kind == DELETE and "if_absent" in condition:
        condition = {}
    columns = (
        freeze({"v": rng.randrange(2)}) if kind == PUT or (kind == UPDATE and rng.random() < 0.4) else ()
    )
    increment = freeze({"n": rng.randrange(1, 3)}) if kind == UPDATE else ()
    remove = ("v",) if kind == UPDATE and not columns and rng.random() < 0.2 else ()
    return Event(kind, moment, 0, None, columns, increment, remove, **condition)


def _take_effect(state: State, event: Event, version: int) -> tuple[State, Event]:
    """``ended`` -1 marks a write that was refused, to be left out or turned into the read that its refusal was."""
    if event.kind == GET:
        return state, _seen(event, state)
    after = after_write(state, event, version)
    if after is None:
        return state, _seen(Event(GET, event.began, 0), state)
    return after, replace(event, version=version)


def _seen(event: Event, state: State) -> Event:
    if state.columns is None:
        return replace(event, version=None, columns=None)
    return replace(event, version=state.version, columns=state.columns)


def _bent(rng: random.Random, event: Event, version: int) -> Event:
    choice = rng.randrange(4)
    if event.ended != NEVER and choice == 0:
        return replace(event, ended=max(event.began + 1, event.ended - rng.randrange(20)))
    if event.kind == GET:
        return rng.choice(
            [
                replace(event, version=None, columns=None),
                replace(
                    event, version=rng.randrange(10, version + 2), columns=event.columns or freeze({"v": 1})
                ),
                replace(event, version=event.version or 11, columns=freeze({"n": rng.randrange(4)})),
            ]
        )
    if choice == 1 and event.version is not None:
        return replace(event, version=max(event.version + rng.randrange(-3, 4), 1))
    if choice == 2:
        return replace(event, columns=freeze({"v": rng.randrange(3)}))
    return replace(event, increment=freeze({"n": 1}) if event.kind == UPDATE else ())


@settings(max_examples=400, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 6), corrupt=st.booleans())
def test_all_three_agree_on_small_histories(seed: int, count: int, corrupt: bool) -> None:
    rng = random.Random(seed)
    events = random_history(rng, count, rng.choice([0.0, 0.3, 0.7]), corrupt)
    expected = brute_force(events)
    assert general_check(events) == expected
    assert (check_key(events) is None) == expected
    assert expected or corrupt


@settings(max_examples=400, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(7, 14), corrupt=st.booleans())
def test_the_fast_search_agrees_with_the_general_one(seed: int, count: int, corrupt: bool) -> None:
    rng = random.Random(seed)
    events = random_history(rng, count, rng.choice([0.0, 0.2, 0.5]), corrupt)
    found = check_key(events)
    assert found is None or found.is_proven
    assert (found is None) == general_check(events)
    assert found is None or corrupt
