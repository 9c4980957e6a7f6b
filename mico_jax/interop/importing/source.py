"""Foreign weights as the readers of each format return them."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from mico_jax.config import Config
from mico_jax.data.tokenizer import Tokenizer
from mico_jax.interop.files.tensors import Tensors


@runtime_checkable
class Words(Protocol):
  """What a tokenizer is made of."""

  def tokenizer(self) -> Tokenizer:
    """The tokenizer; a ValueError where it cannot be made."""
    ...


@dataclass(frozen=True)
class ForeignWeights:
  """Foreign weights, named but not yet read.

  Attributes:
    file: of the weights.
    tensors: by the names of the weight map.
    config: of the resulting checkpoint; its model may have parts that the
      weights lack.
    parts: top keys of the parameters that the weights hold; empty: all.
    ignored: regex of names without a parameter -> why.
    optional: regexes of paths that the weights may lack.
    ties: name of a tied copy -> name of its original.
    vocabulary: of the text tower, if one is beside the weights.
    hint: what to do about weights that do not fit.
    positions: interpolation of a position table of another size.
    notes: one line each.
    guesses: path of a config field, such as "model.vision.num_heads" -> the
      assumption made, as no file states it; reported unless the user sets the
      field.
  """

  file: pathlib.Path
  tensors: Tensors
  config: Config
  parts: tuple[str, ...] = ()
  ignored: Mapping[str, str] = field(default_factory=dict)
  optional: tuple[str, ...] = ()
  ties: Mapping[str, str] = field(default_factory=dict)
  vocabulary: Words | None = None
  hint: str = ""
  positions: str = "bilinear"
  notes: tuple[str, ...] = ()
  guesses: Mapping[str, str] = field(default_factory=dict)

  def holds(self, part: str) -> bool:
    """Whether the weights hold parameters of a top key."""
    return not self.parts or part in self.parts
