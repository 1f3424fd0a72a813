"""`python -m benchmarks.gpu.first_day`, from a checkout: what `first_day.pyz` does there."""

import sys

from benchmarks.gpu.first_day.main import main

sys.exit(main())
