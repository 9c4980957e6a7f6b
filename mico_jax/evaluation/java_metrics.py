"""METEOR and SPICE of captions, by the Java programs in pycocoevalcap.

Both need the package `pycocoevalcap` (extra `captions`) and a Java runtime;
SPICE also the CoreNLP 3.6.0 models, which the package fetches with `python -m
pycocoevalcap.spice.get_stanford_models` and nothing here does. Where something
is missing, `Unavailable` says what.

Open point: SPICE has not been run here, as its models were not at hand.
"""

from __future__ import annotations

import importlib.util
import pathlib
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

from mico_jax import extras

_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


class Unavailable(Exception):
  """A program that cannot be run here; the text says why and what to do."""


def _folder() -> pathlib.Path:
  """Of the package.

  Raises:
    Unavailable: without the package or a Java runtime.
  """
  spec = importlib.util.find_spec("pycocoevalcap")
  if spec is None or not spec.submodule_search_locations:
    raise Unavailable(
      f"pycocoevalcap is not installed: {extras.install('captions')}."
    )
  if shutil.which("java") is None:
    raise Unavailable("no Java runtime: `java` is not on the PATH.")
  return pathlib.Path(next(iter(spec.submodule_search_locations)))


def _sets(
  candidates: Sequence[Sequence[str]],
  references: Sequence[Sequence[Sequence[str]]],
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
  """References and candidates as the package takes them."""
  given = {
    i: [" ".join(text) for text in texts] for i, texts in enumerate(references)
  }
  return given, {i: [" ".join(text)] for i, text in enumerate(candidates)}


def meteor(
  candidates: Sequence[Sequence[str]],
  references: Sequence[Sequence[Sequence[str]]],
) -> float:
  """METEOR 1.5 of a set of tokenised captions, in [0, 1].

  Args:
    candidates: tokens of one caption per item.
    references: tokens of one or more captions per item.

  Raises:
    Unavailable: if it cannot be run here.
  """
  _folder()
  from pycocoevalcap.meteor.meteor import Meteor

  scorer: Any = Meteor()
  try:
    return float(scorer.compute_score(*_sets(candidates, references))[0])
  except (
    ValueError,
    OSError,
    subprocess.SubprocessError,
  ) as error:  # the program ended
    raise Unavailable(f"METEOR's program failed: {error}") from None
  finally:
    program = scorer.meteor_p
    program.kill()
    program.wait()
    for pipe in (program.stdin, program.stdout, program.stderr):
      pipe.close()


def spice(
  candidates: Sequence[Sequence[str]],
  references: Sequence[Sequence[Sequence[str]]],
) -> float:
  """SPICE 1.0 of a set of tokenised captions, in [0, 1].

  Args:
    candidates: tokens of one caption per item.
    references: tokens of one or more captions per item.

  Raises:
    Unavailable: if it cannot be run here.
  """
  library = _folder() / "spice" / "lib"
  if not all((library / name).exists() for name in _MODELS):
    raise Unavailable(
      f"the models of CoreNLP 3.6.0 are not in {library}: python -m "
      "pycocoevalcap.spice.get_stanford_models fetches them."
    )
  from pycocoevalcap.spice.spice import Spice

  try:
    return float(Spice().compute_score(*_sets(candidates, references))[0])
  except (ValueError, OSError, subprocess.SubprocessError) as error:
    raise Unavailable(f"SPICE's program failed: {error}") from None


PROGRAMS = {"METEOR (Java)": meteor, "SPICE (Java)": spice}
