"""What the suite itself stands on."""

from __future__ import annotations

import http.server
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support import ports as ports_module
from tests.support.cluster import RealNode
from tests.support.ports import FIRST, HOST, LAST, RESERVED_MAX, free_port, free_ports


def test_no_two_processes_are_given_the_same_port() -> None:
    """Each picks from the same few ports, as often as it can."""
    narrow = (
        "import sys, tests.support.ports as p\n"
        "p.FIRST, p.LAST = 31000, 31039\n"
        "print(*p.free_ports(10), flush=True)\n"
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", narrow]
    suites = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    given: list[str] = []
    for suite in suites:
        assert suite.stdout is not None
        given += suite.stdout.readline().split()
    for suite in suites:
        suite.communicate()
        assert suite.returncode == 0
    assert len(given) == len(set(given)) == 30


def test_one_process_holds_a_bounded_number_of_ports() -> None:
    ports = free_ports(RESERVED_MAX + 10)
    assert all(FIRST <= port <= LAST for port in ports)
    assert len(ports_module._reserved) == RESERVED_MAX


def test_a_port_on_which_somebody_listens_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setattr("tests.support.ports.FIRST", port)
    monkeypatch.setattr("tests.support.ports.LAST", port)
    monkeypatch.setattr("tests.support.ports._reserve", lambda port: socket.socket(socket.AF_UNIX))
    with socket.create_server((HOST, port)):
        with pytest.raises(OSError, match="no free port"):
            free_port()


def test_a_page_of_a_server_that_is_no_node_says_so(tmp_path: Path) -> None:
    class Foreign(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404)
            self.end_headers()
            self.wfile.write(b"404: Not Found")

        def log_message(self, format: str, *args: object) -> None:
            pass

    node = RealNode("n1", free_port(), tmp_path, tmp_path)
    with http.server.HTTPServer((HOST, node.port), Foreign) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with pytest.raises(AssertionError, match=r"answered 404 b'404: Not Found'.*is that n1"):
            node.ask("/ready")
        thread.join()
