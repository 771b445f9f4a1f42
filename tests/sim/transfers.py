"""Transfers between accounts of one partition: the total is the same in every read of the partition.

Standalone: it needs a store, a random generator and a way to tell when it is over, and counts what it saw. Every
transaction that moves money also counts itself up, in a row of its own partition key, so that a commit that was
lost, or done twice, shows in the end even if the money is right.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import ackord

TABLE_KEY: Final[dict[str, type]] = {"bank": str, "account": int}
COUNTER: Final = -1  # the account number of the row that counts transfers
AMOUNT: Final = 1_000  # that each account begins with


class WrongTotal(AssertionError):
    """A read of the partition, or of some accounts in one transaction, showed what no moment had."""


@dataclass
class Seen:
    """What the clients of one bank saw."""

    commits: int = 0
    conflicts: int = 0
    unknown: int = 0
    unavailable: int = 0
    totals: int = 0
    problems: list[str] = field(default_factory=list)


class Transfers:
    """One bank: ``accounts_count`` accounts under one partition key of the table."""

    name = "transfers"

    def __init__(self, table: str, bank: str = "bank", accounts_count: int = 100) -> None:
        self.table = table
        self.bank = bank
        self.accounts_count = accounts_count
        self.seen = Seen()

    @property
    def total(self) -> int:
        return self.accounts_count * AMOUNT

    async def create(self, store: Any, timeout_s: float = 60.0) -> None:
        """The table and the accounts; may be called again."""
        await store.create_table(self.table, TABLE_KEY, timeout=timeout_s)
        table = store.table(self.table)

        async def open_accounts(tx: ackord.Transaction) -> None:
            if await tx.get((self.bank, COUNTER)) is None:
                tx.put((self.bank, COUNTER), {"n": 0})
                for number in range(self.accounts_count):
                    tx.put((self.bank, number), {"n": AMOUNT})

        await table.transact(self.bank, open_accounts, timeout=timeout_s)

    async def run(
        self, store: Any, rng: random.Random, is_over: Callable[[], bool], pause_s: float = 0.0
    ) -> None:
        """One client, until it is over. No call that failed is repeated: only the SDK may, under one request id."""
        table = store.table(self.table)
        while not is_over():
            try:
                await self._step(table, rng)
            except ackord.Conflict:
                self.seen.conflicts += 1
            except ackord.OutcomeUnknown:
                self.seen.unknown += 1
            except ackord.Unavailable:
                self.seen.unavailable += 1
            if pause_s:
                await asyncio.sleep(rng.random() * 2 * pause_s)

    async def _step(self, table: ackord.Table, rng: random.Random) -> None:
        choice = rng.random()
        if choice < 0.15:
            await self.audit(table, reverse=rng.random() < 0.5)
        elif choice < 0.25:
            await self._audit_in_transaction(table)
        else:
            await self._transfer(table, rng)

    async def _transfer(self, table: ackord.Table, rng: random.Random) -> None:
        count = min(rng.choice((2, 2, 2, 3, 5)), self.accounts_count)
        accounts = rng.sample(range(self.accounts_count), count)
        is_scan, amount = rng.random() < 0.3, rng.randrange(1, 50)
        async with table.transaction(self.bank) as tx:
            if is_scan:
                low, high = min(accounts), max(accounts)
                rows = await tx.scan(start=(self.bank, low), end_at=(self.bank, high))
                held = {row.key[1]: row["n"] for row in rows}
            else:
                found = await asyncio.gather(*(tx.get((self.bank, number)) for number in accounts))
                held = {row.key[1]: row["n"] for row in found if row is not None}
            if not all(number in held for number in accounts):
                self._problem(f"accounts {accounts} are not all there: {sorted(held)}")
            giver, takers = accounts[0], accounts[1:]
            for number in takers:
                tx.put((self.bank, number), {"n": held[number] + amount})
            tx.put((self.bank, giver), {"n": held[giver] - amount * len(takers)})
            tx.update((self.bank, COUNTER), increment={"n": 1})
        self.seen.commits += 1

    async def audit(self, table: ackord.Table, reverse: bool = False, timeout_s: float | None = None) -> None:
        """One page is one moment, and the partition fits into one."""
        rows = await table.scan((self.bank,), start=(self.bank, 0), reverse=reverse, timeout=timeout_s).rows()
        self._check({row.key[1]: row["n"] for row in rows})

    async def _audit_in_transaction(self, table: ackord.Table) -> None:
        """Reads one after the other are one moment too, if the transaction commits."""
        half = self.accounts_count // 2
        async with table.transaction(self.bank) as tx:
            rows = await tx.scan(start=(self.bank, half))
            rows += await tx.scan(start=(self.bank, 0), end=(self.bank, half))
        self._check({row.key[1]: row["n"] for row in rows})

    def _check(self, held: dict[int, int]) -> None:
        self.seen.totals += 1
        if len(held) != self.accounts_count or sum(held.values()) != self.total:
            self._problem(f"{len(held)} accounts hold {sum(held.values())}, not {self.total}: {held}")

    def _problem(self, text: str) -> None:
        self.seen.problems.append(text)
        raise WrongTotal(text)

    async def check_end(self, store: Any, timeout_s: float = 60.0) -> None:
        """After everything: the total, and as many transfers as were acknowledged, or were left unknown."""
        table = store.table(self.table)
        await self.audit(table, timeout_s=timeout_s)
        row = await table.get((self.bank, COUNTER), timeout=timeout_s)
        counted, seen = row["n"], self.seen
        if not seen.commits <= counted <= seen.commits + seen.unknown:
            self._problem(
                f"{counted} transfers were done, {seen.commits} acknowledged and {seen.unknown} left unknown"
            )
        if seen.problems:
            raise WrongTotal("; ".join(seen.problems[:5]))
