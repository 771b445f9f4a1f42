"""The whole chain from workload to verdict: a correct store is never accused, whatever faults it has that a store
may have, and a store that lies in any one way is found out."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import pytest

import ackord
from tests.sim.history import CONFLICT, FAILED, OK, UNKNOWN, History, read_history
from tests.sim.oracles import check_history
from tests.sim.recorder import Context, Recorder, UnexpectedError
from tests.sim.workload import WORKLOADS, create_load_table, make_workloads, read_final
from tests.support.dict_store import ANOMALIES, DictStore, WarpLoop

CLIENTS = 3
OPS_MAX = 70  # of each client and workload
SEEDS_MAX = 6  # within which each anomaly must be found


async def run(store: DictStore, seed: int, history: History, names: list[str] | None = None) -> None:
    loop = asyncio.get_running_loop()
    workloads = make_workloads(names=names)
    contexts = {
        client: [
            Context(
                client=f"{client}-{workload.name}",
                store=store,
                history=history,
                rng=random.Random(f"{seed} {client} {workload.name}"),
                now=loop.time,
                ops_max=OPS_MAX,
                pause_s=0.005,
            )
            for workload in workloads
        ]
        for client in range(CLIENTS)
    }
    first = Context("setup", store, history, random.Random(seed), loop.time)
    assert await create_load_table(first)
    await asyncio.gather(
        *[
            workload.run(context)
            for client in contexts.values()
            for workload, context in zip(workloads, client, strict=True)
        ]
    )
    await asyncio.sleep(1.0)  # what is late comes now
    store.fault_rate = 0.0
    if store.anomaly == "lost_at_the_end":
        store.table("load").lose_one()
    await read_final(Context("final", store, history, random.Random(seed), loop.time))
    history.close(loop.time())


def run_warped(
    seed: int, anomaly: str | None = None, path: Path | None = None, names: list[str] | None = None
) -> tuple[DictStore, History]:
    store, history = DictStore(random.Random(seed), anomaly), History(path)
    with asyncio.Runner(loop_factory=WarpLoop) as runner:
        runner.run(run(store, seed, history, names))
    return store, history


@pytest.mark.parametrize("seed", range(5))
def test_a_correct_store_is_not_accused(seed: int) -> None:
    _, history = run_warped(seed)
    assert check_history(history) == []
    outcomes = Counter((op.workload, op.outcome) for op in history.ops)
    for name in WORKLOADS:
        wanted = {OK, FAILED, UNKNOWN} | ({CONFLICT} if name in ("register", "append", "batch") else set())
        assert all(outcomes[name, outcome] for outcome in wanted), f"{name}: {outcomes}"


@pytest.mark.parametrize("anomaly", ANOMALIES)
def test_every_anomaly_is_found(anomaly: str) -> None:
    happened = 0
    for seed in range(SEEDS_MAX):
        try:
            store, history = run_warped(seed, anomaly)
        except UnexpectedError:
            return
        happened += store.anomalies_count
        if check_history(history):
            return
    pytest.fail(f"{anomaly} happened {happened} times in {SEEDS_MAX} runs and was not found")


def test_the_same_seed_gives_the_same_history() -> None:
    digests = {run_warped(7)[1].digest() for _ in range(2)}
    assert len(digests) == 1
    assert run_warped(8)[1].digest() not in digests


def test_a_history_on_disk_is_the_history(tmp_path: Path) -> None:
    _, history = run_warped(1, path=tmp_path / "history.jsonl")
    again = read_history(tmp_path / "history.jsonl")
    assert again.digest() == history.digest()
    assert [str(op) for op in again.ops] == [str(op) for op in history.ops]
    assert check_history(again) == []
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"number":1,"cli')
    assert len(read_history(tmp_path / "history.jsonl").ops) == len(history.ops)


def test_a_full_history_ends_the_workloads() -> None:
    history = History(ops_count_max=500)
    with asyncio.Runner(loop_factory=WarpLoop) as runner:
        runner.run(run(DictStore(random.Random(1)), 1, history))
    loads = [op for op in history.ops if op.workload != "final"]
    assert 500 <= len(loads) < 700 and history.open_count == 0


class Raising(DictStore):
    """Every get ends with this error."""

    def __init__(self, error: Exception) -> None:
        super().__init__(random.Random(1), fault_rate=0.0)
        self.error = error

    async def pause(self) -> None:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        ackord.Error("strange"),
        ackord.InvalidRequest("but it was fine"),
        ackord.Unauthorized("who"),
        ackord.TableNotFound("it is there"),
        ackord.OutcomeUnknown("of a read"),
        ackord.Conflict("without a condition"),
        RuntimeError("a bug"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_no_fault_excuses_leaves_the_workload(error: Exception) -> None:
    history = History()
    loop = asyncio.get_running_loop()
    context = Context("c", Raising(error), history, random.Random(1), loop.time, ops_max=50)
    with pytest.raises(UnexpectedError, match="get"):
        await Recorder(context, "register", "load", random.Random(1)).get((1, "a"))
    with pytest.raises(UnexpectedError):
        await make_workloads(names=["register"])[0].run(context)
    assert history.open_count == 0


async def test_a_cancelled_call_is_unknown() -> None:
    history = History()
    loop = asyncio.get_running_loop()
    store = DictStore(random.Random(1), fault_rate=0.0)
    await store.create_table("load", {})
    context = Context("c", store, history, random.Random(1), loop.time)
    task = asyncio.ensure_future(
        Recorder(context, "register", "load", random.Random(1)).put((1, "a"), {"v": 1})
    )
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled() and [op.outcome for op in history.ops] == [UNKNOWN]
