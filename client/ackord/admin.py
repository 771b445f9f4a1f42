"""Table operations, and questions that are no rows: plain requests, repeated at any node until one has an answer.

A table operation is fenced, so that an attempt that reaches a node late, perhaps after its caller has given up,
touches no other table than the one that it was meant for (rules R17, R18). A drop names the table's id. A create names
the version of the table's record that was read before: versions never start again, so a record that has gone on is
not created from. All attempts of one call share its fence, so a retry of what has succeeded finds that out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from ackord.errors import Conflict, Error, OutcomeUnknown, TableExists, TableNotFound, Unavailable
from ackord.routing import backoff_s
from ackord.transport import Environment, Transport, error_of_body
from ackord.wire.messages import TableDefinition, check_table_name

ATTEMPT_S: Final = 15.0  # for one node's answer
TABLES_PATH: Final = "/v1/tables"


@dataclass(slots=True)
class Attempts:
    """What became of the attempts of one request."""

    may_have_happened: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """The version of a table's record, and the table under it, if one stands or is being dropped."""

    version: int
    table_id: int | None
    is_dropping: bool


class Admin:
    def __init__(
        self,
        transport: Transport,
        environment: Environment,
        urls: Callable[[], list[str]],
        is_closed: Callable[[], bool],
    ) -> None:
        """``urls``: all nodes, in the order in which to ask them."""
        self._transport = transport
        self._environment = environment
        self._urls = urls
        self._is_closed = is_closed

    async def ask(self, path: str, deadline: float) -> Any:
        return await self._request("GET", path, None, deadline, Attempts())

    async def list_tables(self, deadline: float) -> list[TableDefinition]:
        answer = await self.ask(TABLES_PATH, deadline)
        items = answer.get("tables") if isinstance(answer, dict) else answer
        if not isinstance(items, list):
            raise Error(f"the node's list of tables is a {type(items).__name__}")
        return sorted((_definition(item) for item in items), key=lambda table: table.name)

    async def describe(self, name: str, deadline: float) -> TableDefinition:
        return _definition(await self.ask(_path(name), deadline))

    async def check_stands(self, name: str, deadline: float) -> None:
        """TableNotFound if there is no such table. A node that knows the table does not ask the coordination
        service."""
        await self.ask(_path(name) + "?cached=true", deadline)

    async def create(self, name: str, body: dict[str, Any], deadline: float) -> TableDefinition:
        """Creates the table once, or finds the one that stands."""
        failures = 0
        reason: Error = Unavailable(f"the table {name!r} is being dropped")
        while True:
            record = await self._record(name, deadline)
            if not record.is_dropping:
                attempts = Attempts()
                fenced = {**body, "if_record_version": record.version}
                try:
                    return _definition(await self._request("POST", TABLES_PATH, fenced, deadline, attempts))
                except (Conflict, TableExists) as error:
                    if _was_perhaps_created(record, attempts, error):
                        raise OutcomeUnknown(
                            f"the table {name!r} may have been created and dropped since: {error.message}",
                            **error.detail,
                        ) from error
                    if isinstance(error, TableExists):
                        raise
                    reason = Unavailable(error.message, **error.detail)
            failures += 1
            await self._pause(failures, deadline, reason)

    async def drop(self, name: str, deadline: float) -> int:
        """Drops the table that stands, or is being dropped; returns its id."""
        record = await self._record(name, deadline)
        if record.table_id is None:
            raise TableNotFound(f"there is no table {name!r}", table=name)
        attempts = Attempts()
        try:
            await self._request("DELETE", f"{_path(name)}?id={record.table_id}", None, deadline, attempts)
        except TableNotFound:
            if not attempts.may_have_happened:
                raise
        return record.table_id

    async def _record(self, name: str, deadline: float) -> Record:
        try:
            answer = await self.ask(_path(name), deadline)
        except TableNotFound as error:
            answer = error.detail
        version, table_id = answer.get("record_version"), answer.get("id")
        if type(version) is not int or type(table_id) not in (int, type(None)):
            raise Error(f"the node's answer does not tell the version of table {name!r}'s record")
        return Record(version, table_id, answer.get("state") == "dropping")

    async def _request(self, method: str, path: str, body: Any, deadline: float, attempts: Attempts) -> Any:
        """At any node, until one has an answer or the deadline has passed."""
        failures = 0
        error: Error = Unavailable("no node was asked in time")
        while not self._is_closed():
            for url in self._urls():
                remaining = min(deadline - self._environment.now(), ATTEMPT_S)
                if remaining <= 0:
                    break
                try:
                    status, answer = await self._transport.request(method, url + path, body, remaining)
                except Unavailable as failure:
                    error = failure
                    attempts.may_have_happened |= bool(failure.detail.get("sent"))
                    continue
                if status < 300:
                    return answer
                error = error_of_body(status, answer, url)
                if not isinstance(error, Unavailable | OutcomeUnknown):
                    raise error
                attempts.may_have_happened |= isinstance(error, OutcomeUnknown)
            failures += 1
            try:
                await self._pause(failures, deadline, error)
            except Error:
                break
        if attempts.may_have_happened and method != "GET":
            raise OutcomeUnknown(f"{method} {path} may have happened: {error.message}", **error.detail)
        raise Unavailable(error.message, **error.detail)

    async def _pause(self, failures: int, deadline: float, error: Error) -> None:
        """Before the next try; raises the error if there is no time for one."""
        pause_s = backoff_s(failures, self._environment.jitter(), error.detail.get("retry_after_ms"))
        if self._environment.now() + pause_s >= deadline:
            raise error
        await self._environment.sleep(pause_s)


def _was_perhaps_created(record: Record, attempts: Attempts, error: Error) -> bool:
    """Whether an attempt may have created the table from this record, which has gone on. From its next version no
    further: that is the work of whoever was faster."""
    if record.table_id is not None or not attempts.may_have_happened:
        return False
    now = error.detail.get("record_version")
    return type(now) is not int or now > record.version + 1


def _definition(answer: Any) -> TableDefinition:
    try:
        return TableDefinition.from_wire(answer)
    except ValueError as error:
        raise Error(f"the node's answer is not a table definition: {error}") from None


def _path(name: str) -> str:
    return f"{TABLES_PATH}/" + quote(check_table_name(name), safe="")
