"""The kinds of fault, by name. ``KINDS`` lists them; each runs from its beginning until nothing is broken any more.

A kind that ``destroys`` what a node has stored comes only when every other replica is in sync, and the next one only
when everything is in sync again: that is what the store promises to survive. All others may come at any time.

What is ``mixable`` may come together with another one that is; two that destroy never do. A folder that is rolled
back comes alone: only the other replicas know that it lacks something, so they must be there to say it (rule R13).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.chaos.stage import Band, Stage
from tests.support.cluster import RealNode

Run = Callable[[Stage, Band], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Kind:
    """``label`` stands in the picture."""

    name: str
    run: Run
    label: str
    destroys: bool = False
    mixable: bool = True


KINDS: dict[str, Kind] = {}


def fault(name: str, label: str, *, destroys: bool = False, mixable: bool = True) -> Callable[[Run], Run]:
    def register(run: Run) -> Run:
        KINDS[name] = Kind(name, run, label, destroys, mixable)
        return run

    return register


def names_of(nodes: list[RealNode]) -> str:
    return ", ".join(node.name for node in nodes)


# --------------------------------------------------------------------------- kills, pauses, stops


async def _kill_and_start(stage: Stage, band: Band, nodes: list[RealNode], away_s: float) -> None:
    stage.say(band, f"kill -9 {names_of(nodes)} for {away_s:.1f} s")
    for node in nodes:
        node.kill()
        await asyncio.sleep(stage.rng.uniform(0, 0.2) if len(nodes) > 1 else 0)
    for node in nodes:
        await stage.kill(node)
    await asyncio.sleep(away_s)
    for node in nodes:
        stage.start(node)
        await asyncio.sleep(stage.rng.uniform(0, 0.7) if len(nodes) > 1 else 0)


@fault("kill", "kill -9")
async def kill(stage: Stage, band: Band) -> None:
    async with stage.claim() as nodes:
        await _kill_and_start(stage, band, nodes, stage.rng.uniform(0, 5))


@fault("kill-majority", "kill -9 majority")
async def kill_majority(stage: Stage, band: Band) -> None:
    async with stage.claim(stage.machines.majority_count) as nodes:
        await _kill_and_start(stage, band, nodes, stage.rng.uniform(0, 4))


@fault("kill-all", "kill -9 all", mixable=False)
async def kill_all(stage: Stage, band: Band) -> None:
    async with stage.claim(len(stage.names)) as nodes:
        await _kill_and_start(stage, band, nodes, stage.rng.uniform(0, 2))


async def _pause(stage: Stage, band: Band, least_s: float, most_s: float) -> None:
    count = 1 if stage.rng.random() < 0.75 else 2
    async with stage.claim(count) as nodes:
        pause_s = stage.rng.uniform(least_s, most_s)
        stage.say(band, f"SIGSTOP {names_of(nodes)} for {pause_s:.2f} s")
        async with stage.paused(nodes):
            await asyncio.sleep(pause_s)


@fault("pause-short", "pause < lease")
async def pause_short(stage: Stage, band: Band) -> None:
    for _ in range(4):
        await _pause(stage, band, 0.2, 0.8)
        await asyncio.sleep(stage.rng.uniform(0.3, 1))


@fault("pause-lease", "pause > lease")
async def pause_lease(stage: Stage, band: Band) -> None:
    for _ in range(2):
        await _pause(stage, band, 1.2, 2.6)
        await asyncio.sleep(stage.rng.uniform(0.3, 2))


@fault("pause-session", "pause > session")
async def pause_session(stage: Stage, band: Band) -> None:
    await _pause(stage, band, 4, 8)


@fault("hand-over", "planned stop")
async def hand_over(stage: Stage, band: Band) -> None:
    async with stage.claim(busiest=True) as (node,):
        await _stop_and_start(stage, band, node)


@fault("rolling-restart", "rolling restart", mixable=False)
async def rolling_restart(stage: Stage, band: Band) -> None:
    """As docs/operations.md tells operators to do it: the next node only when everything is in sync."""
    for name in stage.rng.sample(stage.names, len(stage.names)):
        await stage.wait_whole(None, WHOLE_S, must=True)
        async with stage.claim_named(name) as node:
            await _stop_and_start(stage, band, node)


async def _stop_and_start(stage: Stage, band: Band, node: RealNode) -> None:
    stage.say(band, f"SIGTERM {node.name}")
    was_up = await asyncio.to_thread(_is_up, node)
    code = await stage.stop(node)
    if code != 0 and was_up:
        stage.problems.append(f"{node.name} ended with {code} after SIGTERM at {stage.now():.1f} s")
    await asyncio.sleep(stage.rng.uniform(0, 1.5))
    stage.start(node)


def _is_up(node: RealNode) -> bool:
    """Whether it serves pages: before that, SIGTERM has its usual effect."""
    try:
        node.ask("/health")
    except OSError:
        return False
    return True


WHOLE_S = 90.0


# -------------------------------------------------------------------------------------- ZooKeeper


@fault("zookeeper-leader", "ZooKeeper leader")
async def zookeeper_leader(stage: Stage, band: Band) -> None:
    leader = await asyncio.to_thread(stage.machines.zookeeper_leader)
    name = leader or stage.rng.choice(sorted(stage.machines.zookeepers))
    away_s = stage.rng.uniform(1, 5)
    stage.say(band, f"kill -9 {name}, {'the leader' if leader else 'there is no leader'}, for {away_s:.1f} s")
    server = stage.machines.zookeepers[name]
    await asyncio.to_thread(server.kill)
    await asyncio.sleep(away_s)
    await asyncio.to_thread(server.start, wait=False)


@fault("zookeeper-down", "all of ZooKeeper")
async def zookeeper_down(stage: Stage, band: Band) -> None:
    away_s = stage.rng.uniform(1, 9)
    stage.say(band, f"kill -9 all ZooKeeper servers for {away_s:.1f} s")
    for server in stage.machines.zookeepers.values():
        await asyncio.to_thread(server.kill)
    await asyncio.sleep(away_s)
    for server in stage.machines.zookeepers.values():
        await asyncio.to_thread(server.start, wait=False)


# ------------------------------------------------------------------------------------------ clocks


@fault("clock-jump", "wall clock")
async def clock_jump(stage: Stage, band: Band) -> None:
    """Wall clocks of some nodes jump ahead and back; leases count on another clock (rule R15)."""
    chosen = stage.rng.sample(stage.names, stage.rng.randint(1, len(stage.names)))
    try:
        for _ in range(3):
            for name in sorted(chosen):
                offset_s = stage.rng.choice((-1, 1)) * 10 ** stage.rng.uniform(0, 3.6)
                stage.machines.controls[name].set(offset_s=offset_s)
                stage.say(band, f"the wall clock of {name} is off by {offset_s:+.1f} s")
            await asyncio.sleep(stage.rng.uniform(1, 3))
    finally:
        for name in chosen:
            stage.machines.controls[name].set(offset_s=0.0)
