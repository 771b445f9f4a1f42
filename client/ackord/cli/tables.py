"""``ackord table``: create, list, describe and drop tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
from rich.table import Table

from ackord.cli.connection import with_store
from ackord.cli.text import console, parse_value, shown, shown_range, shown_schema, shown_tablet
from ackord.errors import InvalidRequest
from ackord.routing import TabletRoute
from ackord.store import Store
from ackord.wire.json_forms import dump_json, to_json
from ackord.wire.messages import TableDefinition
from ackord.wire.options import MERGE_RULES


@click.group()
def table() -> None:
    """Create, list, describe and drop tables."""


def parse_key_columns(words: Sequence[str]) -> dict[str, str]:
    """``name:type`` words as key columns."""
    columns: dict[str, str] = {}
    for word in words:
        name, _, kind = word.rpartition(":")
        if not name or kind not in ("int", "str", "bytes", "auto"):
            raise InvalidRequest(
                f"--key takes NAME:int, NAME:str, NAME:bytes or NAME:auto, not {ascii(word)[:60]}",
                field="key",
            )
        if name in columns:
            raise InvalidRequest(f"--key names the column {ascii(name)[:60]} twice", field="key")
        columns[name] = kind
    return columns


def parse_split_at(words: Sequence[str]) -> list[Any]:
    """``--split-at`` values: one JSON value each, or a JSON list of them."""
    values: list[Any] = []
    for word in words:
        value = parse_value("--split-at", word)
        values.extend(value if isinstance(value, list) else [value])
    return values


KEY_HELP = (
    "A key column and its type (int, str or bytes); repeat it for up to 4. The first is the partition key. The last "
    "of several may be auto: numbered by the table."
)
MERGE_HELP = f"How merges decide about a column: {', '.join(MERGE_RULES)}. Repeatable."
SPLIT_HELP = "A partition-key value, as JSON, at which a new tablet begins; repeat it, or give a JSON list."


def parse_merge(words: Sequence[str]) -> dict[str, str]:
    """``column=rule`` words."""
    rules: dict[str, str] = {}
    for word in words:
        column, equals, rule = word.rpartition("=")
        if not equals or not column or column in rules:
            raise InvalidRequest(
                f"--merge takes COLUMN=RULE, once a column, not {ascii(word)[:60]}", field="merge"
            )
        rules[column] = rule
    return rules


@table.command()
@click.argument("name")
@click.option("--key", "keys", multiple=True, required=True, metavar="NAME:TYPE", help=KEY_HELP)
@click.option("--split-at", multiple=True, metavar="JSON", help=SPLIT_HELP)
@click.option(
    "--keep-versions", type=int, default=1, metavar="N", help="Versions of each row that are kept (1)."
)
@click.option("--keep-for", type=float, metavar="SECONDS", help="Superseded versions are kept so long.")
@click.option("--ttl", type=float, metavar="SECONDS", help="Rows expire so long after their last write.")
@click.option(
    "--max-versions", type=int, default=1, metavar="N", help="Cells of each column that are kept (1)."
)
@click.option("--merge", "rules", multiple=True, metavar="COLUMN=RULE", help=MERGE_HELP)
def create(
    name: str,
    keys: tuple[str, ...],
    split_at: tuple[str, ...],
    keep_versions: int,
    keep_for: float | None,
    ttl: float | None,
    max_versions: int,
    rules: tuple[str, ...],
) -> None:
    """Create the table NAME. Creating it again with the same definition changes nothing."""
    columns, splits, merge = parse_key_columns(keys), parse_split_at(split_at), parse_merge(rules)

    async def work(store: Store) -> TableDefinition:
        return await store.create_table(
            name,
            columns,
            split_at=splits,
            keep_versions=keep_versions,
            keep_for=keep_for,
            ttl=ttl,
            max_versions=max_versions,
            merge=merge,
        )

    made = with_store(work)
    count = len(made.tablets)
    click.echo(
        f"Table {made.name} ({shown_schema(made.key.columns)}) with {count} tablet{'s' * (count > 1)} is ready."
    )


@table.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per table and line.")
def list_tables(as_json: bool) -> None:
    """List all tables."""

    async def work(store: Store) -> list[TableDefinition]:
        return await store.list_tables()

    found = with_store(work)
    if as_json:
        for item in found:
            click.echo(dump_json(to_json(item.to_wire())))
        return
    if not found:
        click.echo("No tables yet. Create one: ackord table create orders --key customer:str --key order:int")
        return
    view = Table(box=None, pad_edge=False)
    for column in ("table", "key", "tablets"):
        view.add_column(column, justify="right" if column == "tablets" else "left")
    for item in found:
        view.add_row(item.name, shown_schema(item.key.columns), str(len(item.tablets)))
    console().print(view)


@table.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print the definition as JSON.")
def describe(name: str, as_json: bool) -> None:
    """Show the key columns and tablets of the table NAME."""

    async def work(store: Store) -> tuple[TableDefinition, dict[int, TabletRoute]]:
        definition = await store.describe_table(name)
        route = store.batcher.routing.tables.get(name)
        return definition, {tablet.id: tablet for tablet in route.tablets} if route is not None else {}

    definition, routes = with_store(work)
    if as_json:
        click.echo(dump_json(to_json(definition.to_wire())))
        return
    key = definition.key.columns
    out = console()
    out.print(f"Table {definition.name}, key ({shown_schema(key)}), id {definition.id}")
    for option, value in definition.options.to_wire().items():
        out.print(f"{option}: {shown(value)}")
    view = Table(box=None, pad_edge=False)
    for column in ("tablet", key[0][0], "coordinator", "in sync"):
        view.add_column(column)
    for tablet in definition.tablets:
        route = routes.get(tablet.id)
        view.add_row(
            shown_tablet(tablet.id),
            shown_range(key, tablet.start, tablet.end),
            (route.coordinator if route is not None else None) or "none",
            " ".join(route.in_sync) if route is not None else "",
        )
    out.print(view)


@table.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
def drop(name: str, yes: bool) -> int:
    """Delete the table NAME and all its rows."""
    if not yes:
        try:
            agreed = click.confirm(f"Delete the table {name} and all its rows?", err=True)
        except click.Abort:
            agreed = False
        if not agreed:
            click.echo("ackord: nothing was deleted; --yes deletes without asking", err=True)
            return 1

    async def work(store: Store) -> None:
        await store.drop_table(name)

    with_store(work)
    click.echo(f"Table {name} is gone.")
    return 0
