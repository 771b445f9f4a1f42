"""Drives the core: event loop, batching, timers."""
