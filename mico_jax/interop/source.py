"""What a reader of foreign weights finds: tensors, a config, a table."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from mico_jax.config import Config
from mico_jax.interop.tensors import Tensors

VOCABULARY = "vocab.txt"


@dataclass(frozen=True)
class Source:
  """Foreign weights, named but not yet read.

  Attributes:
    file: where they come from.
    tensors: by the names of the table.
    config: of the run that they become; its model may hold parts that the
      weights lack.
    parts: top keys of the parameters that the weights hold; empty: all.
    ignored: regex of names without a parameter -> why.
    optional: regexes of paths that the weights may lack.
    ties: name of a tied copy -> name of its original.
    vocabulary: vocab.txt found beside the weights.
    hint: what to do about weights that do not fit.
    positions: how a position table of another size is resized.
    notes: one line each.
  """

  file: pathlib.Path
  tensors: Tensors
  config: Config
  parts: tuple[str, ...] = ()
  ignored: Mapping[str, str] = field(default_factory=dict)
  optional: tuple[str, ...] = ()
  ties: Mapping[str, str] = field(default_factory=dict)
  vocabulary: pathlib.Path | None = None
  hint: str = ""
  positions: str = "bilinear"
  notes: tuple[str, ...] = ()

  def holds(self, part: str) -> bool:
    """Whether the weights hold parameters of a top key."""
    return not self.parts or part in self.parts


def find_vocabulary(folder: pathlib.Path) -> pathlib.Path | None:
  """The vocabulary that lies in a folder, if any."""
  path = folder / VOCABULARY
  return path if path.is_file() else None
