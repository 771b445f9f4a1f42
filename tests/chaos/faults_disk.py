"""Disks that are full, slow, hanging, failing; damaged, deleted and rolled back data folders."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

from tests.chaos import damage
from tests.chaos.faults import WHOLE_S, fault
from tests.chaos.stage import EXIT_S, Band, Stage
from tests.support.cluster import RealNode

FLIPS_MAX = 3

# ------------------------------------------------------------------------------- full, slow, failing


@fault("disk-full", "disk full")
async def disk_full(stage: Stage, band: Band) -> None:
    name = (await asyncio.to_thread(stage.machines.coordinators))[0]
    await _fill(stage, band, [name], stage.rng.uniform(4, 8))


@fault("disk-full-all", "all disks full", mixable=False)
async def disk_full_all(stage: Stage, band: Band) -> None:
    """Writes are refused then; reads go on."""
    await _fill(stage, band, stage.names, stage.rng.uniform(3, 5))


async def _fill(stage: Stage, band: Band, names: list[str], held_s: float) -> None:
    stage.say(band, f"fill the disk of {', '.join(names)} for {held_s:.1f} s")
    disks = [stage.machines.disks[name] for name in names]
    stage.excuse_starts(names)
    try:
        for disk in disks:
            await asyncio.to_thread(damage.fill, disk)
        await asyncio.sleep(held_s)
    finally:
        for disk in disks:
            damage.make_room(disk)


@fault("fsync-slow", "slow fsync")
async def fsync_slow(stage: Stage, band: Band) -> None:
    chosen = stage.rng.sample(stage.names, stage.rng.randint(1, len(stage.names) - 1))
    delay_ms, held_s = 10 ** stage.rng.uniform(0.7, 2.6), stage.rng.uniform(4, 8)
    stage.say(band, f"each fsync of {', '.join(chosen)} takes {delay_ms:.0f} ms more for {held_s:.1f} s")
    try:
        for name in chosen:
            stage.machines.controls[name].set(delay_ms=delay_ms)
        await asyncio.sleep(held_s)
    finally:
        for name in chosen:
            stage.machines.controls[name].set(delay_ms=0)


@fault("fsync-hangs", "fsync hangs")
async def fsync_hangs(stage: Stage, band: Band) -> None:
    name = (await asyncio.to_thread(stage.machines.coordinators))[0]
    held_s = stage.rng.uniform(0.5, 7)
    stage.say(band, f"fsync of {name} hangs for {held_s:.1f} s")
    try:
        stage.machines.controls[name].set(fsync="hangs")
        await asyncio.sleep(held_s)
    finally:
        stage.machines.controls[name].set(fsync="good")


@fault("fsync-fails", "fsync fails")
async def fsync_fails(stage: Stage, band: Band) -> None:
    """The node must end (rule R14), whoever starts it again."""
    async with stage.claim() as (node,):
        stage.excuse(node)
        stage.say(band, f"fsync of {node.name} fails")
        try:
            stage.machines.controls[node.name].set(fsync="fails")
            stage.note_exit(node, await asyncio.to_thread(node.wait_exit, EXIT_S))
        finally:
            stage.machines.controls[node.name].set(fsync="good")
        await stage.kill(node)
        await asyncio.sleep(stage.rng.uniform(0, 2))
        stage.start(node)


# --------------------------------------------------------------------------------- what is destroyed


@fault("folder-deleted", "folder deleted", destroys=True)
async def folder_deleted(stage: Stage, band: Band) -> None:
    async with stage.claim() as (node,):
        stage.say(band, f"kill -9 {node.name} and delete its data folder")
        await stage.kill(node)
        await asyncio.to_thread(damage.empty, node.data)
        await asyncio.sleep(stage.rng.choice((0, stage.rng.uniform(0, 5))))
        stage.start(node)


@fault("folder-rolled-back", "folder rolled back", destroys=True, mixable=False)
async def folder_rolled_back(stage: Stage, band: Band) -> None:
    """To the state of a stopped node, or of a running one that stands still while it is copied."""
    place = stage.machines.folder / "image"
    async with stage.claim() as (node,):
        age_s = stage.rng.uniform(2, 8)
        if stage.rng.random() < 0.5:
            how = "while it stands still"
            async with stage.paused([node]):
                await asyncio.to_thread(damage.image, node.data, place)
        else:
            how = "while it is stopped"
            await stage.kill(node)
            await asyncio.to_thread(damage.image, node.data, place)
            stage.start(node)
        await stage.wait_whole(None, WHOLE_S, must=True)
        await asyncio.sleep(age_s)
        stage.say(band, f"roll {node.name} back to {age_s:.1f} s ago (copied {how})")
        await stage.kill(node)
        await asyncio.to_thread(damage.roll_back, node.data, place)
        await asyncio.sleep(stage.rng.choice((0, stage.rng.uniform(0, 5))))
        stage.start(node)


def _register_flips() -> None:
    """One kind of fault for each kind of file, of a stopped and of a running node."""
    for file in damage.FLIPPED_FILES:
        fault(f"flip-{file}-stopped", f"bit flip, {file}, stopped", destroys=True)(
            partial(_flip_stopped, file)
        )
        fault(f"flip-{file}-running", f"bit flip, {file}, running", destroys=True)(
            partial(_flip_running, file)
        )


async def _flip_stopped(file: str, stage: Stage, band: Band) -> None:
    async with stage.claim() as (node,):
        stage.excuse(node)
        await stage.kill(node)
        if not damage.flippable(node.data / "store", file):
            await _write_tables(stage, node)
        flips = await asyncio.to_thread(_flip, stage, band, node, file)
        await asyncio.sleep(stage.rng.choice((0, stage.rng.uniform(0, 4))))
        stage.start(node)
    await _mend(stage, band, node, flips)


async def _flip_running(file: str, stage: Stage, band: Band) -> None:
    """First the node has a chance to find it; then it is killed, for what it finds when it opens its store."""
    async with stage.claim() as (node,):
        stage.excuse(node)
        if not damage.flippable(node.data / "store", file):
            await stage.kill(node)
            await _write_tables(stage, node)
            stage.start(node)
            await stage.wait_whole(None, WHOLE_S, must=True)
        flips = await asyncio.to_thread(_flip, stage, band, node, file)
    await asyncio.sleep(stage.rng.uniform(2, 5))
    async with stage.claim_named(node.name):
        await stage.kill(node)
        stage.start(node)
    await _mend(stage, band, node, flips)


async def _write_tables(stage: Stage, node: RealNode) -> None:
    """A store writes tables when it replays its log; the node is stopped before and after."""
    stage.start(node)
    await stage.wait_whole(None, WHOLE_S, must=True)
    await stage.kill(node)


def _flip(stage: Stage, band: Band, node: RealNode, file: str) -> list[damage.Flip]:
    """One to three bits in one file."""
    path: Path = stage.rng.choice(damage.flippable(node.data / "store", file))
    flips = [damage.flip_bit(path, stage.rng) for _ in range(stage.rng.randint(1, FLIPS_MAX))]
    stage.say(band, f"flip bits of {node.name}: {'; '.join(map(str, flips))}")
    return flips


async def _mend(stage: Stage, band: Band, node: RealNode, flips: list[damage.Flip]) -> None:
    """Damage that nobody has looked at is still there when everything seems in sync: another node's loss would then
    be a second one. So every row is read from the node once, and a folder that still holds the damage is replaced."""
    await stage.wait_whole(None, WHOLE_S, must=True)
    await stage.load.sweep(node.name)
    await stage.wait_whole(None, WHOLE_S, must=True)
    aside = await asyncio.to_thread(damage.forget_aside, node.data)
    latent = any(flip.is_there() for flip in flips)
    fate = "the store was set aside" if aside else "not met by any read" if latent else "gone with its file"
    stage.flips.append(fate)
    stage.say(band, fate)
    if latent:
        async with stage.claim_named(node.name):
            await stage.kill(node)
            await asyncio.to_thread(damage.empty, node.data)
            stage.start(node)


_register_flips()
