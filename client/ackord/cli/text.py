"""Words of the command line as keys and values, and values as text for people."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Any, Final

from rich.console import Console

from ackord.errors import InvalidRequest
from ackord.wire.json_forms import dump_json, from_json, parse_json, to_json
from ackord.wire.keys import AUTO, KeySchema

PIPE_COLUMNS: Final = 4_096  # of a table that goes to a file or pipe: nothing is cut there
_INT: Final = re.compile(r"[+-]?[0-9]{1,20}", re.ASCII)
# may stand raw in JSON, but move the cursor or turn text around on a terminal
_UNSAFE: Final = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def console(*, stderr: bool = False) -> Console:
    """Where tables for people go: colours only on a terminal, no markup in what the data says."""
    made = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not made.is_terminal:
        made = Console(stderr=stderr, markup=False, highlight=False, emoji=False, width=PIPE_COLUMNS)
    return made


def parse_key(schema: KeySchema, words: Sequence[str]) -> tuple[Any, ...]:
    """A whole key, one word per key column."""
    key = parse_prefix(schema, words)
    schema.encode(key)
    return key


def parse_new_key(schema: KeySchema, words: Sequence[str]) -> tuple[Any, ...]:
    """The same; the word ``auto`` stands for the number that the table gives, where its last key column is AUTO."""
    if schema.is_auto and len(words) == len(schema.columns) and words[-1] == "auto":
        return (*parse_prefix(schema, words[:-1]), AUTO)
    return parse_key(schema, words)


def parse_prefix(schema: KeySchema, words: Sequence[str]) -> tuple[Any, ...]:
    """The first columns of a key."""
    if len(words) > len(schema.columns):
        names = ", ".join(f"{name}: {kind}" for name, kind in schema.columns)
        raise InvalidRequest(f"{len(words)} key values were given, the table's key is ({names})", field="key")
    values = [
        parse_word(column, kind, word) for (column, kind), word in zip(schema.columns, words, strict=False)
    ]
    schema.encode_prefix(tuple(values))
    return tuple(values)


def parse_word(column: str, kind: str, word: str) -> Any:
    """One value of a key type: decimal digits, plain text, or ``hex:...`` / ``base64:...`` for bytes."""
    if kind == "str":
        return word
    if kind in ("int", "auto"):
        if _INT.fullmatch(word) is None:
            raise InvalidRequest(f"{column}: {ascii(word)[:60]} is not an int of 64 bits", field=column)
        return int(word)
    return parse_bytes(column, word)


def parse_bytes(column: str, word: str) -> bytes:
    form, _, digits = word.partition(":")
    try:
        if form == "hex":
            return bytes.fromhex(digits)
        if form == "base64":
            return base64.b64decode(digits, validate=True)
    except (binascii.Error, ValueError):
        pass
    raise InvalidRequest(
        f"{column}: {ascii(word)[:60]} is not bytes; write hex:00ff or base64:AP8=", field=column
    )


def parse_columns(text: str | None, assignments: Sequence[str]) -> dict[str, Any]:
    """The columns of ``--json`` or of ``--set name=JSON ...``."""
    if text is not None:
        found = parse_json(text)
        if not isinstance(found, dict):
            raise InvalidRequest(f"--json takes an object of columns, not {ascii(text)[:60]}", field="json")
        return {name: from_json(value) for name, value in found.items()}
    return parse_assignments("--set", assignments)


def parse_assignments(option: str, assignments: Sequence[str]) -> dict[str, Any]:
    """``name=JSON`` words as columns."""
    columns: dict[str, Any] = {}
    for assignment in assignments:
        name, sign, value = assignment.partition("=")
        if not sign or not name:
            raise InvalidRequest(f"{option} takes name=JSON, not {ascii(assignment)[:60]}", field=option)
        if name in columns:
            raise InvalidRequest(f"{option} names the column {ascii(name)[:60]} twice", field=option)
        columns[name] = parse_value(f"{option} {name}", value)
    return columns


def parse_value(what: str, text: str) -> Any:
    """One JSON value; the error shows how text is quoted."""
    try:
        return from_json(parse_json(text))
    except InvalidRequest as error:
        hint = f"; text needs quotes inside the shell's, like '\"{text}\"'" if text.isalnum() else ""
        raise InvalidRequest(f"{what}: {error.message}{hint}", field=what) from None


def shown(value: Any) -> str:
    """A value as JSON, safe for a terminal."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", dump_json(to_json(value)))


def shown_key(key: Sequence[Any]) -> str:
    return ", ".join(shown(value) for value in key)


def shown_schema(columns: Sequence[Sequence[str]]) -> str:
    return ", ".join(f"{name}: {kind}" for name, kind in columns)


def shown_range(columns: Sequence[Sequence[str]], start: bytes, end: bytes | None) -> str:
    """A tablet's range in values of the partition key, on which alone tablets are split."""
    partition = KeySchema(((columns[0][0], columns[0][1]),))
    first = shown(partition.decode(start)[0]) if start else ""
    last = shown(partition.decode(end)[0]) if end is not None else ""
    if not first and not last:
        return "all"
    return f"{first} … {last}".strip()


def shown_bytes(count: int) -> str:
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if amount >= 10 or unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def shown_tablet(tablet: int) -> str:
    """A tablet's id; nodes write the same digits in their logs."""
    return f"{tablet:#x}"


def parse_tablet(text: str) -> int:
    """A tablet's id as ``shown_tablet`` writes it, or in decimal digits."""
    try:
        return int(text, 16) if text.lower().startswith("0x") else int(text)
    except ValueError:
        raise InvalidRequest(
            f"{ascii(text)[:60]} is not a tablet's id like 0x10000, as `ackord status` shows it",
            field="tablet",
        ) from None
