"""What holds for the whole suite."""

from __future__ import annotations

from hypothesis import settings

# how long an example takes says more of what else the machine does than of the code
settings.register_profile("ackord", settings.default, deadline=None)
settings.load_profile("ackord")
