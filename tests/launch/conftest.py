"""A git checkout of the launchers, to be shipped."""

from __future__ import annotations

import pathlib
import shutil
import subprocess

import pytest

_GIT = ("git", "-c", "user.name=a", "-c", "user.email=a@b")


@pytest.fixture
def checkout(repository, tmp_path):
  """Makes a checkout of some files of the project, all committed."""
  if shutil.which("git") is None:
    pytest.skip("needs git")

  def make(*names: str) -> pathlib.Path:
    root = tmp_path / "checkout"
    for name in ("launch", *names):
      source = repository / name
      if source.is_dir():
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, root / name, ignore=ignored)
      else:
        shutil.copy(source, root / name)
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "a"]):
      subprocess.run([*_GIT, *command], cwd=root, check=True)
    return root

  return make
