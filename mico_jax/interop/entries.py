"""Where another world's file holds each of our parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence


@dataclasses.dataclass(frozen=True)
class Entry:
  """One of our parameters and where a released file holds it.

  Attributes:
    path: of our parameter.
    names: released names whose tensors are packed side by side; `{i}` is the
      layer.
    kind: "linear" (transposed), "conv" (flattened) or "same".
    lead: leading axes of length one in the released tensor.
    layers: number of stacked layers; 0: not stacked.
  """

  path: tuple[str, ...]
  names: tuple[str, ...]
  kind: str = "same"
  lead: int = 0
  layers: int = 0


def linear(
  path: Sequence[str], names: Sequence[str], layers: int = 0, bias: bool = True
) -> Iterator[Entry]:
  """A linear layer; the outputs of several names are packed side by side."""
  weights = tuple(f"{n}.weight" for n in names)
  yield Entry((*path, "kernel"), weights, "linear", layers=layers)
  if bias:
    biases = tuple(f"{n}.bias" for n in names)
    yield Entry((*path, "bias"), biases, layers=layers)


def layer_norm(
  path: Sequence[str], name: str, layers: int = 0
) -> Iterator[Entry]:
  """A LayerNorm."""
  yield Entry((*path, "scale"), (f"{name}.weight",), layers=layers)
  yield Entry((*path, "bias"), (f"{name}.bias",), layers=layers)
