"""Recipes of known models and their trained policies.

NAME.json is a recipe: it makes NAME an alias, and says where the checkpoint is and how to check it. The keys are those
of `Recipe` in sol_rt/store/recipes/recipe.py. NAME.policy.safetensors is a policy that `sol-rt export -m NAME` puts
into the bundle; beside it are the config (.yaml) and the log (.jsonl) of its training.
"""
