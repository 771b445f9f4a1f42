"""``ackord load``: a file's rows into a table. Loading twice changes nothing, versions included.

Every row is put only if it is absent. Where there is one, the answer brings it: if it is equal, it is left alone;
if not, it is replaced on the condition that it still has that version. So a load that was interrupted, or whose
outcome is unknown, is simply run again, with no state beside the file; what is there already costs a read.
"""

from __future__ import annotations

import asyncio
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import click

from ackord.cli.connection import with_store
from ackord.cli.load_input import (
    CSV_TYPES,
    FORMATS,
    SUFFIXES,
    BadLine,
    Batches,
    FileUnusable,
    Lines,
    Record,
    read_csv,
    read_jsonl,
)
from ackord.cli.progress import Progress, open_progress
from ackord.cli.rows import route_of
from ackord.cli.tables import KEY_HELP, SPLIT_HELP, parse_key_columns, parse_split_at
from ackord.errors import Conflict, Error, InvalidRequest, OutcomeUnknown
from ackord.operations import Put
from ackord.row import Row
from ackord.store import Store
from ackord.table import Table

ATTEMPTS: Final = 5  # on one row, if somebody else writes it meanwhile or an outcome stays unknown
EXIT_INTERRUPTED: Final = 130
AGAIN: Final = "run the same command again to continue: what is there already is left alone"


@dataclass(slots=True)
class Counts:
    written: int = 0
    equal: int = 0  # were there already
    bad: int = 0

    @property
    def done(self) -> int:
        return self.written + self.equal


class TooManyBadLines(Exception):
    pass


@click.command(short_help="Load a file of JSON lines or CSV; twice changes nothing.")
@click.argument("table")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--format", "file_format", type=click.Choice(FORMATS), help="Default: by the file's name.")
@click.option(
    "--type", "types", multiple=True, metavar="COLUMN:TYPE", help="Type of a CSV column; see above."
)
@click.option("--create", is_flag=True, help="Create the table first, if there is none; needs --key.")
@click.option("--key", "keys", multiple=True, metavar="NAME:TYPE", help="With --create: " + KEY_HELP)
@click.option("--split-at", multiple=True, metavar="JSON", help="With --create: " + SPLIT_HELP)
@click.option(
    "--errors-max",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    help="Stop after so many bad lines.",
)
@click.option(
    "--parallel",
    type=click.IntRange(1, 64),
    default=8,
    show_default=True,
    help="Batches of rows under way at once.",
)
def load(
    table: str,
    file: str,
    file_format: str | None,
    types: tuple[str, ...],
    create: bool,
    keys: tuple[str, ...],
    split_at: tuple[str, ...],
    errors_max: int,
    parallel: int,
) -> int:
    """Load the rows of FILE ('-' for stdin) into TABLE: JSON lines or CSV.

    Rows that are there already and equal are left alone, others replaced whole; so loading twice changes nothing,
    and an interrupted load is continued by running it again.

    JSON lines: one object per line, with the key columns and any others; or lines of `ackord scan --json`.

    CSV (RFC 4180, UTF-8): the header names the columns. Key columns have the table's types. Others are text, or
    what --type says: int, float, bool (true, false), bytes (hex:..., base64:...), json, str. An empty cell of
    such a type leaves the column out; an empty text is an empty text.

    A bad line is named on stderr and left out, and the exit code is 1.
    """
    kind = file_format or SUFFIXES.get(Path(file).suffix.lower())
    if kind is None:
        raise click.UsageError("the file's name does not tell its format: say --format jsonl or --format csv")
    if types and kind != "csv":
        raise click.UsageError("--type is for CSV: JSON has types of its own")
    if create != bool(keys) or (split_at and not create):
        raise click.UsageError("--create and --key go together, and --split-at with them")
    cell_types = parse_types(types)
    definition = (parse_key_columns(keys), parse_split_at(split_at)) if create else None

    async def work(store: Store, source: BinaryIO, progress: Progress) -> Counts:
        if definition is not None:
            await store.create_table(table, definition[0], split_at=definition[1])
        route = await route_of(store, table)
        limits = store.batcher.routing.limits
        lines = Lines(source, limits)
        records = read_csv(lines, route.key, cell_types) if kind == "csv" else read_jsonl(lines, route.key)
        batches = Batches(lines, records, route.key, limits)
        loader = Loader(store.table(table), lines, batches, progress, errors_max)
        await loader.run(parallel)
        return loader.counts

    size = None if file == "-" else Path(file).stat().st_size
    with open_input(file) as source, open_progress(file, size) as progress:
        try:
            counts = with_store(lambda store: work(store, source, progress))
        except TooManyBadLines:
            progress.say(f"stopped after {errors_max} bad lines (--errors-max)")
            return 1
        except KeyboardInterrupt:
            progress.say(f"interrupted; {AGAIN}")
            return EXIT_INTERRUPTED
        except FileUnusable as error:
            raise FileUnusable(f"{file}: {error.message}") from None
        took = progress.took_s()
    rate = f"{counts.done / took:,.0f} rows/s" if took > 0 else "at once"
    click.echo(
        f"{table}: {counts.done:,} rows: {counts.written:,} written, {counts.equal:,} were there already"
        + (f"; {counts.bad:,} bad lines left out" if counts.bad else "")
        + f" ({took:.1f} s, {rate})"
    )
    return 1 if counts.bad else 0


def parse_types(words: tuple[str, ...]) -> dict[str, str]:
    types: dict[str, str] = {}
    for word in words:
        name, _, kind = word.rpartition(":")
        if not name or kind not in CSV_TYPES:
            raise InvalidRequest(
                f"--type takes COLUMN:TYPE with {', '.join(CSV_TYPES)}, not {ascii(word)[:60]}"
            )
        if name in types:
            raise InvalidRequest(f"--type names {ascii(name)[:60]} twice")
        types[name] = kind
    return types


def open_input(file: str) -> BinaryIO:
    return sys.stdin.buffer if file == "-" else Path(file).open("rb")


class Loader:
    """Writes batches, several at a time."""

    def __init__(
        self, table: Table, lines: Lines, batches: Batches, progress: Progress, errors_max: int
    ) -> None:
        self.counts = Counts()
        self._table = table
        self._lines = lines
        self._batches = batches
        self._progress = progress
        self._errors_max = errors_max
        self._reading = asyncio.Lock()
        self._look_first = (
            False  # most rows of the last batch were there: a read costs less than a refused put
        )
        self._look_first = (
            False  # most rows of the last batch were there: reading is cheaper than a refused put
        )

    async def run(self, parallel: int) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(parallel):
                    group.create_task(self._work())
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _work(self) -> None:
        while True:
            async with self._reading:
                rows, bad = await asyncio.to_thread(self._batches.next)
            if not rows and not bad:
                return
            for line in bad:
                self._refuse(line)
            await self._write(rows)
            self._progress.update(self._lines.read_bytes, self.counts.done)

    def _refuse(self, bad: BadLine) -> None:
        self.counts.bad += 1
        self._progress.say(f"line {bad.line}: {bad.reason}")
        if self.counts.bad >= self._errors_max:
            raise TooManyBadLines

    async def _write(self, rows: list[Record]) -> None:
        equal_before = self.counts.equal
        await self._put(await self._look(rows) if self._look_first else [(row, None) for row in rows])
        self._look_first = self.counts.equal - equal_before > len(rows) // 2

    async def _look(self, rows: list[Record]) -> list[tuple[Record, int | None]]:
        """The rows that are not there yet, each with the version to replace."""
        try:
            standing = await self._table.get_many([row.key for row in rows])
        except Error as error:
            raise _stopped(rows[0], error) from None
        return [
            left for row, current in zip(rows, standing, strict=True) for left in self._judge(row, current)
        ]

    async def _put(self, waiting: list[tuple[Record, int | None]]) -> None:
        failure: Error = Error("no attempt")
        for _ in range(ATTEMPTS):
            if not waiting:
                return
            puts = [
                Put(row.key, row.columns, if_version=version, if_absent=version is None)
                for row, version in waiting
            ]
            results = await self._table.write_many(puts)
            again = []
            for (row, version), result in zip(waiting, results, strict=True):
                if isinstance(result, int):
                    self.counts.written += 1
                elif isinstance(result, Conflict):
                    failure = Conflict(f"line {row.line}: somebody else keeps writing this row")
                    again += self._judge(row, result.current)
                elif isinstance(result, OutcomeUnknown):
                    failure = result
                    again.append((row, version))
                elif isinstance(result, InvalidRequest):
                    self._refuse(BadLine(row.line, result.message))
                else:
                    raise _stopped(row, result)
            waiting = again
        if waiting:
            raise _stopped(waiting[0][0], failure)

    def _judge(self, row: Record, current: Row | None) -> list[tuple[Record, int | None]]:
        """What is left to do for a row of which ``current`` stands in the table."""
        if current is None:
            return [(row, None)]
        if same(row.columns, current.columns):
            self.counts.equal += 1
            return []
        return [(row, current.version)]


def _stopped(row: Record, error: Error) -> Error:
    stopped = type(error)(f"stopped at line {row.line}: {error.message}; {AGAIN}")
    stopped.detail = error.detail
    return stopped


def same(one: Any, other: Any) -> bool:
    """Whether two values are stored alike: of one type, bit for bit, whatever the order of a map's names."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return struct.pack(">d", one) == struct.pack(">d", other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
