"""The SDK's decisions: which node, whether to retry, whether a write may have happened (R16, R17)."""

from __future__ import annotations

from typing import Any

import pytest

from ackord.errors import (
    Conflict,
    Error,
    InvalidRequest,
    OutcomeUnknown,
    TableNotFound,
    Unauthorized,
    Unavailable,
)
from ackord.routing import (
    BACKOFF_MAX_S,
    PROBE_INTERVAL,
    READ_FRAME_OPS,
    REDIRECTS_MAX,
    NodeChooser,
    RoutingTable,
    TabletRoute,
    after_failure,
    backoff_s,
    final_error,
)
from ackord.wire.keys import KeySchema


def wire(**changes: Any) -> dict[str, Any]:
    key = KeySchema((("a", "str"), ("n", "int")))
    split = key.encode_prefix(("m",))
    tablets = [
        {"id": 1, "start": b"", "end": split, "coordinator": "n1", "in_sync": ["n1", "n2"], "epoch": 3},
        {"id": 2, "start": split, "end": None, "coordinator": None, "in_sync": [], "epoch": 0},
    ]
    whole = {
        "wire": 1,
        "cluster": "c",
        "cluster_id": "id",
        "now_version": 5,
        "version": 1,
        "nodes": {"n1": "http://h:1/", "n2": "http://h:2"},
        "limits": {"batch_rows_count": 7, "a_limit_of_the_future": 1},
        "tables": {"t": {"id": 9, "key": key.to_wire(), "tablets": tablets}},
    }
    return {**whole, **changes}


def tablet(**changes: Any) -> TabletRoute:
    fields: dict[str, Any] = {
        "id": 1,
        "table": "t",
        "start": b"",
        "end": None,
        "coordinator": "n1",
        "in_sync": ("n1", "n2", "n3"),
        "epoch": 1,
    }
    return TabletRoute(**{**fields, **changes})


UP = ["n1", "n2", "n3"]


# ---------------------------------------------------------------------------------- routing table


def test_the_tablet_of_a_key() -> None:
    table = RoutingTable.from_wire(wire()).tables["t"]
    for key, tablet_id in [
        (("a", 1), 1),
        (("lzzz", 1), 1),
        (("m", -(2**63)), 2),
        (("m\x00", 0), 2),
        (("z", 0), 2),
    ]:
        assert table.tablet_of(table.key.encode(key)).id == tablet_id


def test_limits_come_from_the_cluster() -> None:
    routing = RoutingTable.from_wire(wire())
    assert routing.limits.batch_rows_count == 7
    assert routing.limits.key_column_bytes == 1024
    assert routing.nodes["n1"] == "http://h:1"


@pytest.mark.parametrize(
    "broken",
    [
        None,
        [],
        {},
        wire(nodes=None),
        wire(tables=[]),
        wire(now_version="5"),
        wire(tables={"t": {"id": 1, "key": [["a", "float"]], "tablets": []}}),
        wire(
            tables={"t": {"id": 1, "key": [["a", "int"]], "tablets": [{"id": 1, "start": b"x", "end": None}]}}
        ),
        wire(
            tables={"t": {"id": 1, "key": [["a", "int"]], "tablets": [{"id": 1, "start": b"", "end": b"x"}]}}
        ),
        wire(tables={"t": None}),
        wire(
            tables={
                "t": {"id": 1, "key": [["a", "int"]], "tablets": [{"id": 1, "start": b"", "in_sync": None}]}
            }
        ),
    ],
)
def test_what_is_no_routing_table(broken: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever the words, the type is the contract
        RoutingTable.from_wire(broken)


def test_a_table_from_a_node_that_lags_does_not_undo_what_is_known() -> None:
    known, lagging = RoutingTable.from_wire(wire()), RoutingTable.from_wire(wire())
    known.tables["t"].tablets[0].epoch = 4
    known.tables["t"].tablets[0].coordinator = "n2"
    known.tables["t"].tablets[0].avoid["n1"] = 9.0
    lagging.inherit(known)
    first = lagging.tables["t"].tablets[0]
    assert (first.coordinator, first.epoch, first.avoid) == ("n2", 4, {"n1": 9.0})
    newer = RoutingTable.from_wire(wire())
    newer.tables["t"].tablets[0].epoch = 5
    newer.inherit(known)
    assert newer.tables["t"].tablets[0].coordinator == "n1"


# ------------------------------------------------------------------------------- choosing a node


def test_reads_take_turns_among_equally_near_nodes() -> None:
    chooser = NodeChooser("any")
    for node in UP:
        chooser.measured(node, 0.001)
    picks = [chooser.for_read(tablet(), UP, (), 0.0) for _ in range(30)]
    assert {node: picks.count(node) for node in UP} == {"n1": 10, "n2": 10, "n3": 10}


def test_a_few_reads_of_one_frame_stay_together_and_many_are_spread() -> None:
    chooser = NodeChooser("round_robin")
    first = chooser.for_read(tablet(), UP, (), 0.0)
    assert {chooser.for_read(tablet(), UP, (), 0.0, READ_FRAME_OPS - 1) for _ in range(9)} == {first}
    assert chooser.for_read(tablet(), UP, (), 0.0, READ_FRAME_OPS) != first
    assert first is not None
    assert chooser.for_read(tablet(), UP, {first}, 0.0, 1) != first


def test_reads_prefer_the_near_node_and_probe_the_others_rarely() -> None:
    chooser = NodeChooser("any")
    for node, latency in [("n1", 0.050), ("n2", 0.001), ("n3", 0.080)]:
        chooser.measured(node, latency)
    picks = [chooser.for_read(tablet(), UP, (), 0.0) for _ in range(PROBE_INTERVAL * 6)]
    assert picks.count("n2") >= PROBE_INTERVAL * 6 - 6
    assert set(picks) == set(UP)


def test_round_robin_ignores_latency() -> None:
    chooser = NodeChooser("round_robin")
    chooser.measured("n1", 9.0)
    picks = [chooser.for_read(tablet(), UP, (), 0.0) for _ in range(9)]
    assert picks.count("n1") == 3


def test_reads_go_to_in_sync_nodes_that_can_be_reached() -> None:
    chooser = NodeChooser("any")
    route = tablet(in_sync=("n2", "n3"), coordinator=None)
    assert {chooser.for_read(route, ["n1", "n3"], (), 0.0) for _ in range(5)} == {"n3"}
    assert chooser.for_read(route, ["n1"], (), 0.0) is None
    assert chooser.for_read(tablet(in_sync=()), UP, (), 0.0) == "n1"  # the coordinator at least


def test_avoided_nodes_come_last_and_are_forgiven() -> None:
    chooser = NodeChooser("any")
    route = tablet(avoid={"n1": 5.0, "n2": 7.0})
    assert {chooser.for_read(route, UP, (), 4.0) for _ in range(5)} == {"n3"}
    assert chooser.for_read(route, ["n1", "n2"], (), 4.0) == "n1"
    assert {chooser.for_read(route, UP, (), 6.0) for _ in range(9)} == {"n1", "n3"}
    assert route.avoid == {"n2": 7.0}


def test_suspect_nodes_are_asked_only_if_there_is_no_other() -> None:
    chooser = NodeChooser("any")
    assert {chooser.for_read(tablet(), UP, {"n1", "n2"}, 0.0) for _ in range(5)} == {"n3"}
    assert chooser.for_read(tablet(), ["n1"], {"n1"}, 0.0) == "n1"


def test_other_ways_to_read() -> None:
    assert NodeChooser("coordinator").for_read(tablet(coordinator="n2"), UP, (), 0.0) == "n2"
    assert NodeChooser("coordinator").for_read(tablet(coordinator=None), UP, (), 0.0) is None
    assert NodeChooser("node:n3").for_read(tablet(in_sync=("n1",)), UP, (), 0.0) == "n3"
    assert NodeChooser("node:n3").for_read(tablet(), ["n1"], (), 0.0) is None
    wrong_ones: list[Any] = ["", "nearest", "node:", None, 5, ["any"]]
    for wrong in wrong_ones:
        with pytest.raises(InvalidRequest, match="reads"):
            NodeChooser(wrong)


def test_writes_go_to_the_coordinator_or_wait() -> None:
    chooser = NodeChooser("any")
    assert chooser.for_write(tablet(), UP) == "n1"
    assert chooser.for_write(tablet(), ["n2"]) is None
    assert chooser.for_write(tablet(coordinator=None), UP) is None


# ------------------------------------------------------------------------------------ retries


def test_backoff_doubles_is_spread_and_bounded() -> None:
    assert backoff_s(1, 0.5) < backoff_s(2, 0.5) < backoff_s(3, 0.5)
    assert backoff_s(1, 0.0) < backoff_s(1, 0.99)
    assert backoff_s(10_000, 0.99) <= 1.5 * BACKOFF_MAX_S
    assert 0.3 <= backoff_s(1, 0.0, 300) <= backoff_s(1, 0.99, 300) <= 0.4
    assert backoff_s(1, 0.5, 10**9) <= 12.5
    assert backoff_s(1, 0.5, "soon") == backoff_s(1, 0.5, -5) == backoff_s(1, 0.5)


def judge(error: Error, *, is_write: bool = True, unknown: bool = False, redirects: int = 0) -> Any:
    return after_failure(error, is_write=is_write, unknown_before=unknown, node="n1", redirects=redirects)


@pytest.mark.parametrize("error", [Conflict("c"), InvalidRequest("i"), TableNotFound("t"), Unauthorized("u")])
def test_an_answer_about_the_request_ends_it(error: Error) -> None:
    assert not judge(error).retry
    assert not judge(error, is_write=False).retry


def test_a_redirection_is_followed_at_once_but_not_for_ever() -> None:
    error = Unavailable("no", reason="not_coordinator", coordinator="n2")
    verdict = judge(error)
    assert (verdict.retry, verdict.at_once, verdict.coordinator, verdict.refresh) == (True, True, "n2", True)
    assert not judge(error, redirects=REDIRECTS_MAX).at_once
    itself = judge(Unavailable("no", reason="not_coordinator", coordinator="n1"))
    assert not itself.at_once and itself.coordinator is None


def test_a_replica_without_a_lease_sends_the_read_elsewhere_at_once() -> None:
    verdict = judge(Unavailable("no", reason="no_lease", retry_after_ms=20), is_write=False)
    assert verdict.retry and verdict.at_once and verdict.refresh


def test_overload_waits_as_long_as_the_node_asks() -> None:
    verdict = judge(Unavailable("full", reason="overloaded", retry_after_ms=70))
    assert (verdict.retry, verdict.at_once, verdict.refresh, verdict.retry_after_ms) == (
        True,
        False,
        False,
        70,
    )


def test_an_unknown_outcome_is_asked_again_under_the_same_id() -> None:
    verdict = judge(OutcomeUnknown("epoch ended", reason="epoch_ended"))
    assert verdict.retry and verdict.unknown and not verdict.new_id
    assert not judge(OutcomeUnknown("?"), is_write=False).unknown


@pytest.mark.parametrize("reason", ["stale", "client_collected", "registered_ahead"])
def test_a_refused_id_is_renewed_only_if_no_attempt_can_have_happened(reason: str) -> None:
    fresh = judge(OutcomeUnknown("refused", reason=reason))
    assert fresh.retry and fresh.new_id and not fresh.unknown
    doubtful = judge(OutcomeUnknown("refused", reason=reason), unknown=True)
    assert not doubtful.retry and doubtful.unknown


@pytest.mark.parametrize(
    ("last", "unknown", "expected"),
    [
        (Unavailable("x"), False, Unavailable),  # every attempt was certainly not done
        (Unavailable("x"), True, OutcomeUnknown),  # says nothing about the earlier attempt
        (TableNotFound("x"), True, OutcomeUnknown),  # it may have happened before the table went
        (Unauthorized("x"), True, OutcomeUnknown),
        (Conflict("x"), True, Conflict),  # judged under the same id: nothing was done
        (InvalidRequest("x"), True, InvalidRequest),
        (TableNotFound("x"), False, TableNotFound),
        (OutcomeUnknown("x"), False, OutcomeUnknown),
        (Error("x"), False, OutcomeUnknown),  # an answer that this SDK does not know
    ],
)
def test_what_the_caller_of_a_write_is_told(last: Error, unknown: bool, expected: type[Error]) -> None:
    assert type(final_error(last, is_write=True, unknown=unknown)) is expected


def test_a_read_is_never_unknown() -> None:
    error = final_error(OutcomeUnknown("x", tablet=1), is_write=False, unknown=False)
    assert type(error) is Unavailable and error.detail == {"tablet": 1}
