"""Recipes of known models, one JSON file each (sol_rt/recipes.py says what is in it), and trained policies."""
