"""A transaction over rows of one partition key as it travels: what it read, and what it wants to write.

It is one write ``[seq, KIND_TRANSACTION, partition, [reads, ranges, writes], COND_NONE, None, attempt]``, where
``partition`` is the encoded first key column:

* ``reads``: ``[key, version or None]`` of each row that was read, None if there was none;
* ``ranges``: ``[start, end, count, digest]`` of each range that was read, start <= key < end: how many rows it held,
  and ``digest_of`` their keys and versions;
* ``writes``: ``[kind, key, body, cond, cond_value]``, as of single writes, carried out in this order.

It is done as a whole, at one version, if at that moment every row and range is still as it was read and every
write's condition holds (of the rows as the writes before it left them); else nothing is done, and the Conflict's
detail says in ``reads``, ``ranges`` and ``write`` which of them it was, by their places. A transaction that writes
nothing is answered with the version of the state that was compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

DIGEST_BYTES: Final = 16
ITEMS: Final = 3
READ_ITEMS: Final = 2
RANGE_ITEMS: Final = 4
WRITE_ITEMS: Final = 5

NOT_AS_READ: Final = "transaction"  # the Conflict's condition if something is not as it was read


def digest_of(rows: Iterable[tuple[bytes, int]]) -> bytes:
    """Of (key, version) pairs in key order."""
    parts = [len(key).to_bytes(4, "big") + key + version.to_bytes(8, "big") for key, version in rows]
    return hashlib.blake2b(b"".join(parts), digest_size=DIGEST_BYTES).digest()
