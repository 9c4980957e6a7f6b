"""Files of a sweep: sweep.json, sweep.txt and sweep.png."""

from __future__ import annotations

from mico_jax import files, json_text
from mico_jax.run.sweep.picture import draw
from mico_jax.run.sweep.results import Found
from mico_jax.run.sweep.table import of_panels


def write(found: Found, root: str) -> None:
  """Writes all values, the tables and the picture.

  Args:
    found: what the runs show.
    root: folder of the sweep.
  """
  folder = files.place(root)
  files.write_text(
    folder / "sweep.json", json_text.dumps(found.as_dict(), indent=1) + "\n"
  )
  files.write_text(folder / "sweep.txt", of_panels(found) + "\n")
  if found.panels:
    files.write_bytes(folder / "sweep.png", draw(found))
