"""One tablet's stored rows, as its core reads them."""

from __future__ import annotations

from ackord_node.core.history import Moment
from ackord_node.ports import Engine

MOMENT_BYTES_MAX = 16 * 1024 * 1024  # of one version that is read


class EngineRows:
    def __init__(self, engine: Engine, tablet: int) -> None:
        self._get, self._get_many, self._tablet = engine.get, engine.get_many, tablet
        self._engine = engine

    def get(self, key: bytes) -> bytes | None:
        return self._get(self._tablet, key)

    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        return self._get_many(self._tablet, keys)

    def range(
        self, start: bytes, end: bytes | None, count_max: int, bytes_max: int
    ) -> tuple[list[tuple[bytes, bytes]], bool]:
        return self._engine.scan(self._tablet, start, end, False, count_max, bytes_max)

    def history(self, key: bytes, version_max: int, count_max: int) -> list[tuple[int, bytes | None]]:
        return self._engine.history(self._tablet, key, version_max, count_max)

    def moment(self, key: bytes, as_of: int, count_max: int) -> Moment:
        found, _ = self._engine.history_scan(
            self._tablet, key, key + b"\0", False, as_of, count_max, 1, MOMENT_BYTES_MAX
        )
        return found[0] if found else Moment(key, [], None, None, None)
