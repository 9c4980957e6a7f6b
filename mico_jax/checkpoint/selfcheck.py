"""The self-check: stored inputs and the outputs they must give.

The arrays are stored in one .npz file: `input/...` are raw samples (frames,
waveforms, text), `output/...` the model's outputs in float32 on CPU. This
module compares; `mico_jax.inference.self_check` computes.

Between CPUs and library versions, unit-norm float32 embeddings differ by about
1e-6. A changed LayerNorm epsilon, GELU, normalisation or antialiasing moves
them by at least 1e-4 on one of the inputs (the near-constant one for epsilon,
the off-size one for resizing).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8

INPUT = "input/"
OUTPUT = "output/"
TOLERANCE = 2e-5  # absolute, on unit-norm embeddings and probabilities


def inputs(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The raw inputs by name."""
  return {
    name.removeprefix(INPUT): value
    for name, value in arrays.items()
    if name.startswith(INPUT)
  }


def text_array(text: str) -> UInt8[np.ndarray, " N"]:
  """A text as an array of UTF-8 bytes."""
  return np.frombuffer(text.encode(), np.uint8)


def array_text(array: UInt8[np.ndarray, " N"]) -> str:
  """The inverse of `text_array`."""
  return array.astype(np.uint8).tobytes().decode()


def compare(
  stored: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
) -> list[str]:
  """Compares outputs with the stored ones.

  Args:
    stored: arrays of the checkpoint; only `output/` entries are compared.
    outputs: the same names, computed now. Floating-point outputs may differ by
      `TOLERANCE`; integers (token ids) must be equal.

  Returns:
    One line per output that differs, the largest difference first.
  """
  problems: list[tuple[float, str]] = []
  for name, want in stored.items():
    if not name.startswith(OUTPUT):
      continue
    label, got = name.removeprefix(OUTPUT), outputs.get(name)
    worst = np.inf
    if got is None:
      problem = "could not be computed."
    elif got.shape != want.shape:
      problem = f"has shape {list(got.shape)}, stored {list(want.shape)}."
    elif want.dtype.kind in "iu":
      if np.array_equal(got, want):
        continue
      problem = "gives other token ids than stored."
    else:
      worst = float(np.max(np.abs(got.astype("f8") - want.astype("f8"))))
      if worst <= TOLERANCE:
        continue
      problem = (
        f"differs from the stored output by {worst:.2g} "
        f"(limit {TOLERANCE:.0e})."
      )
    problems.append((worst, f"self-check: {label} {problem}"))
  problems.sort(key=lambda pair: -pair[0])
  return [text for _, text in problems]
