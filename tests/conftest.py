"""What every test shares."""

from __future__ import annotations

import os

# The models of the tests are tiny: threads of a BLAS only wait for each other, above all where
# several test runs share the cores. Set before anything loads OpenBLAS.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
