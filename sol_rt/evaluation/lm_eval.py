"""`python -m sol_rt.evaluation.lm_eval` runs lm-evaluation-harness with the model `sol_rt` registered.

Releases of the harness that do not find models by entry point need this program. It takes lm_eval's own arguments, for
example `run --model sol_rt --model_args pretrained=BUNDLE,budget=0.4 --tasks …`.
"""

from __future__ import annotations

import sys

from sol_rt.errors import SolError


def main() -> int:
    """Runs the harness's command line and returns an exit code. A bad bundle or argument gives one line of error."""
    try:
        from lm_eval.__main__ import cli_evaluate
        from lm_eval.api.registry import get_model, register_model
    except ImportError as error:
        print(f"sol_rt.evaluation.lm_eval: error: {error}; install sol-rt[eval]", file=sys.stderr)
        return 1
    from sol_rt.evaluation.lm_eval_model import SolLM

    try:
        get_model("sol_rt")
    except ValueError:  # this release does not find models by entry point
        register_model("sol_rt")(SolLM)
    try:
        cli_evaluate()
    except SolError as error:
        print(f"sol_rt.evaluation.lm_eval: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
