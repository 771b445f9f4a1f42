"""What an update makes of a row's columns: the same at the coordinator and in a transaction that reads what it
wrote itself.
"""

from __future__ import annotations

import math
from typing import Any

from ackord.errors import InvalidRequest
from ackord.wire.keys import INT64_MAX, INT64_MIN
from ackord.wire.values import Update


def updated_columns(columns: dict[str, Any], update: Update) -> dict[str, Any]:
    """The same columns after the update."""
    for name in update.delete:
        columns.pop(name, None)
    columns.update(update.set)
    for name, amount in update.increment.items():
        columns[name] = incremented(name, columns.get(name), amount)
    for name, items in update.append.items():
        value = columns.get(name, [])
        if type(value) is not list:
            raise InvalidRequest(
                f"append to column {name!r}: its value is {type(value).__name__}, a list is needed",
                field=name,
            )
        columns[name] = value + items
    return columns


def incremented(name: str, value: Any, amount: int | float) -> int | float:
    """A column keeps its type: an int stays exact and takes ints only, a float takes both. An absent column
    (None) begins as the amount. InvalidRequest if the result would leave 64 bits or the finite floats."""
    if value is None:
        return amount
    if type(value) is int and type(amount) is int:
        total = value + amount
        if INT64_MIN <= total <= INT64_MAX:
            return total
        raise InvalidRequest(
            f"increment of column {name!r} by {amount} gives {total}, beyond 64 bits "
            f"({INT64_MIN} to {INT64_MAX})",
            field=name,
            value=total,
            limit=INT64_MAX,
        )
    if type(value) is float:
        result = value + amount
        if math.isfinite(result):
            return result
        raise InvalidRequest(
            f"increment of column {name!r}: {value} + {amount} is no finite float",
            field=name,
            value=str(value),
        )
    if type(value) is int:
        raise InvalidRequest(
            f"increment of column {name!r}: its value is an int and stays exact, a float cannot be added",
            field=name,
            value=amount,
        )
    raise InvalidRequest(
        f"increment of column {name!r}: its value is {type(value).__name__}, an int or a float is needed",
        field=name,
    )
