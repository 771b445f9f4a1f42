"""The HTTP faces of a node: clients, peers, operators."""
