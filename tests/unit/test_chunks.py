"""Chunks of HTTP bodies, cut anywhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ackord.wire.chunks import LAST_CHUNK, SIZE_LINE_BYTES_MAX, ChunkDecoder, ChunkError, chunk

BODY = [b"a", b"xyz" * 100, b"\r\n\r\n0\r\n", b"\x00" * 17]
CODED = b"".join(map(chunk, BODY))


@pytest.mark.parametrize("step", [1, 2, 3, 7, 100, len(CODED)])
def test_a_body_is_the_same_wherever_its_pieces_end(step: int) -> None:
    decoder = ChunkDecoder()
    found = [piece for at in range(0, len(CODED), step) for piece in decoder.feed(CODED[at : at + step])]
    assert b"".join(found) == b"".join(BODY)
    assert not decoder.is_ended


def test_what_is_left_of_the_chunk_before_is_passed_over() -> None:
    for rest in (b"\r\n", b"\n", b""):
        assert ChunkDecoder().feed(rest + chunk(b"data")) == [b"data"]


def test_extensions_and_case_are_read_and_the_last_chunk_ends_the_body() -> None:
    decoder = ChunkDecoder()
    assert decoder.feed(b"A;name=value\r\n0123456789\r\n0\r\n\r\n5\r\nafter\r\n") == [b"0123456789"]
    assert decoder.is_ended
    assert decoder.feed(chunk(b"more")) == []


@pytest.mark.parametrize(
    "bad",
    [
        b"zz\r\n",
        b"-1\r\n",
        b"1_0\r\nx",
        b"0x1\r\n",
        b" \r\n",
        b";x\r\n",
        b"123456789\r\n",
        b"f" * (SIZE_LINE_BYTES_MAX),
    ],
)
def test_what_is_not_chunked_is_refused(bad: bytes) -> None:
    with pytest.raises(ChunkError, match="not chunked"):
        ChunkDecoder().feed(bad)


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=8), st.data())
def test_a_chunked_body_comes_out_whole_however_it_is_cut(parts: list[bytes], data: st.DataObject) -> None:
    sent = b"".join(map(chunk, parts)) + LAST_CHUNK
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=12)))
    decoder, found = ChunkDecoder(), b""
    for start, stop in zip([0, *cuts], [*cuts, len(sent)], strict=True):
        assert not decoder.is_ended or not sent[start:stop].strip(b"\r\n")
        found += b"".join(decoder.feed(sent[start:stop]))
    assert found == b"".join(parts)
    assert decoder.is_ended
