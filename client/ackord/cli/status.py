"""``ackord status``: the cluster at a glance. What is wrong stands below in words, and in the exit code."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ackord.cli.connection import ask_all, settings
from ackord.cli.text import console, shown_bytes, shown_range, shown_schema, shown_tablet
from ackord.errors import Error
from ackord.wire.json_forms import dump_json, to_json

PATH: Final = "/v1/status"
TIMEOUT_S: Final = 5.0
SLOW_LOOP_MS: Final = 500.0
NAMED_TABLETS_MAX: Final = 3  # in one line below the tables


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to know; a fault makes the cluster unhealthy."""

    text: str
    is_fault: bool = True


@click.command()
@click.option(
    "--json", "as_json", is_flag=True, help="Print the nodes' answer as JSON, with healthy and findings."
)
@click.option(
    "--watch",
    type=click.FloatRange(0.2, 3600),
    metavar="SECONDS",
    help="Show it again and again, with this pause, until interrupted.",
)
def status(as_json: bool, watch: float | None) -> int:
    """Show nodes, tablets, coordinators, in-sync sets and lag.

    \b
    Exit code 0: all is healthy: every node is up and ready, ZooKeeper is
    reachable, every tablet has a coordinator and all its copies in sync.
    Exit code 1: something is not; the lines below the tables say what.

    Lag counts the log entries that a copy has not confirmed yet.
    """
    if watch is not None:
        return _watch(as_json, watch)
    try:
        found = fetch()
    except Error as error:
        if as_json:
            click.echo(dump_json({"healthy": False, "findings": [error.message]}))
        click.echo(f"ackord: {error.message} (nodes from {settings().source})", err=True)
        return 1
    findings = list(examine(found))
    if as_json:
        click.echo(as_json_text(found, findings))
    else:
        console().print(render(found, findings))
    return 1 if any(finding.is_fault for finding in findings) else 0


def fetch() -> dict[str, Any]:
    """The status as the node tells it that knows most."""
    answers = asyncio.run(ask_all(settings().nodes, PATH, min(TIMEOUT_S, settings().timeout_s)))
    found: dict[str, Any] = max(answers, key=_knowledge)
    return found


def _knowledge(answer: dict[str, Any]) -> tuple[bool, int, int]:
    """A node cut off from ZooKeeper or from its peers knows less of the cluster."""
    up_count = sum(1 for node in answer["nodes"].values() if node["up"])
    return bool(answer["coordination_up"]), up_count, len(answer["tables"])


def as_json_text(found: dict[str, Any], findings: list[Finding]) -> str:
    is_healthy = not any(finding.is_fault for finding in findings)
    return dump_json(to_json({"healthy": is_healthy, "findings": [f.text for f in findings], **found}))


def _watch(as_json: bool, pause_s: float) -> int:
    out = console()
    if as_json or not out.is_terminal:
        while True:
            try:
                found = fetch()
                findings = list(examine(found))
                if as_json:
                    click.echo(as_json_text(found, findings))
                else:
                    out.print(render(found, findings))
            except Error as error:
                click.echo(f"ackord: {error.message}", err=True)
            time.sleep(pause_s)
    with Live(console=out, auto_refresh=False, screen=True, vertical_overflow="crop") as live:
        while True:
            try:
                found = fetch()
                view: RenderableType = render(found, list(examine(found)))
            except Error as error:
                view = Text(error.message, style="red")
            live.update(view, refresh=True)
            time.sleep(pause_s)


# ---------------------------------------------------------------------------------- examination


def examine(found: dict[str, Any]) -> Iterator[Finding]:
    """What is wrong and what to do about it."""
    down = [name for name, node in found["nodes"].items() if not node["up"]]
    for name in down:
        yield Finding(f"{name} does not answer: start it, or look at its log")
    yield from _of_nodes(found)
    if not found["coordination_up"]:
        yield Finding(
            f"{found['answered_by']} cannot reach ZooKeeper: reads and writes go on; nobody takes over from a node "
            "that fails, and tables cannot be created or dropped, until it is back"
        )
    for name, table in found["tables"].items():
        yield from _of_tablets(name, table["tablets"], set(down))


def _of_nodes(found: dict[str, Any]) -> Iterator[Finding]:
    for name, node in found["nodes"].items():
        if not node["up"]:
            continue
        if not node["ready"]:
            yield Finding(f"{name} is not ready: {node['reason']}")
        if node["disk_reason"]:
            yield Finding(f"{name}: {node['disk_reason']}")
        if node["loop_lag_max_ms"] > SLOW_LOOP_MS:
            lag = f"{node['loop_lag_max_ms'] / 1000:.1f} s"
            yield Finding(
                f"{name} stood still for {lag} once since its start: is its machine overloaded?", False
            )


def _of_tablets(table: str, tablets: list[dict[str, Any]], down: set[str]) -> Iterator[Finding]:
    headless = [t for t in tablets if t["coordinator"] is None or t["coordinator"] in down]
    lost = [t for t in headless if t["in_sync"] and set(t["in_sync"]) <= down]
    waiting = [t for t in headless if t not in lost]
    if lost:
        nodes = ", ".join(sorted({name for t in lost for name in t["in_sync"]}))
        yield Finding(
            f"table {table}: all in-sync copies of {_named(lost)} are on nodes that do not answer ({nodes}): start one "
            f"of them. Only if their disks are lost for good: ackord recover inspect {shown_tablet(lost[0]['id'])}"
        )
    if waiting:
        yield Finding(
            f"table {table}: no coordinator now for {_named(waiting)}; an in-sync node takes over in seconds"
        )
    for node in sorted({name for t in tablets for name in missing(t)}):
        lacking = [t for t in tablets if node in missing(t)]
        yield Finding(
            f"table {table}: the copy on {node} of {_named(lacking)} is {missing(lacking[0])[node]}"
        )
    least = [t for t in tablets if missing(t) and len(t["in_sync"]) <= t["min_in_sync"]]
    if least:
        yield Finding(
            f"table {table}: {_named(least)}: as few in sync as may be; writes stop if one more fails"
        )


def missing(tablet: dict[str, Any]) -> dict[str, str]:
    """Replicas that are not in sync, and what they are doing."""
    states = {}
    for node in sorted(set(tablet["replicas"]) - set(tablet["in_sync"])):
        states[node] = "catching up" if node in tablet["copies"] else "missing"
    return states


def _named(tablets: list[dict[str, Any]]) -> str:
    names = ", ".join(shown_tablet(t["id"]) for t in tablets[:NAMED_TABLETS_MAX])
    more = len(tablets) - NAMED_TABLETS_MAX
    return f"tablet{'s' * (len(tablets) > 1)} {names}" + (f" and {more} more" if more > 0 else "")


# -------------------------------------------------------------------------------------- tables


def render(found: dict[str, Any], findings: list[Finding]) -> Group:
    """The whole view."""
    heading = Text.assemble(
        (f"Cluster {found['cluster']}", "bold"), f"  as {found['answered_by']} sees it", "\n"
    )
    parts: list[RenderableType] = [heading, _nodes(found["nodes"])]
    down = {name for name, node in found["nodes"].items() if not node["up"]}
    for name, table in found["tables"].items():
        parts += [Text.assemble("\n", (f"Table {name}", "bold"), f"  key ({shown_schema(table['key'])})\n")]
        parts += [_tablets(table, down)]
    if not found["tables"]:
        parts += [
            Text("\nNo tables yet. Create one: ackord table create orders --key customer:str --key order:int")
        ]
    faults = [finding.text for finding in findings if finding.is_fault]
    if not faults:
        parts += [Text("\nAll is healthy.", style="green")]
    for finding in findings:
        sign, style = ("!", "red") if finding.is_fault else ("-", "yellow")
        is_first = finding is findings[0]
        parts += [Text.assemble("\n" * is_first, (f"{sign} ", style), finding.text)]
    return Group(*parts)


def _nodes(nodes: dict[str, dict[str, Any]]) -> Table:
    view = Table(box=None, pad_edge=False)
    for name in ("node", "address", "state", "data", "free", "loop lag max"):
        view.add_column(
            name, justify="left" if name in ("node", "address", "state") else "right", no_wrap=True
        )
    for name, node in nodes.items():
        address = node["address"].removeprefix("http://")
        if not node["up"]:
            view.add_row(name, address, Text("down", style="red"), "", "", "")
            continue
        is_well = node["ready"] and not node["disk_reason"]
        state = (
            Text("ready", style="green")
            if is_well
            else Text("not ready" if not node["ready"] else "disk", "red")
        )
        sizes = (shown_bytes(node["disk_bytes"]), shown_bytes(node["free_bytes"]))
        view.add_row(name, address, state, *sizes, f"{node['loop_lag_max_ms']:.0f} ms")
    return view


def _tablets(table: dict[str, Any], down: set[str]) -> Table:
    view = Table(box=None, pad_edge=False)
    for name in ("tablet", table["key"][0][0], "coordinator", "epoch", "in sync", "lag"):
        view.add_column(name, justify="right" if name == "epoch" else "left")
    for tablet in table["tablets"]:
        coordinator = tablet["coordinator"]
        is_led = coordinator is not None and coordinator not in down
        view.add_row(
            shown_tablet(tablet["id"]),
            shown_range(table["key"], tablet["start"], tablet["end"]),
            Text(coordinator or "none", style="" if is_led else "red"),
            str(tablet["epoch"]),
            _in_sync(tablet),
            _lag(tablet),
        )
    return view


def _in_sync(tablet: dict[str, Any]) -> Text:
    text = Text(" ".join(tablet["in_sync"]))
    for node, state in missing(tablet).items():
        text.append(f"  {node} {state}", style="red" if state == "missing" else "yellow")
    return text


def _lag(tablet: dict[str, Any]) -> Text:
    lag = tablet["lag"]
    if not lag:
        return Text("" if tablet["coordinator"] is None or len(tablet["in_sync"]) != 1 else "0")
    if not any(lag.values()):
        return Text("0")
    return Text(", ".join(f"{node} {count}" for node, count in sorted(lag.items()) if count), style="yellow")
