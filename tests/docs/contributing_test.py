"""The examples of CONTRIBUTING.md are code that tests run."""

from __future__ import annotations

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
BLOCKS = re.findall(r"```python (\S+)\n(.*?)```", TEXT, re.DOTALL)
KINDS = (
  *("A modality", "An objective", "An encoder", "A text tower"),
  *("A data source", "An evaluator"),
)


@pytest.mark.parametrize(("file", "code"), BLOCKS)
def test_an_example_is_the_code_of_a_test(file, code):
  assert code in (ROOT / file).read_text(), f"{file} no longer has\n{code}"


def test_every_kind_has_an_example():
  for kind in KINDS:
    (section,) = re.findall(
      rf"\n### {kind}\n(.*?)(?=\n### |\Z)", TEXT, re.DOTALL
    )
    assert "```python tests/" in section, kind


def test_it_names_files_that_exist():
  for path in re.findall(r"`((?:mico_jax|tests)/[\w/]+\.\w+)`", TEXT):
    assert (ROOT / path).is_file(), path
