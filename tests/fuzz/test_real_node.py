"""Some seconds of the hail on a real node; ``python -m tests.fuzz --seconds N --seed S`` goes on for longer."""

from __future__ import annotations

import pytest

from tests.fuzz.real_node import RealFuzz

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("cluster")]


async def test_a_node_under_a_hail_of_damaged_requests_serves_on() -> None:
    figures = await RealFuzz(seed=31).run(seconds=6)
    assert figures.http[400] > 20 and figures.http[200] > 20
    assert figures.peer["hello taken, link closed"] > 10
    assert figures.peer["hello refused"] > 3
    assert figures.raw > 20
    assert figures.served > 5
