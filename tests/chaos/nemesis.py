"""Which fault comes when: a seeded order in which every kind comes once before any comes again, with mixes of two
in between."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection, Iterator

from tests.chaos import faults_disk, faults_network
from tests.chaos.faults import KINDS, WHOLE_S
from tests.chaos.stage import Band, Stage

MIX = "mix"
MIXES_PER_ROUND = 5
CALM_S = (1.5, 3.5)
RECOVERY_S = 12.0  # waited for most faults; the next may then meet a cluster that is not whole yet
HASTE = 0.25  # so often the next fault does not wait at all

REGISTERED = (faults_disk, faults_network)  # their kinds are in KINDS once they are imported


def plan(rng: random.Random, only: Collection[str]) -> Iterator[tuple[str, ...]]:
    """Kinds to bring, for ever; two at a time are a mix."""
    known = [name for name in KINDS if not only or name in only]
    mixable = sorted(name for name in known if KINDS[name].mixable and not KINDS[name].destroys)
    destroying = sorted(name for name in known if KINDS[name].mixable and KINDS[name].destroys)
    has_mixes = len(mixable) >= 2 and (not only or MIX in only)
    while True:
        turn: list[tuple[str, ...]] = [(name,) for name in known]
        if has_mixes:
            turn += [tuple(rng.sample(mixable, 2)) for _ in range(MIXES_PER_ROUND)]
        if has_mixes and destroying:
            turn.append((rng.choice(destroying), rng.choice(mixable)))
        rng.shuffle(turn)
        yield from turn


def kinds_of_a_run(only: Collection[str]) -> list[str]:
    return sorted(only) if only else sorted([*KINDS, MIX])


async def bring_faults(stage: Stage, until_s: float, only: Collection[str]) -> None:
    """One after the other until the run is ``until_s`` seconds old."""
    order = random.Random(
        stage.rng.getrandbits(64)
    )  # its own: details of faults depend on what the cluster does
    for kinds in plan(order, only):
        await asyncio.sleep(stage.rng.uniform(*CALM_S))
        if stage.now() >= until_s:
            return
        if any(KINDS[kind].destroys for kind in kinds):
            async with stage.load.without_new_tables():
                if not await stage.wait_whole(None, WHOLE_S, must=True):
                    return
                await bring(stage, kinds)
                if not await stage.wait_whole(stage.bands[-1], WHOLE_S, must=True):
                    return
        else:
            await bring(stage, kinds)
            if stage.rng.random() >= HASTE:
                await stage.wait_whole(stage.bands[-1], RECOVERY_S, must=False)


async def bring(stage: Stage, kinds: tuple[str, ...]) -> None:
    """One fault, or two at once that begin a little apart."""
    is_mix = len(kinds) > 1
    band = Band(MIX if is_mix else kinds[0], round(stage.now(), 3), parts=list(kinds) if is_mix else [])
    stage.bands.append(band)

    async def one(kind: str, after_s: float) -> None:
        await asyncio.sleep(after_s)
        await KINDS[kind].run(stage, band)

    async with asyncio.TaskGroup() as faults:
        for number, kind in enumerate(kinds):
            faults.create_task(one(kind, stage.rng.uniform(0, 2) if number else 0.0))
    band.ended_s = stage.now()
