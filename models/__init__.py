"""Recipes of known models, one JSON file each (sol_rt/store/recipes.py says what is in it), and trained policies."""
