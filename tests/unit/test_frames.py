"""Frames however the bytes are cut, and bytes that are no frames."""

from __future__ import annotations

import time
from typing import Any

import msgpack
import pytest

from ackord.wire.frames import FrameDecoder, FrameError, encode_frame, packb, unpackb

VALUES: list[Any] = [[1, "a"], {"k": b"\x00\xff"}, [list(range(100))], None, [[7, 1, 3, [b"key" * 50] * 20]]]


@pytest.mark.parametrize("step", [1, 2, 3, 5, 7, 64, 100_000])
def test_frames_come_out_whole_however_they_are_cut(step: int) -> None:
    data = b"".join(encode_frame(value) for value in VALUES)
    decoder = FrameDecoder(10_000)
    out: list[Any] = []
    for at in range(0, len(data), step):
        out.extend(decoder.feed(data[at : at + step]))
    assert out == VALUES
    assert decoder.pending_bytes == 0


def test_a_frame_is_given_as_soon_as_its_last_byte_is_there() -> None:
    data = encode_frame(["x"]) + encode_frame(["y"])
    decoder = FrameDecoder(100)
    assert decoder.feed(data[:-1]) == [["x"]]
    assert decoder.pending_bytes == len(encode_frame(["y"])) - 1
    assert decoder.feed(data[-1:]) == [["y"]]


def test_a_large_frame_in_small_chunks_is_linear() -> None:
    body = b"\x00" * (8 * 1024 * 1024)
    data = encode_frame(body)
    decoder = FrameDecoder(16 * 1024 * 1024)
    began = time.process_time()
    out: list[Any] = []
    for at in range(0, len(data), 4096):
        out.extend(decoder.feed(data[at : at + 4096]))
    assert out == [body]
    assert time.process_time() - began < 1.0


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x00\x00\x00",  # empty
        b"\x00\x00\x04\x01" + b"\xc0",  # over the limit, refused before its body came
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x01\xc1",  # a byte that msgpack never uses
        b"\x00\x00\x00\x02\xc0\xc0",  # two values
        b"\x00\x00\x00\x01\x92",  # truncated
        b"\x00\x00\x00\x03\xd4\x01a",  # ext
        b"\x00\x00\x00\x06\xd6\xff\x00\x00\x00\x00",  # timestamp
        b"\x00\x00\x00\x03\x81\x01\x02",  # map with an int key
        b"\x00\x00\x00\x02\xa1\xff",  # str that is not UTF-8
    ],
)
def test_what_is_no_frame(data: bytes) -> None:
    with pytest.raises(FrameError):
        FrameDecoder(1024).feed(data)


def test_nested_claims_of_huge_arrays_cost_no_more_than_their_bytes() -> None:
    """Decoded naively, each of these headers allocates eight times the buffer before the fraud shows."""
    size = 4 * 1024 * 1024
    for header in (b"\xdd" + (size // 2).to_bytes(4, "big"), b"\xdc\xff\xff"):
        bomb = header * 900
        bomb += b"\xc0" * (size - len(bomb))
        began = time.process_time()
        with pytest.raises(ValueError, match="truncated"):
            unpackb(bomb)
        assert time.process_time() - began < 0.5


@pytest.mark.parametrize("data", [b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"])
def test_other_huge_claims(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever the words, the type is the contract
        unpackb(data)


def test_nesting_deeper_than_the_decoder_goes() -> None:
    for bomb in (b"\x91" * 100_000 + b"\xc0", b"\xdc\x00\x01" * 100_000 + b"\xc0"):
        with pytest.raises(ValueError, match="invalid msgpack"):
            unpackb(bomb)


def test_packing_keeps_types() -> None:
    value = {"b": b"\x00", "s": "é", "i": -(2**63), "f": 1.0, "l": [None, True], "m": {"x": {}}}
    assert unpackb(packb(value)) == value
    assert unpackb(memoryview(packb([1]))) == [1]
    with pytest.raises(TypeError):
        packb(object())
    assert packb([1]) == msgpack.packb([1])  # the packer is usable after an error
