"""Bytes on a connection that are no proper HTTP, or that never come to an end."""

from __future__ import annotations

import random

_PUT = b"PUT /v1/tables/orders/rows/alice/1 HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
_STREAM = b"POST /v1/stream HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ackord-stream\r\n"
_PEER = b"POST /peer/v1/stream HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ackord-stream\r\n"
_CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"

FIXED: tuple[bytes, ...] = (
    b"",
    b"\r\n\r\n",
    b"GET",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /health HTTP/1.1\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
    b"GET http://[::1 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 20_000 + b"\r\n",
    b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: \xff\xfe\r\nX\x00: y\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    _PUT + b"Content-Length: 100\r\n\r\n{",
    _PUT + b"Content-Length: 99999999999999\r\n\r\n{",
    _PUT + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n",
    _PUT + b"Upgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 2\r\n\r\n{}",
    _PUT + _CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n",
    _PUT + _CHUNKED + b"-5\r\n{}\r\n0\r\n\r\n",
    _PUT + _CHUNKED + b"FFFFFFFFFFFFFFFF\r\n{}",
    _PUT + _CHUNKED + b"5;" + b"x" * 70_000 + b"\r\n{}",
    _PUT + b"Content-Length: 5\r\n" + _CHUNKED + b"2\r\n{}\r\n0\r\n\r\n",
    (b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n") * 300,
    _STREAM + _CHUNKED,
    _STREAM + _CHUNKED + b"4\r\n\xff\xff\xff\xff\r\n",
    _STREAM + _CHUNKED + b"4\r\n\x00\x00\x00\x00\r\n",
    _STREAM + _CHUNKED + b"5\r\n\x00\x00\x10\x00\xdd\r\n",
    _STREAM + b"Content-Length: 10\r\n\r\n\x00\x00",
    _PEER + _CHUNKED,
    _PEER + _CHUNKED + b"4\r\n\x02\x00\x00\x00\r\n",
    _PEER + _CHUNKED + b"5\r\n\x00\x00\x00\x01\xc1\r\n",
)


def raw_case(chance: random.Random) -> bytes:
    data = bytearray(chance.choice(FIXED))
    for _ in range(chance.choice((0, 1, 3))):
        at = chance.randrange(len(data) + 1)
        what = chance.randrange(3)
        if what == 0 and data:
            data[min(at, len(data) - 1)] = chance.randrange(256)
        elif what == 1:
            del data[at : at + chance.randrange(1, 30)]
        else:
            data[at:at] = chance.choice((b"\r\n", b"\x00", b"\r\n\r\n", b": ", chance.randbytes(20)))
    return bytes(data)
