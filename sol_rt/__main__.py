"""Lets `python -m sol_rt` run the command line `sol-rt`."""

from sol_rt.cli import program

program()
