"""The bundle: its config, actions, weights file and graph files, and the check of all of them.

May import: sol_rt.native, sol_rt.text, sol_rt.errors, sol_rt.read_file.
"""
