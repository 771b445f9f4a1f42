"""The command's frame: options of all commands, and what an error becomes (one line, one exit code)."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from ackord._version import __version__
from ackord.cli.changes import count, update
from ackord.cli.connection import Settings, find_nodes
from ackord.cli.load import load
from ackord.cli.recover import recover
from ackord.cli.rows import delete, get, history, put, scan
from ackord.cli.status import status
from ackord.cli.tables import table
from ackord.errors import (
    Conflict,
    Error,
    InvalidRequest,
    OutcomeUnknown,
    TableNotFound,
    Unavailable,
    VersionCollected,
)

EXIT_NO: Final = 1
EXIT_USAGE: Final = 2
EXIT_UNAVAILABLE: Final = 3
EXIT_UNKNOWN: Final = 4
EXIT_FAILED: Final = 5
EXIT_INTERRUPTED: Final = 130

EXIT_CODES: Final = (
    (EXIT_NO, (Conflict,)),
    (EXIT_USAGE, (InvalidRequest, TableNotFound, VersionCollected)),
    (EXIT_UNAVAILABLE, (Unavailable,)),
    (EXIT_UNKNOWN, (OutcomeUnknown,)),
)

EPILOG: Final = """\
\b
Exit codes:
  0    done
  1    the answer is no: not healthy, no such row, a condition does not hold,
       lines of a file are bad, a confirmation is missing
  2    the request can never succeed as it is: wrong argument, no such table,
       a version that is no longer kept
  3    the cluster cannot be reached or cannot take the request now;
       it certainly did not happen
  4    unknown: the request was sent and not answered
  5    anything else
  130  interrupted
"""


@click.group(epilog=EPILOG)
@click.option(
    "--nodes",
    metavar="URLS",
    envvar="ACKORD_NODES",
    help="Nodes, joined by commas; one that answers is enough. Default: those of ./cluster.yaml, else "
    "127.0.0.1:7801, 7802, 7803.",
)
@click.option(
    "--timeout",
    "timeout_s",
    metavar="SECONDS",
    type=click.FloatRange(0, 86_400, min_open=True),
    default=10.0,
    show_default=True,
    help="How long one call may take; until then it is retried.",
)
@click.version_option(__version__, prog_name="ackord", message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context, nodes: str | None, timeout_s: float) -> None:
    """Ackord, a strongly consistent, replicated table store."""
    found, source = find_nodes(nodes, Path.cwd())
    context.obj = Settings(found, source, timeout_s)


for command in (status, recover, table, get, history, put, update, delete, scan, count, load):
    cli.add_command(command)


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; its exit code."""
    try:
        result = cli.main(
            args=None if argv is None else list(argv), prog_name="ackord", standalone_mode=False
        )
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.UsageError as error:
        return _say_usage(error)
    except (click.Abort, KeyboardInterrupt):
        return _say("interrupted", EXIT_INTERRUPTED)
    except click.ClickException as error:
        return _say(error.format_message(), EXIT_USAGE)
    except Error as error:
        return _say(error.message, exit_code(error))
    except BrokenPipeError:  # `ackord scan ... | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_NO
    except OSError as error:
        return _say(str(error), EXIT_FAILED)


def exit_code(error: Error) -> int:
    return next((code for code, classes in EXIT_CODES if isinstance(error, classes)), EXIT_FAILED)


def _say_usage(error: click.UsageError) -> int:
    message = error.format_message()
    if "\n" in message:  # a group without a command: its help
        click.echo(message, err=True)
        return EXIT_USAGE
    where = error.ctx.command_path if error.ctx is not None else "ackord"
    return _say(f"{message.rstrip('.')} (see {where} --help)", EXIT_USAGE)


def _say(message: str, code: int) -> int:
    click.echo(f"ackord: {' '.join(message.split())}", err=True)
    return code
