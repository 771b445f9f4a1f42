"""The short way of plain puts decides what the long one does: same entries, same answers, same state (R16)."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from ackord.wire.extras import encode_extras
from ackord.wire.messages import COND_IF_ABSENT, COND_NONE, KIND_DELETE, KIND_PUT, KIND_UPDATE, RETURN_NEW
from ackord.wire.puts import Puts
from ackord.wire.values import encode_columns, encode_update
from ackord_node.core import effects as e
from ackord_node.core import plain_puts, writes
from ackord_node.core.types import LogLimits
from tests.support.core_hand import WALL_MS, Asked, Hand, serving

BODIES = [
    encode_columns({"a": 1}),
    encode_columns({"b": b"\xdc\xdd" * 9}),
    b"\x80",
    b"\x93",  # no map, and cut short
    encode_columns({"a": 1}) + b"\x01",
]


def random_op(chance: random.Random, seq: int) -> list[Any]:
    key = b"k%d" % chance.randrange(6)
    kind = chance.choice([KIND_PUT] * 6 + [KIND_UPDATE, KIND_DELETE])
    body: bytes | None = chance.choice(BODIES)
    if kind == KIND_UPDATE:
        body = encode_update(set={"u": seq})
    elif kind == KIND_DELETE:
        body = None
    condition = chance.choice([COND_NONE] * 6 + [COND_IF_ABSENT])
    op = [seq, kind, key, body, condition, None, chance.choice((1, 1, 1, 2))]
    return [*op, RETURN_NEW] if chance.random() < 0.1 else op


def random_puts(chance: random.Random, last_seq: int) -> Puts:
    """Mostly new and valid ones."""
    count = chance.randrange(1, 9)
    bodies = [chance.choice(BODIES[:3]) for _ in range(count)]
    if chance.random() < 0.3:
        bodies[chance.randrange(count)] = chance.choice(
            [*BODIES, encode_extras(b"\x80", ttl=None, timestamp=5)]
        )
    first_seq = last_seq - count + 1 - chance.choice((0, 0, 0, 0, 1, 7, 30, 90))
    return Puts(max(first_seq, 1), [b"k%d" % chance.randrange(6) for _ in range(count)], bodies)


def commit(h: Hand) -> None:
    h.store()
    for node in ("n2", "n3"):
        h.confirm(node, h.r.state.log.end)
    h.store()
    h.promise("n2", "n3")


def run(seed: int, expires: bool) -> tuple[list[Any], ...]:
    """What a seed's groups leave: log records, answers, request records, rows."""
    chance = random.Random(seed)
    h = serving(log=replace(LogLimits(), entry_bytes=chance.choice((250, 1 << 20))))
    asked: list[Asked] = []
    seq = 0
    for _ in range(12):
        groups = []
        for client in (b"c1", b"", b"c2"):
            ops = []
            for _ in range(chance.randrange(1, 9)):
                seq += 1
                ops.append(random_op(chance, max(seq - chance.choice((0, 0, 0, 0, 1, 7, 30)), 1)))
            columns = None
            if chance.random() < 0.5:
                seq += 9
                columns = random_puts(chance, seq)
            if expires and chance.random() < 0.2:
                ops[0] = [seq + 1000, KIND_PUT, b"e", encode_extras(b"\x80", ttl=5), COND_NONE, None, 1]
            one: Any = Asked()
            asked.append(one)
            groups.append(e.WriteGroup(one, client, 5, max(seq - 40, 0), columns or ops))
        h.do(e.Writes(groups, WALL_MS))
        if chance.random() < 0.7:
            commit(h)
    commit(h)
    s = h.r.state
    records = [(client, record.encode()) for client, record in s.requests.clients.items()]
    return [x.record for x in s.log.entries], [x.answers for x in asked], records, [s.last_version, s.log.end]


@pytest.mark.parametrize("expires", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_both_ways_leave_the_same(seed: int, expires: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    judge_columns, together = plain_puts._judge_columns, []

    def noted(*arguments: Any) -> int:
        together.append(judge_columns(*arguments))
        return together[-1]

    monkeypatch.setattr(plain_puts, "_judge_columns", noted)
    short = run(seed, expires)
    assert short[3][1] > 5
    assert expires or (sum(map(bool, together)) > 3 and 0 in together)

    def take_none(state: Any, group: Any, start: int, *rest: Any) -> int:
        return start

    monkeypatch.setattr(writes, "judge_plain_puts", take_none)
    assert run(seed, expires) == short
