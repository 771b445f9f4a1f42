"""What operators and their tools ask: routing, status, health, readiness, metrics, recovery.

``/health`` says that the process answers; ``/ready`` whether it serves what it should, for load balancers and
for ``make cluster``.
"""

from __future__ import annotations

from aiohttp import web

from ackord.errors import InvalidRequest
from ackord_node.runtime.service import Service
from ackord_node.server.bodies import answer, check_query, read_body
from ackord_node.server.metrics import METRICS_CONTENT_TYPE, Metrics

_RECOVER_TYPES = {"action": str, "tablet": int, "node": str, "accept_loss": bool, "without": list}


class AdminHandlers:
    def __init__(self, service: Service, metrics: Metrics) -> None:
        self._service = service
        self._metrics = metrics

    async def routing(self, request: web.Request) -> web.StreamResponse:
        check_query(request, ())
        return answer(request, self._service.routing())

    async def status(self, request: web.Request) -> web.StreamResponse:
        check_query(request, ())
        return answer(request, await self._service.status())

    async def health(self, request: web.Request) -> web.StreamResponse:
        return answer(request, {"healthy": True, "node": self._service.name})

    async def ready(self, request: web.Request) -> web.StreamResponse:
        is_ready, reason = self._service.ready()
        body = {"ready": is_ready, "node": self._service.name, "reason": reason}
        return answer(request, body, 200 if is_ready else 503)

    async def metrics(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=self._metrics.render(), headers={"Content-Type": METRICS_CONTENT_TYPE})

    async def recover(self, request: web.Request) -> web.StreamResponse:
        check_query(request, ())
        body = await read_body(request, self._service.limits)
        if not isinstance(body.value, dict):
            raise InvalidRequest("the body must be a map", field="body")
        for name, kind in _RECOVER_TYPES.items():
            given = body.value.get(name)
            if given is not None and type(given) is not kind:
                raise InvalidRequest(
                    f"{name} must be of type {kind.__name__}, not {type(given).__name__}", field=name
                )
        if any(type(node) is not str for node in body.value.get("without") or ()):
            raise InvalidRequest("without must be a list of nodes' names", field="without")
        return answer(request, await self._service.recover(body.value))
