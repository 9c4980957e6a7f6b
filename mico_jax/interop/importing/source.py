"""What a reader of foreign weights finds: tensors, a config, a table."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from mico_jax.config import Config
from mico_jax.interop.files.tensors import Tensors
from mico_jax.interop.importing.vocabulary import TEXT, Vocabulary, find, read


@dataclass(frozen=True)
class ForeignWeights:
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
    vocabulary: of the text tower, found beside the weights.
    hint: what to do about weights that do not fit.
    positions: how a position table of another size is resized.
    notes: one line each.
    guesses: path of a config field, "model.vision.num_heads" -> what was taken
      because no file tells it; said aloud unless the field is given.
  """

  file: pathlib.Path
  tensors: Tensors
  config: Config
  parts: tuple[str, ...] = ()
  ignored: Mapping[str, str] = field(default_factory=dict)
  optional: tuple[str, ...] = ()
  ties: Mapping[str, str] = field(default_factory=dict)
  vocabulary: Vocabulary | None = None
  hint: str = ""
  positions: str = "bilinear"
  notes: tuple[str, ...] = ()
  guesses: Mapping[str, str] = field(default_factory=dict)

  def holds(self, part: str) -> bool:
    """Whether the weights hold parameters of a top key."""
    return not self.parts or part in self.parts


def find_vocabulary(
  folder: pathlib.Path, *, text: bool = False
) -> Vocabulary | None:
  """The vocabulary that lies in a folder, if any.

  Args:
    folder: of the weights.
    text: whether they hold a text tower, whose tokenizer it must be; beside an
      encoder alone only a vocab.txt counts.

  Raises:
    WeightsError: if it is of another tokenizer than BERT's.
  """
  if text:
    return find(folder)
  return read(folder / TEXT) if (folder / TEXT).is_file() else None
