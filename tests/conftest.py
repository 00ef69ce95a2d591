"""What all tests share."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# The same examples every time: a failure that comes and goes teaches nothing.
# HYPOTHESIS_PROFILE=long searches further, and at random.
settings.register_profile(
    "quick", derandomize=True, deadline=None, database=None, max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
settings.register_profile("long", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
