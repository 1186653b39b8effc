"""`python -m ntk_jax` is the command `ntk-jax`."""

import sys

from ntk_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
