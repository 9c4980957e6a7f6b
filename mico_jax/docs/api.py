"""Writes the API reference from docstrings, as HTML pages.

    pip install 'mico-jax[docs]'
    python -m mico_jax.docs.api site/

There is a page per module, and a search over all pages.
"""

from __future__ import annotations

import argparse
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
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pdoc.pdoc(*names, output_directory=folder)
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
