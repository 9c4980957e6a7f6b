"""Numbers on the command line have an upper end."""

from __future__ import annotations

import pytest

from mico_jax.cli.main import main


@pytest.mark.parametrize(
  ("argv", "most"),
  [
    (("caption", "--checkpoint", "c", "--beams", "1000000", "x.png"), 64),
    (("caption", "--checkpoint", "c", "--beams", "0", "x.png"), 1),
    (
      *[
        ("data", "sheet", "--config", "demo", "--out", "x", "--samples", "999")
      ],
      200,
    ),
    (
      (
        *("data", "tokenizer", "--config", "demo", "--out", "x"),
        *("--samples", "99999999999"),
      ),
      10_000_000,
    ),
  ],
)
def test_beyond_it_is_a_mistake(capsys, argv, most):
  assert main(list(argv)) == 2
  said = capsys.readouterr().err.splitlines()[-1]
  assert f"must be at {'least' if most == 1 else 'most'} {most}" in said
