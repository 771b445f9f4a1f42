"""How far a load is: a bar with rate and time left on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

import click
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from ackord.cli.text import console

LINE_EVERY_S: Final = 5.0


class Progress(Protocol):
    def update(self, read_bytes: int, rows: int) -> None:
        """So much of the file was taken, so many rows are in the table."""

    def say(self, line: str) -> None:
        """A line for people, above the bar."""

    def took_s(self) -> float: ...


class _Base:
    def __init__(self, file: str, size_bytes: int | None) -> None:
        self._file = "stdin" if file == "-" else Path(file).name
        self._size_bytes = size_bytes
        self._began = time.monotonic()

    def took_s(self) -> float:
        return time.monotonic() - self._began

    def rate(self, rows: int) -> str:
        return f"{rows:,} rows, {rows / max(self.took_s(), 0.001):,.0f} rows/s"


class PlainProgress(_Base):
    """Lines on stderr."""

    def __init__(self, file: str, size_bytes: int | None) -> None:
        super().__init__(file, size_bytes)
        self._said_at = self._began

    def update(self, read_bytes: int, rows: int) -> None:
        now = time.monotonic()
        if now - self._said_at < LINE_EVERY_S:
            return
        self._said_at = now
        line = self.rate(rows)
        if self._size_bytes and read_bytes:
            left_s = self.took_s() * max(self._size_bytes - read_bytes, 0) / read_bytes
            line += f", {100 * read_bytes / self._size_bytes:.0f} % of the file, about {left_s:.0f} s left"
        click.echo(line, err=True)

    def say(self, line: str) -> None:
        click.echo(f"{self._file}: {line}", err=True)


class BarProgress(_Base):
    """A bar on a terminal."""

    def __init__(self, file: str, size_bytes: int | None, out: Console) -> None:
        super().__init__(file, size_bytes)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        self.bar = Bar(*columns, console=out)
        self._task = self.bar.add_task(self._file, total=size_bytes or None, rate="")

    def update(self, read_bytes: int, rows: int) -> None:
        self.bar.update(self._task, completed=read_bytes, rate=self.rate(rows))

    def say(self, line: str) -> None:
        self.bar.console.print(f"{self._file}: {line}")


@contextmanager
def open_progress(file: str, size_bytes: int | None) -> Iterator[Progress]:
    """The progress of one load, on stderr."""
    out = console(stderr=True)
    if not out.is_terminal:
        yield PlainProgress(file, size_bytes)
        return
    shown = BarProgress(file, size_bytes, out)
    with shown.bar:
        yield shown
