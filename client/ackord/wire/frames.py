"""Frames: 4 bytes big-endian length, then one msgpack value; and the msgpack settings used everywhere.

msgpack from an untrusted side has two traps. A header may claim millions of elements, for which the decoder
allocates before it looks at the rest, and such headers nest; so the structure is walked first without
building anything (``skip``), after which the claimed sizes are known to be true and the cost is linear in the
bytes. And ext types could become objects; they are refused.
"""

from __future__ import annotations

from typing import Any, Final

import msgpack

_HEADER_BYTES: Final = 4
_SMALL_BYTES: Final = 512  # nested claims in so few bytes allocate at most about as much as a walk costs
_PACK = msgpack.Packer(use_bin_type=True, autoreset=True).pack


class FrameError(ValueError):
    """Bytes that are no frame, or one that is too long: the stream cannot go on."""


def packb(value: Any) -> bytes:
    """msgpack of plain values; ValueError, TypeError or OverflowError for anything else."""
    return _PACK(value)


def unpackb(data: bytes | bytearray | memoryview) -> Any:
    """The one msgpack value that ``data`` holds; ValueError if it is invalid, truncated, followed by more,
    has ext types, or map keys other than str and bytes. Safe on untrusted bytes."""
    if type(data) is not bytes or (len(data) > _SMALL_BYTES and (b"\xdc" in data or b"\xdd" in data)):
        _walk(data)  # only array 16 and 32 allocate ahead, and none claims more elements than there are bytes
    return unpack_known(data)


def unpack_known(data: bytes | bytearray | memoryview) -> Any:
    """The same of bytes that are what this program packed, as a checksum proves; the structure is not walked."""
    try:
        return msgpack.unpackb(
            data, use_list=True, raw=False, strict_map_key=True, max_ext_len=0, ext_hook=_refuse_ext
        )
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise ValueError(f"invalid msgpack: {str(error) or type(error).__name__}") from None


def encode_frame(value: Any) -> bytes:
    body = _PACK(value)
    return len(body).to_bytes(_HEADER_BYTES, "big") + body


class FrameDecoder:
    """Cuts a byte stream into frames, wherever the chunks end.

    A chunk that holds whole frames is decoded in place; the rest of an unfinished frame is collected without
    copying it again for each chunk.
    """

    __slots__ = ("_chunks", "_frame_bytes_max", "_have", "_need")

    def __init__(self, frame_bytes_max: int) -> None:
        self._frame_bytes_max = frame_bytes_max
        self._chunks: list[bytes] = []
        self._have = 0
        self._need = _HEADER_BYTES  # bytes of the unfinished frame, header included, as far as known

    @property
    def pending_bytes(self) -> int:
        """Bytes held of a frame that is not complete."""
        return self._have

    def feed(self, data: bytes) -> list[Any]:
        """The values of the frames that ``data`` completes, in order. After FrameError the decoder is of no
        further use."""
        if self._have:
            self._chunks.append(data)
            self._have += len(data)
            if self._have < self._need:
                return []
            data = b"".join(self._chunks)
            self._chunks.clear()
        values: list[Any] = []
        view = memoryview(data)
        at, end = 0, len(data)
        need = _HEADER_BYTES
        while end - at >= _HEADER_BYTES:
            need = _HEADER_BYTES + self._length(view[at : at + _HEADER_BYTES])
            if end - at < need:
                break
            try:
                values.append(unpackb(view[at + _HEADER_BYTES : at + need]))
            except ValueError as error:
                raise FrameError(str(error)) from None
            at += need
            need = _HEADER_BYTES
        self._have = end - at
        self._need = need
        if self._have:
            self._chunks.append(bytes(view[at:]))
        return values

    def _length(self, header: memoryview) -> int:
        length = int.from_bytes(header, "big")
        if not 0 < length <= self._frame_bytes_max:
            raise FrameError(f"a frame of {length} bytes; the limit is {self._frame_bytes_max}")
        return length


def _walk(data: bytes | bytearray | memoryview) -> None:
    size = len(data)
    unpacker = msgpack.Unpacker(read_size=1, max_buffer_size=max(size, 1))
    try:
        unpacker.feed(data)
        unpacker.skip()
    except msgpack.exceptions.OutOfData:
        raise ValueError("invalid msgpack: truncated") from None
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise ValueError(f"invalid msgpack: {str(error) or type(error).__name__}") from None
    if unpacker.tell() != size:
        raise ValueError(f"invalid msgpack: {size - unpacker.tell()} bytes too many")


def _refuse_ext(code: int, data: bytes) -> Any:
    raise ValueError(f"ext type {code} is not part of the protocol")
