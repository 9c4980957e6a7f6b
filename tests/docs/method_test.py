from __future__ import annotations

import pathlib
import re

import pytest

import mico_jax
from mico_jax.config import Config
from mico_jax.objectives import OBJECTIVES

ROOT = pathlib.Path(mico_jax.__file__).parents[1]
PAGE = pathlib.Path(mico_jax.__file__).parent / "docs" / "method.md"
NAMES = re.findall(r"`([a-z_]+(?:\.[a-z_0-9]+)+)(?:=[^`]*)?`", PAGE.read_text())
FIELDS = sorted(
  {n for n in NAMES if n.split(".")[0] in ("model", "objectives", "optimizer")}
)


@pytest.mark.parametrize("name", FIELDS)
def test_its_fields_are_those_of_a_config(name):
  value = Config()
  for part in name.split("."):
    value = getattr(value, part)


def test_it_names_what_there_is():
  text = PAGE.read_text()
  assert len(FIELDS) > 10
  for objective in OBJECTIVES:
    assert f"\n| {objective.replace('_', ' ')} |" in text, objective
  for file in re.findall(r"`(configs/\w+\.py)`", text):
    assert (ROOT / file).is_file(), file
