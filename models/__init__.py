"""Recipes of known models, with what was measured of them.

NAME.json is a recipe: it makes NAME an alias, and says where the checkpoint is and how to check it. The keys are those
of `Recipe` in sol_rt/store/recipes/recipe.py. NAME.calibration.json is a stored calibration.
"""
