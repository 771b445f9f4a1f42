"""Records what a process does to its files: runs it under strace and reads the trace back as calls.

A call has an instant at which it began and one at which it returned, both as line numbers of the trace. strace
stops a thread at both, so what a program does because of a call (another call, a message, an answer) comes later
in the trace than the call's return. A process that is killed leaves calls that never returned.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

STRING_BYTES_MAX = 16 << 20  # a longer write would be cut short in the trace
NEVER = 1 << 62  # the instant at which a call returned that did not

_CHANGING = (
    "write,pwrite64,writev,pwritev,pwritev2,truncate,ftruncate,fallocate,copy_file_range,sendfile,splice,"
    "rename,renameat,renameat2,unlink,unlinkat,rmdir,link,linkat,symlink,symlinkat,mkdir,mkdirat"
)
_SYNCING = "fsync,fdatasync,sync,syncfs,sync_file_range"
_NAMING = "open,openat,openat2,creat,close,dup,dup2,dup3,fcntl,lseek"
_BYPASSING = "mmap"  # writing through a mapping would not be seen

_LINE = re.compile(r"^(\d+) +(.*)$", re.DOTALL)
_RESUMED = re.compile(r"<\.\.\. (\w+) resumed>")
_CALL = re.compile(r"^(\w+)\((.*)\) += (-?\w+|\?)", re.DOTALL)
_UNFINISHED = " <unfinished ...>"
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


@dataclass(frozen=True, slots=True)
class Call:
    """One system call. ``args`` is strace's text of the arguments, cut at the top level's commas."""

    name: str
    args: list[str]
    result: int | None  # None: it did not return
    entered: int
    left: int

    def text(self, at: int) -> bytes:
        """A string argument (a path or the written bytes); several pieces of a vector are joined."""
        if '"...' in self.args[at]:
            raise ValueError(f"the trace cut a string of {self.name} short")
        return b"".join(bytes.fromhex(part.replace("\\x", "")) for part in _STRING.findall(self.args[at]))

    def number(self, at: int) -> int:
        return int(self.args[at], 0)


def is_available() -> bool:
    return shutil.which("strace") is not None


def command(trace_path: Path, argv: Sequence[str]) -> list[str]:
    """Runs ``argv`` under strace, as the process itself (``-D``), so that its pid is what was started."""
    calls = ",".join((_CHANGING, _SYNCING, _NAMING, _BYPASSING))
    options = ["-D", "-f", "-q", "-xx", "-s", str(STRING_BYTES_MAX), "--seccomp-bpf", "-e", f"trace={calls}"]
    return ["strace", *options, "-o", str(trace_path), *argv]


def has_ended(trace_path: Path) -> bool:
    """Whether the trace holds the end of its first thread, which is the last that strace writes of it."""
    with trace_path.open("rb") as file:
        first = file.readline().split(b" ", 1)[0]
        file.seek(max(0, trace_path.stat().st_size - 400))
        return any(
            line.startswith(first + b" ") and b" +++ " in line and line.endswith(b" +++")
            for line in file.read().split(b"\n")
        )


def calls_of(lines: Iterator[str]) -> Iterator[Call]:
    """The calls in the order in which they returned; at the end those that never did.

    But a close comes where it began: the kernel may give its descriptor to another thread's open at once, and on a
    loaded machine that open, even writes through it, may come in the trace before the close's return."""
    begun: dict[str, tuple[int, str]] = {}
    for instant, line in enumerate(lines):
        match = _LINE.match(line.rstrip("\n"))
        if match is None:
            raise ValueError(f"line {instant + 1} is none of strace's: {line[:100]!r}")
        thread, text = match.groups()
        if text.startswith(("+++", "---")):
            continue
        entered = instant
        if text.endswith(_UNFINISHED):
            text = text.removesuffix(_UNFINISHED)
            if text.startswith("close("):
                yield _cut_off(text, instant)
            else:
                begun[thread] = (instant, text)
            continue
        resumed = _RESUMED.match(text)
        if resumed is not None:
            if thread not in begun:
                continue  # a close, or it began before the tracing
            entered, beginning = begun.pop(thread)
            text = beginning + text[resumed.end() :].lstrip()
        call = _parsed(text, entered, instant)
        if call is not None:
            yield call
    for entered, text in sorted(begun.values()):
        yield _cut_off(text, entered)


def _cut_off(text: str, entered: int) -> Call:
    """A call of which only the beginning is known."""
    name, _, args = text.partition("(")
    return Call(name, _split(args), None, entered, NEVER)


def _parsed(text: str, entered: int, left: int) -> Call | None:
    match = _CALL.match(text.replace(f"{_UNFINISHED})", ")"))  # so ends a call that was killed at once
    if match is None:
        raise ValueError(f"line {left + 1} is no call: {text[:100]!r}")
    name, args, result = match.groups()
    if result == "?":
        return Call(name, _split(args), None, entered, NEVER)
    if result.startswith("-"):
        return None  # it failed, and changed nothing
    return Call(name, _split(args), int(result, 0), entered, left)


def _split(args: str) -> list[str]:
    """At the commas outside of brackets; strings hold none, since strace writes them in hexadecimal."""
    if "[" not in args and "{" not in args:
        return args.split(", ")
    parts, depth, start = [], 0, 0
    for at in re.finditer(r"[\[{]|[\]}]|, ", args):
        token = at.group()
        if token == ", ":
            if depth == 0:
                parts.append(args[start : at.start()])
                start = at.end()
        else:
            depth += 1 if token in "[{" else -1
    return [*parts, args[start:]]
