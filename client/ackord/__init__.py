"""Ackord: a strongly consistent, replicated table store; this is its SDK.

    async with ackord.connect("http://127.0.0.1:7801") as store:
        orders = store.table("orders")
        version = await orders.put(("alice", 1), {"total": 990, "state": "new"})
        row = await orders.get(("alice", 1))

Every error is an ``ackord.Error`` and says by its class what happened and what the caller can do.
"""

from ackord._version import __version__
from ackord.cache import CacheOptions, CacheStats
from ackord.caching import CachedTable
from ackord.calls import QueueOptions
from ackord.errors import (
    Conflict,
    Error,
    InvalidRequest,
    OutcomeUnknown,
    TableExists,
    TableNotFound,
    Unauthorized,
    Unavailable,
    VersionCollected,
)
from ackord.expressions import Expression, col, key
from ackord.operations import Delete, Put, Update
from ackord.row import Row, Written
from ackord.scan import Scan
from ackord.store import Store, connect
from ackord.table import Table
from ackord.transaction import Transaction
from ackord.versions import Version
from ackord.wire.keys import AUTO
from ackord.wire.messages import TableDefinition

__all__ = [
    "AUTO",
    "CacheOptions",
    "CacheStats",
    "CachedTable",
    "Conflict",
    "Delete",
    "Error",
    "Expression",
    "InvalidRequest",
    "OutcomeUnknown",
    "Put",
    "QueueOptions",
    "Row",
    "Scan",
    "Store",
    "Table",
    "TableDefinition",
    "TableExists",
    "TableNotFound",
    "Transaction",
    "Unauthorized",
    "Unavailable",
    "Update",
    "Version",
    "VersionCollected",
    "Written",
    "__version__",
    "col",
    "connect",
    "key",
]
