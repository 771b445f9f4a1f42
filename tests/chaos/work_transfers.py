"""Transfers between accounts of one partition key: the total is the same in every read of the partition.

Every transaction that moves money also puts a row of its own into the partition's journal. So the end shows which
transactions took effect, each with its version, and the whole history can be done again in that order: each must
have read what the ones before it left, and each read of the partition, by scan or by transaction and from any node,
must show what one moment had, not an older one than what was acknowledged before it was asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import ClassVar, Final

import ackord
from tests.chaos.works import FINAL, REPORTS_MAX, Client, Steps, Work, real_time
from tests.sim.history import CONFLICT, FAILED, OK, SCAN, UNKNOWN, Op

TABLE_KEY: Final[dict[str, type]] = {"bank": str, "account": int}
TRANSFER: Final = "transfer"
AMOUNT: Final = 1_000  # that each account begins with
JOURNAL: Final = 1_000_000  # account numbers from here on are rows of the journal
ACCOUNTS_ALONE: Final = 100
ACCOUNTS: Final = 20
TOTAL_CHARS_MAX: Final = 1_000

Journal = dict[int, tuple[int, list[int]]]  # stamp -> version, moves: account, by, account, by, ...


class Transfers(Work):
    """One bank alone, two of them, in two tablets, among other works."""

    name: ClassVar[str] = "transfers"
    clients_count: ClassVar[int] = 32
    pause_s: ClassVar[float] = 0.25

    @property
    def banks(self) -> tuple[str, ...]:
        return ("a",) if self.is_alone else ("a", "b")

    @property
    def accounts_count(self) -> int:
        return ACCOUNTS_ALONE if self.is_alone else ACCOUNTS

    async def create(self, store: ackord.Store) -> None:
        await store.create_table(self.table, TABLE_KEY, split_at=self.banks[1:], timeout=60)
        for bank in self.banks:

            async def open_accounts(tx: ackord.Transaction, bank: str = bank) -> None:
                if await tx.get((bank, 0)) is None:
                    for number in range(self.accounts_count):
                        tx.put((bank, number), {"n": AMOUNT})

            await store.table(self.table).transact(bank, open_accounts, timeout=60)

    # -------------------------------------------------------------------------------------- calls

    async def step(self, client: Client) -> None:
        bank, choice = client.rng.choice(self.banks), client.rng.random()
        if choice < 0.2:
            await self._scan(client, bank)
        elif choice < 0.35:
            await self._read_in_transaction(client, bank)
        else:
            await self._transfer(client, bank)

    async def _transfer(self, client: Client, bank: str) -> None:
        rng = client.rng
        accounts = rng.sample(range(self.accounts_count), rng.choice((2, 2, 2, 3, 5)))
        amount, stamp = rng.randrange(1, 50), client.stamp()
        moves = dict.fromkeys(accounts[1:], amount) | {accounts[0]: -amount * (len(accounts) - 1)}
        is_scan, is_blind = rng.random() < 0.15, rng.random() < 0.2

        async def call(op: Op, timeout_s: float) -> None:
            async with client.store.table(self.table).transaction(bank, timeout=timeout_s) as tx:
                held = {} if is_blind else await self._held(tx, bank, accounts, is_scan)
                op.args["held"] = sorted(held.items())
                for number, by in moves.items():
                    if number in held and by > 0:
                        tx.put((bank, number), {"n": held[number] + by})
                    else:
                        tx.update((bank, number), increment={"n": by})
                tx.put((bank, JOURNAL + stamp), {"moves": [part for move in moves.items() for part in move]})
            op.version = tx.version

        await client.do(self, TRANSFER, (bank, stamp), call, moves=sorted(moves.items()))

    async def _held(
        self, tx: ackord.Transaction, bank: str, accounts: list[int], is_scan: bool
    ) -> dict[int, int]:
        if is_scan:
            rows = await tx.scan(start=(bank, min(accounts)), end_at=(bank, max(accounts)))
            return {row.key[1]: row["n"] for row in rows}
        found = await asyncio.gather(*(tx.get((bank, number)) for number in accounts))
        return {row.key[1]: row["n"] for row in found if row is not None}

    async def _scan(self, client: Client, bank: str) -> None:
        """One page is one moment, and the accounts fit into one."""
        store, part = client.reader()
        is_reverse = client.rng.random() < 0.5

        async def call(op: Op, timeout_s: float) -> None:
            scan = store.table(self.table).scan(
                (bank,), end=(bank, JOURNAL), reverse=is_reverse, timeout=timeout_s
            )
            _note(op, await scan.rows())

        await client.do(self, SCAN, (bank,), call, is_read=True, part=part, by="scan")

    async def _read_in_transaction(self, client: Client, bank: str) -> None:
        """Reads one after the other are one moment too, if the transaction commits."""
        store, part = client.reader()
        half = self.accounts_count // 2

        async def call(op: Op, timeout_s: float) -> None:
            async with store.table(self.table).transaction(bank, timeout=timeout_s) as tx:
                rows = await tx.scan(start=(bank, half), end=(bank, JOURNAL))
                rows += await tx.scan(end=(bank, half))
            _note(op, rows)

        # the end of a transaction that only reads is a request like a write's, and its outcome may be unknown
        await client.do(self, SCAN, (bank,), call, part=part, by="transaction")

    async def read_final(self, client: Client) -> None:
        for bank in self.banks:

            async def call(op: Op, timeout_s: float, bank: str = bank) -> None:
                _note(op, await client.store.table(self.table).scan((bank,), timeout=timeout_s).rows())

            await client.do(self, SCAN, (bank,), call, is_read=True, by="scan")

    # -------------------------------------------------------------------------------------- judgement

    def judge(self) -> list[str]:
        return [
            report
            for bank in self.banks
            for report in judge_bank(
                [op for op in self.history.ops if op.key is not None and op.key[0] == bank],
                self.accounts_count,
            )[:REPORTS_MAX]
        ]

    def tell(self) -> str:
        reads = [op for op in self.history.ops if op.kind == SCAN and op.outcome == OK]
        totals = sorted({sum((op.columns or {})["n"]) for op in reads})
        in_transactions = sum(op.args.get("by") == "transaction" for op in reads)
        return (
            f"{self.count(TRANSFER, OK)} transfers acknowledged, {self.count(TRANSFER, UNKNOWN)} left unknown;"
            f" the totals in {len(reads)} reads of a partition, {in_transactions} of them transactions: {totals[:10]}"
        )


def _note(op: Op, rows: list[ackord.Row]) -> None:
    """The accounts as lists, of which a run holds many thousands; the journal, which only the last reads ask for."""
    accounts = [row for row in rows if row.key[1] < JOURNAL]
    versions = [row.version for row in accounts]
    op.columns = {
        "accounts": [row.key[1] for row in accounts],
        "n": [row["n"] for row in accounts],
        "versions": versions,
    }
    op.version = max(versions, default=0)
    if len(rows) > len(accounts):
        op.columns["journal"] = [
            [row.key[1] - JOURNAL, row.version, row["moves"]] for row in rows if row.key[1] >= JOURNAL
        ]


def judge_bank(ops: list[Op], accounts_count: int) -> list[str]:
    """``ops``: all that was asked of one partition key, the final reads included."""
    reads = [op for op in ops if op.kind == SCAN and op.outcome == OK]
    reports = list(_judge_totals(reads, accounts_count))
    finals = [op for op in reads if op.workload == FINAL]
    if not finals:
        return [*reports, "the journal was not read in the end"]
    journal = _journal(finals[0])
    reports += [
        f"two nodes differ in the end: {finals[0].client}, {op.client}"
        for op in finals[1:]
        if op.columns != finals[0].columns
    ]
    transfers = {op.key[1]: op for op in ops if op.kind == TRANSFER and op.key is not None}
    reports += _judge_journal(journal, transfers)
    done = [(version, transfers[stamp]) for stamp, (version, _) in journal.items() if stamp in transfers]
    done.sort(key=lambda item: item[0])
    reports += _judge_order(done, reads, accounts_count)
    for version, op in done:
        op.version = version  # also of those whose outcome was left unknown
    return [*reports, *real_time([*(op for _, op in done), *reads])]


def _journal(op: Op) -> Journal:
    return {stamp: (version, moves) for stamp, version, moves in (op.columns or {}).get("journal", ())}


def _accounts(op: Op) -> dict[int, tuple[int, int]]:
    """Account -> version, what it holds."""
    seen = op.columns or {}
    return dict(zip(seen["accounts"], zip(seen["versions"], seen["n"], strict=True), strict=True))


def _judge_totals(reads: list[Op], accounts_count: int) -> Iterator[str]:
    for op in reads:
        held = {number: n for number, (_, n) in _accounts(op).items()}
        if len(held) != accounts_count or sum(held.values()) != accounts_count * AMOUNT:
            yield (
                f"{_short(op)}: {len(held)} accounts hold {sum(held.values())}, not {accounts_count * AMOUNT}:"
                f" {str(held)[:TOTAL_CHARS_MAX]}"
            )


def _short(op: Op) -> str:
    return f"#{op.number} [{op.invoked_s:.3f}, {op.returned_s:.3f}] {op.client} by {op.args.get('by')} of {op.key}"


def _judge_journal(journal: Journal, transfers: dict[int, Op]) -> Iterator[str]:
    """Each transfer that was acknowledged took effect, under the version that was answered; none that was refused."""
    for stamp, op in transfers.items():
        row = journal.get(stamp)
        if op.outcome == OK and row is None:
            yield f"an acknowledged transfer is lost: {op}"
        elif op.outcome == OK and row is not None and row[0] != op.version:
            yield f"done again, at {row[0]}: {op}, acknowledged as {op.version}"
        elif op.outcome in (FAILED, CONFLICT) and row is not None:
            yield f"not done, and yet in the journal at {row[0]}: {op}"
        if row is not None and sorted(zip(row[1][::2], row[1][1::2], strict=True)) != _moves(op):
            yield f"the journal has {row[1]} of {op}"
    for stamp in sorted(journal.keys() - transfers.keys()):
        yield f"the journal has {stamp}, which nobody asked for: {journal[stamp]}"


def _moves(op: Op) -> list[tuple[int, int]]:
    return [(number, by) for number, by in op.args["moves"]]


def _judge_order(done: list[tuple[int, Op]], reads: list[Op], accounts_count: int) -> Iterator[str]:
    """Does everything again in the order of versions."""
    accounts = {number: Steps() for number in range(accounts_count)}
    for steps in accounts.values():
        steps.set(0, AMOUNT)
    last = 0
    for version, op in done:
        if version == last:
            yield f"two transfers at one version {version}, the second: {op}"
        last = version
        for number, held in op.args.get("held", ()):
            before = accounts[number].at(version - 1)
            if before is not None and before[1] != held:
                yield f"{op}\n    read {held} of account {number}, which had {before[1]} since {before[0]}"
        for number, by in _moves(op):
            before = accounts[number].at(version - 1)
            accounts[number].set(version, (before[1] if before else 0) + by)
    for op in reads:
        for number, (version, n) in _accounts(op).items():
            expected = accounts[number].at(op.version or 0) if number in accounts else None
            if expected is None:
                continue
            since, held = expected
            if n != held or (since and version != since):  # the accounts' first version is not known here
                yield (
                    f"{_short(op)}\n    saw {n} of version {version} in account {number},"
                    f" which at {op.version} had {held} of {since}"
                )
                break
