"""Table operations of the SDK: fenced, repeated under one fence, and judged by what their attempts may have done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from ackord.admin import Admin
from ackord.errors import Conflict, Error, OutcomeUnknown, TableExists, TableNotFound, Unavailable
from ackord.transport import AsyncioEnvironment
from ackord.wire.keys import KeySchema
from ackord.wire.messages import TableDefinition, TabletRange

KEY = [["k", "str"]]
BODY: dict[str, Any] = {"name": "t", "key": KEY, "split_at": []}


@dataclass
class Service:
    """The table "t" at a coordination service, behind two nodes; also the Transport to them.

    ``script``: what happens to the next requests that change something, instead of a plain answer: "lost" (never
    arrives), "unanswered" (done, the answer is lost), "refused" (certainly not done), or a call that is made first.
    """

    table: TableDefinition | None = None
    version: int = -1
    ids_count: int = 0
    script: list[str | Callable[[], object]] = field(default_factory=list)
    seen: list[tuple[str, Any]] = field(default_factory=list)

    async def request(self, method: str, url: str, body: Any, timeout_s: float) -> tuple[int, Any]:
        split = urlsplit(url)
        fence = body["if_record_version"] if method == "POST" else None
        if method == "DELETE":
            fence = int(parse_qs(split.query)["id"][0])
        if method != "GET":
            self.seen.append((method, fence))
            step = self.script.pop(0) if self.script else "answered"
            if step in ("lost", "unanswered"):
                if step == "unanswered":
                    self.perform(method, fence, body)
                raise Unavailable("no answer", sent=True)
            if step == "refused":
                return self.failed(Unavailable("not now", retry_after_ms=1))
            if callable(step):
                step()
        try:
            return 200, self.perform(method, fence, body)
        except Error as error:
            return self.failed(error)

    @staticmethod
    def failed(error: Error) -> tuple[int, Any]:
        return error.http_status, {
            "error": {"code": error.name, "message": error.message, "detail": error.detail}
        }

    def perform(self, method: str, fence: int | None, body: Any) -> Any:
        if method == "POST":
            return self.create(fence, body["key"]).to_wire()
        if self.table is None or (method == "DELETE" and self.table.id != fence):
            raise TableNotFound("none", record_version=self.version)
        if method == "DELETE":
            self.drop()
            return {}
        return {**self.table.to_wire(), "record_version": self.version}

    def create(self, fence: int | None, key: list[list[str]] = KEY) -> TableDefinition:
        if self.table is None:
            if fence not in (None, self.version):
                raise Conflict("gone on", record_version=self.version)
            self.ids_count += 1
            tablets = (TabletRange(self.ids_count, b"", None),)
            self.table = TableDefinition(self.ids_count, "t", KeySchema.from_wire(key), tablets)
            self.version += 1
        elif self.table.key.to_wire() != key:
            raise TableExists("another one", record_version=self.version)
        return self.table

    def drop(self) -> None:
        self.table = None
        self.version += 2

    async def connect(self, *_: Any) -> Any:
        raise NotImplementedError

    async def close(self) -> None:
        return


def admin_of(service: Service) -> Admin:
    return Admin(service, AsyncioEnvironment(), lambda: ["http://a", "http://b"], lambda: False)


async def create(service: Service, seconds: float = 5.0) -> TableDefinition:
    deadline = AsyncioEnvironment().now() + seconds
    return await admin_of(service).create("t", BODY, deadline)


async def drop(service: Service, seconds: float = 5.0) -> int:
    return await admin_of(service).drop("t", AsyncioEnvironment().now() + seconds)


async def test_a_retry_of_a_create_that_succeeded_is_a_success_under_the_same_fence() -> None:
    service = Service(script=["unanswered", "refused"])
    made = await create(service)
    assert made == service.table
    assert service.seen == [("POST", -1)] * 3
    assert service.ids_count == 1


async def test_a_create_that_succeeded_and_was_dropped_by_somebody_is_not_done_again() -> None:
    service = Service()
    service.script = ["unanswered", service.drop]
    with pytest.raises(OutcomeUnknown, match="may have been created and dropped"):
        await create(service)
    assert service.table is None


async def test_a_create_that_was_certainly_refused_goes_on_from_the_record_as_it_is_then() -> None:
    service = Service()

    def come_and_go() -> None:
        service.create(None)
        service.drop()

    service.script = ["refused", come_and_go]
    assert await create(service) == service.table
    assert service.seen == [("POST", -1), ("POST", -1), ("POST", 2)]


async def test_another_table_of_the_name_tells_what_became_of_a_lost_create() -> None:
    other = [["n", "int"]]
    first = Service()
    first.script = ["lost", lambda: first.create(None, other)]
    with pytest.raises(TableExists):
        await create(first)  # it stands from the next version on: the lost one was not first
    second = Service()

    def twice() -> None:
        second.create(None)
        second.drop()
        second.create(None, other)

    second.script = ["lost", twice]
    with pytest.raises(OutcomeUnknown):
        await create(second)  # the first of the two may have been ours


async def test_a_lost_create_of_a_table_that_stood_was_certainly_not_done() -> None:
    service = Service()
    service.create(None)
    service.script = ["lost", service.drop]
    made = await create(service)
    assert made.id == 2
    assert service.seen == [("POST", 0), ("POST", 0), ("POST", 2)]


async def test_a_retry_of_a_drop_that_succeeded_is_a_success_and_drops_no_later_table() -> None:
    service = Service()
    first = service.create(None).id
    service.script = ["unanswered", lambda: service.create(None)]
    assert await drop(service) == first
    assert service.table is not None
    assert service.table.id != first
    assert service.seen == [("DELETE", first)] * 2


async def test_a_drop_of_a_table_that_somebody_else_dropped_tells_so() -> None:
    service = Service()
    with pytest.raises(TableNotFound):
        await drop(service)
    assert service.seen == []
    service.create(None)
    service.script = [service.drop]
    with pytest.raises(TableNotFound):
        await drop(service)


@pytest.mark.parametrize(("step", "kind"), [("lost", OutcomeUnknown), ("refused", Unavailable)])
async def test_what_a_call_that_ran_out_of_time_says(step: str, kind: type[Error]) -> None:
    for call in (create, drop):
        service = Service(script=[step] * 1000)
        if call is drop:
            service.create(None)
        with pytest.raises(kind):
            await asyncio.wait_for(call(service, 0.2), 5)
