"""A local server that speaks the protocols of language model clients, with the dial in every request.

`scheduler.py` runs many answers on one model, step by step; `budget_control.py` sets their budgets by load, deadlines
and heat; `prefix_cache.py` keeps caches of prompts on disk; `request.py` reads what a client asks for;
`protocol.py` is the interface of the protocols, each of which has a file `..._api.py`; `app.py` puts them behind HTTP.
docs/guide/serving.md is the user's page.

May import: sol_rt.generate and the folders below it.
"""
