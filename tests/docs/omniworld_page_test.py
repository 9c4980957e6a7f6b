"""The page on OmniWorld says what its code does."""

import pathlib
import re

import mico_jax
from mico_jax import world
from mico_jax.modalities import MODALITIES
from mico_jax.world import thermal

PAGE = pathlib.Path(mico_jax.__file__).parent / "docs" / "omniworld.md"


def test_facts_are_told_by_the_modalities_of_the_page():
  rows = re.findall(r"^\| (\w+) \| ([a-z ]+) \|$", PAGE.read_text(), re.M)
  found = {fact: set(keys.split()) for fact, keys in rows if fact != "fact"}
  assert found == {
    fact: {
      key
      for key, modality in MODALITIES.items()
      if world.observes(modality.letter, fact)
    }
    for fact in world.OBSERVABLE
  }


def test_temperatures_and_units_are_those_of_the_page():
  text = PAGE.read_text()
  for material, (kelvin, _) in thermal.MATERIAL_HEAT.items():
    assert f"{material} {kelvin:.0f}" in text
  for key in world.FIELDS_V2[len(world.FIELDS) :]:
    assert f"\n| `{key}` |" in text
  assert (PAGE.parent / "omniworld_v2_sheet.png").is_file()
