"""Hints on optional packages take them from where the package came from."""

from __future__ import annotations

import pathlib
import re
import shlex
import tomllib

import pytest

from mico_jax import extras

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize(
  ("origin", "words"),
  [
    ({}, ["mico-jax[hub]"]),
    (
      {"url": "file:///a%20b/mico", "dir_info": {"editable": True}},
      ["-e", "/a b/mico[hub]"],
    ),
    ({"url": "file:///src/mico", "dir_info": {}}, ["/src/mico[hub]"]),
    (
      {"url": "https://x.org/mico.zip", "archive_info": {}},
      ["mico-jax[hub] @ https://x.org/mico.zip"],
    ),
    (
      {
        "url": "https://x.org/mico",
        "vcs_info": {"vcs": "git", "commit_id": "0a1b"},
      },
      ["mico-jax[hub] @ git+https://x.org/mico@0a1b"],
    ),
  ],
)
def test_the_command_takes_an_extra_from_the_same_place(origin, words):
  assert shlex.split(extras.command("hub", origin)) == [
    "pip",
    "install",
    *words,
  ]


def test_every_extra_that_is_named_exists():
  text = (ROOT / "pyproject.toml").read_text()
  declared = set(tomllib.loads(text)["project"]["optional-dependencies"])
  assert set(extras.EXTRAS.values()) <= declared
  named = set()
  for path in (ROOT / "mico_jax").rglob("*.py"):
    code = path.read_text()
    named |= set(re.findall(r"extras\.install\(['\"](\w+)['\"]\)", code))
    # By hand it would be wrong for a checkout.
    assert not re.search(r"pip install '?mico-jax\[", code), path
  assert {"torch", "eval", "wandb"} <= named <= declared


def test_a_package_of_a_broken_record_came_from_an_index(monkeypatch):
  class Broken:
    def read_text(self, name):
      assert name == "direct_url.json"
      return "{"  # no JSON

  monkeypatch.setattr("importlib.metadata.distribution", lambda name: Broken())
  extras._origin.cache_clear()
  try:
    assert extras.install("hub") == "pip install 'mico-jax[hub]'"
  finally:
    extras._origin.cache_clear()
