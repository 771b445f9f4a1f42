"""Implementations of the ports: the only code that touches disks, sockets and clocks."""
