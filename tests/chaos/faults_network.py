"""Partitions: halves, an isolated coordinator, one way only, a bridge, ZooKeeper alone, clients alone, cut
connections."""

from __future__ import annotations

import asyncio

from tests.chaos.faults import fault
from tests.chaos.machines import ZOOKEEPERS
from tests.chaos.network import CLIENT, Cut, both_ways
from tests.chaos.stage import Band, Stage


def _verdict(stage: Stage) -> str:
    return "reset" if stage.rng.random() < 0.3 else "drop"


def _split(stage: Stage, names: list[str], first_count: int) -> tuple[list[str], list[str]]:
    first = set(stage.rng.sample(sorted(names), first_count))
    return sorted(first), sorted(set(names) - first)


async def _hold(stage: Stage, band: Band, text: str, cuts: list[Cut], least_s: float, most_s: float) -> None:
    held_s = stage.rng.uniform(least_s, most_s)
    verdict = cuts[0].verdict
    stage.say(band, f"{text} ({verdict}) for {held_s:.1f} s")
    async with stage.machines.network.cut(cuts):
        await asyncio.sleep(held_s)


@fault("partition-halves", "halves")
async def partition_halves(stage: Stage, band: Band) -> None:
    """Nodes and ZooKeeper servers in two groups; clients reach all of them."""
    left, right = _split(stage, stage.names, len(stage.names) // 2)
    left_zk, right_zk = _split(stage, list(ZOOKEEPERS), stage.rng.randint(0, len(ZOOKEEPERS)))
    cuts = both_ways(left + left_zk, right + right_zk, _verdict(stage))
    await _hold(stage, band, f"{' '.join(left + left_zk)} | {' '.join(right + right_zk)}", cuts, 2, 8)


@fault("partition-coordinator", "isolated coordinator")
async def partition_coordinator(stage: Stage, band: Band) -> None:
    """It still answers clients: what it says must not be stale."""
    victim = (await asyncio.to_thread(stage.machines.coordinators))[0]
    others = [name for name in stage.names if name != victim]
    cuts = both_ways([victim], [*others, *ZOOKEEPERS], _verdict(stage))
    await _hold(stage, band, f"{victim}, the busiest, from nodes and ZooKeeper", cuts, 2, 8)


@fault("partition-one-way", "one way")
async def partition_one_way(stage: Stage, band: Band) -> None:
    victim = stage.rng.choice(stage.names)
    others = [name for name in stage.names if name != victim]
    far = [*others, *ZOOKEEPERS] if stage.rng.random() < 0.4 else others
    if stage.rng.random() < 0.5:
        cuts, text = [Cut(victim, name) for name in far], f"nothing from {victim} to {' '.join(far)}"
    else:
        cuts, text = [Cut(name, victim) for name in far], f"nothing from {' '.join(far)} to {victim}"
    await _hold(stage, band, text, cuts, 2, 8)


@fault("partition-bridge", "bridge")
async def partition_bridge(stage: Stage, band: Band) -> None:
    """One node sees all, the others only their own side and it. Everybody sees ZooKeeper."""
    bridge = stage.rng.choice(stage.names)
    others = [name for name in stage.names if name != bridge]
    left, right = _split(stage, others, len(others) // 2)
    cuts = both_ways(left, right, _verdict(stage))
    await _hold(stage, band, f"{' '.join(left)} | {' '.join(right)}, {bridge} sees all", cuts, 2, 8)


@fault("partition-zookeeper", "nodes | ZooKeeper")
async def partition_zookeeper(stage: Stage, band: Band) -> None:
    chosen = sorted(stage.rng.sample(stage.names, stage.rng.randint(1, len(stage.names))))
    cuts = both_ways(chosen, ZOOKEEPERS, _verdict(stage))
    await _hold(stage, band, f"{' '.join(chosen)} from ZooKeeper", cuts, 2, 9)


@fault("partition-ensemble", "ZooKeeper | ZooKeeper")
async def partition_ensemble(stage: Stage, band: Band) -> None:
    """One ZooKeeper server, often the leader, loses the others; nodes that hold a session there go on asking it."""
    leader = await asyncio.to_thread(stage.machines.zookeeper_leader)
    victim = leader or stage.rng.choice(ZOOKEEPERS)
    cuts = both_ways([victim], [name for name in ZOOKEEPERS if name != victim], _verdict(stage))
    await _hold(stage, band, f"{victim} from the other ZooKeeper servers", cuts, 2, 8)


@fault("partition-clients", "clients")
async def partition_clients(stage: Stage, band: Band) -> None:
    chosen = sorted(stage.rng.sample(stage.names, stage.rng.randint(1, len(stage.names) - 1)))
    verdict = _verdict(stage)
    ways = [Cut(CLIENT, name, verdict) for name in chosen], [Cut(name, CLIENT, verdict) for name in chosen]
    cuts = ways[0] + ways[1] if stage.rng.random() < 0.5 else stage.rng.choice(ways)
    await _hold(stage, band, f"{' '.join(chosen)} from the clients, {len(cuts)} directions", cuts, 2, 6)


@fault("connections-cut", "cut connections")
async def connections_cut(stage: Stage, band: Band) -> None:
    """All of them between some machines, for a moment, again and again."""
    everybody = [*stage.names, *ZOOKEEPERS, CLIENT]
    for _ in range(5):
        ours = stage.rng.sample(stage.names, stage.rng.randint(1, len(stage.names)))
        theirs = stage.rng.sample(everybody, stage.rng.randint(2, len(everybody)))
        cuts = both_ways(ours, [name for name in theirs if name not in ours], "reset")
        if cuts:
            text = f"connections of {' '.join(sorted(ours))} with {' '.join(sorted(theirs))}"
            await _hold(stage, band, text, cuts, 0.1, 0.6)
        await asyncio.sleep(stage.rng.uniform(0.3, 1))
