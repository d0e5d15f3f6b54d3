"""What is measured and shown of a bundle: quality, speed, reports and pages, the look inside, the machine check.

May import: everything but sol_rt.cli.
"""
