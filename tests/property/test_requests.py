"""The request table against a plain model: the same on every replica, however it is split, stored or reloaded."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ackord_node.core.log import Entry
from ackord_node.core.requests import RequestTable

CLIENTS = [b"a", b"b", b"c"]

# (client, how far the floor rises, how many writes, whether the first is refused), or a collection
step = st.one_of(
    st.tuples(st.sampled_from(CLIENTS), st.integers(0, 3), st.integers(1, 90), st.booleans()),
    st.integers(0, 400),
)


def entries(steps: list[tuple[bytes, int, int, bool] | int]) -> list[Entry]:
    made: list[Entry] = []
    seqs = dict.fromkeys(CLIENTS, 0)
    floors = dict.fromkeys(CLIENTS, 0)
    version = 1
    for what in steps:
        if isinstance(what, int):
            groups: list[list[Any]] = [[None, what]]
            count = 1
        else:
            client, rise, count, refused = what
            first = seqs[client] + 1
            seqs[client] += count
            floors[client] = min(floors[client] + 40 * rise, seqs[client])
            keys = [None if refused and at == 0 else b"k" for at in range(count)]
            values = [4 if key is None else b"row" for key in keys]
            groups = [[client, 10, floors[client], list(range(first, first + count)), keys, values]]
            if rise % 2:  # some return the row that they leave, or one that they replaced, or none
                shown = [True, b"old" * 2000, None]
                groups[0].append([[at, shown[at % 3]] for at in range(1, count, 5)])
        made.append(Entry.create(1, 1, len(made) + 1, version, groups))
        version += count
    return made


def dump(table: RequestTable) -> tuple[dict[bytes, bytes], int]:
    return {client: record.encode() for client, record in table.clients.items()}, table.collected_below


def returned_bytes(table: RequestTable) -> int:
    """Of the rows that are really there."""
    results = [result for record in table.clients.values() for result in record.results.values()]
    return sum(len(result[1] or b"") for result in results if not isinstance(result, int))


@settings(max_examples=60, deadline=None)
@given(st.lists(step, max_size=25), st.data())
def test_a_table_that_was_stored_and_reloaded_is_the_same(
    steps: list[tuple[bytes, int, int, bool] | int], data: st.DataObject
) -> None:
    made = entries(steps)
    whole = RequestTable()
    stored: dict[bytes, bytes] = {}
    reloaded = RequestTable()
    for at, entry in enumerate(made):
        whole.apply(entry)
        reloaded.apply(Entry.decode(1, entry.record))
        if data.draw(st.booleans(), label=f"reload after {at}"):
            for client, record in reloaded.take_dirty():
                if record is None:
                    stored.pop(client, None)
                else:
                    stored[client] = record
            reloaded = RequestTable(reloaded.collected_below)
            reloaded.load(sorted(stored.items()))
    assert dump(reloaded) == dump(whole)
    assert reloaded.returned_bytes == whole.returned_bytes == returned_bytes(whole)


@settings(max_examples=60, deadline=None)
@given(st.lists(step, max_size=25))
def test_every_result_at_or_above_the_floor_is_kept_until_its_client_is_collected(
    steps: list[tuple[bytes, int, int, bool] | int],
) -> None:
    table = RequestTable()
    model: dict[bytes, dict[int, Any]] = {}
    last: dict[bytes, int] = {}
    for entry in entries(steps):
        table.apply(entry)
        version = entry.version
        for group in entry.groups:
            if group[0] is None:
                for client in [c for c in last if last[c] < group[1]]:
                    del model[client], last[client]
                continue
            client, _, _, seqs, keys, values = group[:6]
            for offset, seq in enumerate(seqs):
                model.setdefault(client, {})[seq] = version + offset if keys[offset] is not None else -4
            for offset, row in group[6] if len(group) > 6 else ():
                model[client][seqs[offset]] = [version + offset, values[offset] if row is True else row]
            last[client] = version + len(seqs) - 1
    assert set(table.clients) == set(model)
    for client, record in table.clients.items():
        kept = {seq: result for seq, result in model[client].items() if seq >= record.floor}
        assert {seq: r for seq, r in record.results.items() if seq >= record.floor} == kept
        assert len(record.results) <= 3 * len(kept) + 300, "results below the floor do not pile up"
        bytes_kept = sum(len(r[1] or b"") for r in kept.values() if not isinstance(r, int))
        assert record.returned_bytes <= 3 * bytes_kept + 32 * 1024 + 90 * 6000, "nor do returned rows"
    assert table.returned_bytes == returned_bytes(table)
    wrote = {client for client, *_ in (x for x in steps if not isinstance(x, int))}
    if set(table.clients) < wrote:
        assert table.collected_below == 10, "collecting a client raises the mark to its registration"
