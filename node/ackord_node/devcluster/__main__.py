"""``python -m ackord_node.devcluster up|stop|status|clean|install --config cluster.yaml``."""

from __future__ import annotations

import argparse
import os
import sys

from ackord_node import config
from ackord_node.devcluster.installer import InstallError
from ackord_node.devcluster.launcher import Launcher, LaunchError
from ackord_node.devcluster.zookeeper_process import ZooKeeperUnavailable


def main(arguments: list[str] | None = None) -> int:
    """0: done (for ``status``: every node is in service); 1: not; 2: wrong arguments or cluster.yaml."""
    parser = argparse.ArgumentParser(prog="devcluster", description="A whole Ackord cluster on this machine.")
    parser.add_argument("command", choices=["up", "stop", "status", "clean", "install"])
    parser.add_argument("--config", default="cluster.yaml", help="default: %(default)s")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds that `up` waits (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        launcher = Launcher(config.load(options.config))
        if options.command == "status":
            return 0 if launcher.status() else 1
        if options.command == "up":
            launcher.up(options.timeout)
        else:
            {"stop": launcher.stop, "clean": launcher.clean, "install": launcher.install}[options.command]()
    except config.ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except (LaunchError, InstallError, ZooKeeperUnavailable) as error:
        print(error, file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader (head, say) has seen enough; without this Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("\nInterrupted. What was started goes on; `make stop` ends it.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
