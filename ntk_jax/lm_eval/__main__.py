"""The harness's command line with the model `ntk-jax` in it. Exits 2 for a user's mistake, in one line."""

from __future__ import annotations

import sys

from lm_eval.__main__ import cli_evaluate

import ntk_jax.lm_eval  # noqa: F401 (makes the model known)
from ntk_jax.errors import UserError

try:
    cli_evaluate()
except UserError as error:
    print(f"ntk-jax: {error}", file=sys.stderr)
    sys.exit(2)
