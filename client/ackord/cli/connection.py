"""Which nodes a command speaks to, and how: through the SDK, or plain requests where no table is needed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import yaml

from ackord.errors import Error, InvalidRequest, OutcomeUnknown, Unavailable
from ackord.store import Store, connect, node_urls
from ackord.transport import HttpTransport, error_of_body

CONFIG_FILE: Final = "cluster.yaml"
DEFAULT_NODES: Final = ("http://127.0.0.1:7801", "http://127.0.0.1:7802", "http://127.0.0.1:7803")
GRACE_S: Final = 1.2  # after the first node's answer, for the others': a node gives a silent peer 1 s

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Settings:
    """What all commands share."""

    nodes: list[str]  # URLs
    source: str  # where they are from, for messages
    timeout_s: float


def find_nodes(given: str | None, folder: Path) -> tuple[list[str], str]:
    """(URLs, where they are from): what was given (option or environment), else ``cluster.yaml`` of the folder,
    else the addresses of the example cluster."""
    if given is not None:
        return node_urls(given), "--nodes or ACKORD_NODES"
    path = folder / CONFIG_FILE
    if path.is_file():
        return nodes_of_config(path), f"./{CONFIG_FILE}"
    return list(DEFAULT_NODES), f"the default, since there is no ./{CONFIG_FILE}"


def nodes_of_config(path: Path) -> list[str]:
    """The node addresses in a cluster.yaml; everything else in it is for the nodes to check."""
    wanted = f"{path.name}: expected nodes: {{NAME: {{address: HOST:PORT}}}}"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InvalidRequest(f"{path.name} cannot be read: {error}", field="nodes") from None
    nodes = content.get("nodes") if isinstance(content, Mapping) else None
    if not isinstance(nodes, Mapping) or not nodes:
        raise InvalidRequest(f"{wanted}, found no nodes", field="nodes")
    addresses = []
    for name, node in nodes.items():
        address = node.get("address") if isinstance(node, Mapping) else None
        if not isinstance(address, str):
            raise InvalidRequest(f"{wanted}, found no address of {name!r}", field="nodes")
        addresses.append(address)
    return node_urls(addresses)


def settings() -> Settings:
    """The running command's settings."""
    found = click.get_current_context().find_object(Settings)
    assert found is not None
    return found


def with_store(work: Callable[[Store], Awaitable[T]]) -> T:
    """Runs ``work`` with a store that is connected to the cluster."""
    shared = settings()

    async def run() -> T:
        async with connect(shared.nodes, timeout=shared.timeout_s) as store:
            return await work(store)

    try:
        return asyncio.run(run())
    except Unavailable as error:
        if "urls" in error.detail:  # no node at all: the address may be wrong
            raise Unavailable(f"{error.message} (nodes from {shared.source})", **error.detail) from None
        raise


# ------------------------------------------------------------------------------- without tables


async def ask_all(urls: list[str], path: str, timeout_s: float) -> list[Any]:
    """The answers of the nodes to a GET, of all that answer soon after the first; at least one, else
    Unavailable."""
    transport = HttpTransport()
    try:
        tasks = [asyncio.create_task(_ask(transport, "GET", url, path, None, timeout_s)) for url in urls]
        try:
            await _first_success(tasks)
            await asyncio.wait(tasks, timeout=GRACE_S)
        finally:
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        await transport.close()
    answers = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
    if not answers:
        errors = [outcome for outcome in outcomes if isinstance(outcome, Error)]
        raise Unavailable("no node answered: " + "; ".join(error.message for error in errors))
    return answers


async def ask_one(urls: list[str], path: str, body: Any, timeout_s: float) -> Any:
    """The answer to a POST of the first node that can be reached. What was sent is never sent again:
    OutcomeUnknown if its answer did not come."""
    transport = HttpTransport()
    reasons = []
    try:
        for url in urls:
            try:
                return await _ask(transport, "POST", url, path, body, timeout_s)
            except Unavailable as error:
                if error.detail.get("sent") is True:
                    raise OutcomeUnknown(f"the request was sent and not answered: {error.message}") from None
                if "sent" not in error.detail:  # the node's own word
                    raise
                reasons.append(error.message)
    finally:
        await transport.close()
    raise Unavailable("no node answered: " + "; ".join(reasons))


async def _ask(
    transport: HttpTransport, method: str, url: str, path: str, body: Any, timeout_s: float
) -> Any:
    status, answer = await transport.request(method, url + path, body, timeout_s)
    if status >= 300 or not isinstance(answer, dict):
        raise error_of_body(status, answer, url)
    return answer


async def _first_success(tasks: list[asyncio.Task[Any]]) -> None:
    pending = set(tasks)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        if any(task.exception() is None for task in done):
            return
