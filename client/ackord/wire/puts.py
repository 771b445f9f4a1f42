"""Puts of whole rows, as columns: what most writes are, sent and judged without a list for each.

On the wire they are ``[first_seq, [key, ...], [body, ...]]`` in the place of a group's operations: unconditional puts
that are sent for the first time, numbered one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

from ackord.wire.messages import COND_NONE, KIND_PUT


class Puts(Sequence[list[Any]]):
    """Reads as the operations that it stands for."""

    __slots__ = ("bodies", "first_seq", "keys")

    def __init__(self, first_seq: int, keys: list[bytes], bodies: list[bytes]) -> None:
        self.first_seq = first_seq
        self.keys = keys
        self.bodies = bodies

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, at: int) -> list[Any]: ...

    @overload
    def __getitem__(self, at: slice) -> list[list[Any]]: ...

    def __getitem__(self, at: int | slice) -> Any:
        if isinstance(at, slice):
            return [self[one] for one in range(*at.indices(len(self)))]
        return [self.first_seq + at, KIND_PUT, self.keys[at], self.bodies[at], COND_NONE, None, 1]

    @property
    def seqs(self) -> range:
        return range(self.first_seq, self.first_seq + len(self.keys))


def is_puts(ops: Any) -> bool:
    """Whether a group's operations have come as columns, whatever these hold."""
    return type(ops) is list and len(ops) == 3 and type(ops[0]) is int
