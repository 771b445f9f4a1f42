"""``ackord-node --config cluster.yaml --node n1``: one node process."""

from __future__ import annotations

import argparse
import sys

from ackord_node.app import EXIT_REFUSED, run
from ackord_node.config import ConfigError, load


def main() -> int:
    parser = argparse.ArgumentParser(prog="ackord-node", description="Runs one node of an Ackord cluster.")
    parser.add_argument("--config", default="cluster.yaml", help="the cluster's file (default: %(default)s)")
    parser.add_argument("--node", required=True, help="which of its nodes this process is")
    arguments = parser.parse_args()
    try:
        config = load(arguments.config)
        config.node(arguments.node)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_REFUSED
    return run(config, arguments.node)


if __name__ == "__main__":
    sys.exit(main())
