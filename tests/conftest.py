"""What every test shares."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# The models of the tests are tiny: threads of a BLAS only wait for each other, above all where
# several test runs share the cores. Set before anything loads OpenBLAS.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Before any test module is imported: their own @settings inherit from the profile of that moment.
# "fixed" gives the same examples every time, so that no change fails for what it did not do;
# "explore" (make fuzz) looks for new ones. Neither judges by the clock of a busy machine.
CALM = [HealthCheck.too_slow]
settings.register_profile("fixed", derandomize=True, deadline=None, suppress_health_check=CALM)
settings.register_profile("explore", max_examples=1000, deadline=None, suppress_health_check=CALM)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))
