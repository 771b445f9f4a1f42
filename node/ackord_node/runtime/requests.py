"""Requests of clients on their way through the core: who is to be answered, and how."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ackord.wire.messages import TOLD
from ackord_node.core.effects import Tell, WriteGroup
from ackord_node.runtime.service import Respond

GET_BYTES_MAX = 16 * 1024 * 1024  # of rows in one answer of several; the others may be asked for again


class Request:
    """One request group; the core's ``Reply`` effects lead back here."""

    __slots__ = ("_respond", "_rid")

    def __init__(self, rid: int, respond: Respond) -> None:
        self._rid = rid
        self._respond = respond

    def answer(self, indices: list[int] | None, results: list[Any]) -> None:
        self._respond([self._rid, indices, results])


class Deferred:
    """Something that is done once the commit point has reached what it waits for, such as a scan."""

    __slots__ = ("_done", "_refused")

    def __init__(self, done: Callable[[], None], refused: Callable[[], None]) -> None:
        self._done = done
        self._refused = refused

    def answer(self, indices: list[int] | None, results: list[Any]) -> None:
        """``results`` holds an error if it was refused, nothing if it may go on."""
        if results:
            self._refused()
        else:
            self._done()


class Subset:
    """Answers of the operations that were passed on, put back to their places in the whole group."""

    __slots__ = ("_places", "_request")

    def __init__(self, request: Request, places: list[int]) -> None:
        self._request = request
        self._places = places

    def answer(self, indices: list[int] | None, results: list[Any]) -> None:
        places = self._places if indices is None else [self._places[at] for at in indices]
        self._request.answer(places, results)


def tell_holder(tablet: int) -> Callable[[Tell], None]:
    """What carries out ``Tell``: a holder is known by what answers its stream's requests."""

    def tell(effect: Tell) -> None:
        push: Any = effect.holder
        push([TOLD, [tablet, effect.number], [effect.seq, effect.version, effect.keys]])

    return tell


def groups_count(groups: Sequence[WriteGroup], ops_count: int) -> int:
    """How many of the groups, from the first on, hold so many operations; at least one, or all of them."""
    for count, group in enumerate(groups, start=1):
        ops_count -= len(group.ops)
        if ops_count <= 0:
            return count
    return len(groups)
