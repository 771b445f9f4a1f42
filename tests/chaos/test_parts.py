"""The parts of a chaos run that need no cluster: the plan of faults, the figures, the damage, the filters."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from pathlib import Path

import pytest

from ackord_node.adapters.processor import ProcessorWaits
from ackord_node.server.metrics import Metrics
from tests.chaos import damage
from tests.chaos.faults import KINDS
from tests.chaos.figures import by_second, costs, longest_gap, outcomes
from tests.chaos.lag import BLOCKED, LAG, LoopLag, new_probes, note_blocked, quantile, read_buckets
from tests.chaos.nemesis import MIX, kinds_of_a_run, plan
from tests.chaos.network import CLIENT, Cut, Network, both_ways
from tests.chaos.run import judge_lag
from tests.chaos.stage import Band
from tests.sim.history import GET, OK, PUT, UNKNOWN, History

# ------------------------------------------------------------------------------------------- plan


@pytest.mark.parametrize("seed", range(20))
def test_every_kind_comes_before_any_comes_again(seed: int) -> None:
    turns = plan(random.Random(seed), ())
    singles = [turn[0] for turn in itertools.islice(turns, 40) if len(turn) == 1]
    assert sorted(singles[: len(KINDS)]) == sorted(KINDS)


def test_the_plan_is_that_of_its_seed() -> None:
    first, same, other = (list(itertools.islice(plan(random.Random(seed), ()), 60)) for seed in (1, 1, 2))
    assert first == same != other


def test_two_faults_that_destroy_never_come_together_and_a_rollback_comes_alone() -> None:
    mixes = [turn for turn in itertools.islice(plan(random.Random(3), ()), 3000) if len(turn) == 2]
    assert any(KINDS[kind].destroys for mix in mixes for kind in mix)
    for mix in mixes:
        assert sum(KINDS[kind].destroys for kind in mix) <= 1
        assert "folder-rolled-back" not in mix


def test_only_some_kinds() -> None:
    turns = itertools.islice(plan(random.Random(4), ("kill", "hand-over")), 20)
    assert set(turns) == {("kill",), ("hand-over",)}
    assert MIX in kinds_of_a_run(()) and kinds_of_a_run(("kill",)) == ["kill"]


# ---------------------------------------------------------------------------------------- figures


def test_gaps() -> None:
    assert longest_gap([1, 2, 5, 6], 0, 10) == 4
    assert longest_gap([1, 2, 5, 6], 3, 5.5) == 2
    assert longest_gap([], 3, 5.5) == 2.5
    assert longest_gap([1, 9], 2, 8) == 6


def test_costs_by_kind() -> None:
    bands = [Band("kill", 1.0, 2.0, 3.0), Band("pause", 5.0, 6.0), Band("kill", 8.0, 9.0, 9.5)]
    acknowledged = [[0.5, 1.5, 4.5, 5.5, 7.5, 8.5, 9.9], [float(at) / 10 for at in range(100)]]
    found = costs(bands, acknowledged, 10.0)
    assert (found["kill"].count, found["kill"].gap_s, found["kill"].whole_s) == (2, 3.0, 1.0)
    assert (found["pause"].count, found["pause"].gap_s, found["pause"].whole_s) == (1, 2.0, 0.0)


def test_operations_by_second_and_outcome() -> None:
    history = History()
    for kind, invoked_s, returned_s, outcome in (
        (PUT, 0.1, 0.6, OK),
        (PUT, 0.9, 1.5, OK),
        (GET, 1.0, 1.25, OK),
        (PUT, 1.0, 1.9, UNKNOWN),
    ):
        op = history.begin("c", "w", kind, "t", (1,), invoked_s)
        history.end(op, outcome, returned_s)
    first, second, third = by_second(history.ops, 2.5)
    assert (first.writes, second.writes, second.reads, second.failed, third.writes) == (1, 1, 1, 1, 0)
    assert second.latency_ms("write", 0.99) == pytest.approx(600)
    assert third.latency_ms("write", 0.5) is None
    assert outcomes(history.ops) == {"w: get": {OK: 1}, "w: put": {OK: 2, UNKNOWN: 1}}


# -------------------------------------------------------------------------------------------- lag


def test_loops_that_were_blocked() -> None:
    metrics = Metrics()
    before = read_buckets(metrics.render().decode())
    for seconds in (0.0001, 0.03, 0.03, 0.7):
        metrics.loop_lag(seconds)
    after = read_buckets(metrics.render().decode())
    probes = new_probes(before[LAG], after[LAG])
    assert probes == {0.0005: 1, 0.05: 2, 1.0: 1} == new_probes(before[BLOCKED], after[BLOCKED])
    lag = LoopLag()
    note_blocked(lag, 12.0, "n1", probes)
    assert (lag.worst_s, lag.late) == ({"n1": 1.0}, [(12.0, "n1", 1.0)])
    assert (quantile(lag.blocked, 0.5), quantile(lag.blocked, 0.99)) == (0.05, 1.0)
    share, worst = judge_lag(lag)
    assert "75.00%" in share and "more than 0.5 s" in worst
    well = LoopLag(blocked=Counter({0.001: 990, 0.05: 9, 0.5: 1}))
    assert judge_lag(well) == []


def test_a_wait_for_the_processor_is_not_held_against_the_node() -> None:
    waited = iter((1.0, 1.2, 1.2))
    metrics = Metrics(lambda: next(waited))
    metrics.loop_lag(0.23)  # of which 0.2 s the machine's
    metrics.loop_lag(0.3)
    found = read_buckets(metrics.render().decode())
    assert new_probes({}, found[LAG]) == {0.5: 2}
    assert new_probes({}, found[BLOCKED]) == {0.05: 1, 0.5: 1}
    assert ProcessorWaits().seconds() >= 0


# ----------------------------------------------------------------------------------------- damage


def test_a_flipped_bit_is_found_again_until_its_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "000004.sst"
    before = bytes(range(1, 201)) + bytes(500)
    path.write_bytes(before)
    assert damage.flippable(tmp_path, "table") == [path]
    assert damage.flippable(tmp_path, "log") == []
    flip = damage.flip_bit(path, random.Random(1))
    after = path.read_bytes()
    changed = [at for at, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
    assert changed == [flip.offset] and flip.offset < 200, "in the part that is in use"
    assert (before[flip.offset] ^ after[flip.offset]).bit_count() == 1
    assert flip.is_there()
    draft = tmp_path / "new"
    draft.write_bytes(after)
    draft.replace(path)
    assert not flip.is_there(), "another file under the same name"
    path.unlink()
    assert not flip.is_there()


def test_a_folder_is_rolled_back(tmp_path: Path) -> None:
    data, place = tmp_path / "data", tmp_path / "image"
    data.mkdir()
    (data / "old").write_text("1")
    damage.image(data, place)
    (data / "old").write_text("2")
    (data / "new").write_text("3")
    damage.roll_back(data, place)
    assert {path.name: path.read_text() for path in data.iterdir()} == {"old": "1"}
    (data / "store.damaged-1").mkdir()
    assert damage.forget_aside(data) == 1 and damage.forget_aside(data) == 0


# ---------------------------------------------------------------------------------------- filters


def test_cuts_add_up_and_stand_where_packets_arrive() -> None:
    network = Network(["n1", "n2", "z1"])
    one_way, all_ways = [Cut("n1", "n2")], both_ways(["n1"], ["n2", CLIENT], "reset")
    network._cuts.update(one_way)
    network._cuts.update(all_ways)
    at_n2, at_n1 = network._rules("n2"), network._rules("n1")
    address = network.addresses
    assert f"ip saddr {address['n1']} drop" in at_n2
    assert f"ip saddr {address['n1']} ip protocol tcp reject with tcp reset" in at_n2
    assert f"ip saddr {address[CLIENT]} ip protocol tcp reject" in at_n1
    assert f"ip daddr {address[CLIENT]} ip protocol tcp reject" in at_n1, (
        "the client has no filter of its own"
    )
    network._cuts.subtract(all_ways)
    assert "reject" not in network._rules("n1") + network._rules("n2")
    assert f"ip saddr {address['n1']} drop" in network._rules("n2"), "the other fault has not ended"
