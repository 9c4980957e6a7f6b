"""What the wheel holds, and what the package says about itself."""

from __future__ import annotations

import pathlib
import re
import tomllib

import pytest
import setuptools

import mico_jax
from mico_jax import config


@pytest.fixture(scope="module")
def project(repository):
  return tomllib.loads((repository / "pyproject.toml").read_text())


def test_every_package_is_listed(project, repository):
  listed = set(project["tool"]["setuptools"]["packages"])
  found = {
    "mico_jax",
    *(
      f"mico_jax.{x}" for x in setuptools.find_packages(repository / "mico_jax")
    ),
  }
  configs = repository / "configs"
  if configs.is_dir():
    folders = {p.parent.relative_to(configs) for p in configs.rglob("*.py")}
    found |= {".".join(("mico_jax", "configs", *f.parts)) for f in folders}
  assert found == listed, "fix [tool.setuptools] packages in pyproject.toml"


def test_every_folder_with_code_is_a_package(repository):
  missing = {
    str(p.parent.relative_to(repository))
    for p in (repository / "mico_jax").rglob("*.py")
    if not (p.parent / "__init__.py").is_file()
  }
  assert not missing, f"no __init__.py in {sorted(missing)}"


def test_data_files_are_packaged(project, repository):
  patterns = project["tool"]["setuptools"]["package-data"]
  package = repository / "mico_jax"
  packaged: set[pathlib.Path] = set()
  for name, globs in patterns.items():
    folder = package.joinpath(*name.split(".")[1:])
    for pattern in globs:
      packaged |= set(folder.glob(pattern))
  present = {
    p
    for p in package.rglob("*")
    if p.is_file()
    and p.suffix not in (".py", ".pyc", ".md")
    and "__pycache__" not in p.parts
  }
  assert present <= packaged, sorted(map(str, present - packaged))


def test_packaged_weights_stay_small(repository):
  sizes = {
    path.name: path.stat().st_size
    for path in (repository / "mico_jax" / "pretrained").glob("*.zip")
  }
  assert sizes.keys() == {f"{name}.zip" for name in mico_jax.list_pretrained()}
  assert sum(sizes.values()) < 3 * 2**20


def test_configs_are_found():
  folders = config.config_dirs()
  if not folders:
    pytest.skip("no configs yet")
  assert any((f / "demo.py").is_file() for f in folders)


def test_version_is_a_version():
  assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", mico_jax.__version__)


def test_changelog_and_citation_name_the_version(repository):
  version = mico_jax.__version__
  assert version in (repository / "CHANGELOG.md").read_text()
  citation = (repository / "CITATION.cff").read_text()
  assert f"version: {version}" in citation
  for reference in ("2406.09412", "2305.18500", "EVA", "BERT"):
    assert reference in citation


def test_constraints_satisfy_the_project(project, repository):
  packaging = pytest.importorskip("packaging.requirements")
  pins = {}
  for line in (repository / "launch/constraints.txt").read_text().splitlines():
    text = line.partition("#")[0].strip()
    if text:
      requirement = packaging.Requirement(text)
      pins[requirement.name.lower().replace("_", "-")] = next(
        iter(requirement.specifier)
      ).version
  # What the launchers install.
  extras = project["project"]["optional-dependencies"]
  for text in (*project["project"]["dependencies"], *extras["gcs"]):
    requirement = packaging.Requirement(text)
    name = requirement.name.lower().replace("_", "-")
    assert name in pins, f"launch/constraints.txt lacks {name}"
    assert requirement.specifier.contains(pins[name]), text


def test_torch_and_tensorflow_are_not_required(project):
  required = " ".join(project["project"]["dependencies"])
  assert "torch" not in required
  assert not re.search(r"tensorflow(?!-datasets)", required)
