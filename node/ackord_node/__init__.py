"""The Ackord server: core, ports, runtime, adapters and HTTP faces."""
