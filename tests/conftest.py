"""The profiles of Hypothesis; `HYPOTHESIS_PROFILE` selects one of them."""

import os

from hypothesis import HealthCheck, settings

# Clocks on shared machines lie: no test fails because generating took long.
_CALM = [HealthCheck.too_slow]

settings.register_profile("default", deadline=None, max_examples=100, suppress_health_check=_CALM)
settings.register_profile(
    "nightly", deadline=None, max_examples=10_000, suppress_health_check=_CALM
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
