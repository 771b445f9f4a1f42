"""Transactions are serializable: random ones, interleaved, through faults, equal some serial order of them.

The oracle replays the committed log and checks at each transaction's place in it that everything it read, ranges
included, was still so (`tests/support/core_oracle.py`); so its reads and writes could all have been made there, in
one instant. Here many clients move money between accounts, open and close some, and sum them up, at any replica
that may answer, while nodes crash and are cut off. What nobody may ever see: another total.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ackord.wire.keys import KeySchema, after_prefix
from ackord.wire.messages import KIND_DELETE, is_error
from ackord.wire.transactions import digest_of
from ackord_node.core.transactions import misfit_of
from tests.support.core_cluster import Cluster, Profile
from tests.support.core_script import flows
from tests.support.core_transactions import Moved, Tx, account, committed_rows, opened, total

ACCOUNTS_COUNT = 8
AMOUNT = 100


class Teller:
    """A client that does one transaction after the other; none is repeated but under its own id."""

    def __init__(self, c: Cluster, number: int, seed: int) -> None:
        self._c = c
        self._id = b"teller%d" % number
        self._rng = random.Random(seed * 100 + number)
        self._seq = 0
        self.tx: Tx | None = None
        self.done: list[Tx] = []
        self.is_open = True
        c.at(self._rng.uniform(0.0, 0.1), self._turn)

    def _turn(self) -> None:
        if self.tx is not None and self.tx.is_done:
            self.done.append(self.tx)
            self.tx = None
        if self.tx is None and self.is_open:
            self._begin()
        if self.is_open or self.tx is not None:
            self._c.at(self._rng.uniform(0.002, 0.05), self._turn)

    def _begin(self) -> None:
        self._seq += 1
        tx = Tx(self._c, self._id, self._seq, waits=False)
        try:
            self._fill(tx)
        except Moved:
            return
        self.tx = tx
        self._c.at(self._rng.uniform(0.0, 0.03), tx.send)  # time for others to come between

    def _fill(self, tx: Tx) -> None:
        rng, nodes = self._rng, [node for node in self._c.nodes.values() if node.is_up and not node.is_paused]
        if not nodes:
            raise Moved
        source, target = rng.sample(range(ACCOUNTS_COUNT), 2)
        choice, amount = rng.random(), rng.randrange(1, 20)
        if choice < 0.15:
            assert sum(row["n"] for row in tx.scan(rng.choice(nodes)).values()) == ACCOUNTS_COUNT * AMOUNT
            return
        if choice < 0.55:
            known = {number: tx.get(rng.choice(nodes), account(number)) for number in (source, target)}
        else:
            low, high = sorted((source, target))
            rows = tx.scan(rng.choice(nodes), account(low), account(high + 1))
            known = {number: rows.get(account(number)) for number in (source, target)}
        held = {number: row["n"] if row is not None else 0 for number, row in known.items()}
        if rng.random() < 0.2:  # all of it, and the account is closed
            tx.write(KIND_DELETE, account(source), None)
            tx.put(account(target), {"n": held[target] + held[source]})
        else:
            tx.put(account(source), {"n": held[source] - amount})
            tx.put(account(target), {"n": held[target] + amount})


def disturb(c: Cluster, rng: random.Random) -> None:
    up = [node.name for node in c.nodes.values() if node.is_up]
    if len(up) < len(c.nodes):
        c.start()
        return
    victim = rng.choice([*up, c.likely_coordinator()])
    if rng.random() < 0.5:
        c.crash(victim)
    else:
        c.cut(victim)
        c.at(rng.uniform(0.2, 3.0), c.mend)


def walk(seed: int, has_faults: bool) -> list[Tx]:
    c = Cluster(seed, Profile(is_chaotic=has_faults, drift=0.005 if has_faults else 0.0))
    c.form()
    opened(c, ACCOUNTS_COUNT, AMOUNT)
    c.run_until(c.is_well, 10, "the accounts are everywhere")
    c.has_faults = has_faults
    rng = random.Random(seed)
    tellers = [Teller(c, number, seed) for number in range(5)]
    for _ in range(6):
        c.run(rng.uniform(0.2, 1.5) if has_faults else 0.2)
        for node in c.nodes.values():
            if node.is_up and not node.is_paused:
                see_total(c, node)
        if has_faults:
            disturb(c, rng)
    for teller in tellers:
        teller.is_open = False
    c.has_faults = False
    c.mend()
    c.start()
    flows(c)
    c.run_until(lambda: all(teller.tx is None for teller in tellers), 40, "all transactions are decided")
    c.run_until(c.is_well, 30, "all is well")
    c.check_end()
    assert total(c) == ACCOUNTS_COUNT * AMOUNT
    return [tx for teller in tellers for tx in teller.done]


def see_total(c: Cluster, node: Any) -> None:
    try:
        rows = committed_rows(node, b"p", b"q")
    except Moved:
        return
    tx = Tx(c, b"nobody", 1, waits=False)
    assert sum(row["n"] for row in tx.scan(node).values()) == ACCOUNTS_COUNT * AMOUNT, rows


@pytest.mark.parametrize("has_faults", [False, True])
@settings(max_examples=6, deadline=None, derandomize=True)
@given(seed=st.integers(1, 10_000))
def test_transactions_are_serializable(has_faults: bool, seed: int) -> None:
    done = walk(seed, has_faults)
    committed = [tx for tx in done if isinstance(tx.result, int)]
    refused = [tx for tx in done if is_error(tx.result)]
    assert len(committed) > 5
    assert has_faults or len(refused) > 2, "they come between each other"


rows_st = st.lists(st.tuples(st.binary(max_size=6), st.integers(0, 2**63 - 1)), max_size=6)


@given(rows_st, rows_st)
def test_the_digest_tells_rows_apart(a: list[tuple[bytes, int]], b: list[tuple[bytes, int]]) -> None:
    assert (digest_of(a) == digest_of(b)) == (a == b)


@given(st.data())
def test_only_keys_of_the_partition_fit(data: st.DataObject) -> None:
    schema = KeySchema((("p", data.draw(st.sampled_from(["str", "int"]))), ("n", "int")))
    values = st.integers(-3, 3) if schema.types[0] == "int" else st.sampled_from(["", "a", "a\0", "ab", "b"])
    own, other = data.draw(values), data.draw(values)
    partition, key = schema.encode_prefix((own,)), schema.encode((other, data.draw(st.integers(-2, 2))))
    above = after_prefix(schema.encode_prefix((other,)))
    bodies: Any = (
        ([[key, None]], [], []),
        ([], [[key, above, 0, b""]], []),
        ([], [], [[1, key, b"", 0, None]]),
    )
    for body in bodies:
        assert (misfit_of(schema, partition, list(body)) is None) == (own == other)
    assert misfit_of(schema, key, [[], [], []]) is not None
