"""``ackord get``, ``history``, ``put``, ``delete`` and ``scan``: rows by key.

Key words are read by the table's key types.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
from rich.table import Table

from ackord.cli.connection import with_store
from ackord.cli.text import (
    console,
    parse_columns,
    parse_key,
    parse_new_key,
    parse_prefix,
    shown,
    shown_key,
)
from ackord.cli.where import parse_where
from ackord.errors import Conflict
from ackord.routing import TableRoute
from ackord.row import Row
from ackord.store import Store
from ackord.table import OnConflict
from ackord.versions import Version
from ackord.wire.json_forms import columns_to_json, dump_json, row_to_json

TABLE_ROWS_MAX = 100  # of a scan for people, unless --limit says otherwise
_NEGATIVE = re.compile(r"-[0-9]+", re.ASCII)


_Result = TypeVar("_Result")
_Command = TypeVar("_Command", bound=Callable[..., Any])


class KeyCommand(click.Command):
    """A command whose arguments may be negative numbers. A key that begins with '-' otherwise follows '--'."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            return super().parse_args(ctx, args)
        ctx.ignore_unknown_options = True
        rest = super().parse_args(ctx, args)
        for word in ctx.params.get("key") or ():
            if word.startswith("-") and len(word) > 1 and _NEGATIVE.fullmatch(word) is None:
                raise click.NoSuchOption(word, ctx=ctx)
        return rest


def key_argument() -> Callable[[Any], Any]:
    return click.argument("key", nargs=-1, required=True)


def where_option(help_text: str) -> Callable[[_Command], _Command]:
    """``--where``, for reads and writes."""
    return click.option(
        "--where", metavar="CONDITION", help=f"{help_text} For example: 'state == \"new\" and total >= 100'."
    )


def range_options(command: _Command) -> _Command:
    """``--prefix``, ``--start`` and ``--end``: one word each for the first key columns."""
    for name, text in (
        ("--end", "First key column to end before; repeat for more."),
        ("--start", "First key column to start at; repeat for more."),
        ("--prefix", "First key column all rows share; repeat for more."),
    ):
        command = click.option(name, multiple=True, metavar="WORD", help=text)(command)
    return command


def as_of_option(text: str) -> Callable[[_Command], _Command]:
    """``--as-of``, for reads."""
    return click.option("--as-of", type=int, metavar="VERSION", help=text)


def columns_option() -> Callable[[_Command], _Command]:
    return click.option(
        "--column", "columns", multiple=True, metavar="NAME", help="Only this column. Repeatable."
    )


async def route_of(store: Store, table: str) -> TableRoute:
    """The table's key schema and limits, as the cluster has them; TableNotFound."""
    store.table(table)  # checks the name
    return await store.find_table(table, store.deadline(None))


def show_row(row: Row, as_json: bool) -> None:
    if as_json:
        click.echo(dump_json(row_to_json(row.key, row.version, row.columns)))
        return
    out = console()
    out.print(f"({shown_key(row.key)})  version {row.version}")
    view = Table(box=None, pad_edge=False, show_header=False)
    view.add_column(style="cyan")
    view.add_column(overflow="fold")
    for name, value in row.columns.items():
        view.add_row(name, shown(value))
    if len(row):
        out.print(view)


@click.command(cls=KeyCommand, short_help="Print a row.")
@click.argument("table")
@key_argument()
@columns_option()
@as_of_option("What the row was at this version.")
@click.option("--json", "as_json", is_flag=True, help="Print the row as JSON.")
def get(table: str, key: tuple[str, ...], columns: tuple[str, ...], as_of: int | None, as_json: bool) -> int:
    """Print the row of TABLE with this KEY, one word per key column (bytes: hex:00ff).

    Exits with 1 if there is none.
    """

    async def work(store: Store) -> Row | None:
        route = await route_of(store, table)
        return await store.table(table).get(
            parse_key(route.key, key), columns=list(columns) or None, as_of=as_of
        )

    row = with_store(work)
    if row is None:
        click.echo("ackord: there is no such row", err=True)
        return 1
    show_row(row, as_json)
    return 0


@click.command(cls=KeyCommand, short_help="Print the versions of a row.")
@click.argument("table")
@key_argument()
@click.option("--limit", type=click.IntRange(1), default=20, metavar="N", help="At most N versions (20).")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per version and line.")
def history(table: str, key: tuple[str, ...], limit: int, as_json: bool) -> None:
    """Print the versions of the row of TABLE with this KEY that are kept, newest first, deletions too."""

    async def work(store: Store) -> list[Version]:
        route = await route_of(store, table)
        return await store.table(table).history(parse_key(route.key, key), limit)

    found = with_store(work)
    for item in found:
        if as_json:
            shown_columns = None if item.row is None else columns_to_json(item.row.columns)
            click.echo(dump_json({"version": str(item.version), "columns": shown_columns}))
        elif item.row is None:
            console().print(f"version {item.version}  deleted")
        else:
            show_row(item.row, False)
    if not found and not as_json:
        click.echo("no versions", err=True)


@click.command(cls=KeyCommand, short_help="Replace or create a row.")
@click.argument("table")
@key_argument()
@click.option("--set", "assignments", multiple=True, metavar="NAME=JSON", help="One column. Repeatable.")
@click.option("--json", "text", metavar="OBJECT", help="All columns as one JSON object.")
@click.option("--if-version", type=int, metavar="VERSION", help="Only if the row has this version.")
@click.option("--if-absent", is_flag=True, help="Only if there is no such row.")
@click.option("--if-exists", is_flag=True, help="Only if there is such a row.")
@click.option(
    "--on-conflict",
    type=click.Choice(["latest", "merge"]),
    help="If --if-version loses: write all the same, or merge from that version.",
)
@click.option("--ttl", type=float, metavar="SECONDS", help="The row expires so long after this write.")
@where_option("Only if this holds of the row.")
def put(
    table: str,
    key: tuple[str, ...],
    assignments: tuple[str, ...],
    text: str | None,
    if_version: int | None,
    if_absent: bool,
    if_exists: bool,
    on_conflict: OnConflict | None,
    ttl: float | None,
    where: str | None,
) -> None:
    """Replace or create the whole row of TABLE with this KEY; prints its new version.

    Columns that are not named are gone afterwards. Where the last key column is AUTO, the word auto makes a new row;
    the version is its number. Exits with 1 if a condition does not hold.
    """
    if (text is None) == (not assignments):
        raise click.UsageError("give the columns by --set NAME=JSON ... or by --json OBJECT")
    columns = parse_columns(text, assignments)

    async def work(store: Store) -> int:
        route = await route_of(store, table)
        return await store.table(table).put(
            parse_new_key(route.key, key),
            columns,
            if_version=if_version,
            if_absent=if_absent,
            if_exists=if_exists,
            on_conflict=on_conflict,
            ttl=ttl,
            where=parse_where(where),
        )

    click.echo(str(judged(lambda: with_store(work))))


@click.command(cls=KeyCommand, short_help="Delete a row.")
@click.argument("table")
@key_argument()
@click.option("--if-version", type=int, metavar="VERSION", help="Only if the row has this version.")
@click.option("--if-exists", is_flag=True, help="Only if there is such a row.")
@where_option("Only if this holds of the row.")
def delete(
    table: str, key: tuple[str, ...], if_version: int | None, if_exists: bool, where: str | None
) -> None:
    """Delete the row of TABLE with this KEY; prints the deletion's version. No error if there is none."""

    async def work(store: Store) -> int:
        route = await route_of(store, table)
        return await store.table(table).delete(
            parse_key(route.key, key), if_version=if_version, if_exists=if_exists, where=parse_where(where)
        )

    click.echo(str(judged(lambda: with_store(work))))


@click.command(short_help="Print rows in key order.")
@click.argument("table")
@range_options
@where_option("Only rows of which this holds.")
@columns_option()
@click.option("--limit", type=click.IntRange(0), metavar="N", help="At most N rows.")
@click.option("--reverse", is_flag=True, help="From the last to the first.")
@as_of_option("The rows as they were at this version.")
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object per row and line; `ackord load` takes it."
)
def scan(
    table: str,
    prefix: tuple[str, ...],
    start: tuple[str, ...],
    end: tuple[str, ...],
    where: str | None,
    columns: tuple[str, ...],
    limit: int | None,
    reverse: bool,
    as_of: int | None,
    as_json: bool,
) -> None:
    """Print the rows of TABLE in key order, all or of a range.

    Without --json and --limit, the first 100.
    """
    rows_max = limit if limit is not None or as_json else TABLE_ROWS_MAX + 1

    async def work(store: Store) -> tuple[TableRoute, list[Row]]:
        route = await route_of(store, table)
        rows = store.table(table).scan(
            parse_prefix(route.key, prefix),
            start=parse_prefix(route.key, start) or None,
            end=parse_prefix(route.key, end) or None,
            where=parse_where(where),
            columns=list(columns) or None,
            limit=rows_max,
            reverse=reverse,
            as_of=as_of,
        )
        if not as_json:
            return route, await rows.rows()
        async for row in rows:
            click.echo(dump_json(row_to_json(row.key, row.version, row.columns)))
            await asyncio.sleep(0)  # a page's rows come without a pause; the next page is read meanwhile
        return route, []

    route, rows = with_store(work)
    if not as_json:
        is_cut = limit is None and len(rows) > TABLE_ROWS_MAX
        _show_rows([name for name, _ in route.key.columns], rows[:TABLE_ROWS_MAX] if is_cut else rows)
        if is_cut:
            click.echo(
                f"ackord: only the first {TABLE_ROWS_MAX} rows; --limit N or --json for more", err=True
            )


def _show_rows(key_names: Sequence[str], rows: Sequence[Row]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    view = Table(box=None, pad_edge=False)
    for name in key_names:
        view.add_column(name, style="cyan", overflow="fold")
    for name in names:
        view.add_column(name, overflow="fold")
    for row in rows:
        cells = [shown(row[name]) if name in row else "" for name in names]
        view.add_row(*(shown(value) for value in row.key), *cells)
    if rows:
        console().print(view)
    else:
        click.echo("no rows", err=True)


def judged(write: Callable[[], _Result]) -> _Result:
    """The write's result; a Conflict tells what stands there."""
    try:
        return write()
    except Conflict as error:
        if error.detail.get("columns"):
            raise  # a merge that no rule decides: it names the columns
        row = error.current
        standing = "there is no such row" if row is None else f"the row has version {row.version}"
        raise Conflict(f"the condition does not hold: {standing}; nothing was changed") from None
