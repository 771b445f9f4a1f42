"""``ackord recover``: an operator's last resorts. The nodes judge and act; what may be lost is always said
first."""

from __future__ import annotations

import asyncio
from typing import Any

import click
from rich.table import Table

from ackord.cli.connection import ask_one, settings
from ackord.cli.text import console, parse_tablet, shown_tablet
from ackord.errors import InvalidRequest
from ackord.wire.json_forms import dump_json, to_json

PATH = "/admin/v1/recover"
TIMEOUT_S = 30.0  # a node asks every other, 5 s each, and then writes


@click.group()
def recover() -> None:
    """Last resorts, when copies or ZooKeeper's state are lost for good.

    A node that is merely down needs none of this: start it again.
    """


@recover.command()
@click.argument("tablet")
@click.option("--json", "as_json", is_flag=True, help="Print the node's answer as JSON.")
def inspect(tablet: str, as_json: bool) -> None:
    """Show the copies of TABLET (an id of `ackord status`) that can be reached. Changes nothing."""
    answer = _ask({"action": "inspect", "tablet": parse_tablet(tablet)})
    if as_json:
        click.echo(dump_json(to_json(answer)))
        return
    copies: dict[str, dict[str, Any]] = answer["copies"]
    latest = max(((c["last_epoch"], c["log_end"]) for c in copies.values() if not c["filling"]), default=None)
    view = Table(box=None, pad_edge=False)
    for name in ("node", "epoch", "log end", "applied", "last version", "state"):
        view.add_column(name, justify="left" if name in ("node", "state") else "right")
    for node, copy in sorted(copies.items()):
        numbers = [str(copy[name]) for name in ("last_epoch", "log_end", "applied", "last_version")]
        view.add_row(node, *numbers, _state(copy, latest))
    out = console()
    if copies:
        out.print(f"Tablet {shown_tablet(answer['tablet'])}")
        out.print(view)
    else:
        out.print(f"No node that answers has a copy of tablet {shown_tablet(answer['tablet'])}.")
    if answer["unreachable"]:
        out.print(f"Not reachable: {', '.join(answer['unreachable'])}. Their copies may hold later writes.")


@recover.command()
@click.argument("tablet")
@click.option("--node", required=True, metavar="NODE", help="Whose copy becomes the only one in sync.")
@click.option("--accept-loss", is_flag=True, help="Do it, though what is named may be lost.")
def force(tablet: str, node: str, accept_loss: bool) -> int:
    """Make one copy of TABLET the whole in-sync set, since the others in sync are lost for good.

    Without --accept-loss this changes nothing, says what may be lost and exits with 1.
    """
    number = parse_tablet(tablet)
    request = {"action": "force", "tablet": number, "node": node, "accept_loss": accept_loss}
    try:
        answer = _ask(request)
    except InvalidRequest as error:
        loss = error.detail.get("loss")
        if loss is None:
            raise
        click.echo(
            f"If tablet {shown_tablet(number)} is forced to the copy of {node}, this may be lost: {loss}.",
            err=True,
        )
        click.echo(
            "Nothing was changed. If that is what you want, say it again with --accept-loss.", err=True
        )
        return 1
    click.echo(
        f"Tablet {shown_tablet(number)} now stands on the copy of {answer['node']} alone (epoch {answer['epoch']}); "
        f"the other nodes copy it from there.\nMay be lost: {answer['may_be_lost']}."
    )
    return 0


@recover.command()
@click.option(
    "--without",
    multiple=True,
    metavar="NODE",
    help="Go on without this node, whose disk is lost. Repeatable.",
)
def rebuild(without: tuple[str, ...]) -> None:
    """Write ZooKeeper's state anew from what the nodes hold, after it was wiped.

    The nodes must run; until then they answer, and serve nothing. Each tablet starts from the copy with the
    latest log: if every node answered, no acknowledged write is lost. A node named with --without may have
    held writes that nobody else has.
    """
    answer = _ask({"action": "rebuild", "without": list(without)})
    tables = ", ".join(answer["tables"]) or "none"
    click.echo(f"ZooKeeper's state is written anew from {', '.join(answer['asked'])}. Tables: {tables}.")
    if answer["without"]:
        click.echo(f"Left out: {', '.join(answer['without'])}. Writes that only they held are lost.")
    click.echo("The nodes go on by themselves in a moment; watch: ackord status --watch 1")


def _state(copy: dict[str, Any], latest: tuple[int, int] | None) -> str:
    if copy["filling"]:
        return "incomplete: cannot be chosen"
    words = ["the latest log" if (copy["last_epoch"], copy["log_end"]) == latest else "an older log"]
    if copy["suspect"]:
        words.append("lost the end of its log once")
    return ", ".join(words)


def _ask(request: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = asyncio.run(ask_one(settings().nodes, PATH, request, TIMEOUT_S))
    return answer
