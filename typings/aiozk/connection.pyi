import asyncio
from collections.abc import Callable, Iterator

from aiozk.protocol import Request, Response, WatchEvent

class Connection:
    host: str
    port: int
    reader: asyncio.StreamReader | None
    writer: asyncio.StreamWriter | None
    closing: bool
    read_loop_task: asyncio.Task[None] | None
    opcode_xref: dict[int, int | None]
    pending: dict[int, asyncio.Future[tuple[int, Response]]]

    def __init__(
        self, host: str, port: int, watch_handler: Callable[[WatchEvent], None], read_timeout: float | None
    ) -> None: ...
    def start_read_loop(self) -> None: ...
    def send(self, request: Request, xid: int | None = None) -> asyncio.Future[tuple[int, Response]]: ...
    async def _read(self, size: int = -1) -> bytes: ...
    async def read_response(
        self, initial_connect: bool = False
    ) -> tuple[int | None, int | None, Response | Exception]: ...
    def drain_all_pending(self) -> Iterator[asyncio.Future[tuple[int, Response]]]: ...
