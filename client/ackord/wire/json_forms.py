"""Values, keys and rows as JSON, for curl, the CLI and files. Lossless in both directions:

* bytes: ``{"$bytes": "<base64>"}``;
* NaN and the infinities: ``{"$float": "NaN" | "Infinity" | "-Infinity"}`` (JSON has no numbers for them);
* a map whose only key begins with ``$``: ``{"$map": {...}}``, so that it is not taken for one of these;
* int64: a JSON integer, exact; a reader that parses numbers as doubles loses those beyond 2**53;
* a float is written with a ``.`` or an exponent, an int without, so they stay apart;
* a version: a decimal string (an int is accepted too), since it is always beyond 2**53.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ackord.errors import InvalidRequest

DEPTH_MAX: Final = 200  # of lists and objects in one text; far more than a row may hold
_FLOATS: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def to_json(value: Any) -> Any:
    """A value as what ``json.dumps`` writes."""
    kind = type(value)
    if kind is bytes:
        return {"$bytes": base64.b64encode(value).decode("ascii")}
    if kind is float and not math.isfinite(value):
        return {"$float": "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"}
    if kind is list or kind is tuple:
        return [to_json(item) for item in value]
    if isinstance(value, Mapping):
        plain = {name: to_json(item) for name, item in value.items()}
        return {"$map": plain} if _is_form(plain) else plain
    return value


def from_json(value: Any) -> Any:
    """The value of what ``json.loads`` read; InvalidRequest for a ``$`` form that is none of those above."""
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    if not _is_form(value):
        return {name: from_json(item) for name, item in value.items()}
    ((name, inner),) = value.items()
    if name == "$bytes" and isinstance(inner, str):
        try:
            return base64.b64decode(inner, validate=True)
        except (binascii.Error, ValueError):
            raise InvalidRequest('"$bytes" must be base64', field="$bytes", value=ascii(inner)[:80]) from None
    if name == "$float" and isinstance(inner, str) and inner in _FLOATS:
        return _FLOATS[inner]
    if name == "$map" and isinstance(inner, dict):
        return {key: from_json(item) for key, item in inner.items()}
    raise InvalidRequest(
        f"{ascii(name)[:40]}: {ascii(inner)[:40]} is none of the forms "
        '{"$bytes": base64}, {"$float": "NaN" | "Infinity" | "-Infinity"}, {"$map": {...}}',
        field=name[:80],
        value=ascii(inner)[:80],
    )


def columns_from_json(value: Any, field: str = "columns") -> dict[str, Any]:
    """A JSON object of columns. The object itself is never a ``$`` form: its names are the columns'."""
    if not isinstance(value, dict):
        raise InvalidRequest(f"{field} must be a JSON object", field=field, value=type(value).__name__)
    return {name: from_json(item) for name, item in value.items()}


def columns_to_json(columns: Mapping[str, Any]) -> dict[str, Any]:
    return {name: to_json(value) for name, value in columns.items()}


def row_to_json(key: Sequence[Any], version: int, columns: Mapping[str, Any]) -> dict[str, Any]:
    """``{"key": [...], "version": "...", "columns": {...}}``"""
    return {
        "key": [to_json(value) for value in key],
        "version": str(version),
        "columns": columns_to_json(columns),
    }


def row_from_json(value: Any) -> tuple[tuple[Any, ...], int | None, dict[str, Any]]:
    """(key, version, columns) of what ``row_to_json`` made; the version may be absent."""
    if not isinstance(value, dict) or not isinstance(value.get("key"), list):
        raise InvalidRequest(
            'a row is {"key": [...], "columns": {...}}', field="row", value=type(value).__name__
        )
    key = tuple(from_json(item) for item in value["key"])
    version = None if value.get("version") is None else version_from_json(value["version"])
    return key, version, columns_from_json(value.get("columns", {}))


def version_from_json(value: Any, field: str = "version") -> int:
    """A version written as a decimal string or an int."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 19:
        value = int(value)
    if type(value) is not int or not 0 <= value < 2**63:
        raise InvalidRequest(
            f"{field}: {ascii(value)[:60]} is not a version", field=field, value=ascii(value)[:60]
        )
    return value


def parse_json(text: bytes | str) -> Any:
    """Strict ``json.loads``: no NaN literals, no name twice, UTF-8 only, no deeper than DEPTH_MAX;
    InvalidRequest says what is wrong."""
    try:
        if isinstance(text, bytes):
            text = text.decode()
        value = json.loads(
            text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_no_name_twice
        )
    except RecursionError:
        raise InvalidRequest("JSON nested too deeply", field="body") from None
    except ValueError as error:
        raise InvalidRequest(f"not valid JSON: {error}", field="body", value=ascii(text[:40])) from None
    check_depth(value)
    return value


def check_depth(value: Any) -> None:
    """InvalidRequest for what is nested so deeply that walking it would exhaust Python's stack."""
    level = [value]
    for _ in range(DEPTH_MAX + 1):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        if not inner:
            return
        level = inner
    raise InvalidRequest(f"nested deeper than {DEPTH_MAX} lists and maps", field="body", limit=DEPTH_MAX)


def dump_json(value: Any) -> str:
    """JSON of what ``to_json`` made, compact, text as it is."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _is_form(value: Mapping[str, Any]) -> bool:
    return len(value) == 1 and next(iter(value)).startswith("$")


def _no_constant(name: str) -> Any:
    raise ValueError(f'{name} is not JSON; write {{"$float": "{name}"}}')


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text[:40]} is beyond a 64-bit float")
    return number


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise ValueError(f"the name {ascii(twice)[:60]} stands twice in one object")
    return value
