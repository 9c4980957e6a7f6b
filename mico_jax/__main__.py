"""`python -m mico_jax` is `mico-jax`."""

from __future__ import annotations

import sys

from mico_jax.cli.main import main

if __name__ == "__main__":
  sys.exit(main())
