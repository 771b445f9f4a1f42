"""All nodes of a loaded cluster lose power at once: no acknowledged row is missing anywhere, and every node rejoins."""

from __future__ import annotations

import pytest

from tests.powerloss import trace
from tests.powerloss.cluster_cuts import ClusterCampaign

pytestmark = [
    pytest.mark.integration,
    pytest.mark.xdist_group("cluster"),
    pytest.mark.skipif(not trace.is_available(), reason="strace is not installed"),
]


async def test_power_cuts_of_all_nodes_lose_no_acknowledged_row() -> None:
    figures = await ClusterCampaign(seed=21).run(2, nodes_cut=3)
    assert figures.cuts["3 nodes"] == 2
    assert figures.acknowledged > 100
    assert figures.outcomes["opened"] + figures.outcomes["suspect"] + figures.outcomes["void"] == 6
