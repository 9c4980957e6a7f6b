"""Writes the API reference from docstrings, as HTML pages.

Needs the extra `docs`:

    python -m mico_jax.docs.api site/

There is a page per module, and a search over all pages. A client of a public
harness (`mico_jax.harnesses`) has a page where that harness is installed.
"""

from __future__ import annotations

import argparse
import importlib
import pathlib
import pkgutil
import warnings

import mico_jax

# Modules that need PyTorch or a command line.
LEFT_OUT = ("mico_jax.interop.torch_template", "mico_jax.__main__")


def modules() -> list[str]:
  """Dotted names of the package and its modules."""
  walked = pkgutil.walk_packages(mico_jax.__path__, "mico_jax.")
  names = [module.name for module in walked]
  return ["mico_jax", *(n for n in names if not n.startswith(LEFT_OUT))]


def without_harness(names: list[str]) -> dict[str, str]:
  """Modules of public harnesses that are not installed, and why not."""
  missing = {}
  for name in names:
    if name.startswith("mico_jax.harnesses."):
      try:
        importlib.import_module(name)
      except ImportError as error:
        missing[name] = str(error)
  return missing


def write(folder: pathlib.Path) -> int:
  """Writes the pages; returns their number.

  Args:
    folder: for the pages; created if it does not exist.

  Raises:
    RuntimeError: for a module that cannot be documented.
  """
  import pdoc
  import pdoc.render

  pdoc.render.configure(docformat="google", show_source=False)
  names = modules()
  missing = without_harness(names)
  for name, why in missing.items():
    print(f"no page for {name}: {why}")
  names = [name for name in names if name not in missing]
  # A package's name brings its modules; "!" leaves one out.
  left_out = [f"!{name}" for name in (*LEFT_OUT, *missing)]
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pdoc.pdoc(*names, *left_out, output_directory=folder)
  pages = list(folder.rglob("*.html"))
  if len(pages) <= len(names):  # there is also an index
    raise RuntimeError(f"{len(pages)} pages for {len(names)} modules.")
  return len(pages)


def main() -> None:
  """Writes the pages into the folder of the command line."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("folder", type=pathlib.Path, help="for the pages")
  folder = parser.parse_args().folder
  print(f"{write(folder)} pages in {folder}")


if __name__ == "__main__":
  main()
