"""The rows of a file for ``ackord load``: JSON lines or CSV, each line a row or a reason why it is none.

Nothing is guessed. JSON lines: an object whose names are the key columns and the other columns, or
``{"key": [...], "columns": {...}}`` as ``ackord scan --json`` writes it. CSV: the header names the columns, key
columns have the table's types, the others are text unless a type is given.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from ackord.cli.text import parse_bytes, parse_word
from ackord.errors import InvalidRequest
from ackord.wire.json_forms import columns_from_json, from_json, parse_json, row_from_json
from ackord.wire.keys import INT64_MAX, INT64_MIN, KeySchema
from ackord.wire.limits import Limits

FORMATS: Final = ("jsonl", "csv")
SUFFIXES: Final = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
CSV_TYPES: Final = ("str", "int", "float", "bool", "bytes", "json")
BATCH_BYTES_MAX: Final = 1024 * 1024  # of a batch's lines
LINE_ROWS: Final = 8  # a line may be so many times the longest row: JSON escapes, base64
_DIGEST_BYTES: Final = 16
_FLOAT: Final = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?|NaN|-?Infinity", re.ASCII)
_ROW_FORMS: Final = ({"key", "columns"}, {"key", "columns", "version"})


@dataclass(frozen=True, slots=True)
class Record:
    """One row of the file; ``line`` is where it begins."""

    line: int
    key: tuple[Any, ...]
    columns: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BadLine:
    line: int
    reason: str


class FileUnusable(InvalidRequest):
    """The file as a whole, or all that follows, cannot be read."""


class Lines:
    """A file's lines as bytes, counted."""

    def __init__(self, file: BinaryIO, limits: Limits) -> None:
        self._file = file
        self._line_bytes_max = LINE_ROWS * limits.row_bytes
        self.number = 0  # of the last line taken
        self.read_bytes = 0

    def __iter__(self) -> Iterator[bytes]:
        while line := self._file.readline(self._line_bytes_max + 1):
            self.number += 1
            self.read_bytes += len(line)
            if len(line) > self._line_bytes_max:
                raise FileUnusable(f"line {self.number} is longer than {self._line_bytes_max} bytes")
            yield line


def read_jsonl(lines: Lines, schema: KeySchema) -> Iterator[Record | BadLine]:
    """One row per line; empty lines are skipped."""
    names = [name for name, _ in schema.columns]
    for raw in lines:
        line = raw.removeprefix(b"\xef\xbb\xbf").strip() if lines.number == 1 else raw.strip()
        if not line:
            continue
        try:
            yield _json_record(lines.number, parse_json(line), names)
        except InvalidRequest as error:
            yield BadLine(lines.number, error.message)


def _json_record(line: int, value: Any, names: list[str]) -> Record:
    if not isinstance(value, dict):
        raise InvalidRequest(f"a row is a JSON object, not a {type(value).__name__}")
    absent = [name for name in names if name not in value]
    if not absent:
        key = tuple(from_json(value.pop(name)) for name in names)
        return Record(line, key, columns_from_json(value))
    if set(value) in _ROW_FORMS:
        key, _, columns = row_from_json(value)
        return Record(line, key, columns)
    raise InvalidRequest(f"the key column {absent[0]!r} is missing")


def read_csv(lines: Lines, schema: KeySchema, types: Mapping[str, str]) -> Iterator[Record | BadLine]:
    """The rows below the header. FileUnusable if the header does not fit the table, or where the quoting breaks:
    what follows cannot be told apart."""
    kinds = {name: kind for (name, _), kind in zip(schema.columns, schema.types, strict=True)}
    names: list[str] = []
    reader = csv.reader(_decoded(lines), strict=True)
    begins = 1
    try:
        for cells in reader:
            line, begins = begins, lines.number + 1
            if not cells:
                continue
            if not names:
                names = cells
                _check_header(names, kinds, types)
                continue
            try:
                yield _csv_record(line, names, cells, kinds, types)
            except InvalidRequest as error:
                yield BadLine(line, error.message)
    except csv.Error as error:
        raise FileUnusable(f"line {lines.number}: {error}; nothing after it was read") from None


def _decoded(lines: Lines) -> Iterator[str]:
    for raw in lines:
        text = raw.decode("utf-8", errors="surrogateescape")
        yield text.removeprefix("\ufeff") if lines.number == 1 else text


def _check_header(names: list[str], kinds: Mapping[str, str], types: Mapping[str, str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    absent = [name for name in kinds if name not in names]
    unknown = [name for name in types if name not in names]
    keys = [name for name in types if name in kinds]
    if "" in names or twice:
        raise FileUnusable(
            f"the header names {'a column without a name' if '' in names else f'{twice[0]!r} twice'}"
        )
    if absent:
        raise FileUnusable(
            f"the header does not name the key column {absent[0]!r}; it has {', '.join(names)}"[:300]
        )
    if unknown:
        raise FileUnusable(f"--type names {unknown[0]!r}, which the header does not have")
    if keys:
        raise FileUnusable(
            f"--type names {keys[0]!r}, a key column: its type is the table's, {kinds[keys[0]]}"
        )


def _csv_record(
    line: int, names: list[str], cells: list[str], kinds: Mapping[str, str], types: Mapping[str, str]
) -> Record:
    if len(cells) != len(names):
        raise InvalidRequest(f"{len(cells)} cells, the header has {len(names)}")
    values = dict(zip(names, cells, strict=True))
    for name, cell in values.items():
        if not cell.isascii() and any("\udc80" <= char <= "\udcff" for char in cell):
            raise InvalidRequest(f"{name}: not UTF-8")
    key = tuple(parse_word(name, kind, values.pop(name)) for name, kind in kinds.items())
    columns = {}
    for name, cell in values.items():
        kind = types.get(name, "str")
        if cell or kind == "str":  # an empty cell of another type: the row does not have the column
            columns[name] = parse_cell(name, kind, cell)
    return Record(line, key, columns)


def parse_cell(name: str, kind: str, cell: str) -> Any:
    """A CSV cell as a value of one of ``CSV_TYPES``."""
    if kind == "int":
        value = parse_word(name, "int", cell)
        if not INT64_MIN <= value <= INT64_MAX:
            raise InvalidRequest(f"{name}: {cell} is not an int of 64 bits")
        return value
    if kind == "float":
        if _FLOAT.fullmatch(cell) is None:
            raise InvalidRequest(f"{name}: {ascii(cell)[:60]} is not a float")
        return float(cell)
    if kind == "bool":
        if cell not in ("true", "false"):
            raise InvalidRequest(f"{name}: {ascii(cell)[:60]} is neither true nor false")
        return cell == "true"
    if kind == "bytes":
        return parse_bytes(name, cell)
    return from_json(parse_json(cell)) if kind == "json" else cell


class Batches:
    """A reader's rows in batches. A key that stood in the file before is a bad line: which of the two rows should
    stand could not be told, and loading again would not find what it wrote."""

    def __init__(
        self, lines: Lines, records: Iterator[Record | BadLine], schema: KeySchema, limits: Limits
    ) -> None:
        self._lines = lines
        self._records = records
        self._schema = schema
        self._rows_max = limits.batch_rows_count
        self._seen: dict[bytes, int] = {}  # key or its digest -> line

    def next(self) -> tuple[list[Record], list[BadLine]]:
        """The next rows and bad lines; both empty at the end."""
        rows: list[Record] = []
        bad: list[BadLine] = []
        began = self._lines.read_bytes
        for record in self._records:
            if isinstance(record, Record):
                record = self._checked(record)
            if isinstance(record, Record):
                rows.append(record)
            else:
                bad.append(record)
            if len(rows) + len(bad) >= self._rows_max or self._lines.read_bytes - began >= BATCH_BYTES_MAX:
                break
        return rows, bad

    def _checked(self, record: Record) -> Record | BadLine:
        try:
            mark = self._schema.encode(record.key)
        except InvalidRequest as error:
            return BadLine(record.line, error.message)
        if len(mark) > _DIGEST_BYTES:
            mark = hashlib.blake2b(mark, digest_size=_DIGEST_BYTES).digest()
        first = self._seen.setdefault(mark, record.line)
        return record if first == record.line else BadLine(record.line, f"the same key as in line {first}")
