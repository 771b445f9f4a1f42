"""``ackord update`` and ``ackord count``: single columns by key, and how many rows a range has."""

from __future__ import annotations

import click

from ackord.cli.connection import with_store
from ackord.cli.rows import (
    KeyCommand,
    as_of_option,
    judged,
    key_argument,
    range_options,
    route_of,
    show_row,
    where_option,
)
from ackord.cli.text import parse_assignments, parse_key, parse_prefix
from ackord.cli.where import parse_where
from ackord.row import Written
from ackord.store import Store


@click.command(cls=KeyCommand, short_help="Change single columns of a row.")
@click.argument("table")
@key_argument()
@click.option("--set", "sets", multiple=True, metavar="NAME=JSON", help="A column to set. Repeatable.")
@click.option("--delete", "deletes", multiple=True, metavar="NAME", help="A column to delete. Repeatable.")
@click.option(
    "--increment", "increments", multiple=True, metavar="NAME=NUMBER", help="Add a number. Repeatable."
)
@click.option("--append", "appends", multiple=True, metavar="NAME=JSON", help="Append to a list: one item, or a "
    "list of them. Repeatable.")  # fmt: skip
@click.option("--if-version", type=int, metavar="VERSION", help="Only if the row has this version.")
@click.option("--if-exists", is_flag=True, help="Only if there is such a row.")
@where_option("Only if this holds of the row.")
@click.option(
    "--returning", type=click.Choice(["new", "old"]), help="Print the row as it is then, or was before."
)
def update(
    table: str,
    key: tuple[str, ...],
    sets: tuple[str, ...],
    deletes: tuple[str, ...],
    increments: tuple[str, ...],
    appends: tuple[str, ...],
    if_version: int | None,
    if_exists: bool,
    where: str | None,
    returning: str | None,
) -> None:
    """Change single columns of the row of TABLE with this KEY; prints its new version.

    The other columns stay. Creates the row if there is none. Exits with 1 if a condition does not hold.
    """
    changes = {
        "set": parse_assignments("--set", sets),
        "increment": parse_assignments("--increment", increments),
        "append": {
            name: value if isinstance(value, list) else [value]
            for name, value in parse_assignments("--append", appends).items()
        },
    }
    if not any(changes.values()) and not deletes:
        raise click.UsageError("give --set, --delete, --increment or --append")

    async def work(store: Store) -> int | Written:
        route = await route_of(store, table)
        result: int | Written = await store.table(table).update(
            parse_key(route.key, key),
            changes["set"],
            delete=list(deletes),
            increment=changes["increment"],
            append=changes["append"],
            if_version=if_version,
            if_exists=if_exists,
            where=parse_where(where),
            returning=returning,  # type: ignore[arg-type]
        )
        return result

    result = judged(lambda: with_store(work))
    if isinstance(result, int):
        click.echo(str(result))
    elif result.row is not None:
        show_row(result.row, True)


@click.command(short_help="Count rows.")
@click.argument("table")
@range_options
@where_option("Only rows of which this holds.")
@as_of_option("The rows that there were at this version.")
def count(
    table: str,
    prefix: tuple[str, ...],
    start: tuple[str, ...],
    end: tuple[str, ...],
    where: str | None,
    as_of: int | None,
) -> None:
    """Print how many rows TABLE has, all or of a range."""

    async def work(store: Store) -> int:
        route = await route_of(store, table)
        return await store.table(table).count(
            parse_prefix(route.key, prefix),
            start=parse_prefix(route.key, start) or None,
            end=parse_prefix(route.key, end) or None,
            where=parse_where(where),
            as_of=as_of,
        )

    click.echo(str(with_store(work)))
