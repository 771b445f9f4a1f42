"""The ``ackord`` command (extra ``[cli]``): status, recovery, tables, rows, loading of files.

Every command is a few calls of the SDK; errors are one line on stderr, and the exit code says what they mean
(``app.EXIT_CODES``).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; its exit code."""
    try:
        from ackord.cli.app import run
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich", "yaml"):
            raise
        print(
            f"ackord: {error.name} is missing; install the command with: pip install 'ackord[cli]'",
            file=sys.stderr,
        )
        return 2
    return run(argv)
