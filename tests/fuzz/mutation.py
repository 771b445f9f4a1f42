"""Damages valid input: values by structure, bytes by position. Everything comes from one seeded ``random.Random``."""

from __future__ import annotations

import copy
import random
import struct
from typing import Any

import msgpack

DEPTH = 150  # beyond what any message needs; what is far deeper comes as bytes, see ``bomb``


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


# What fields of the wrong kind look like: bool for int, float for int, text for bytes, ends of ranges, sizes.
NASTY: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**53 + 1,
    2**63 - 1,
    2**63,
    2**64 - 1,
    -(2**63),
    0.0,
    -0.0,
    1.5,
    1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
    "",
    "n1",
    "é\u202e\U0001f4a5",
    "\x00",
    "x" * 5000,
    b"",
    b"\x00",
    b"\xff" * 40,
    b"x" * 70_000,
    [],
    [[]],
    [None] * 3000,
    [0] * 20,
    {},
    {"": None},
    {"a": {"b": [1]}},
    {b"k": 1},
)


class Mutator:
    def __init__(self, chance: random.Random) -> None:
        self.chance = chance

    def nasty(self) -> Any:
        if self.chance.random() < 0.03:
            return nested(DEPTH)
        if self.chance.random() < 0.1:
            return self.chance.randrange(-(2**63), 2**64)
        return copy.deepcopy(self.chance.choice(NASTY))

    def value(self, value: Any) -> Any:
        """A copy with one to three places changed."""
        changed = copy.deepcopy(value)
        for _ in range(self.chance.choice((1, 1, 1, 2, 3))):
            changed = self._changed(changed)
        return changed

    def _changed(self, value: Any) -> Any:
        """Goes down to some place and changes it."""
        chance = self.chance
        if isinstance(value, list) and value and chance.random() < 0.85:
            at = chance.randrange(len(value))
            what = chance.random()
            if what < 0.7:
                value[at] = self._changed(value[at])
            elif what < 0.8:
                del value[at]
            elif what < 0.9:
                value.insert(at, copy.deepcopy(value[at]))
            else:
                value.insert(at, self.nasty())
            return value
        if isinstance(value, dict) and value and chance.random() < 0.85:
            name = chance.choice(sorted(value, key=repr))
            if chance.random() < 0.7:
                value[name] = self._changed(value[name])
            elif chance.random() < 0.5:
                del value[name]
            else:
                value[chance.choice(("", "x", "é", "version", "key", name + name))] = self.nasty()
            return value
        if type(value) is int and chance.random() < 0.4:
            moved = value + chance.choice((-1, 1, 1 << 16, -(1 << 16), 1 << 40))
            return max(-(2**63), min(moved, 2**64 - 1))  # what msgpack can carry
        if isinstance(value, bytes) and value and chance.random() < 0.6:
            return self.damaged(value)
        if isinstance(value, str) and value and chance.random() < 0.3:
            return value[:-1] + chance.choice(("", "é", "\x00", "/", value))
        return self.nasty()

    def damaged(self, data: bytes) -> bytes:
        """Flips, cuts, repeats and claims sizes that are not true."""
        chance = self.chance
        changed = bytearray(data)
        for _ in range(chance.choice((1, 1, 2, 5))):
            at = chance.randrange(len(changed) + 1)
            what = chance.randrange(6)
            if what == 0 and changed:
                changed[min(at, len(changed) - 1)] ^= 1 << chance.randrange(8)
            elif what == 1:
                del changed[at:]
            elif what == 2:
                changed[at:at] = self.bomb()
            elif what == 3:
                changed[at:at] = changed[: chance.randrange(64)]
            elif what == 4:
                del changed[at : at + chance.randrange(1, 8)]
            else:
                changed[at : at + 4] = chance.randbytes(4)
        return bytes(changed)

    def bomb(self) -> bytes:
        """msgpack headers that promise much, nest deeply, or name types of nobody."""
        chance = self.chance
        size = chance.choice((0, 1, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF))
        return chance.choice(
            (
                struct.pack(">BI", chance.choice((0xDD, 0xDF, 0xDB, 0xC6, 0xC9)), size),
                struct.pack(">BH", chance.choice((0xDC, 0xDE, 0xDA, 0xC5, 0xC8)), size & 0xFFFF),
                b"\x91" * chance.choice((10, 500, 1500, 30_000)),
                b"\xdd\x00\x0f\xff\xff" * 40,
                b"\x81" * 600,
                msgpack.packb(msgpack.ExtType(chance.randrange(128), b"x" * chance.randrange(20))),
                b"\xc1",
                chance.randbytes(chance.randrange(40)),
            )
        )

    def packed(self, value: Any) -> bytes:
        """msgpack of a changed value, now and then with changed bytes."""
        changed = self.value(value)
        data: bytes = msgpack.packb(changed)
        return self.damaged(data) if self.chance.random() < 0.25 else data
