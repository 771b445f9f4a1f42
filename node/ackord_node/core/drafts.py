"""What the coordinator's write path works on: the entry that is being built, and what is to be answered."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ackord_node.core.effects import Responder


@dataclass(slots=True)
class Answer:
    """Answers that are given once ``index`` is committed."""

    index: int
    request: Responder
    indices: list[int] | None
    results: list[Any]
    size: int
    expires: float  # undecided by then: the asker is told that the outcome is unknown


class Progress(dict[int, tuple[int, Any]]):
    """One client's writes that are in the log and not committed: seq -> (index, result)."""

    __slots__ = ("returned_bytes",)

    def __init__(self) -> None:
        self.returned_bytes = 0  # of the rows in the results


@dataclass(slots=True)
class Draft:
    """The entry that is being built."""

    version: int
    groups: list[Any]
    size: int = 0


@dataclass(slots=True)
class Verdicts:
    """What became of one group's operations: some answered at once, some once their entry is committed;
    ``logged`` is the group as the entry carries it."""

    logged: list[Any]
    now_indices: list[int] = field(default_factory=list)
    now_results: list[Any] = field(default_factory=list)
    later_indices: list[int] = field(default_factory=list)
    later_results: list[Any] = field(default_factory=list)
    size: int = 0  # of the rows of transactions

    def at_once(self, at: int, result: Any) -> None:
        self.now_indices.append(at)
        self.now_results.append(result)

    def later(self, at: int, result: Any) -> None:
        self.later_indices.append(at)
        self.later_results.append(result)


def log_write(logged: list[Any], seq: int, key: bytes | list[bytes] | None, value: Any) -> None:
    logged[3].append(seq)
    logged[4].append(key)
    logged[5].append(value)


def log_returned(logged: list[Any], row: bytes | None, is_new: bool) -> None:
    """Notes that the answer of the write that is logged next carries a row: its own, which stands there anyway,
    or the one that it replaced."""
    if len(logged) == 6:
        logged.append([])
    logged[6].append([len(logged[3]), True if is_new else row])


def draft_first_version(draft: Draft) -> int:
    """The version of the draft's first write: versions are given consecutively."""
    count = sum(len(group[3]) for group in draft.groups if group[0] is not None)
    return draft.version - count
