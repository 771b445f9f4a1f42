"""Long runs against real processes; `make chaos`."""
