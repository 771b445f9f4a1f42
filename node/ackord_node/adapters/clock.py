"""The system's clocks (rule R15): leases count on CLOCK_BOOTTIME, which goes on while the machine sleeps."""

from __future__ import annotations

import time


class SystemClock:
    def now(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000
