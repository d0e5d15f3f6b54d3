"""`python -m sol_rt` is `sol-rt`."""

import sys

from sol_rt.cli import main

sys.exit(main())
