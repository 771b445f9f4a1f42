"""Runs collected tests in forked processes: each may break the product for itself, at the cost of a fork.

``run`` collects the tests once, then calls ``work(job, tests)`` for every job in a process of its own, and
``done(job, result, seconds)`` in this one. A process that hangs or dies has the result ``None``.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest

Job = TypeVar("Job")

ROOT = Path(__file__).resolve().parents[2]
SECONDS_MAX = 90  # for one job
QUIET = ["-p", "no:terminal", "-p", "no:faulthandler", "-p", "no:cacheprovider"]


class Tests:
    """What was collected, for use in a child."""

    def __init__(self, session: pytest.Session) -> None:
        self._session = session
        self.items = {item.nodeid: item for item in session.items}

    def first_failure(self, names: Iterable[str]) -> str | None:
        """Runs these tests, in this order, until one fails."""
        wanted = [self.items[name] for name in names]
        for at, item in enumerate(wanted):
            after = wanted[at + 1] if at + 1 < len(wanted) else None
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
            if self._session.testsfailed:
                return item.nodeid
        return None


class _Child:
    def __init__(self, job: Any, pid: int) -> None:
        self.job, self.pid, self.begin = job, pid, time.monotonic()


class _Forks(Generic[Job]):
    """A pytest plugin whose run loop is ours."""

    def __init__(
        self,
        jobs: list[Job],
        work: Callable[[Job, Tests], Any],
        done: Callable[[Job, Any, float], None],
        workers: int,
    ) -> None:
        self.errors: list[str] = []
        self._queue = list(reversed(jobs))
        self._work = work
        self._done = done
        self._workers = workers

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        tests = Tests(session)
        children: dict[int, _Child] = {}
        while self._queue or children:
            while self._queue and len(children) < self._workers:
                pipe, child = self._fork(self._queue.pop(), tests)
                children[pipe] = child
            for pipe in select.select(list(children), [], [])[0]:
                self._finish(pipe, children.pop(pipe))
        return True

    def _fork(self, job: Job, tests: Tests) -> tuple[int, _Child]:
        reader, writer = os.pipe()
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            os.close(writer)
            return reader, _Child(job, pid)
        try:
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(SECONDS_MAX)
            answer = {"result": self._work(job, tests)}
        except BaseException as error:
            answer = {"error": repr(error)}
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)

    def _finish(self, pipe: int, child: _Child) -> None:
        data = b""
        while chunk := os.read(pipe, 65536):
            data += chunk
        os.close(pipe)
        os.waitpid(child.pid, 0)
        answer = json.loads(data) if data else {"result": None}
        if "error" in answer:
            self.errors.append(f"{child.job}: {answer['error']}")
            return
        self._done(child.job, answer["result"], time.monotonic() - child.begin)


def run(
    files: Iterable[str],
    jobs: list[Job],
    work: Callable[[Job, Tests], Any],
    done: Callable[[Job, Any, float], None],
    workers: int = 2,
) -> None:
    """``files``: test files or folders, from the repository's root. Results must fit into a pipe (64 KiB)."""
    options = [*QUIET, "--import-mode=importlib", "--rootdir", str(ROOT), "-o", "addopts=", "-o", "timeout=0"]
    plugin = _Forks(jobs, work, done, workers)
    code = pytest.main([*options, *(str(ROOT / file) for file in files)], plugins=[plugin])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise SystemExit(f"the tests cannot be collected: {code}")
    if plugin.errors:
        raise SystemExit("\n".join(plugin.errors))
