"""The door of the token cross-entropy: one signature, several backends.

Only the plain `xla` form exists so far. A form that never holds the logits of
the whole vocabulary is one more entry of the table.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

from jaxtyping import Array, Bool, Float, Int

from mico_jax.kernels.cross_entropy import xla

IGNORE = -100  # label of a position that is not scored

BACKENDS: dict[str, Callable[..., tuple[Array, Array]]] = {"xla": xla.loss}


@functools.cache
def _log_choice(backend: str) -> None:
  logging.getLogger(__name__).info("token cross-entropy: backend %s", backend)


def token_cross_entropy(
  logits: Float[Array, "*B V"],
  labels: Int[Array, "*B"],
  *,
  label_smoothing: float = 0.0,
  backend: str = "auto",
) -> tuple[Float[Array, "*B"], Bool[Array, "*B"]]:
  """Cross-entropy of each labelled position.

  Args:
    logits: unnormalised; any float type, computed in at least float32.
    labels: ids in [0, V), or `IGNORE` where nothing is scored.
    label_smoothing: mass moved from the label to the whole vocabulary.
    backend: "auto" or a key of `BACKENDS`.

  Returns:
    (loss in nats, 0 where ignored; whether the best id is the label, false
    where ignored).

  Raises:
    ValueError: if the shapes do not fit or the backend is unknown.
  """
  if logits.shape[:-1] != labels.shape:
    raise ValueError(
      f"{logits.shape=} must be {labels.shape=} followed by the vocabulary."
    )
  if not 0 <= label_smoothing < 1:
    raise ValueError(f"{label_smoothing=} must lie in [0, 1).")
  name = "xla" if backend == "auto" else backend
  if name not in BACKENDS:
    raise ValueError(
      f"unknown cross-entropy {backend=}; known: auto, {', '.join(BACKENDS)}."
    )
  _log_choice(name)
  return BACKENDS[name](
    logits, labels, label_smoothing=label_smoothing, ignore=IGNORE
  )
