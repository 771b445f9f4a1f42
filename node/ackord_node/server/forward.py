"""Forwarding a plain HTTP request to the node that can serve it, once (rule R17).

A forwarded request carries ``Ackord-Forwarded`` and is never forwarded again. What fails before it was sent
is certainly not done; what fails after may have happened, if it was a write. Every forwarded write has an
idempotency key, so that no repetition below this layer can execute it twice (rule R16).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

from ackord.errors import OutcomeUnknown, Unavailable
from ackord.wire.limits import Limits

FORWARDED_HEADER = "Ackord-Forwarded"
IDEMPOTENCY_HEADER = "Idempotency-Key"
CONNECT_TIMEOUT_S = 1.0
GRACE_S = 5.0  # beyond the time for which the other node may hold the request
_PASSED_ON = ("Content-Type", "Accept")
_PASSED_BACK = ("Content-Type", "Retry-After")


class Forwarder:
    """The HTTP client towards the other nodes; opened and closed with the application."""

    def __init__(self, limits: Limits) -> None:
        self._timeout = aiohttp.ClientTimeout(
            total=limits.request_wait_ms / 1000 + GRACE_S, sock_connect=CONNECT_TIMEOUT_S
        )
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        trace = aiohttp.TraceConfig()
        trace.on_request_headers_sent.append(_note_sent)
        self._session = aiohttp.ClientSession(
            timeout=self._timeout, trust_env=False, auto_decompress=False, trace_configs=[trace]
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def forward(
        self,
        request: web.Request,
        address: str,
        body: bytes | None,
        headers: Mapping[str, str],
        query: Mapping[str, str] | None = None,
    ) -> web.Response:
        """The answer of the node at ``address``. ``query`` replaces the request's own. Unavailable if nothing
        was sent, OutcomeUnknown if a write was."""
        assert self._session is not None, "the application has not started"
        path = request.rel_url if query is None else request.rel_url.with_query(query)
        url = URL(address + path.raw_path_qs, encoded=True)
        passed = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        passed |= {FORWARDED_HEADER: "1", **headers}
        attempts: list[str] = []
        try:
            async with self._session.request(
                request.method,
                url,
                data=body,
                headers=passed,
                allow_redirects=False,
                trace_request_ctx=attempts,
            ) as response:
                received = await response.read()
                back = {name: response.headers[name] for name in _PASSED_BACK if name in response.headers}
                return web.Response(body=received, status=response.status, headers=back)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if not attempts:
                raise Unavailable(
                    f"the request belongs to {address}, which cannot be reached: {error}", reason="forward"
                ) from None
            text = f"the request was forwarded to {address} and its answer was lost: {type(error).__name__}"
            if request.method == "GET":
                raise Unavailable(text, reason="forward") from None
            raise OutcomeUnknown(f"{text}; the write may have happened", reason="forward") from None


async def _note_sent(
    _: aiohttp.ClientSession, context: Any, sent: aiohttp.TraceRequestHeadersSentParams
) -> None:
    """aiohttp repeats a PUT or DELETE whose connection broke and then tells of the last attempt only; the
    request may have happened if any attempt left."""
    context.trace_request_ctx.append(sent.method)


def is_forwarded(request: web.Request) -> bool:
    return FORWARDED_HEADER in request.headers
