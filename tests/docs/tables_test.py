"""The reference pages say what the code says."""

from __future__ import annotations

import pathlib

import pytest

from mico_jax import config
from mico_jax.docs import tables


@pytest.mark.parametrize("name", tables.PAGES)
def test_page_is_current(name):
  path = pathlib.Path(tables.__file__).with_name(name)
  written = path.read_text(encoding="utf-8") if path.exists() else ""
  assert written == tables.PAGES[name](), (
    "run python -m mico_jax.docs.tables and look at the difference"
  )


def test_comments_of_fields():
  found = tables.field_comments(config.ModelConfig)
  assert found["pool_frames"].startswith("context keeps")
  assert found["masked_rows"].startswith('"zero": fully masked')
