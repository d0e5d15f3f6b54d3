"""Lets `python -m sol_rt` run the command line `sol-rt`."""

import sys

from sol_rt.cli import main

sys.exit(main())
