"""The pure state machines of a tablet: no asyncio, no clock, no randomness, no I/O."""
